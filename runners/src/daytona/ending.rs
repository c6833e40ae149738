//! Ending a command by force, from outside.
//!
//! Here: the finding of its group and the kill, and what is known of it then. Not here: when a command is ended
//! ([`super::runner`]), the texts ([`super::script`]).

use std::time::Duration;

use tokio::time::Instant;

use super::script;
use super::script::Job;
use super::toolbox::Toolbox;
use crate::Killed;
use crate::shell::{KillOutcome, Scope};

/// A kill waits five seconds itself.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// How long a command that is to be ended has to write down its pid, if it has not yet.
const PID_LIMIT: Duration = Duration::from_secs(3);

/// Ends the command's group: `TERM`, and `KILL` five seconds later. None where it never told of itself.
pub(super) async fn kill(target: &str, toolbox: &Toolbox, job: &Job) -> Option<Killed> {
    let end = Instant::now() + PID_LIMIT;
    let line = loop {
        let ran = toolbox.script(&job.pid()).await;
        let line = ran.ok().and_then(|ran| script::kill(ran.after(&job.mark())?.1));
        if line.is_some() || Instant::now() >= end {
            break line?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let ran = toolbox.execute(&line, KILL_LIMIT).await;
    match KillOutcome::from_exit_code(ran.ok().map(|ran| ran.exit_code()), Scope::Group) {
        KillOutcome::Ended(killed) => Some(killed),
        // It ended in the same moment.
        KillOutcome::AlreadyGone => Some(Killed::Group),
        KillOutcome::NotPermitted | KillOutcome::Failed => {
            tracing::warn!(
                target,
                "a command in a sandbox could not be ended and may still run"
            );
            Some(Killed::Unconfirmed)
        }
    }
}

/// Whether a kill is known to have worked.
pub(super) fn is_ended(killed: Option<Killed>) -> bool {
    killed.is_some_and(|killed| killed != Killed::Unconfirmed)
}
