//! `paperclip-bridge audit`: whether an audit is as it was written, and what stands in it.
//!
//! Here: the commands and what they share: where the audit is and what signs it. Each reads the files of a state folder,
//! so a daemon may be running or not. Not here: the audit itself (`crate::audit`).

mod verify;
mod head;
mod query;
mod tail;
mod export;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use uuid::Uuid;

use crate::audit::query::{Entry, Filter, Record, text};
use crate::audit::{AuditError, AuditKey, AuditSettings};
use crate::cli::control::id;
use crate::cli::exit::{Exit, Failure};
use crate::config;
use crate::secrets::{SecretRef, Secrets};
use crate::telemetry::escape::escape_into;

/// What can be done with an audit.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Find whatever was changed; ends with 1 if something was
    Verify(verify::VerifyArguments),
    /// Print callbacks, each with its outcome
    Query(query::QueryArguments),
    /// Print the newest records, and go on as they are written
    Tail(tail::TailArguments),
    /// Print the whole audit for other programs
    Export(export::ExportArguments),
    /// Print the newest signed record: an anchor to keep elsewhere, for verify --expect-head
    Head(head::HeadArguments),
}

/// Carries out one of them.
///
/// # Errors
///
/// Code 3 for an audit or a key that cannot be read; 1 where standard output cannot be written.
pub(crate) async fn run(command: AuditCommand) -> Result<Exit, Failure> {
    match command {
        AuditCommand::Verify(arguments) => verify::verify(&arguments).await,
        AuditCommand::Query(arguments) => query::query(&arguments),
        AuditCommand::Tail(arguments) => tail::tail(&arguments).await,
        AuditCommand::Export(arguments) => export::export(&arguments),
        AuditCommand::Head(arguments) => head::head(&arguments).await,
    }
}

/// Which audit.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The state folder of the daemon [default: $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What signs it.
#[derive(Args, Debug)]
pub(crate) struct KeyOption {
    /// Where the key is found, such as cred:NAME or file:PATH [default: the key in the audit's folder]
    #[arg(long, value_name = "REF")]
    key: Option<SecretRef>,
}

/// Which callbacks.
#[derive(Args, Debug)]
pub(crate) struct FilterOptions {
    /// Only of this session
    #[arg(long, value_name = "ID", value_parser = id)]
    session: Option<Uuid>,
    /// Only of this run
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// Only this callback
    #[arg(long, value_name = "ID", value_parser = id)]
    request_id: Option<Uuid>,
    /// Only at this time or later, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only with this verdict
    #[arg(long, value_parser = ["allow", "report", "deny", "own"], conflicts_with = "denied")]
    verdict: Option<String>,
    /// Only what was denied: the same as --verdict deny
    #[arg(long)]
    denied: bool,
    /// Only with this status
    #[arg(long, value_name = "CODE")]
    status: Option<u16>,
}

/// Reads a moment.
fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        "give a time with its zone, such as 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00".to_owned()
    })
}

impl FilterOptions {
    fn filter(&self) -> Filter {
        Filter {
            session: self.session.map(|session| session.to_string()),
            run: self.run.clone(),
            request_id: self.request_id.map(|request| request.to_string()),
            since: self.since,
            until: self.until,
            verdict: if self.denied {
                Some("deny".to_owned())
            } else {
                self.verdict.clone()
            },
            status: self.status,
        }
    }
}

impl Place {
    /// The folder of the segments, which must be there.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let state = match &self.state_dir {
            Some(state) => state.clone(),
            None => config::state_folder(&config::environment).ok_or_else(|| {
                Failure::new(
                    Exit::Configuration,
                    "there is no state folder: neither XDG_STATE_HOME nor HOME is an absolute path",
                )
                .hint("name one with --state-dir DIR")
            })?,
        };
        let folder = AuditSettings::in_state_folder(&state).folder;
        if !folder.is_dir() {
            return Err(Failure::new(
                Exit::Configuration,
                format!("there is no audit in {}", folder.display()),
            )
            .hint("name the daemon's state folder with --state-dir DIR"));
        }
        Ok(folder)
    }
}

impl KeyOption {
    async fn key(&self, folder: &std::path::Path) -> Result<AuditKey, Failure> {
        let Some(reference) = &self.key else {
            return AuditKey::in_folder(folder).map_err(|error| {
                unusable(error).hint("name the key that the daemon was given with --key REF")
            });
        };
        let secret = Secrets::default().live(reference).get().await.map_err(|error| {
            Failure::new(Exit::Configuration, "the audit's key cannot be read").because(error)
        })?;
        AuditKey::of_secret(&secret).map_err(unusable)
    }
}

fn unusable(error: AuditError) -> Failure {
    Failure::new(Exit::Configuration, "the audit cannot be used").because(error)
}

/// One entry as a line for people.
fn shown(entry: &Entry) -> String {
    let mut line = String::new();
    match entry {
        Entry::Callback { attempt, outcome } => {
            push(&mut line, text(attempt, "at").unwrap_or("-"));
            push(&mut line, text(attempt, "verdict").unwrap_or("-"));
            let status = outcome.as_ref().and_then(|outcome| outcome.get("status"));
            push(
                &mut line,
                &status.map_or_else(|| "-".to_owned(), ToString::to_string),
            );
            push(&mut line, text(attempt, "method").unwrap_or("-"));
            push(&mut line, text(attempt, "path").unwrap_or("-"));
            let keys = ["session", "run", "request_id", "rule", "reason"];
            members(&mut line, attempt, &keys);
            if let Some(outcome) = outcome {
                members(&mut line, outcome, &["code", "broken", "duration_us"]);
            }
        }
        Entry::Event(event) => {
            push(&mut line, text(event, "at").unwrap_or("-"));
            push(&mut line, text(event, "type").unwrap_or("-"));
            let keys = event.keys().map(String::as_str);
            let keys: Vec<_> = keys
                .filter(|key| !["seq", "prev", "at", "type", "mac", "after"].contains(key))
                .collect();
            members(&mut line, event, &keys);
        }
    }
    line.push('\n');
    line
}

fn members(line: &mut String, record: &Record, keys: &[&str]) {
    for key in keys {
        let value = match record.get(*key) {
            None => continue,
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        push(line, &format!("{key}={value}"));
    }
}

/// A word, with nothing in it that drives a terminal.
fn push(line: &mut String, word: &str) {
    if !line.is_empty() {
        line.push(' ');
    }
    escape_into(line, word);
}

/// One entry as a JSON object.
fn as_json(entry: &Entry) -> serde_json::Value {
    match entry {
        Entry::Callback { attempt, outcome } => {
            serde_json::json!({ "attempt": attempt, "outcome": outcome })
        }
        Entry::Event(event) => serde_json::json!({ "event": event }),
    }
}
