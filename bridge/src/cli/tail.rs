//! `paperclip-bridge tail`: what happens in a daemon, as it happens.
//!
//! The event stream is read line by line; a line longer than any of ours ends it.

use clap::Args;
use http_body_util::BodyExt as _;
use serde_json::Value;
use uuid::Uuid;

use crate::cli::control::{ControlOptions, failure, id};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::run_id;
use crate::cli::signals::Signals;
use crate::cli::stdio::print;

/// A longer line is none of a daemon's.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Arguments of `tail`.
#[derive(Args, Debug)]
pub(crate) struct TailArguments {
    /// Only of this run; visible ASCII
    #[arg(long, value_name = "ID", value_parser = run_id)]
    run: Option<String>,

    /// Only of this session
    #[arg(long, value_name = "ID", value_parser = id)]
    session: Option<Uuid>,

    /// Only callbacks that were denied, and tokens on the wrong channel
    #[arg(long)]
    denied: bool,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// Prints events until it is told to end, or the daemon does.
///
/// # Errors
///
/// Code 4 where no daemon answers.
pub(crate) async fn tail(arguments: &TailArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let client = arguments.daemon.client()?;
    let mut body = client.listen(&arguments.target()).await.map_err(failure)?;
    let mut line = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = signals.next() => return Ok(Exit::Ok),
        };
        let Some(Ok(frame)) = frame else {
            return Ok(Exit::Ok);
        };
        for byte in frame.into_data().unwrap_or_default() {
            if byte == b'\n' {
                arguments.show(&line)?;
                line.clear();
            } else if line.len() < MAX_LINE_BYTES {
                line.push(byte);
            } else {
                return Err(Failure::new(
                    Exit::Failed,
                    "the daemon sent a line longer than 1 MiB",
                ));
            }
        }
    }
}

impl TailArguments {
    fn target(&self) -> String {
        let run = self.run.as_deref().map(|run| {
            let run: String = run.bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("run={run}")
        });
        let session = self.session.map(|session| format!("session={session}"));
        let denied = self.denied.then(|| "denied=true".to_owned());
        let query: Vec<_> = run.into_iter().chain(session).chain(denied).collect();
        format!("/v1/events?{}", query.join("&"))
    }

    fn show(&self, line: &[u8]) -> Result<(), Failure> {
        let Some(data) = line.strip_prefix(b"data: ") else {
            return Ok(());
        };
        let data = String::from_utf8_lossy(data);
        if self.daemon.json {
            return print(&format!("{data}\n"));
        }
        match serde_json::from_str(&data) {
            Ok(event) => print(&in_words(&event)),
            Err(error) => {
                Err(Failure::new(Exit::Failed, "the daemon sent an event that is no JSON").because(error))
            }
        }
    }
}

/// One event on one line.
fn in_words(event: &Value) -> String {
    let text = |name: &str| {
        let value = event.get(name).and_then(Value::as_str).unwrap_or_default();
        // A path may hold anything that a caller sent.
        value.escape_debug().to_string()
    };
    let number = |name: &str| event.get(name).and_then(Value::as_u64).unwrap_or_default();
    match text("event").as_str() {
        "callback" => format!(
            "{} {:<5} {} {} {} {} {} us  run {}\n",
            text("at"),
            text("verdict"),
            number("status"),
            text("method"),
            text("path"),
            text("code"),
            number("duration_us"),
            text("run_id")
        ),
        "session" => format!(
            "{} session {} {} {} {}  run {}\n",
            text("at"),
            text("session"),
            text("state"),
            text("reason"),
            text("detail"),
            text("run_id")
        ),
        "missed" => format!("{} events were missed\n", number("missed")),
        _ => format!("{event}\n"),
    }
}
