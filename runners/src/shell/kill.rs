//! The command that ends another command on a target.
//!
//! Here: its text and the meaning of its exit code. Not here: on which connection it runs. It never ends a process
//! that merely has the same pid: the start time must be the reported one.

use std::time::Duration;

use super::remote::{identity, login_shell_line};
use super::report::{Scope, StartedProcess};
use crate::Killed;

/// How long a process has between `TERM` and `KILL`.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

const ALREADY_GONE: i32 = 3;
const NOT_PERMITTED: i32 = 4;

/// What the kill command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillOutcome {
    /// It was ended, by `TERM` or by `KILL`.
    Ended(Killed),
    /// It had ended before, or its pid belongs to another process by now; nothing was signalled.
    AlreadyGone,
    /// The target did not let us signal it.
    NotPermitted,
    /// The kill command itself did not work.
    Failed,
}

impl KillOutcome {
    /// Reads the exit code of a [`kill_line`] command.
    #[must_use]
    pub const fn from_exit_code(code: Option<i32>, scope: Scope) -> Self {
        match (code, scope) {
            (Some(0), Scope::Group) => Self::Ended(Killed::Group),
            (Some(0), Scope::LeaderOnly) => Self::Ended(Killed::LeaderOnly),
            (Some(ALREADY_GONE), _) => Self::AlreadyGone,
            (Some(NOT_PERMITTED), _) => Self::NotPermitted,
            _ => Self::Failed,
        }
    }
}

/// One remote command line that ends `process`: `TERM`, and `KILL` after `grace` if it is still there.
///
/// Runs for at most about `grace` plus one second, less if the process ends sooner. Without a known start time the
/// process is signalled unverified: use that only while its channel is still open.
#[must_use]
pub fn kill_line(process: &StartedProcess, grace: Duration) -> String {
    let pid = process.pid;
    let identity = identity(&pid.to_string());
    // A group outlives its leader, and as long as it does the kernel gives its number to no new process.
    let same = match (&process.start, process.scope) {
        (Some(start), Scope::Group) => format!("[ -z \"$__pcb_t\" ] || [ \"$__pcb_t\" = {start} ]"),
        (Some(start), Scope::LeaderOnly) => format!("[ \"$__pcb_t\" = {start} ]"),
        (None, _) => "true".to_owned(),
    };
    // dash knows `kill -s NAME -- -GROUP` and refuses `kill -NAME -- -GROUP`. Between the report and `setsid` the
    // group does not exist yet: then the process alone.
    let send = match process.scope {
        Scope::Group => format!("kill -s $1 -- -{pid} || kill -s $1 {pid}"),
        Scope::LeaderOnly => format!("kill -s $1 {pid}"),
    };
    let alive = match process.scope {
        Scope::Group => format!("kill -s 0 -- -{pid} || kill -s 0 {pid}"),
        Scope::LeaderOnly => format!("kill -s 0 {pid}"),
    };
    let steps = grace.as_millis().div_ceil(100);
    let script = format!(
        "exec 2>/dev/null; __pcb_same() {{ {identity}{same}; }}; __pcb_send() {{ {send}; }}; __pcb_alive() {{ {alive}; }}; \
         __pcb_same || exit {ALREADY_GONE}; \
         __pcb_send TERM || {{ [ \"$__pcb_t\" ] && exit {NOT_PERMITTED}; exit {ALREADY_GONE}; }}; \
         __pcb_n=0; while __pcb_alive; do \
         if [ $__pcb_n -ge {steps} ]; then if __pcb_same; then __pcb_send KILL; fi; exit 0; fi; \
         if sleep 0.1; then __pcb_n=$((__pcb_n+1)); else sleep 1; __pcb_n=$((__pcb_n+10)); fi; done; exit 0"
    );
    login_shell_line(&script)
}
