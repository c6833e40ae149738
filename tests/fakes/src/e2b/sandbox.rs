//! One sandbox: its life, its home folder, its processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use super::ending::signal_all;
use super::rpc::Fault;
use super::table::Table;

/// What `Authorization` may name; each runs as the user of the tests, for no other can be had.
const USERS: [&str; 2] = ["user", "root"];
/// The version of the server that was looked at.
pub(super) const ENVD: &str = "0.6.13";

/// What a sandbox is made of.
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) template: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) auto_pause: bool,
    pub(super) started_at: SystemTime,
    pub(super) clock: Arc<Clock>,
    pub(super) processes: Table,
    pub(super) tasks: TaskTracker,
    home: TempDir,
    life: Mutex<Life>,
}

struct Life {
    state: State,
    end_at: SystemTime,
    sockets: CancellationToken,
}

/// Where a sandbox is between its creation and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    Gone,
}

impl Sandbox {
    /// A running sandbox as `request` asks for it.
    pub(super) fn new(request: &Value, lifetime: Duration, clock: &Arc<Clock>) -> Self {
        let texts = |value: &Value| {
            let entries = value.as_object().cloned().unwrap_or_default();
            let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
            entries
                .into_iter()
                .map(|(key, value)| (key, text(value)))
                .collect()
        };
        let id = format!("i{}", random());
        Self {
            token: format!("tok-{}", random()),
            template: request["templateID"].as_str().unwrap_or("base").to_owned(),
            metadata: texts(&request["metadata"]),
            env: texts(&request["envVars"]),
            auto_pause: request["autoPause"].as_bool().unwrap_or(false),
            started_at: clock.now(),
            clock: Arc::clone(clock),
            processes: Table::default(),
            tasks: TaskTracker::new(),
            home: tempfile::Builder::new()
                .prefix(&format!("fake-e2b-{id}-"))
                .tempdir()
                .expect("a temporary folder"),
            life: Mutex::new(Life {
                state: State::Running,
                end_at: clock.now() + lifetime,
                sockets: CancellationToken::new(),
            }),
            id,
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> State {
        self.life().state
    }

    pub(super) fn end_at(&self) -> SystemTime {
        self.life().end_at
    }

    /// Ends after this long from now; `only_later` leaves a later end as it is.
    pub(super) fn live_for(&self, lifetime: Duration, only_later: bool) {
        let end_at = self.clock.now() + lifetime;
        let mut life = self.life();
        if !only_later || end_at > life.end_at {
            life.end_at = end_at;
        }
    }

    /// Cancelled when the connections into the sandbox are cut.
    pub(super) fn sockets(&self) -> CancellationToken {
        self.life().sockets.clone()
    }

    /// Cuts every connection into the sandbox, now.
    pub(super) fn cut(&self) {
        let mut life = self.life();
        life.sockets.cancel();
        life.sockets = CancellationToken::new();
    }

    /// Stops it, with or without its memory. Without, its processes are gone.
    pub(super) fn pause(&self, memory: bool) {
        self.life().state = State::Paused;
        self.signal(if memory { Signal::STOP } else { Signal::KILL });
        self.cut();
    }

    /// Goes on where it was paused.
    pub(super) fn resume(&self) {
        self.signal(Signal::CONT);
        self.life().state = State::Running;
    }

    /// Ends it and everything in it.
    pub(super) fn end(&self) {
        self.life().state = State::Gone;
        self.signal(Signal::KILL);
        self.cut();
    }

    fn signal(&self, signal: Signal) {
        let started: Vec<u32> = self.processes.running().iter().map(|one| one.pid).collect();
        signal_all(&self.id, &started, signal);
    }

    /// The folder of its user.
    pub(super) fn home(&self) -> String {
        self.home.path().to_string_lossy().into_owned()
    }

    /// A path as the sandbox sees it: absolute, or in the home folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match path.strip_prefix("~/") {
            Some(rest) => self.home.path().join(rest),
            None => self.home.path().join(Path::new(path)),
        }
    }

    /// The user that a call is made as.
    pub(super) fn check_user(&self, user: Option<&str>) -> Result<String, Fault> {
        let user = user.filter(|user| !user.is_empty()).unwrap_or("user");
        if USERS.contains(&user) {
            return Ok(user.to_owned());
        }
        Err(Fault::new(
            "unauthenticated",
            format!("invalid username: '{user}'"),
        ))
    }

    /// As create and connect tell it.
    pub(super) fn brief(&self) -> Value {
        json!({
            "sandboxID": self.id,
            "templateID": self.template,
            "clientID": "fake",
            "envdVersion": ENVD,
            "envdAccessToken": self.token,
            "trafficAccessToken": null,
            "domain": null,
        })
    }

    /// As the list tells it.
    pub(super) fn listed(&self) -> Value {
        let state = match self.state() {
            State::Running => "running",
            State::Paused | State::Gone => "paused",
        };
        json!({
            "sandboxID": self.id,
            "templateID": self.template,
            "clientID": "fake",
            "envdVersion": ENVD,
            "startedAt": time(self.started_at),
            "endAt": time(self.end_at()),
            "state": state,
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "metadata": self.metadata,
        })
    }

    /// As a look at this one alone tells it.
    pub(super) fn detail(&self) -> Value {
        let mut detail = self.listed();
        detail["envdAccessToken"] = Value::from(self.token.as_str());
        detail
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
    }
}

/// RFC 3339.
pub(super) fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .expect("a time of today")
        .to_string()
}

/// Twenty letters and digits.
pub(super) fn random() -> String {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes).expect("random bytes");
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    bytes
        .iter()
        .map(|byte| char::from(alphabet[usize::from(byte % 32)]))
        .collect()
}
