//! Callers that mix reads and writes without a pause, and what became of each call.
//!
//! Here: the calls and the laws that their answers must keep. A write is never sent again by its caller, so a key
//! that the upstream saw twice was doubled on the way. Not here: what is killed meanwhile, and what a session tells of
//! its writes afterwards ([`super::outcomes`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::bail;
use paperclip_bridge_tests::upstream::Seen;
use paperclip_bridge_tests::{Agent, Broken};
use tokio::task::JoinSet;

/// Answered at once by the upstream, and after a while. No comments: of those an issue takes thirty a minute.
const FAST_PATH: &str = "/api/issues/PAP-1";
pub(crate) const SLOW_PATH: &str = "/api/issues/PAP-2";
/// How these callers write.
pub(crate) const WRITE: &str = "PATCH";

/// A caller's deadline: the queue's own of 30 s, and what a busy machine may add to it.
const DEADLINE: Duration = Duration::from_secs(35);

/// After a call that was not answered 200.
const PAUSE: Duration = Duration::from_millis(20);

/// Statuses after which stock clients send again.
const RETRYABLE: [u16; 5] = [408, 429, 502, 503, 504];

/// Whom callers call.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    pub(crate) agent: Agent,
    /// A program in the sandbox answers while nobody stands behind it; else the connection is closed.
    pub(crate) gateway: bool,
}

/// One call, over.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Which of those that are called.
    pub(crate) session: usize,
    /// Of a write.
    pub(crate) key: Option<String>,
    /// The status, or why there is none.
    pub(crate) came: Result<u16, String>,
    /// The `code` of an answer that is not the upstream's.
    code: String,
    begun: Instant,
    took: Duration,
}

/// Every call of one scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) calls: Vec<Call>,
    /// Sessions without a program in the sandbox.
    bare: Vec<bool>,
    kills: Vec<Instant>,
}

/// The tally in numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) calls: usize,
    pub(crate) ok: usize,
    pub(crate) indeterminate: usize,
    pub(crate) server_faults: usize,
    /// By status and code.
    pub(crate) other: BTreeMap<(u16, String), usize>,
    pub(crate) broken: usize,
    pub(crate) longest: Duration,
    /// From the kill, or from a later beginning of the call, to the closed connection, where no gateway stands.
    pub(crate) closings: Vec<Duration>,
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
                Ok(status) => *counts.other.entry((status, call.code.clone())).or_default() += 1,
                Err(_) => {
                    counts.broken += 1;
                    counts.closings.extend(self.closing(call));
                }
            }
        }
        counts.closings.sort();
        counts
    }

    /// How long the closing of a broken call took, where no gateway could answer it.
    fn closing(&self, call: &Call) -> Option<Duration> {
        if !*self.bare.get(call.session)? {
            return None;
        }
        let ended = call.begun + call.took;
        let killed = self
            .kills
            .iter()
            .find(|kill| (call.begun..=ended).contains(*kill));
        Some(ended - *killed.unwrap_or(&call.begun))
    }

    /// The slowest closings, in words: how long, and how the call stood to the last kill before its beginning.
    pub(crate) fn slowest_closings(&self, most: usize) -> Vec<String> {
        let mut closings: Vec<_> = self
            .calls
            .iter()
            .filter_map(|call| Some((self.closing(call).filter(|_| call.came.is_err())?, call)))
            .collect();
        closings.sort_by_key(|(closing, _)| std::cmp::Reverse(*closing));
        let told = closings.into_iter().take(most).map(|(closing, call)| {
            let before = self.kills.iter().rfind(|kill| **kill <= call.begun);
            let since = before.map(|kill| (call.begun - *kill).as_secs_f64());
            format!(
                "{:.3} s, session {}, {:?}, took {:.3} s, begun {since:.3?} s after a kill",
                closing.as_secs_f64(),
                call.session,
                call.came,
                call.took.as_secs_f64()
            )
        });
        told.collect()
    }

    /// What broke a law, given what the upstream saw.
    pub(crate) fn violations(&self, seen: &[Seen]) -> Vec<String> {
        let mut times: HashMap<String, usize> = HashMap::new();
        // One that was cut on its way has no key, and was not carried out.
        for request in seen
            .iter()
            .filter(|request| request.method == WRITE && request.whole)
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
                (Ok(status @ (400..=407 | 410..=499)), _) => {
                    violations.push(format!("a call was refused with {status} {}", call.code));
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

#[derive(Debug)]
struct Shared {
    called: RwLock<Vec<Called>>,
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
    /// Callers are spread over whom they call.
    pub(crate) fn start(called: Vec<Called>, count: usize) -> Self {
        let tally = Tally {
            bare: called.iter().map(|called| !called.gateway).collect(),
            ..Tally::default()
        };
        let shared = Arc::new(Shared {
            called: RwLock::new(called),
            tally: Mutex::new(tally),
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
        let mut called = self.shared.called.write().unwrap_or_else(PoisonError::into_inner);
        for one in called.iter_mut() {
            one.agent = agent.clone();
        }
    }

    /// Something was killed just now.
    pub(crate) fn killed(&self) {
        self.shared.tally().kills.push(Instant::now());
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
        Arc::new(std::mem::take(&mut *self.shared.tally()))
    }
}

impl Shared {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (session, agent) = {
            let called = shared.called.read().unwrap_or_else(PoisonError::into_inner);
            let session = caller % called.len();
            (session, called[session].agent.clone())
        };
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
        let came = came.unwrap_or_else(|_| Err("no answer by the deadline".to_owned()));
        let (came, code) = came.map_or_else(
            |broken| (Err(broken), String::new()),
            |(status, code)| (Ok(status), code),
        );
        let call = Call {
            session,
            key,
            begun,
            came,
            code,
            took: begun.elapsed(),
        };
        let ok = matches!(call.came, Ok(200));
        shared.tally().calls.push(call);
        if ok {
            shared.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Its status, and the `code` of an answer that is not 200.
async fn one(agent: &Agent, path: &str, key: Option<&str>) -> Result<(u16, String), String> {
    let answer = match key {
        Some(key) => {
            // In the body as well, because Paperclip's own gateway role passes no header for it.
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            let body = format!(r#"{{"body":"{key}"}}"#);
            agent.call(WRITE, path, &headers, body.as_bytes()).await
        }
        None => agent.get(path).await,
    };
    let told = answer.map(|answer| match answer.status {
        200 => (200, String::new()),
        status => (status, answer.code()),
    });
    told.map_err(|broken| match broken {
        Broken::Malformed(what) => format!("malformed: {what}"),
        Broken::Refused(_) | Broken::Closed | Broken::Cut(_) | Broken::TimedOut => format!("{broken:?}"),
    })
}
