//! What a side costs: CPU time and memory of everything that it started, also of what has ended since.
//!
//! A side may start a process for each operation, let it end, or leave one running on its own. So this process is
//! made the one that inherits such orphans, everything below it is counted, and a process that was waited for
//! counts with whoever waited for it. Not here: who the processes are; a [`Family`] is told. Read next:
//! [`crate::processes`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;

use crate::processes::{self, Process};

/// Makes this process inherit what its descendants leave running, so that none escapes the count.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn inherit_orphans() -> anyhow::Result<()> {
    let here = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(here)).context("this process cannot inherit orphans")
}

/// Who is who below this process.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// The side's process on the host: our daemon, or the peer's host.
    pub host: u32,
    /// The SSH server's listener, where there is one.
    pub sshd: Option<u32>,
    /// What belongs to neither side, such as the upstream.
    pub apart: Vec<u32>,
}

/// One look at everything below this process.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The host's side, with what it started and what of that has ended.
    host: Duration,
    /// Each process in the sandbox that runs now.
    sandbox: HashMap<u32, Duration>,
    /// Host, sandbox and the SSH server.
    everything: Duration,
    /// Resident memory of the host's side.
    pub host_bytes: u64,
    /// Resident memory of the processes in the sandbox.
    pub sandbox_bytes: u64,
}

/// CPU time between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Beside SSH server and upstream: the host's side with all that it started, and what runs in the sandbox.
    pub beside_sshd: Duration,
    /// The same with the SSH server and every command that it ran and that has ended.
    pub with_sshd: Duration,
}

impl Family {
    /// Looks now.
    pub fn look(&self) -> Snapshot {
        let table = processes::descendants(std::process::id());
        let host = below(&table, self.host);
        let sshd = self.sshd.map(|pid| below(&table, pid)).unwrap_or_default();
        let apart: HashSet<u32> = self.apart.iter().flat_map(|pid| below(&table, *pid)).collect();
        let mut look = Snapshot {
            host: Duration::ZERO,
            sandbox: HashMap::new(),
            everything: Duration::ZERO,
            host_bytes: 0,
            sandbox_bytes: 0,
        };
        for one in &table {
            if apart.contains(&one.pid) {
                continue;
            }
            let spent = processes::cpu_time_with_reaped(one.pid);
            look.everything += spent;
            if host.contains(&one.pid) {
                look.host += spent;
                look.host_bytes += processes::resident_bytes(one.pid);
            } else if !(sshd.contains(&one.pid) && one.name.starts_with("sshd")) {
                look.sandbox.insert(one.pid, spent);
                look.sandbox_bytes += processes::resident_bytes(one.pid);
            }
        }
        look
    }
}

impl Snapshot {
    /// What was spent since `earlier`.
    pub fn since(&self, earlier: &Self) -> Spent {
        let sandbox: Duration = self
            .sandbox
            .iter()
            .map(|(pid, spent)| {
                let before = earlier.sandbox.get(pid).copied().unwrap_or_default();
                spent.saturating_sub(before)
            })
            .sum();
        Spent {
            beside_sshd: self.host.saturating_sub(earlier.host) + sandbox,
            with_sshd: self.everything.saturating_sub(earlier.everything),
        }
    }
}

/// `root` and all below it.
fn below(table: &[Process], root: u32) -> HashSet<u32> {
    let mut family = HashSet::from([root]);
    loop {
        let before = family.len();
        for one in table {
            if family.contains(&one.parent) {
                family.insert(one.pid);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_child_of_the_host_spent_counts_also_after_its_end() {
        let script = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; echo done; read wait";
        let mut host = Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let family = Family {
            host: host.id(),
            ..Family::default()
        };
        let before = family.look();

        let mut said = [0; 5];
        std::io::Read::read_exact(host.stdout.as_mut().unwrap(), &mut said).unwrap();
        let spent = family.look().since(&before);

        assert!(spent.beside_sshd >= Duration::from_millis(10), "{spent:?}");
        drop(host.stdin.take());
        host.wait().unwrap();
    }
}
