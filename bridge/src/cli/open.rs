//! `paperclip-bridge open TARGET`: a session without a command; something else starts the agent.
//!
//! Here: how the environment is printed and what ends the session. Not here: how it is opened (`opening.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;

use crate::app::{App, OpenSession};
use crate::cli::exit::{Exit, Failure};
use crate::cli::opening;
use crate::cli::options::SessionOptions;
use crate::cli::signals::Signals;
use crate::cli::stdio::{Stdin, as_value, print, print_json};
use crate::daemon::Opened;

/// Arguments of `open`.
#[derive(Args, Debug)]
pub(crate) struct OpenArguments {
    #[command(flatten)]
    options: Box<SessionOptions>,

    /// End when standard input is closed, as well as on SIGTERM or Ctrl-C
    #[arg(long)]
    until_stdin_closes: bool,

    /// One line of JSON instead of shell `export` lines
    #[arg(long)]
    json: bool,
}

/// Opens the session, says how to use it, and serves until it is told to end.
///
/// # Errors
///
/// Codes 1 to 4 while opening; 1 if the tunnel ended by itself or something may be left on the target.
pub(crate) async fn open(app: &App, arguments: OpenArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let session = opening::open(app, &arguments.options, opening::Resume::Yes, &mut signals).await?;
    let served = serve(&session, &arguments, &mut signals).await;
    let closed = opening::close(session).await;
    served.and(closed).map(|()| Exit::Ok)
}

async fn serve(
    session: &OpenSession,
    arguments: &OpenArguments,
    signals: &mut Signals,
) -> Result<(), Failure> {
    if arguments.json {
        // The token goes out here and in `exports`, to whoever asked for the session, and nowhere else.
        print_json(&as_value(&Opened::of(session))?)?
    } else {
        print(&exports(&session.environment()))?
    }
    let stdin_closes = async {
        if !arguments.until_stdin_closes {
            return std::future::pending().await;
        }
        match Stdin::read() {
            Ok(mut stdin) => stdin.closed().await,
            Err(error) => tracing::error!(%error, "cannot read standard input, so the session ends"),
        }
    };
    tokio::select! {
        ending = signals.next() => {
            tracing::info!(signal = ending.number(), "ending the session");
            Ok(())
        }
        () = stdin_closes => {
            tracing::info!("standard input was closed; ending the session");
            Ok(())
        }
        why = session.lease_lost() => {
            Err(Failure::new(Exit::Failed, format!("the lease is lost (lease_lost): {why}")))
        }
        () = opening::watch(session.tunnel, session.status.clone()) => {
            Err(Failure::new(Exit::Failed, "the tunnel ended by itself; the log above says why"))
        }
    }
}

/// Lines for a POSIX shell to `eval`.
pub(super) fn exports(environment: &BTreeMap<String, String>) -> String {
    let mut lines = String::new();
    for (name, value) in environment {
        // A `String` takes every write.
        let _ = writeln!(lines, "export {name}={}", quoted(value));
    }
    lines
}

/// One word of a POSIX shell, whatever is inside.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_exported() {
        let hostile = "a'b\"c $(touch x) `y` \\ ; \n é";
        let lines = exports(&BTreeMap::from([(
            "PAPERCLIP_API_URL".to_owned(),
            hostile.to_owned(),
        )]));

        let output = std::process::Command::new("sh")
            .args(["-c", &format!("{lines}printf %s \"$PAPERCLIP_API_URL\"")])
            .output()
            .unwrap();

        assert_eq!(String::from_utf8(output.stdout).unwrap(), hostile);
    }
}
