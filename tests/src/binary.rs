//! The daemon as an operator runs it: the built binary as a child process.
//!
//! Here: building it once per test process, starting it, reading the line that `open --json` prints, and all that
//! it wrote. Not here: what it is pointed at. Read next: [`crate::world`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};

use crate::processes;
use crate::waiting::{eventually, within};

/// How long `open` may take to print its line, and any command to end after it was told to.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The path of the `paperclip-bridge` binary, built on first use with the profile of this process.
///
/// `PAPERCLIP_BRIDGE_BIN` names one that is built already.
///
/// # Panics
///
/// Where it does not build.
pub fn bridge_binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match std::env::var_os("PAPERCLIP_BRIDGE_BIN") {
        Some(path) => PathBuf::from(path),
        None => built("paperclip-bridge"),
    })
}

/// Builds one of the workspace's programs, or finds it built, and says where it is.
///
/// Everything that `cargo test --workspace` builds is named, so that dependencies keep the features which the tests were
/// built with, and nothing is compiled twice.
///
/// # Panics
///
/// Where it does not build.
pub(crate) fn built(program: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is inside the workspace");
    let mut command = Command::new(cargo);
    command.current_dir(root);
    // What the outer cargo says of this package would count as a change for build scripts that look at it.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
                .iter()
                .any(|begin| name.starts_with(begin))
        });
        if told {
            command.env_remove(name);
        }
    }
    if cfg!(debug_assertions) {
        command.args(["test", "--no-run", "--workspace"]);
    } else {
        command.args(["build", "--release", "--workspace", "--bin", program]);
    }
    command.arg("--message-format=json");
    let output = command.stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo could not build {program}");
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        // The program itself, not the one that its unit tests are compiled to.
        .filter(|message| message["target"]["name"] == program && message["profile"]["test"] == false)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable")
}

/// What `open --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Opened {
    /// The session's id.
    pub session: String,
    /// Where an agent finds the bridge, such as `http://127.0.0.1:40123`.
    pub url: String,
    /// The session's token; empty where only its agent knows it, because the session goes on from before a crash.
    #[serde(deserialize_with = "null_is_empty")]
    pub token: String,
    /// The tunnel's name.
    pub tunnel: String,
    /// What was tried before it.
    #[serde(default)]
    pub ladder: Vec<serde_json::Value>,
    /// The agent's environment.
    pub env: BTreeMap<String, String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(value)?.unwrap_or_default())
}

/// A command line that has not been started.
#[derive(Debug)]
pub struct BridgeCommand {
    launcher: Vec<String>,
    arguments: Vec<String>,
    trailing: Vec<String>,
    environment: Vec<(String, String)>,
    home: TempDir,
    log: Option<std::fs::File>,
}

impl BridgeCommand {
    /// `paperclip-bridge` with these arguments, in an environment of its own and an empty home.
    pub fn new<A: Into<String>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            launcher: vec![],
            arguments: arguments.into_iter().map(Into::into).collect(),
            trailing: vec![],
            environment: vec![],
            home: tempfile::tempdir().expect("a temporary folder can be made"),
            log: None,
        }
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Another program and its arguments, which becomes the bridge: our binary and its arguments come behind.
    #[must_use]
    pub fn by<A: Into<String>>(mut self, launcher: impl IntoIterator<Item = A>) -> Self {
        self.launcher = launcher.into_iter().map(Into::into).collect();
        self
    }

    /// What stands after `--`: the command that `run` runs.
    #[must_use]
    pub fn command<A: Into<String>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.trailing = words.into_iter().map(Into::into).collect();
        self
    }

    /// A variable of the daemon's own environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its stderr goes to this file and not into memory: the benchmark's log.
    #[must_use]
    pub fn log_to(mut self, file: std::fs::File) -> Self {
        self.log = Some(file);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// Where the binary does not build or start.
    pub fn start(self) -> Running {
        let mut words: Vec<OsString> = self.launcher.iter().map(OsString::from).collect();
        words.push(bridge_binary().into());
        let mut command = tokio::process::Command::new(&words[0]);
        command.args(&words[1..]).args(&self.arguments);
        if !self.trailing.is_empty() {
            command.arg("--").args(&self.trailing);
        }
        command.env_clear();
        command
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.home.path())
            .env("LANG", "C.UTF-8");
        command.env("USER", crate::user::current());
        command.envs(self.environment);
        let stderr = self.log.map_or_else(Stdio::piped, Stdio::from);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the built binary starts");
        let stdin = child.stdin.take();
        let stdout = Captured::of(child.stdout.take());
        let stderr = Captured::of(child.stderr.take());
        Running {
            child,
            stdin,
            stdout,
            stderr,
            _home: self.home,
        }
    }

    /// Starts `open --json` and returns once its line is there.
    ///
    /// # Errors
    ///
    /// How it ended, where it ended without printing one.
    pub async fn open(self) -> Result<Bridge, Finished> {
        let mut running = self.start();
        let opened = eventually(LIMIT, "`open` prints its line or ends", || {
            if let Some(line) = running.stdout.first_line() {
                return Some(Some(line));
            }
            running
                .child
                .try_wait()
                .expect("it can be waited for")
                .map(|_| None)
        })
        .await;
        // It may have printed the line and ended between the two looks above.
        match opened.or_else(|| running.stdout.first_line()) {
            Some(line) => {
                let parsed = serde_json::from_str(&line);
                let opened = parsed.unwrap_or_else(|error| panic!("`open --json` printed {line:?}: {error}"));
                Ok(Bridge { running, opened })
            }
            None => Err(running.finish().await),
        }
    }

    /// Starts it, closes its stdin and waits for its end.
    pub async fn finish(self) -> Finished {
        let mut running = self.start();
        running.close_stdin();
        running.finish().await
    }
}

/// A child that has been started. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    _home: TempDir,
}

impl Running {
    /// Its process id.
    ///
    /// # Panics
    ///
    /// Once it has been waited for.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// Whether it has ended.
    ///
    /// # Panics
    ///
    /// Where the system does not say.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_some()
    }

    /// Sends it a signal, named without `SIG`.
    pub fn signal(&self, name: &str) {
        processes::signal(self.pid(), name);
    }

    /// Writes to its stdin.
    pub async fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("its stdin is open");
        within(LIMIT, "it takes its stdin", stdin.write_all(bytes))
            .await
            .expect("its stdin takes bytes");
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for its end and all of its output.
    pub async fn finish(mut self) -> Finished {
        let status = within(LIMIT, "the command ends", self.child.wait())
            .await
            .expect("it can be waited for");
        self.stdout.end().await;
        self.stderr.end().await;
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

/// An open session's daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Bridge {
    /// The process.
    pub running: Running,
    /// What it said of the session.
    pub opened: Opened,
}

impl Bridge {
    /// Closes its stdin, as `--until-stdin-closes` waits for, and waits for its end.
    pub async fn close(mut self) -> Finished {
        self.running.close_stdin();
        self.running.finish().await
    }
}

/// One output of a child, read as it comes so that the child never waits for us.
#[derive(Debug)]
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Captured {
    fn of(output: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(vec![]));
        let sink = Arc::clone(&bytes);
        let reader = tokio::spawn(async move {
            let Some(mut output) = output else { return };
            let mut chunk = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = output.read(&mut chunk).await {
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&chunk[..count]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn first_line(&self) -> Option<String> {
        self.text().split_once('\n').map(|(line, _)| line.to_owned())
    }

    async fn end(&mut self) {
        within(LIMIT, "the outputs end with the process", &mut self.reader)
            .await
            .expect("reading does not panic");
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
