//! What is counted, and how a scrape reads it.
//!
//! Here: [`Metrics`], which the path of a callback and the life of a session count into. In `described` every name with
//! its labels and meaning, which `docs/metrics.md` is made of; in `process` what the system knows of this process, in
//! `buckets` a histogram for the path of a write. Not
//! here: the listener that a scraper asks. Labels are fixed words of ours: never an id, a path or anything a caller
//! chooses.

mod buckets;
mod described;
mod process;

use std::time::Duration;

use http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

pub(crate) use buckets::Buckets;
use described::{PREFIX, described};

use crate::store::StoreFigures;

/// Upper bounds of a callback's duration in seconds: from a loopback call to the longest answer.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0,
];

/// What a callback asks for, as far as limits and figures tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It changes nothing.
    Read,
    /// It may change something.
    Write,
    /// It carries a file.
    Upload,
}

impl Class {
    /// By the method, and by whether the route takes files.
    #[must_use]
    pub fn of(method: &Method, multipart: bool) -> Self {
        if matches!(
            *method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
        ) {
            Self::Read
        } else if multipart {
            Self::Upload
        } else {
            Self::Write
        }
    }

    /// Its word in labels, configuration and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Upload => "upload",
        }
    }
}

/// A callback that is over.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The tunnel it came by.
    pub tunnel: &'static str,
    /// What it asked for.
    pub class: Class,
    /// `allow`, `deny`, `report` or `own`.
    pub verdict: &'static str,
    /// The code of an answer of ours; empty for the upstream's.
    pub code: &'static str,
    /// The answer's status.
    pub status: u16,
    /// From its head to the end of its answer.
    pub took: Duration,
    /// The answer's body.
    pub answer_bytes: u64,
    /// Its answer broke off after its head.
    pub broken: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallbackLabels {
    tunnel: &'static str,
    class: &'static str,
    verdict: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TunnelLabels {
    tunnel: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FromLabels {
    from: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// Everything that is counted in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    callbacks: Family<CallbackLabels, Counter>,
    callback_seconds: Family<TunnelLabels, Histogram>,
    refusals: Family<CodeLabels, Counter>,
    answers_broken: Counter,
    answer_bytes: Counter,
    outcomes: Family<OutcomeLabels, Counter>,
    sessions: Family<StateLabels, Gauge>,
    sessions_opened: Family<TunnelLabels, Counter>,
    sessions_ended: Family<ReasonLabels, Counter>,
    audit_failures: Counter,
    reloads: Family<ResultLabels, Counter>,
    sessions_taken_on: Family<FromLabels, Counter>,
    holds_lost: Family<ReasonLabels, Counter>,
    store_broken: Gauge,
    store_sessions: Gauge,
    store_outcomes_waiting: Gauge,
}

/// Of the store as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreNow {
    /// It did not do what it was asked, and has not been seen to work since.
    pub broken: bool,
    /// Sessions that this daemon owns in it.
    pub sessions: usize,
    /// Outcomes that could not be written yet.
    pub outcomes_waiting: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::counting(&StoreFigures::default())
    }
}

impl Metrics {
    /// Nothing is counted yet but what this store has counted.
    #[must_use]
    pub fn counting(store: &StoreFigures) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let ours = registry.sub_registry_with_prefix(PREFIX);
        let metrics = Self {
            callbacks: registered(ours, "callbacks", Family::default()),
            callback_seconds: registered(
                ours,
                "callback_seconds",
                Family::new_with_constructor(|| Histogram::new(SECONDS)),
            ),
            refusals: registered(ours, "refusals", Family::default()),
            answers_broken: registered(ours, "answers_broken", Counter::default()),
            answer_bytes: registered(ours, "answer_bytes", Counter::default()),
            outcomes: registered(ours, "outcomes", Family::default()),
            sessions: registered(ours, "sessions", Family::default()),
            sessions_opened: registered(ours, "sessions_opened", Family::default()),
            sessions_ended: registered(ours, "sessions_ended", Family::default()),
            audit_failures: registered(ours, "audit_failures", Counter::default()),
            reloads: registered(ours, "reloads", Family::default()),
            sessions_taken_on: registered(ours, "sessions_taken_on", Family::default()),
            holds_lost: registered(ours, "holds_lost", Family::default()),
            store_broken: registered(ours, "store_broken", Gauge::default()),
            store_sessions: registered(ours, "store_sessions", Gauge::default()),
            store_outcomes_waiting: registered(ours, "store_outcomes_waiting", Gauge::default()),
            registry: Registry::default(),
        };
        registered(ours, "store_calls", store.calls.clone());
        registered(ours, "store_ledger_seconds", store.ledger_seconds.clone());
        ours.register(
            "build",
            described("build"),
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self { registry, ..metrics }
    }
}

/// Registers under the name and with the words of the one table.
fn registered<M: Metric + Clone>(registry: &mut Registry, name: &'static str, metric: M) -> M {
    registry.register(name, described(name), metric.clone());
    metric
}

impl Metrics {
    /// A callback has ended.
    pub fn callback(&self, seen: &Seen) {
        self.callbacks
            .get_or_create(&CallbackLabels {
                tunnel: seen.tunnel,
                class: seen.class.name(),
                verdict: seen.verdict,
                status: class_of(seen.status),
            })
            .inc();
        self.callback_seconds
            .get_or_create(&TunnelLabels { tunnel: seen.tunnel })
            .observe(seen.took.as_secs_f64());
        self.answer_bytes.inc_by(seen.answer_bytes);
        if seen.broken {
            self.answers_broken.inc();
        }
        if !seen.code.is_empty() {
            self.refusals.get_or_create(&CodeLabels { code: seen.code }).inc();
        }
    }

    /// What became of a dispatched unsafe callback: `answered`, `not_sent` or `indeterminate`.
    pub fn outcome(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A session is ready over this tunnel.
    pub fn session_opened(&self, tunnel: &'static str) {
        self.sessions_opened.get_or_create(&TunnelLabels { tunnel }).inc();
    }

    /// A session has ended for one of a few reasons.
    pub fn session_ended(&self, reason: &'static str) {
        self.sessions_ended.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// So many sessions are in each state now.
    pub fn sessions(&self, states: impl IntoIterator<Item = (&'static str, usize)>) {
        for (state, count) in states {
            self.sessions
                .get_or_create(&StateLabels { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A record could not be written to the audit.
    pub fn audit_failed(&self) {
        self.audit_failures.inc();
    }

    /// The configuration was read again, and is in force or was refused.
    pub fn reloaded(&self, in_force: bool) {
        let result = if in_force { "ok" } else { "refused" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    /// So many sessions were taken on from the store: those of an `earlier_process` of this daemon, or of
    /// `another_daemon` that has lost them.
    pub fn taken_on(&self, from: &'static str, sessions: usize) {
        self.sessions_taken_on
            .get_or_create(&FromLabels { from })
            .inc_by(u64::try_from(sessions).unwrap_or(u64::MAX));
    }

    /// A session is not this daemon's any more: another one has it (`taken`), or its claim was not renewed in time
    /// (`late`).
    pub fn hold_lost(&self, reason: &'static str) {
        self.holds_lost.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The store as it is now.
    pub fn store_now(&self, now: StoreNow) {
        let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.store_broken.set(i64::from(now.broken));
        self.store_sessions.set(gauge(now.sessions));
        self.store_outcomes_waiting.set(gauge(now.outcomes_waiting));
    }

    /// What a scrape reads: OpenMetrics text, `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a `String` cannot fail.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

fn class_of(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "none",
    }
}

#[cfg(test)]
mod tests;
