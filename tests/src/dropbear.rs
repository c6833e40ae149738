//! Dropbear's SSH server: a second implementation, with other habits than OpenSSH's.
//!
//! It reads only `~/.ssh/authorized_keys`, so it always logs in a user made for it; it forwards port 0 and has no
//! unix-socket forwards. Read next: [`crate::sshd`].

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::processes;
use crate::sshd::{Access, free_port, generate_key, temp_dir_for_all};
use crate::user::{self, TestUser};
use crate::waiting::{eventually_blocking, program};

/// Whether a Dropbear server can be run here.
///
/// # Errors
///
/// What is missing, as a sentence for [`crate::can_run`].
pub fn here() -> Result<(), String> {
    program("dropbear")?;
    program("dropbearkey")?;
    program("ssh-keygen")?;
    user::can_be_made()
}

/// A running server. Dropping it ends the listener and every session.
#[derive(Debug)]
pub struct Dropbear {
    directory: TempDir,
    user: TestUser,
    port: u16,
    child: Child,
}

impl Dropbear {
    /// Starts one for a user of its own and returns once it listens.
    ///
    /// # Panics
    ///
    /// With its own words where it does not start.
    pub fn start() -> Self {
        let directory = temp_dir_for_all();
        generate_key(&directory.path().join("client"));
        let user = TestUser::make();
        user.authorize(&directory.path().join("client.pub"));
        let host_key = directory.path().join("host");
        let made = Command::new("dropbearkey")
            .args(["-t", "ed25519", "-f"])
            .arg(&host_key)
            .output();
        let made = made.expect("dropbearkey starts");
        let printed = String::from_utf8_lossy(&made.stdout).into_owned();
        let public = printed.lines().find(|line| line.starts_with("ssh-ed25519 "));
        let public = public.expect("dropbearkey prints the public key").to_owned();
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = try_start(&directory.path().join("log"), &host_key, port) {
                let line = format!("[127.0.0.1]:{port} {public}\n");
                fs::write(directory.path().join("known_hosts"), line).expect("known_hosts can be written");
                return Self {
                    directory,
                    user,
                    port,
                    child,
                };
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("dropbear did not start: {log}");
    }

    /// How the daemon reaches it.
    pub fn access(&self) -> Access {
        Access {
            target: format!("ssh://{}@127.0.0.1:{}", self.user.name(), self.port),
            identity: self.directory.path().join("client"),
            known_hosts: self.directory.path().join("known_hosts"),
        }
    }

    /// The user whom it logs in.
    pub fn user(&self) -> &TestUser {
        &self.user
    }

    /// Ends every session and leaves the listener.
    ///
    /// # Panics
    ///
    /// If there was none to end.
    pub fn kill_sessions(&self) {
        let sessions: Vec<u32> = processes::descendants(self.child.id())
            .into_iter()
            .filter(|one| one.name.starts_with("dropbear"))
            .map(|one| one.pid)
            .collect();
        assert!(!sessions.is_empty(), "no session to kill");
        for pid in sessions {
            processes::signal(pid, "KILL");
        }
    }
}

/// `None` where it ended by itself, as when the port is taken.
fn try_start(log: &PathBuf, host_key: &PathBuf, port: u16) -> Option<Child> {
    let stderr = fs::File::create(log).expect("the log can be written");
    let mut child = Command::new(program("dropbear").expect("dropbear is installed"))
        // In the foreground, messages to stderr, no passwords.
        .args([
            "-F",
            "-E",
            "-s",
            "-p",
            &format!("127.0.0.1:{port}"),
            "-P",
            "/dev/null",
            "-r",
        ])
        .arg(host_key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("dropbear starts");
    let listens = eventually_blocking(Duration::from_secs(20), "dropbear listens or ends", || {
        if processes::listening(child.id())
            .iter()
            .any(|address| address.port() == port)
        {
            return Some(true);
        }
        child
            .try_wait()
            .expect("dropbear can be waited for")
            .map(|_| false)
    });
    listens.then_some(child)
}

impl Drop for Dropbear {
    fn drop(&mut self) {
        let family = processes::descendants(self.child.id());
        processes::signal(self.child.id(), "KILL");
        for one in family {
            processes::signal(one.pid, "KILL");
        }
        // A destructor has nobody to tell; the process is dead either way.
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::can_run;

    #[test]
    fn the_server_lets_the_made_user_in() {
        if !can_run(here()) {
            return;
        }
        let server = Dropbear::start();
        let access = server.access();

        let output = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-i",
            ])
            .arg(&access.identity)
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", access.known_hosts.display()))
            .args([
                "-p",
                &server.port.to_string(),
                &format!("{}@127.0.0.1", server.user.name()),
                "id -un",
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();

        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            stdout.trim(),
            server.user().name(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
