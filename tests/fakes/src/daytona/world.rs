//! The sandboxes as data, the clock they go by, and what a test has told the fake to do wrong.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::session::Session;
use super::terminal::Terminal;
use super::{Settings, processes};

/// One call that reached the fake.
#[derive(Clone, Debug)]
pub struct Call {
    /// `METHOD /path?query`.
    pub line: String,
    /// Header fields in lower case, each as `name: value`.
    pub headers: Vec<String>,
    /// The body where it is JSON.
    pub body: Value,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and this status answered.
    Status(u16),
    /// It is done, and the connection cut instead of an answer.
    NoAnswer,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// Scheme and authority of the fake.
    pub(super) origin: String,
    /// Counted up to cut every WebSocket.
    pub(super) cut: watch::Sender<u64>,
    started: Instant,
    world: Mutex<World>,
}

/// Everything that changes.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) calls: Vec<Call>,
    /// In place of the one that the fake starts with.
    pub(super) key: Option<String>,
    pub(super) faults: VecDeque<(String, Fault)>,
    pub(super) latency: Duration,
    /// How far the clock was moved ahead of the real one.
    pub(super) skipped: Duration,
}

impl Shared {
    pub(super) fn new(settings: Settings, origin: String) -> Self {
        Self {
            settings,
            origin,
            cut: watch::Sender::new(0),
            started: Instant::now(),
            world: Mutex::default(),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time on the fake's clock since its start.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed() + self.world().skipped
    }

    /// The id of the sandbox with this id or name.
    pub(super) fn find(&self, key: &str) -> Option<String> {
        let world = self.world();
        if world.sandboxes.contains_key(key) {
            return Some(key.to_owned());
        }
        let named = world.sandboxes.iter().find(|(_, sandbox)| sandbox.name == key);
        named.map(|(id, _)| id.clone())
    }

    /// Works on one sandbox after its state has caught up with the clock; `None` where it is gone.
    pub(super) fn with<T>(&self, id: &str, work: impl FnOnce(&mut Sandbox) -> T) -> Option<T> {
        let now = self.now();
        let mut world = self.world();
        let sandbox = world.sandboxes.get_mut(id)?;
        if sandbox.settle(now) == "destroyed" {
            world.sandboxes.remove(id);
            return None;
        }
        Some(work(sandbox))
    }

    /// Ends all that runs in a sandbox and forgets its sessions and terminals.
    pub(super) fn end_processes(&self, id: &str) {
        let held = self.with(id, |sandbox| {
            (
                std::mem::take(&mut sandbox.sessions),
                std::mem::take(&mut sandbox.terminals),
            )
        });
        drop(held);
        processes::end(id);
    }

    /// Stops what has been idle for longer than its auto-stop interval.
    pub(super) fn stop_idle(&self) {
        let now = self.now();
        let idle: Vec<String> = {
            let mut world = self.world();
            let all = world.sandboxes.iter_mut();
            all.filter_map(|(id, sandbox)| sandbox.stop_if_idle(now).then(|| id.clone()))
                .collect()
        };
        for id in idle {
            self.end_processes(&id);
        }
    }
}

/// One sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) name: String,
    pub(super) labels: Value,
    pub(super) env: BTreeMap<String, String>,
    pub(super) target: String,
    pub(super) snapshot: Value,
    pub(super) state: &'static str,
    /// When the state becomes another one by itself.
    pub(super) next: Option<(Duration, &'static str)>,
    /// Minutes; zero never.
    pub(super) auto_stop: u64,
    pub(super) auto_archive: i64,
    pub(super) auto_delete: i64,
    pub(super) last_activity: Duration,
    pub(super) sessions: HashMap<String, Arc<Session>>,
    pub(super) terminals: HashMap<String, Arc<Terminal>>,
    folder: TempDir,
}

impl Sandbox {
    pub(super) fn new(id: &str, request: &Value, now: Duration, transition: Duration) -> Self {
        let text = |key: &str| request.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |key: &str, default: i64| request.get(key).and_then(Value::as_i64).unwrap_or(default);
        let env = request
            .get("env")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        Self {
            name: text("name").unwrap_or_else(|| id.to_owned()),
            labels: request.get("labels").cloned().unwrap_or_else(|| json!({})),
            env: env
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            target: text("target").unwrap_or_else(|| "local".to_owned()),
            snapshot: request.get("snapshot").cloned().unwrap_or_default(),
            state: "creating",
            next: Some((now + transition, "started")),
            auto_stop: number("autoStopInterval", 15).unsigned_abs(),
            auto_archive: number("autoArchiveInterval", 10080),
            auto_delete: number("autoDeleteInterval", -1),
            // It cannot be idle before it has started.
            last_activity: now + transition,
            sessions: HashMap::new(),
            terminals: HashMap::new(),
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
        }
    }

    /// Lets the state catch up with the clock, and gives it.
    pub(super) fn settle(&mut self, now: Duration) -> &'static str {
        if let Some((at, state)) = self.next
            && now >= at
        {
            self.state = state;
            self.next = None;
        }
        self.state
    }

    pub(super) fn home(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    fn stop_if_idle(&mut self, now: Duration) -> bool {
        let limit = Duration::from_secs(self.auto_stop * 60);
        let idle = self.settle(now) == "started" && self.auto_stop > 0 && now >= self.last_activity + limit;
        if idle {
            self.state = "stopped";
        }
        idle
    }
}

/// A random name: 32 hex digits.
pub(super) fn random_name() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
