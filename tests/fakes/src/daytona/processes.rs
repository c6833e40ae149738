//! The processes of a sandbox: how they are started, found and ended.
//!
//! Each carries the sandbox's id in its environment, and so do its children; what leaves its process group is found
//! all the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Command;

/// The variable that marks a process.
const MARK: &str = "DAYTONA_SANDBOX_ID";

/// A command in a sandbox, with its environment and nothing of this process's.
pub(super) fn command(
    program: impl AsRef<OsStr>,
    id: &str,
    home: &Path,
    env: &BTreeMap<String, String>,
) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", home)
        .envs(env)
        .env(MARK, id)
        .current_dir(home);
    command
}

/// Ids of the living processes of a sandbox.
pub(super) fn marked(id: &str) -> Vec<u32> {
    let mark = format!("{MARK}={id}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return vec![];
    };
    let pids = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // Empty for a zombie: that one has ended.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    })
    .collect()
}

/// Ends every process of a sandbox.
pub(super) fn end(id: &str) {
    // A process may start another while the list is read.
    for _ in 0..20 {
        let found = marked(id);
        if found.is_empty() {
            return;
        }
        for pid in found.into_iter().filter_map(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Sends a signal to the group of a process that leads one.
pub(super) fn signal_group(leader: u32, signal: Signal) {
    if let Some(leader) = pid(leader) {
        let _ = kill_process_group(leader, signal);
    }
}

/// Ends every process of the session that `leader` leads: an interactive shell puts each job in a group of its own.
pub(super) fn end_session(leader: u32) {
    // It may not lead its session yet; then it is still our child.
    if numbers(leader).is_some_and(|(parent, _)| parent == std::process::id())
        && let Some(leader) = pid(leader)
    {
        let _ = kill_process(leader, Signal::KILL);
    }
    // A process may start another while the list is read.
    for _ in 0..20 {
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        let pids = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found: Vec<_> = pids.filter(|one| session(*one) == Some(leader)).collect();
        if found.is_empty() {
            return;
        }
        for one in found.into_iter().filter_map(pid) {
            let _ = kill_process(one, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn session(pid: u32) -> Option<u32> {
    Some(numbers(pid)?.1)
}

/// The parent and the session: fields 4 and 6 of `/proc/PID/stat`, counted behind the program's name; `None` for a
/// process that has ended.
fn numbers(pid: u32) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}
