//! What is killed, found by what it is, and what a session may not leave behind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use paperclip_bridge_tests::processes::{self, Process};
use paperclip_bridge_tests::sshd::Sshd;

use super::lives::Life;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The program that listens in the sandbox.
    Gateway,
    /// The SSH server's processes that carry the session.
    Channel,
    /// The daemon.
    Host,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Channel => "channel",
            Self::Host => "host",
        })
    }
}

impl Victim {
    /// Kills it without a warning. That it is away already is no fault: then its successor is on its way.
    pub(crate) fn kill(self, life: &Life, sshd: &Sshd) {
        let victims = match self {
            Self::Gateway => gateways(sshd),
            Self::Channel => sshd.sessions(),
            Self::Host => life.pid().into_iter().collect(),
        };
        for pid in victims {
            processes::signal(pid, "KILL");
        }
    }
}

/// Processes of the sandbox whose program is a gateway.
fn gateways(sshd: &Sshd) -> Vec<u32> {
    in_sandbox(sshd)
        .into_iter()
        .filter(|one| one.name.starts_with("gateway"))
        .map(|one| one.pid)
        .collect()
}

/// What runs in the sandbox: below the SSH server, or left to us by what ran there, but not the server itself.
fn in_sandbox(sshd: &Sshd) -> Vec<Process> {
    let mut found = sshd.family();
    if let Some(user) = sshd.made_user() {
        let known: BTreeSet<u32> = found.iter().map(|one| one.pid).collect();
        let owned = processes::owned_by(user.uid()).into_iter();
        found.extend(
            owned
                .filter(|pid| !known.contains(pid))
                .filter_map(processes::one),
        );
    }
    found.retain(|one| !one.name.starts_with("sshd") && one.state != 'Z');
    found
}

/// Whatever of a session is still in the sandbox when the time is over.
///
/// - `before`: what lay there at the start, left by another user whose number this one has.
pub(crate) async fn left_in_sandbox(sshd: &Sshd, before: &[String], limit: Duration) -> Vec<String> {
    let started = Instant::now();
    loop {
        let mut left: Vec<String> = in_sandbox(sshd)
            .into_iter()
            .map(|one| format!("process {} ({})", one.name, one.pid))
            .collect();
        if let Some(user) = sshd.made_user() {
            left.extend(folders(&user.home().join(".cache/paperclip-bridge")));
        }
        left.extend(
            in_temp_folder(sshd)
                .into_iter()
                .filter(|path| !before.contains(path)),
        );
        if left.is_empty() || started.elapsed() > limit {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Everything in the gateway's folder but the installed program, which is kept for the next session.
fn folders(cache: &Path) -> Vec<String> {
    let names = entries(cache).into_iter();
    names
        .filter(|name| !name.starts_with("gateway-"))
        .map(|name| format!("{}/{name}", cache.display()))
        .collect()
}

/// What the sandbox's user has in the machine's temporary folder.
pub(crate) fn in_temp_folder(sshd: &Sshd) -> Vec<String> {
    let user = sshd.made_user();
    user.map(|user| owned_in(&std::env::temp_dir(), user.uid()))
        .unwrap_or_default()
}

fn owned_in(folder: &Path, uid: u32) -> Vec<String> {
    let paths = entries(folder).into_iter().map(|name| folder.join(name));
    paths
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == uid))
        .map(|path| path.display().to_string())
        .collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(found) = fs::read_dir(folder) else {
        return vec![];
    };
    found
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
