//! How a child ends: by itself, or with its process group by `TERM` and `KILL`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::Child;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Killed;

/// How often a group that was told to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a child may take to go after `KILL`; only one stuck in the kernel takes any time.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// Why a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Exited,
    TimedOut,
    Cancelled,
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) cause: Cause,
    pub(super) status: Option<ExitStatus>,
    pub(super) killed: Option<Killed>,
}

/// Watches one child.
pub(super) struct Supervisor {
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancellationToken,
    pub(super) kill_grace: Duration,
}

impl Supervisor {
    /// Waits for the child's end and brings it about when its time is over or nobody wants it any more.
    pub(super) async fn wait(&self, child: &mut Child) -> Ending {
        let group = group_of(child);
        let cause = tokio::select! {
            status = child.wait() => return Ending { cause: Cause::Exited, status: status.ok(), killed: None },
            () = self.cancel.cancelled() => Cause::Cancelled,
            () = until(self.deadline) => Cause::TimedOut,
        };
        let status = self.end_group(child, group).await;
        Ending {
            cause,
            status,
            killed: Some(Killed::Group),
        }
    }

    /// Resolves when output is not to be awaited any longer after `ending`: soon after a kill, else when the caller
    /// cancels or the time is over.
    pub(super) async fn give_up(&self, ending: &Ending, grace: Duration) {
        match ending.cause {
            Cause::TimedOut | Cause::Cancelled => tokio::time::sleep(grace).await,
            Cause::Exited => tokio::select! {
                () = self.cancel.cancelled() => {}
                () = until(self.deadline) => {}
            },
        }
    }

    async fn end_group(&self, child: &mut Child, group: Option<Pid>) -> Option<ExitStatus> {
        signal_group(group, Signal::TERM);
        let give_up_at = Instant::now() + self.kill_grace;
        let mut status = None;
        while Instant::now() < give_up_at {
            if status.is_none() {
                status = child.try_wait().ok().flatten();
            }
            if status.is_some() && group.is_none_or(|group| test_kill_process_group(group).is_err()) {
                return status;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        signal_group(group, Signal::KILL);
        match status {
            Some(status) => Some(status),
            None => tokio::time::timeout(REAP_LIMIT, child.wait()).await.ok()?.ok(),
        }
    }
}

/// The group that a child started with `process_group(0)` leads; none once it is reaped.
pub(super) fn group_of(child: &Child) -> Option<Pid> {
    child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
}

/// Signals the whole group. A group that is gone already is what was wanted.
pub(super) fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, signal)
    {
        tracing::debug!(group = group.as_raw_pid(), %error, "process group not signalled");
    }
}

/// Pends for ever without a deadline.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Names as in signal(7), Linux numbers; `None` for a normal exit.
pub(super) fn signal_name(status: ExitStatus) -> Option<String> {
    let number = status.signal()?;
    let name = match number {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        5 => "TRAP",
        6 => "ABRT",
        7 => "BUS",
        8 => "FPE",
        9 => "KILL",
        10 => "USR1",
        11 => "SEGV",
        12 => "USR2",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        24 => "XCPU",
        25 => "XFSZ",
        31 => "SYS",
        other => return Some(other.to_string()),
    };
    Some(name.to_owned())
}
