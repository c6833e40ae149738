//! Callers that mix reads and writes without a pause, and what became of each call.
//!
//! Here: the calls and the laws that their answers must keep. A write is never sent again by its caller, so a key
//! that the upstream saw twice was doubled on the way. Not here: what is killed meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::bail;
use paperclip_bridge_tests::upstream::Seen;
use paperclip_bridge_tests::{Agent, Broken};
use tokio::task::JoinSet;

/// Answered at once by the upstream, and after a while.
const FAST_PATH: &str = "/api/issues/PAP-1/comments";
pub(crate) const SLOW_PATH: &str = "/api/issues/PAP-2/comments";

/// A caller's deadline: the queue's own of 30 s, and what a busy machine may add to it.
const DEADLINE: Duration = Duration::from_secs(35);

/// After a call that was not answered 200.
const PAUSE: Duration = Duration::from_millis(20);

/// Statuses after which stock clients send again.
const RETRYABLE: [u16; 5] = [408, 429, 502, 503, 504];

/// One call, over.
#[derive(Clone, Debug)]
struct Call {
    /// Of a write.
    key: Option<String>,
    /// The status, or why there is none.
    came: Result<u16, String>,
    took: Duration,
}

/// Every call of one scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    calls: Vec<Call>,
}

/// The tally in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) calls: usize,
    pub(crate) ok: usize,
    pub(crate) indeterminate: usize,
    pub(crate) server_faults: usize,
    pub(crate) other: usize,
    pub(crate) broken: usize,
    pub(crate) longest: Duration,
}

impl Tally {
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for call in &self.calls {
            counts.calls += 1;
            counts.longest = counts.longest.max(call.took);
            match call.came {
                Ok(200) => counts.ok += 1,
                Ok(409) => counts.indeterminate += 1,
                Ok(500..) => counts.server_faults += 1,
                Ok(_) => counts.other += 1,
                Err(_) => counts.broken += 1,
            }
        }
        counts
    }

    /// What broke a law, given what the upstream saw.
    pub(crate) fn violations(&self, seen: &[Seen]) -> Vec<String> {
        let mut times: HashMap<String, usize> = HashMap::new();
        // One that was cut on its way has no key, and was not carried out.
        for request in seen
            .iter()
            .filter(|request| request.method == "POST" && request.whole)
        {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let key = body["body"].as_str().unwrap_or("without a key").to_owned();
            *times.entry(key).or_default() += 1;
        }
        let mut violations: Vec<String> = times
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(key, count)| format!("write {key} reached the upstream {count} times"))
            .collect();
        for call in &self.calls {
            let count = call
                .key
                .as_deref()
                .map(|key| times.get(key).copied().unwrap_or(0));
            match (&call.came, count) {
                (Ok(status), Some(1..)) if RETRYABLE.contains(status) => {
                    violations.push(format!("a write that reached the upstream was answered {status}"));
                }
                (Ok(200), Some(0)) => violations.push("a write was answered 200 and never sent".to_owned()),
                // A wrong token or a refused path would make the rest prove nothing.
                (Ok(status @ (400..=407 | 410..=428 | 430..=499)), _) => {
                    violations.push(format!("a call was refused with {status}"));
                }
                (Err(fault), _) if fault.starts_with("malformed") => violations.push(fault.clone()),
                _ => {}
            }
            if call.took >= DEADLINE {
                violations.push(format!("a caller waited {:.1} s", call.took.as_secs_f64()));
            }
        }
        violations
    }
}

/// Writes that reached the upstream and were not answered so, of which the session cannot tell what became of them.
pub(crate) async fn untold(tally: &Tally, seen: &[Seen], agent: &Agent) -> Vec<String> {
    let reached: HashSet<&str> = seen
        .iter()
        .filter_map(|request| request.header("idempotency-key"))
        .collect();
    let unanswered = tally.calls.iter().filter(|call| call.came != Ok(200));
    let keys = unanswered.filter_map(|call| call.key.as_deref());
    let mut untold = vec![];
    for key in keys.filter(|key| reached.contains(key)) {
        let told = agent.get(&format!("/_bridge/outcome/key:{key}")).await;
        let outcome = told.map(|answer| answer.json()["outcome"].as_str().unwrap_or("unknown").to_owned());
        if !matches!(outcome.as_deref(), Ok("answered" | "indeterminate")) {
            untold.push(format!("what became of {key} is told as {outcome:?}"));
        }
    }
    untold
}

#[derive(Debug)]
struct Shared {
    agent: RwLock<Agent>,
    tally: Mutex<Tally>,
    answered: AtomicUsize,
    writes_in_flight: AtomicUsize,
    over: AtomicBool,
}

/// Running callers.
#[derive(Debug)]
pub(crate) struct Callers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Callers {
    pub(crate) fn start(agent: Agent, count: usize) -> Self {
        let shared = Arc::new(Shared {
            agent: RwLock::new(agent),
            tally: Mutex::default(),
            answered: AtomicUsize::new(0),
            writes_in_flight: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        for caller in 0..count {
            tasks.spawn(call_on(caller, Arc::clone(&shared)));
        }
        Self { shared, tasks }
    }

    /// From now on, calls go to this one.
    pub(crate) fn call(&self, agent: Agent) {
        *self.shared.agent.write().unwrap_or_else(PoisonError::into_inner) = agent;
    }

    /// Whether so many more calls are answered 200 in time.
    pub(crate) async fn answered_again(&self, more: usize, limit: Duration) -> bool {
        let wanted = self.shared.answered.load(Ordering::Relaxed) + more;
        let answered = || (self.shared.answered.load(Ordering::Relaxed) >= wanted).then_some(());
        looked_for(limit, answered).await.is_some()
    }

    /// Waits until a write is on its way.
    pub(crate) async fn write_in_flight(&self, limit: Duration) -> anyhow::Result<()> {
        let in_flight = || (self.shared.writes_in_flight.load(Ordering::Relaxed) > 0).then_some(());
        if looked_for(limit, in_flight).await.is_none() {
            bail!("no write was on its way within {limit:?}");
        }
        Ok(())
    }

    /// No new calls; those on their way end by their deadlines.
    pub(crate) async fn end(mut self) -> Arc<Tally> {
        self.shared.over.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let mut tally = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::new(std::mem::take(&mut *tally))
    }
}

async fn looked_for<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        match condition() {
            Some(value) => return Some(value),
            None if started.elapsed() > limit => return None,
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

async fn call_on(caller: usize, shared: Arc<Shared>) {
    for number in caller.. {
        if shared.over.load(Ordering::Relaxed) {
            return;
        }
        let agent = shared
            .agent
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let write = number % 2 == 0;
        let path = if number % 3 == 0 { FAST_PATH } else { SLOW_PATH };
        let key = write.then(|| format!("caller-{caller}-call-{number}"));
        let begun = Instant::now();
        shared
            .writes_in_flight
            .fetch_add(usize::from(write), Ordering::Relaxed);
        let came = tokio::time::timeout(DEADLINE, one(&agent, path, key.as_deref())).await;
        shared
            .writes_in_flight
            .fetch_sub(usize::from(write), Ordering::Relaxed);
        let call = Call {
            key,
            came: came.unwrap_or_else(|_| Err("no answer by the deadline".to_owned())),
            took: begun.elapsed(),
        };
        let ok = matches!(call.came, Ok(200));
        shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .calls
            .push(call);
        if ok {
            shared.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn one(agent: &Agent, path: &str, key: Option<&str>) -> Result<u16, String> {
    let answer = match key {
        Some(key) => {
            // In the body as well, because Paperclip's own gateway role passes no header for it.
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            let body = format!(r#"{{"body":"{key}"}}"#);
            agent.call("POST", path, &headers, body.as_bytes()).await
        }
        None => agent.get(path).await,
    };
    answer.map(|answer| answer.status).map_err(|broken| match broken {
        Broken::Malformed(what) => format!("malformed: {what}"),
        Broken::Refused(_) | Broken::Closed | Broken::Cut(_) | Broken::TimedOut => format!("{broken:?}"),
    })
}
