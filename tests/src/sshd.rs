//! A real OpenSSH server on loopback, with keys and configuration of its own.
//!
//! Here: its start, its faults on demand (a killed or frozen session, a restart, another host key) and what it
//! listens on. Not here: anything that speaks SSH. Read next: [`crate::dropbear`] for the second implementation.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::processes::{self, Process};
use crate::user::{self, TestUser};
use crate::waiting::{eventually_blocking, program};

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How to log in to a server: what the daemon is told on its command line.
#[derive(Clone, Debug)]
pub struct Access {
    /// Such as `ssh://agent@127.0.0.1:40022`.
    pub target: String,
    /// The private key.
    pub identity: PathBuf,
    /// The file that holds the server's host key.
    pub known_hosts: PathBuf,
}

impl Access {
    /// The options of `open` and `run` that go with it.
    pub fn options(&self) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("temp paths are UTF-8").to_owned();
        vec![
            "--identity".into(),
            path(&self.identity),
            "--known-hosts".into(),
            path(&self.known_hosts),
        ]
    }
}

/// Whether an OpenSSH server can be run here.
///
/// # Errors
///
/// What is missing, as a sentence for [`crate::can_run`].
pub fn here() -> Result<(), String> {
    program("sshd")?;
    program("ssh-keygen")?;
    Ok(())
}

/// What is special about a server.
#[derive(Debug)]
pub struct SshdBuilder {
    lines: Vec<String>,
    made_user: bool,
    without_proc: bool,
}

impl SshdBuilder {
    /// A line of `sshd_config`. It stands before the harness's own, and sshd takes the first of each keyword.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Logs in as whoever runs the tests, root included: with that user's own shell and its start-up files.
    #[must_use]
    pub fn with_current_user(mut self) -> Self {
        self.made_user = false;
        self
    }

    /// Nothing that it starts sees a `/proc`, itself included; only root can have that.
    #[must_use]
    pub fn without_proc(mut self) -> Self {
        self.without_proc = true;
        self
    }

    /// Starts the server and returns once it listens.
    ///
    /// # Panics
    ///
    /// With sshd's own words where it does not start.
    pub fn start(self) -> Sshd {
        let directory = temp_dir_for_all();
        // With privilege separation sshd wants this folder, and nothing but a package's start script makes it.
        if user::is_root() {
            fs::create_dir_all("/run/sshd").expect("root can make /run/sshd");
        }
        generate_key(&directory.path().join("host"));
        generate_key(&directory.path().join("client"));
        let public = directory.path().join("client.pub");
        let authorized = directory.path().join("authorized_keys");
        fs::copy(&public, &authorized).expect("the public key can be copied");
        fs::set_permissions(&authorized, fs::Permissions::from_mode(0o644)).expect("modes can be set");
        let user = self.made_user.then(TestUser::make);
        let mut server = Sshd {
            directory,
            lines: self.lines,
            user,
            without_proc: self.without_proc,
            port: 0,
            child: None,
        };
        server.start_on_a_free_port();
        server.write_known_hosts();
        server
    }
}

/// A running server. Dropping it ends the listener and every session.
#[derive(Debug)]
pub struct Sshd {
    directory: TempDir,
    lines: Vec<String>,
    user: Option<TestUser>,
    without_proc: bool,
    port: u16,
    child: Option<Child>,
}

impl Sshd {
    /// A server that logs in by key: where the tests run as root, a user made for it, whose shell has no start-up
    /// files; else whoever runs the tests.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A server with something special.
    pub fn builder() -> SshdBuilder {
        SshdBuilder {
            lines: vec![],
            made_user: user::can_be_made().is_ok(),
            without_proc: false,
        }
    }

    /// How the daemon reaches it.
    pub fn access(&self) -> Access {
        Access {
            target: format!("ssh://{}@127.0.0.1:{}", self.user(), self.port),
            identity: self.directory.path().join("client"),
            known_hosts: self.directory.path().join("known_hosts"),
        }
    }

    /// The port that it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The listener's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The name to log in with.
    pub fn user(&self) -> String {
        self.user
            .as_ref()
            .map_or_else(user::current, |user| user.name().to_owned())
    }

    /// The user made for it, if one was.
    pub fn made_user(&self) -> Option<&TestUser> {
        self.user.as_ref()
    }

    /// What sshd has written, at `LogLevel VERBOSE`.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The sshd processes that serve connections: neither the listener nor the commands that they run.
    pub fn sessions(&self) -> Vec<u32> {
        self.family()
            .into_iter()
            .filter(|one| one.name.starts_with("sshd"))
            .map(|one| one.pid)
            .collect()
    }

    /// Everything that runs below the listener, also commands.
    pub fn family(&self) -> Vec<Process> {
        let child = self.child.as_ref().map(Child::id);
        child.map(processes::descendants).unwrap_or_default()
    }

    /// What its sessions listen on: the reverse forwards.
    pub fn forwards(&self) -> Vec<SocketAddr> {
        self.sessions()
            .into_iter()
            .flat_map(processes::listening)
            .collect()
    }

    /// Ends every session at once and leaves the listener: a clean loss of the connection.
    ///
    /// # Panics
    ///
    /// If there was none to end.
    pub fn kill_sessions(&self) {
        let sessions = self.sessions();
        assert!(!sessions.is_empty(), "no session to kill");
        for pid in sessions {
            processes::signal(pid, "KILL");
        }
    }

    /// Freezes every session, so that the connection stays open and nothing answers: a cut link.
    ///
    /// # Panics
    ///
    /// If there was none to freeze.
    pub fn freeze_sessions(&self) -> Vec<u32> {
        let sessions = self.sessions();
        assert!(!sessions.is_empty(), "no session to freeze");
        for pid in &sessions {
            processes::signal(*pid, "STOP");
        }
        sessions
    }

    /// Ends the listener and every session.
    pub fn stop(&mut self) {
        let family = self.family();
        if let Some(mut child) = self.child.take() {
            processes::signal(child.id(), "KILL");
            child.wait().expect("sshd can be waited for");
        }
        // KILL also ends what is frozen.
        for one in family {
            processes::signal(one.pid, "KILL");
        }
    }

    /// Starts it again on the same port after [`Self::stop`].
    ///
    /// # Panics
    ///
    /// If another process has taken the port meanwhile.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        eventually_blocking(START_LIMIT, "sshd takes its old port again", || {
            self.try_start().then_some(())
        });
    }

    /// Another host key under the same name and port, as after a takeover or a new installation.
    pub fn change_host_key(&mut self) {
        self.stop();
        fs::remove_file(self.directory.path().join("host")).expect("the host key can be removed");
        generate_key(&self.directory.path().join("host"));
        self.start_again();
    }

    fn start_on_a_free_port(&mut self) {
        for _ in 0..10 {
            self.port = free_port();
            if self.try_start() {
                return;
            }
        }
        panic!("sshd did not start: {}", self.log());
    }

    /// False where the port was taken or sshd ended by itself.
    fn try_start(&mut self) -> bool {
        let config = self.directory.path().join("sshd_config");
        fs::write(&config, self.config()).expect("the configuration can be written");
        let log = fs::File::create(self.log_path()).expect("the log can be written");
        let sshd = program("sshd").expect("sshd is installed");
        let mut command = if self.without_proc {
            let mut command = Command::new("unshare");
            let hidden = "mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", hidden]).arg(sshd);
            command
        } else {
            Command::new(sshd)
        };
        let mut child = command
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd starts");
        let ready = format!("Server listening on 127.0.0.1 port {}.", self.port);
        let listens = eventually_blocking(START_LIMIT, "sshd listens or ends", || {
            if self.log().contains(&ready) {
                return Some(true);
            }
            child.try_wait().expect("sshd can be waited for").map(|_| false)
        });
        if listens {
            self.child = Some(child);
        }
        listens
    }

    fn config(&self) -> String {
        let directory = self.directory.path().display();
        let mut text = String::new();
        for line in &self.lines {
            text += line;
            text += "\n";
        }
        text += &format!(
            "Port {port}\n\
             ListenAddress 127.0.0.1\n\
             HostKey {directory}/host\n\
             AuthorizedKeysFile {directory}/authorized_keys\n\
             PidFile none\n\
             StrictModes no\n\
             UsePAM no\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\n\
             UseDNS no\n\
             PrintMotd no\n\
             MaxStartups 200\n\
             LogLevel VERBOSE\n",
            port = self.port,
        );
        text
    }

    fn write_known_hosts(&self) {
        let key = fs::read_to_string(self.directory.path().join("host.pub")).expect("the host key was made");
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.directory.path().join("known_hosts"), line).expect("known_hosts can be written");
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("sshd.log")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that was free a moment ago; whoever takes it must be ready to try another.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a listener has an address").port()
}

/// A temporary folder that another user may look into: sshd reads the keys as the user who logs in.
pub(crate) fn temp_dir_for_all() -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("paperclip-bridge-test-")
        .tempdir();
    let directory = directory.expect("a temporary folder can be made");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), mode).expect("modes can be set");
    directory
}

/// Makes an ed25519 key pair without a passphrase at `path` and `path.pub`.
pub(crate) fn generate_key(path: &Path) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("ssh-keygen starts").success(), "ssh-keygen failed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::can_run;

    fn ssh(access: &Access, command: &str) -> std::process::Output {
        let rest = access.target.strip_prefix("ssh://").unwrap();
        let (user_host, port) = rest.rsplit_once(':').unwrap();
        Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
            ])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", access.known_hosts.display()))
            .arg("-i")
            .arg(&access.identity)
            .args(["-p", port, user_host, command])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[test]
    fn the_server_lets_its_key_in_and_is_gone_when_dropped() {
        if !can_run(here()) {
            return;
        }
        let server = Sshd::builder().with_current_user().start();
        let port = server.port();

        let output = ssh(&server.access(), "echo hello");

        assert_eq!(
            output.stdout,
            b"hello\n",
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            server.log()
        );
        drop(server);
        assert!(!processes::anyone_listens(port));
    }

    #[test]
    fn a_made_user_logs_in_and_a_changed_host_key_is_refused_by_ssh() {
        if !can_run(here().and_then(|()| user::can_be_made())) {
            return;
        }
        let mut server = Sshd::start();

        let before = ssh(&server.access(), "id -un");
        server.change_host_key();
        let after = ssh(&server.access(), "id -un");

        assert_eq!(
            String::from_utf8_lossy(&before.stdout).trim(),
            server.user(),
            "{}",
            server.log()
        );
        assert!(!after.status.success());
    }
}
