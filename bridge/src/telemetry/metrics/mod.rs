//! What is counted, and how a scrape reads it.
//!
//! Here: [`Metrics`], which the path of a callback and the life of a session count into. In `described` every name with
//! its labels and meaning, which `docs/metrics.md` is made of; in `process` what the system knows of this process. Not
//! here: the listener that a scraper asks. Labels are fixed words of ours: never an id, a path or anything a caller
//! chooses.

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

use described::{PREFIX, described};

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
}

impl Default for Metrics {
    fn default() -> Self {
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
            registry: Registry::default(),
        };
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn seen() -> Seen {
        Seen {
            tunnel: "http2_v1",
            class: Class::Write,
            verdict: "allow",
            code: "outcome_indeterminate",
            status: 409,
            took: Duration::from_millis(3),
            answer_bytes: 120,
            broken: true,
        }
    }

    fn counted() -> Metrics {
        let metrics = Metrics::default();
        metrics.callback(&seen());
        metrics.callback(&Seen {
            code: "",
            status: 201,
            ..seen()
        });
        metrics.outcome("indeterminate");
        metrics.session_opened("http2_v1");
        metrics.session_ended("revoked");
        metrics.sessions([("ready", 3), ("ended", 1)]);
        metrics.audit_failed();
        metrics.reloaded(true);
        metrics
    }

    #[test]
    fn what_was_counted_is_what_a_scrape_reads() {
        let text = counted().text();

        for line in [
            r#"paperclip_bridge_callbacks_total{tunnel="http2_v1",class="write",verdict="allow",status="4xx"} 1"#,
            r#"paperclip_bridge_callbacks_total{tunnel="http2_v1",class="write",verdict="allow",status="2xx"} 1"#,
            r#"paperclip_bridge_callback_seconds_count{tunnel="http2_v1"} 2"#,
            r#"paperclip_bridge_callback_seconds_bucket{le="0.005",tunnel="http2_v1"} 2"#,
            r#"paperclip_bridge_refusals_total{code="outcome_indeterminate"} 1"#,
            "paperclip_bridge_answer_bytes_total 240",
            "paperclip_bridge_answers_broken_total 2",
            r#"paperclip_bridge_sessions{state="ready"} 3"#,
            "paperclip_bridge_audit_failures_total 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_system_is_asked_for_this_process() {
        let text = Metrics::default().text();
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
                .unwrap_or_default()
        };

        assert!(value("process_resident_memory_bytes ") > 100_000.0, "{text}");
        assert!(value("process_open_fds ") >= 3.0, "{text}");
        assert!(value("process_start_time_seconds ") > 1.6e9, "{text}");
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
    }

    /// Names with the keys of their labels, `le` apart.
    fn families(text: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut families: BTreeMap<String, BTreeSet<String>> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, _)| (name.to_owned(), BTreeSet::new()))
            .collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels)) = line.split_once('{') else {
                continue;
            };
            let Some((_, keys)) = families
                .iter_mut()
                .filter(|(family, _)| name.starts_with(family.as_str()))
                .max_by_key(|(family, _)| family.len())
            else {
                panic!("{line} belongs to no family");
            };
            let labels = labels.split('}').next().unwrap_or_default();
            keys.extend(labels.split(',').filter_map(|label| {
                let (key, _) = label.split_once('=')?;
                (key != "le").then(|| key.to_owned())
            }));
        }
        families
    }

    #[test]
    fn every_name_and_label_stands_in_the_table_and_the_table_in_the_document() {
        let told: BTreeMap<String, BTreeSet<String>> = described::ALL
            .iter()
            .map(|metric| {
                let labels = metric.labels.iter().map(|(key, _)| (*key).to_owned()).collect();
                (metric.full_name(), labels)
            })
            .collect();

        assert_eq!(families(&counted().text()), told);
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        if crate::config::environment("PAPERCLIP_BRIDGE_WRITE_DOCS").is_some() {
            std::fs::write(document, described::document()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(document).unwrap(),
            described::document(),
            "PAPERCLIP_BRIDGE_WRITE_DOCS=1 cargo test -p paperclip-bridge --lib telemetry::metrics writes docs/metrics.md anew"
        );
    }
}
