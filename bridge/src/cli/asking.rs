//! `status`, `outcome` and `drain`: short questions to a daemon.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use crate::cli::control::{ControlOptions, SOON, failure, id};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{as_value, print, print_json};
use crate::daemon::{Drained, StatusShown};

/// A daemon that waits for callbacks under way ends by itself before this.
const DRAINING: Duration = Duration::from_secs(600);

/// Arguments of `status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArguments {
    /// End with code 1 where the daemon is not ready, for health checks without an HTTP client
    #[arg(long)]
    ready: bool,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// Arguments of `outcome`.
#[derive(Args, Debug)]
pub(crate) struct OutcomeArguments {
    /// The request id of an answer, or `key:` and the caller's Idempotency-Key
    #[arg(value_name = "ID")]
    id: String,

    /// Only in this session; needed for `key:`
    #[arg(long, value_name = "ID", value_parser = id)]
    session: Option<Uuid>,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// Arguments of `drain`.
#[derive(Args, Debug)]
pub(crate) struct DrainArguments {
    /// Return once every session is closed
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// Shows the daemon as a whole.
///
/// # Errors
///
/// Code 4 where no daemon answers; 1 where it had to be ready and is not.
pub(crate) async fn status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let client = arguments.daemon.client()?;
    let shown: StatusShown = client.get("/v1/status", SOON).await.map_err(failure)?;
    if arguments.daemon.json {
        print_json(&as_value(&shown)?)?;
        return arguments.judged(&shown);
    }
    let mut text = format!(
        "version {}, process {}, since {}{}\n",
        shown.version,
        shown.pid,
        shown.started_at,
        if shown.draining { ", ending" } else { "" }
    );
    for (state, sessions) in &shown.sessions {
        // A `String` takes every write.
        let _ = writeln!(text, "{sessions:>6} sessions {state}");
    }
    let _ = writeln!(
        text,
        "{:>6} callbacks, {} denied, {} denied and let through, {} with an open outcome, {} tokens on the wrong channel",
        shown.callbacks, shown.denied, shown.reported, shown.open_outcomes, shown.wrong_channel
    );
    for (check, fault) in &shown.faults {
        let _ = writeln!(text, "not ready: {check}: {fault}");
    }
    print(&text)?;
    arguments.judged(&shown)
}

impl StatusArguments {
    fn judged(&self, shown: &StatusShown) -> Result<Exit, Failure> {
        if !self.ready || shown.faults.is_empty() {
            return Ok(Exit::Ok);
        }
        let faults: Vec<_> = shown.faults.keys().map(String::as_str).collect();
        let why = format!("the daemon is not ready: {}", faults.join(", "));
        Err(Failure::new(Exit::Failed, why))
    }
}

/// Says what became of a callback.
///
/// # Errors
///
/// Code 1 where nothing is known of it, 2 for what is no name of a callback, 4 where no daemon answers.
pub(crate) async fn outcome(arguments: &OutcomeArguments) -> Result<Exit, Failure> {
    match arguments.id.strip_prefix("key:") {
        Some(_) if arguments.session.is_none() => {
            return Err(Failure::new(
                Exit::Usage,
                "callers of two sessions may have used one Idempotency-Key",
            )
            .hint("name the session with --session ID"));
        }
        None if id(&arguments.id).is_err() => {
            return Err(Failure::new(
                Exit::Usage,
                "that is neither a request id nor key: and an Idempotency-Key",
            )
            .hint(
                "give what the answer has in x-paperclip-bridge-request-id, or key:KEY with --session ID",
            ));
        }
        Some(_) | None => {}
    }
    let session = arguments
        .session
        .map(|session| format!("?session={session}"))
        .unwrap_or_default();
    let target = format!("/v1/outcomes/{}{session}", percent_encoded(&arguments.id));
    let client = arguments.daemon.client()?;
    let told: Value = client.get(&target, SOON).await.map_err(failure)?;
    if arguments.daemon.json {
        print_json(&told)?;
        return Ok(Exit::Ok);
    }
    let fields = told.as_object().into_iter().flatten();
    let text = fields.map(|(name, value)| match value {
        Value::String(text) => format!("{name:<12}{text}\n"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            format!("{name:<12}{value}\n")
        }
    });
    print(&text.collect::<String>())?;
    Ok(Exit::Ok)
}

/// Has the daemon end in order.
///
/// # Errors
///
/// Code 4 where no daemon answers.
pub(crate) async fn drain(arguments: &DrainArguments) -> Result<Exit, Failure> {
    let (target, limit) = if arguments.wait {
        ("/v1/drain?wait=true", DRAINING)
    } else {
        ("/v1/drain", SOON)
    };
    let client = arguments.daemon.client()?;
    let drained: Drained = client.post(target, None::<&()>, limit).await.map_err(failure)?;
    if arguments.daemon.json {
        print_json(&as_value(&drained)?)?;
    } else {
        print(&format!("ending; {} sessions are not closed yet\n", drained.left))?;
    }
    Ok(Exit::Ok)
}

/// Whatever is not plain in a path is written by its number.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_characters_is_one_part_of_a_path() {
        assert_eq!(percent_encoded("key:a-1"), "key:a-1");
        assert_eq!(percent_encoded("key:a/b ?é"), "key:a%2Fb%20%3F%C3%A9");
    }
}
