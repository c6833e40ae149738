//! What `/proc` tells of other processes, and ending them by their id.
//!
//! Here: parents, arguments, environments, listening sockets, CPU time and resident memory. Linux only, as the
//! tests are. Not here: starting anything.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

/// One line of the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// The kernel's short name of it, at most 15 bytes.
    pub name: String,
    /// `R`, `S`, `T`, `Z` and so on.
    pub state: char,
}

/// Every process of this machine that can be seen now.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is readable");
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(one)
        .collect()
}

/// The process of this id, if it is there.
pub fn one(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, also parentheses.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process {
        pid,
        parent,
        name,
        state,
    })
}

/// The children of `root`, their children and so on; without `root`.
pub fn descendants(root: u32) -> Vec<Process> {
    let table = all();
    let mut family = vec![];
    let mut parents = HashSet::from([root]);
    loop {
        let next: Vec<Process> = table
            .iter()
            .filter(|one| parents.contains(&one.parent) && !family.contains(*one))
            .cloned()
            .collect();
        if next.is_empty() {
            return family;
        }
        parents = next.iter().map(|one| one.pid).collect();
        family.extend(next);
    }
}

/// Ids of the processes that a user owns.
pub fn owned_by(uid: u32) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|one| fs::metadata(format!("/proc/{}", one.pid)).is_ok_and(|meta| meta.uid() == uid))
        .map(|one| one.pid)
        .collect()
}

/// Arguments of a process with NUL between them; empty once it has gone.
pub fn command_line(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Environment of a process with NUL between the entries; empty once it has gone or where it may not be read.
pub fn environment(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

/// Sends a signal, named without `SIG`, to one process. That it has gone already is no fault.
pub fn signal(pid: u32, name: &str) {
    // The shell's own `kill` is the one that is everywhere.
    let script = format!("kill -s {name} {pid} 2>/dev/null || true");
    let status = Command::new("/bin/sh")
        .args(["-c", &script])
        .status()
        .expect("/bin/sh starts");
    assert!(
        status.success(),
        "the shell's kill of {pid} with {name} failed: {status}"
    );
}

/// Addresses that this process listens on (TCP).
pub fn listening(pid: u32) -> Vec<SocketAddr> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return vec![];
    };
    let inodes: HashSet<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| {
            Some(
                link.to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    listeners()
        .into_iter()
        .filter(|(inode, _)| inodes.contains(inode))
        .map(|(_, address)| address)
        .collect()
}

/// Whether anything on this machine listens on the port.
pub fn anyone_listens(port: u16) -> bool {
    listeners().iter().any(|(_, address)| address.port() == port)
}

fn listeners() -> Vec<(String, SocketAddr)> {
    let mut found = vec![];
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Field 3 is the state; 0A is LISTEN.
            if fields.get(3) != Some(&"0A") {
                continue;
            }
            let (Some(local), Some(inode)) = (fields.get(1), fields.get(9)) else {
                continue;
            };
            found.extend(address(local).map(|address| ((*inode).to_owned(), address)));
        }
    }
    found
}

/// The kernel writes each 32-bit group of an address in host order, which is little endian here.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let groups: Vec<u32> = (0..ip.len() / 8)
        .map(|group| u32::from_str_radix(&ip[group * 8..group * 8 + 8], 16).map(u32::swap_bytes))
        .collect::<Result<_, _>>()
        .ok()?;
    let ip = match groups[..] {
        [one] => IpAddr::V4(Ipv4Addr::from(one)),
        [a, b, c, d] => {
            let bits = [a, b, c, d]
                .iter()
                .fold(0_u128, |bits, group| bits << 32 | u128::from(*group));
            IpAddr::V6(Ipv6Addr::from(bits))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// CPU time of every thread that a process has now, by the scheduler's own count in nanoseconds.
pub fn cpu_time(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let nanoseconds = threads
        .filter_map(Result::ok)
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// CPU time of a process and of those of its children that have ended and were waited for.
pub fn cpu_time_with_reaped(pid: u32) -> Duration {
    // The kernel tells these in hundredths of a second on every architecture that Debian knows.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u32> = stat
        .rsplit_once(')')
        .map(|(_, after)| after.split_whitespace().skip(11).take(4))
        .into_iter()
        .flatten()
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let [user, system, reaped_user, reaped_system] = fields[..] else {
        return Duration::ZERO;
    };
    // The scheduler's count is finer, but knows only the threads that are there now.
    cpu_time(pid).max(TICK * (user + system)) + TICK * (reaped_user + reaped_system)
}

/// Resident memory of a process in bytes; 0 once it has gone.
pub fn resident_bytes(pid: u32) -> u64 {
    number_of(&format!("/proc/{pid}/status"), "VmRSS:") * 1024
}

/// Its resident memory with shared pages divided among those that share them; 0 once it has gone.
pub fn proportional_bytes(pid: u32) -> u64 {
    number_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:") * 1024
}

/// How often each of its threads has slept and been woken again.
pub fn wake_ups(pid: u32) -> HashMap<String, u64> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return HashMap::new();
    };
    threads
        .filter_map(Result::ok)
        .filter_map(|thread| {
            let status = thread.path().join("status").to_str()?.to_owned();
            let id = thread.file_name().to_str()?.to_owned();
            Some((id, number_of(&status, "voluntary_ctxt_switches:")))
        })
        .collect()
}

/// The number behind this word in a file of `/proc`; 0 where there is none.
fn number_of(file: &str, word: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(word));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_with_its_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();

        let found = listening(std::process::id());

        assert!(found.contains(&address), "{found:?}");
        assert!(anyone_listens(address.port()));
    }

    #[test]
    fn a_v6_wildcard_is_read_as_one() {
        let parsed = address("00000000000000000000000000000000:1F90").unwrap();

        assert_eq!(parsed, "[::]:8080".parse().unwrap());
    }

    #[test]
    fn a_child_is_a_descendant_and_ends_by_its_id() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();

        assert!(
            descendants(std::process::id())
                .iter()
                .any(|one| one.pid == child.id())
        );
        signal(child.id(), "KILL");

        assert!(!child.wait().unwrap().success());
    }
}
