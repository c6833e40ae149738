//! A real OpenSSH server for one test: own host key, own user key, own configuration, ended with the test.

#![expect(dead_code, reason = "each test binary uses its own part of this")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot set up its world has failed; a skipped one says so"
)]

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runners::ssh::known_hosts::KnownHosts;
use runners::ssh::{ConnectionLimits, ConnectionSettings, HostKeys, Identities};
use tempfile::TempDir;

pub(crate) const SSHD: &str = "/usr/sbin/sshd";

/// Whether the tests can run here; says so where they cannot.
pub(crate) fn sshd_is_here() -> bool {
    let here = Path::new(SSHD).exists() && Path::new("/usr/bin/ssh-keygen").exists();
    if !here {
        eprintln!("SKIPPED: OpenSSH's server is not installed");
    }
    here
}

pub(crate) struct Sshd {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Child,
}

impl Sshd {
    /// Starts a server with these lines ahead of the usual ones (the first value of a keyword counts).
    pub(crate) fn start(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen(&dir.path().join("host"), &[]);
        keygen(&dir.path().join("user"), &[]);
        fs::copy(dir.path().join("user.pub"), dir.path().join("authorized_keys")).unwrap();
        // Only root needs it, and only where no sshd was ever started.
        let _ = fs::create_dir_all("/run/sshd");
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = start(dir.path(), port, lines) {
                return Self { dir, port, child };
            }
        }
        panic!(
            "sshd does not start: {}",
            fs::read_to_string(dir.path().join("log")).unwrap_or_default()
        );
    }

    /// Ends this server with its sessions and starts it again on the same port.
    pub(crate) fn restart(&mut self, lines: &str) {
        self.end_all();
        eventually("the same port", || {
            start(self.dir.path(), self.port, lines)
                .map(|child| self.child = child)
                .is_some()
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Settings that work.
    pub(crate) fn settings(&self) -> ConnectionSettings {
        ConnectionSettings {
            target: format!("ssh://{}@127.0.0.1:{}", user(), self.port),
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: user(),
            host_keys: HostKeys::Known {
                hosts: Arc::new(self.known_hosts()),
                alias: None,
            },
            identities: Identities {
                files: vec![self.path("user")],
                files_required: true,
                only: true,
                ..Identities::default()
            },
            via: None,
            limits: ConnectionLimits::default(),
        }
    }

    pub(crate) fn known_hosts(&self) -> KnownHosts {
        let key = fs::read_to_string(self.path("host.pub")).unwrap();
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        KnownHosts::parse("known_hosts", line.as_bytes())
    }

    /// The server's processes that each serve one connection (with privilege separation two per connection).
    pub(crate) fn sessions(&self) -> Vec<u32> {
        descendants(self.child.id())
            .into_iter()
            .filter(|pid| name_of(*pid).starts_with("sshd"))
            .collect()
    }

    pub(crate) fn signal_sessions(&self, signal: &str) {
        for pid in self.sessions() {
            send_signal(signal, pid);
        }
    }

    fn end_all(&mut self) {
        for pid in descendants(self.child.id()) {
            send_signal("KILL", pid);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.end_all();
    }
}

fn start(dir: &Path, port: u16, lines: &str) -> Option<Child> {
    // A home of its own: what the account's own profile prints or waits for is none of the test's business.
    let config = format!(
        "{lines}\nSetEnv HOME={dir}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nPidFile none\nAuthorizedKeysFile {dir}/authorized_keys\n\
         PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nMaxStartups 200\n",
        dir = dir.display()
    );
    fs::write(dir.join("sshd_config"), config).unwrap();
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut child = Command::new(SSHD)
        .arg("-D")
        .arg("-e")
        .arg("-f")
        .arg(dir.join("sshd_config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

pub(crate) fn keygen(path: &Path, more: &[&str]) {
    let done = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test"])
        .args(more)
        .arg("-f")
        .arg(path)
        .status()
        .unwrap();
    assert!(done.success());
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn send_signal(signal: &str, pid: u32) {
    let _ = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

pub(crate) fn is_alive(pid: u32) -> bool {
    match stat(pid) {
        Some((_, _, state)) => state != 'Z',
        None => false,
    }
}

fn name_of(pid: u32) -> String {
    stat(pid).map(|(_, name, _)| name).unwrap_or_default()
}

/// Parent, name and state.
fn stat(pid: u32) -> Option<(u32, String, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut words = tail.split_ascii_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, name, state))
}

pub(crate) fn descendants(root: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        if let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
            && let Some((parent, _, _)) = stat(pid)
        {
            all.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

/// Waits for a condition, ten seconds at most.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`eventually`], letting the runtime work meanwhile.
pub(crate) async fn eventually_async(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
