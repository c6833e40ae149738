//! Finding every process of a sandbox, whatever became of its parents, to freeze or to end it.

use std::collections::HashSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// The variable that marks a sandbox's processes; nobody takes it away but `env -i`.
pub(super) const MARK: &str = "E2B_SANDBOX_ID";
/// Looks at the process table before giving up on one that forks faster than it is found.
const ROUNDS: usize = 50;

/// Signals every process of this sandbox until no new one shows up. `started` are those that we started.
pub(super) fn signal_all(sandbox: &str, started: &[u32], signal: Signal) {
    let mut done = HashSet::new();
    for _ in 0..ROUNDS {
        let fresh: Vec<u32> = of_sandbox(sandbox, started)
            .into_iter()
            .filter(|pid| done.insert(*pid))
            .collect();
        if fresh.is_empty() {
            return;
        }
        for pid in fresh {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have gone by itself.
                let _ = kill_process(pid, signal);
            }
        }
    }
}

/// The processes that carry the mark, and the descendants of those and of `started`.
fn of_sandbox(sandbox: &str, started: &[u32]) -> HashSet<u32> {
    let mark = format!("{MARK}={sandbox}");
    let table: Vec<(u32, u32, bool)> = fs::read_dir("/proc")
        .expect("/proc is readable")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?, marked(pid, &mark))))
        .collect();
    let mut found: HashSet<u32> = table
        .iter()
        .filter(|(pid, _, marked)| *marked || started.contains(pid))
        .map(|(pid, ..)| *pid)
        .collect();
    loop {
        let before = found.len();
        let children = table.iter().filter(|(_, parent, _)| found.contains(parent));
        let children: Vec<u32> = children.map(|(pid, ..)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

fn marked(pid: u32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry == mark.as_bytes())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}
