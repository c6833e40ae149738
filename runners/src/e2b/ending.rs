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

/// Ends `process` with its group: `TERM`, and `KILL` after `grace`.
pub(super) async fn end(envd: &Envd, process: &StartedProcess, grace: Duration) -> Option<Killed> {
    let outcome = match run(envd, &kill_line(process, grace), grace + SLACK).await {
        Ok(code) => KillOutcome::from_exit_code(code, process.scope),
        Err(error) => {
            tracing::warn!(target_sandbox = %envd.target, pid = process.pid, %error, "a process could not be ended");
            return None;
        }
    };
    match outcome {
        KillOutcome::Ended(killed) => Some(killed),
        KillOutcome::AlreadyGone => None,
        KillOutcome::NotPermitted | KillOutcome::Failed => {
            tracing::warn!(target_sandbox = %envd.target, pid = process.pid, ?outcome, "a process could not be ended");
            None
        }
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
