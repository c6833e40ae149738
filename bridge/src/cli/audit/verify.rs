//! `audit verify`: whether an audit is as it was written.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::{KeyOption, Place, unusable};
use crate::audit::{self, Anchor, Finding, Report};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};

/// Arguments of `audit verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArguments {
    /// A record that must be in it: SEQ:HASH, or a file that holds what `audit head --json` printed
    #[arg(long, value_name = "ANCHOR")]
    expect_head: Option<String>,

    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    key: KeyOption,

    /// A JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Reads the whole audit and says what is wrong in it.
///
/// # Errors
///
/// Code 3 where it, its key or the anchor cannot be read.
pub(super) async fn verify(arguments: &VerifyArguments) -> Result<Exit, Failure> {
    let folder = arguments.place.folder()?;
    let key = arguments.key.key(&folder).await?;
    let anchor = match &arguments.expect_head {
        Some(text) => Some(anchor(text)?),
        None => None,
    };
    let report = audit::verify(&folder, &key, anchor.as_ref()).map_err(unusable)?;
    if arguments.json {
        print_json(&as_json(&report))?;
    } else {
        print(&as_text(&report))?;
    }
    Ok(if report.is_clean() { Exit::Ok } else { Exit::Failed })
}

fn anchor(text: &str) -> Result<Anchor, Failure> {
    if let Some(anchor) = Anchor::parse(text) {
        return Ok(anchor);
    }
    let wrong = || {
        Failure::new(
            Exit::Configuration,
            "--expect-head is neither SEQ:HASH nor a file that holds what `audit head --json` printed",
        )
    };
    let held = std::fs::read_to_string(text).map_err(|error| wrong().because(error))?;
    Anchor::parse(&held).ok_or_else(wrong)
}

fn as_json(report: &Report) -> Value {
    let mut value = json!(report);
    if let Some(object) = value.as_object_mut() {
        object.insert("ok".into(), report.is_clean().into());
    }
    value
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    // A `String` takes every write.
    let _ = writeln!(
        text,
        "{}: {} records in {} segments, {} to {}, signed up to {}",
        if report.is_clean() {
            "ok"
        } else {
            "not as it was written"
        },
        report.records,
        report.segments,
        report.first_seq,
        report.last_seq,
        report.sealed_seq
    );
    for finding in &report.findings {
        let _ = writeln!(text, "  {}{}: {}", finding.kind, place(finding), finding.what);
    }
    if report.more_findings > 0 {
        let _ = writeln!(text, "  and {} more", report.more_findings);
    }
    for warning in &report.warnings {
        let segment = warning
            .segment
            .map_or_else(String::new, |segment| format!(" segment {segment}"));
        let _ = writeln!(text, "  warning {}{segment}: {}", warning.kind, warning.what);
    }
    text
}

fn place(finding: &Finding) -> String {
    let mut place = String::new();
    for (name, number) in [
        ("segment", finding.segment),
        ("line", finding.line),
        ("record", finding.seq),
    ] {
        if let Some(number) = number {
            let _ = write!(place, " {name} {number}");
        }
    }
    place
}
