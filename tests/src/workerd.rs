//! The Worker template in Cloudflare's own runtime, with the sandbox that it leases played by real processes.
//!
//! Here: installing the pinned runtime once for a target folder, and starting, killing and restarting the Worker. The
//! world itself is `tunnel/worker-template/test/serve.mjs`, which this speaks to by lines. Not here: what is asked of
//! the Worker.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::peer::install::install_from;
use crate::waiting::{eventually_blocking, program};

/// How long the world may take to answer a line, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The bearer token of a Worker that was started with [`Settings::default`].
pub const TOKEN: &str = "bridge-token-of-the-tests";

/// The id of its only key.
pub const KEY_ID: &str = "k1";

/// The bytes of that key: those of the published test vectors.
pub fn key() -> Vec<u8> {
    (0..32).collect()
}

/// The folder of the installed runtime.
///
/// # Errors
///
/// Why it cannot be had here, as a sentence for [`crate::can_run`].
pub fn installed() -> Result<&'static Path, String> {
    static INSTALLED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64")) {
            return Err("the pinned workerd is for Linux on x86-64".to_owned());
        }
        program("node")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker");
        install_from(&source, "peers-worker")
    });
    folder.as_deref().map_err(Clone::clone)
}

/// The template's own tests and the world that they run in.
pub fn template_tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tunnel/worker-template/test")
}

/// Node with what the template's tests need to know.
///
/// # Panics
///
/// Where [`installed`] says that it cannot be had.
pub fn node() -> Command {
    let peers = installed().expect("the caller has asked whether it can run");
    let mut command = Command::new(program("node").expect("it was there before"));
    command.current_dir(template_tests()).env("WORKER_PEERS", peers);
    command
}

/// What an operator would set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `bearer`, `either` or `signed`.
    pub auth_mode: &'static str,
    /// The bearer token.
    pub token: String,
    /// Keys by their ids, live without end.
    pub keys: BTreeMap<String, Vec<u8>>,
    /// Hosts of the bridge API beside the address that it listens on.
    pub allowed_hosts: Vec<String>,
    /// Hosts of the relay beside the address that it listens on.
    pub relay_hosts: Vec<String>,
    /// How long a daemon may take to begin an answer.
    pub relay_timeout: Duration,
    /// How long an event stream may be silent.
    pub keep_alive: Duration,
    /// Further variables of the Worker.
    pub variables: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth_mode: "either",
            token: TOKEN.to_owned(),
            keys: BTreeMap::from([(KEY_ID.to_owned(), key())]),
            allowed_hosts: vec![],
            relay_hosts: vec![],
            relay_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            variables: BTreeMap::new(),
        }
    }
}

impl Settings {
    fn variables(&self) -> Value {
        let keys: Map<String, Value> = self
            .keys
            .iter()
            .map(|(id, key)| (id.clone(), json!({ "key": STANDARD.encode(key) })))
            .collect();
        let mut variables = json!({
            "BRIDGE_AUTH_MODE": self.auth_mode,
            "BRIDGE_AUTH_TOKEN": self.token,
            "BRIDGE_HMAC_KEYS": Value::Object(keys).to_string(),
            "BRIDGE_ALLOWED_HOSTS": self.allowed_hosts.join(","),
            "BRIDGE_RELAY_HOSTS": self.relay_hosts.join(","),
            "BRIDGE_RELAY_TIMEOUT_MS": self.relay_timeout.as_millis().to_string(),
            "TEST_KEEP_ALIVE_MS": self.keep_alive.as_millis().to_string(),
        });
        for (name, value) in &self.variables {
            variables[name] = json!(value);
        }
        variables
    }
}

/// A running Worker. Dropping it ends the runtime, its sandboxes and their processes.
#[derive(Debug)]
pub struct Workerd {
    /// Where the bridge API is, such as `http://127.0.0.1:40123`; the same after a restart.
    pub url: String,
    /// Where the relay is served at `/`.
    pub relay_url: String,
    child: Child,
    talk: Mutex<Talk>,
}

#[derive(Debug)]
struct Talk {
    words: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// What the world says after each word.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    url: String,
    relay_url: String,
    pid: Option<u32>,
    workspace: String,
}

impl Workerd {
    /// Starts a Worker on free ports.
    ///
    /// # Panics
    ///
    /// Where it does not start, with what the runtime wrote.
    pub fn start(settings: &Settings) -> Self {
        let mut child = node()
            .arg("serve.mjs")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = sync_channel(16);
        // Ends with the child's standard output.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let talk = Talk {
            words: child.stdin.take(),
            lines,
        };
        let mut started = Self {
            url: String::new(),
            relay_url: String::new(),
            child,
            talk: Mutex::new(talk),
        };
        let said = started.say(&settings.variables().to_string());
        started.url = said.url;
        started.relay_url = said.relay_url;
        started
    }

    /// Kills the runtime as a crash does. What Durable Objects have stored stays, and so do the sandboxes.
    pub fn kill(&self) {
        let said = self.say("kill");
        assert_eq!(said.pid, None, "the runtime is gone");
    }

    /// Starts the runtime again, at the addresses of before; kills it first where it runs.
    pub fn restart(&self) {
        let said = self.say("restart");
        assert_eq!(said.url, self.url, "the addresses stay");
    }

    /// A fresh working directory for `requestedCwd`: it goes with the sandbox that it is leased with.
    pub fn workspace(&self) -> String {
        self.say("workspace").workspace
    }

    fn say(&self, word: &str) -> Said {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let words = talk.words.as_mut().expect("it is open until the end");
        writeln!(words, "{word}").expect("the world reads");
        match talk.lines.recv_timeout(LIMIT) {
            Ok(line) => serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")),
            Err(RecvTimeoutError::Timeout) => panic!("the world did not answer in time"),
            Err(RecvTimeoutError::Disconnected) => panic!("the world has ended"),
        }
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        // The end of its input is its sign to end everything that it started.
        let talk = self.talk.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(talk.words.take());
        if !thread::panicking() {
            eventually_blocking(LIMIT, "the Worker's world ends", || {
                self.child.try_wait().expect("it is our child")
            });
            return;
        }
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpStream;

    use super::*;
    use crate::can_run;

    fn health(worker: &Workerd) -> String {
        let address = worker.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "GET /api/paperclip-sandbox/v1/health HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_worker_answers_also_after_it_was_killed_and_started_again() {
        if !can_run(installed().map(drop)) {
            return;
        }
        let worker = Workerd::start(&Settings::default());
        assert!(health(&worker).contains("\"ok\":true"));

        worker.kill();
        assert!(TcpStream::connect(worker.url.trim_start_matches("http://")).is_err());
        worker.restart();

        assert!(health(&worker).starts_with("HTTP/1.1 200 "));
    }
}
