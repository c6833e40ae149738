//! Ending a process and all that it started.
//!
//! The server's own signals reach one process only, so the group is ended by a second command.

use std::time::Duration;

use serde_json::json;

use super::connect::Event;
use super::envd::{CALL_LIMIT, Envd};
use super::exec::tag;
use super::follow::Followed;
use crate::shell::{KillOutcome, Scope, StartedProcess, kill_line};
use crate::{Killed, RunnerError};

/// Beyond its own grace a kill command takes no time.
const SLACK: Duration = Duration::from_secs(10);
/// Before each further attempt at a kill that did not get through.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Ends `process` with its group: `TERM`, and `KILL` after `grace`. A kill that does not get through is tried again; what
/// is then not known to have ended is [`Killed::Unconfirmed`]. None where it had ended before.
pub(super) async fn end(envd: &Envd, process: &StartedProcess, grace: Duration) -> Option<Killed> {
    let line = kill_line(process, grace);
    let mut pauses = PAUSES.iter();
    let mut tried_before = false;
    let why = loop {
        let why = match run(envd, &line, grace + SLACK).await {
            Ok(code) => match KillOutcome::from_exit_code(code, process.scope) {
                KillOutcome::Ended(killed) => return Some(killed),
                // By an attempt whose answer was lost.
                KillOutcome::AlreadyGone if tried_before => return Some(whole(process.scope)),
                KillOutcome::AlreadyGone => return None,
                KillOutcome::NotPermitted => break "the sandbox does not permit it".to_owned(),
                KillOutcome::Failed => "the kill command failed in the sandbox".to_owned(),
            },
            // With the sandbox, everything in it is gone.
            Err(RunnerError::LeaseLost { .. }) => return Some(whole(process.scope)),
            Err(error @ (RunnerError::Refused { .. } | RunnerError::Invalid(_))) => break error.to_string(),
            Err(error) => error.to_string(),
        };
        tried_before = true;
        let Some(pause) = pauses.next() else { break why };
        tracing::debug!(target_sandbox = %envd.target, pid = process.pid, why, "a kill is tried again");
        tokio::time::sleep(*pause).await;
    };
    tracing::warn!(
        target_sandbox = %envd.target,
        pid = process.pid,
        why,
        "a process could not be ended and may still run"
    );
    Some(Killed::Unconfirmed)
}

fn whole(scope: Scope) -> Killed {
    match scope {
        Scope::Group => Killed::Group,
        Scope::LeaderOnly => Killed::LeaderOnly,
    }
}

/// Ends the one process, whose stream then ends although others may hold its outputs.
pub(super) async fn let_go(envd: &Envd, tag: &str) {
    let request = json!({"process": {"tag": tag}, "signal": "SIGNAL_SIGKILL"});
    if let Err(error) = envd.process("SendSignal", &request, CALL_LIMIT).await {
        tracing::debug!(target_sandbox = %envd.target, %error, "a process was not signalled");
    }
}

/// What is known of a process before it has reported itself.
pub(super) fn unreported(pid: u32) -> StartedProcess {
    StartedProcess {
        pid,
        scope: Scope::Group,
        start: None,
    }
}

/// Runs a line of our own to its exit code, dropping its output.
pub(super) async fn run(envd: &Envd, line: &str, limit: Duration) -> Result<Option<i32>, RunnerError> {
    let lost = || RunnerError::Lost {
        target: envd.target.clone(),
    };
    let ended = async {
        let tag = tag("pcb-k-")?;
        let mut process = Followed::start(envd, line, &tag, false, Some(limit)).await?;
        loop {
            if let Event::Ended(end) = process
                .next()
                .await
                .map_err(|silence| silence.told(&envd.target))?
            {
                return Ok(end.exit_code);
            }
        }
    };
    tokio::time::timeout(limit, ended).await.map_err(|_| lost())?
}
