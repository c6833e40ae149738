//! The processes of a sandbox, found by pid or tag.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::process::Process;
use super::rpc::Fault;

/// How long the end of a process can still be asked for.
const KEPT: Duration = Duration::from_secs(30);

/// All of them, the latest last.
#[derive(Default)]
pub(super) struct Table(Mutex<Vec<Arc<Process>>>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, process: Arc<Process>) {
        self.lock().push(process);
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<Arc<Process>> {
        let running = |process: &&Arc<Process>| process.ended_at().is_none();
        self.lock().iter().filter(running).cloned().collect()
    }

    /// One that runs.
    pub(super) fn find(&self, selector: &Value) -> Result<Arc<Process>, Fault> {
        let found = self
            .running()
            .into_iter()
            .rev()
            .find(|one| matches(one, selector));
        found.ok_or_else(|| not_found(selector))
    }

    /// One that runs, or has ended a short while ago.
    pub(super) fn find_ended(&self, selector: &Value, now: SystemTime) -> Result<Arc<Process>, Fault> {
        let kept = |one: &Arc<Process>| {
            one.ended_at()
                .is_none_or(|at| now.duration_since(at).unwrap_or_default() <= KEPT)
        };
        self.lock().retain(kept);
        let found = self
            .lock()
            .iter()
            .rev()
            .find(|one| matches(one, selector))
            .cloned();
        found.ok_or_else(|| not_found(selector))
    }

    pub(super) fn list(&self) -> Value {
        let one = |process: Arc<Process>| match &process.tag {
            Some(tag) => json!({"config": process.config, "pid": process.pid, "tag": tag}),
            None => json!({"config": process.config, "pid": process.pid}),
        };
        let list: Vec<Value> = self.running().into_iter().map(one).collect();
        if list.is_empty() {
            return json!({});
        }
        json!({ "processes": list })
    }
}

fn matches(process: &Process, selector: &Value) -> bool {
    match (selector["pid"].as_u64(), selector["tag"].as_str()) {
        (Some(pid), _) => u64::from(process.pid) == pid,
        (None, Some(tag)) => process.tag.as_deref() == Some(tag),
        (None, None) => false,
    }
}

fn not_found(selector: &Value) -> Fault {
    let message = match selector["tag"].as_str() {
        Some(tag) => format!("process with tag {tag} not found"),
        None => format!("process with pid {} not found", selector["pid"]),
    };
    Fault::new("not_found", message)
}
