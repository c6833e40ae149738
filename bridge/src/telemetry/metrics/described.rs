//! Every metric with its labels, its unit and its meaning; `docs/metrics.md` is made of this table.

#[cfg(test)]
use std::fmt::Write as _;

/// Before every name of ours.
pub(super) const PREFIX: &str = "paperclip_bridge";

/// One metric as operators read of it.
pub(super) struct Described {
    name: &'static str,
    help: &'static str,
    /// For the document: kind, then each label with the values it takes.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document is made of it"))]
    kind: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document is made of it"))]
    pub(super) labels: &'static [(&'static str, &'static str)],
}

const TUNNELS: (&str, &str) = (
    "tunnel",
    "`ssh-reverse`, `http2_v1`, `queue_v1`, `worker`, `local`",
);

/// All of them.
pub(super) const ALL: &[Described] = &[
    Described {
        name: "callbacks",
        help: "Callbacks that have ended, whatever became of them",
        kind: "counter",
        labels: &[
            TUNNELS,
            ("class", "`read`, `write`, `upload`"),
            (
                "verdict",
                "`allow`, `deny`, `report` (denied and let through), `own` (asked of the bridge itself)",
            ),
            (
                "status",
                "`1xx` to `5xx`; `none` where the caller had gone before an answer",
            ),
        ],
    },
    Described {
        name: "callback_seconds",
        help: "From a callback's head to the end of its answer, in seconds",
        kind: "histogram",
        labels: &[TUNNELS],
    },
    Described {
        name: "refusals",
        help: "Answers that the bridge gave in place of the upstream",
        kind: "counter",
        labels: &[(
            "code",
            "`code` of the answer's body, such as `route_not_allowed`, `rate_limited`, `unavailable`",
        )],
    },
    Described {
        name: "answers_broken",
        help: "Answers that broke off after their head",
        kind: "counter",
        labels: &[],
    },
    Described {
        name: "answer_bytes",
        help: "Bytes of answers' bodies sent to agents",
        kind: "counter",
        labels: &[],
    },
    Described {
        name: "outcomes",
        help: "What became of unsafe callbacks that were dispatched",
        kind: "counter",
        labels: &[("outcome", "`answered`, `not_sent`, `indeterminate`")],
    },
    Described {
        name: "sessions",
        help: "Sessions in each state now",
        kind: "gauge",
        labels: &[(
            "state",
            "`starting`, `ready`, `degraded`, `reconnecting`, `draining`, `ended`",
        )],
    },
    Described {
        name: "sessions_opened",
        help: "Sessions that became ready",
        kind: "counter",
        labels: &[TUNNELS],
    },
    Described {
        name: "sessions_ended",
        help: "Sessions that have ended",
        kind: "counter",
        labels: &[(
            "reason",
            "the reason in `sessions show`, such as `revoked`, `expired`, `heartbeat_missed`",
        )],
    },
    Described {
        name: "audit_failures",
        help: "Records that could not be written to the audit",
        kind: "counter",
        labels: &[],
    },
    Described {
        name: "reloads",
        help: "Times that the configuration was read again",
        kind: "counter",
        labels: &[("result", "`ok`, `refused` (the one before still holds)")],
    },
    Described {
        name: "sessions_taken_on",
        help: "Sessions that this daemon went on with from the store",
        kind: "counter",
        labels: &[(
            "from",
            "`earlier_process` (of this daemon, after a restart), `another_daemon` (that has lost them)",
        )],
    },
    Described {
        name: "holds_lost",
        help: "Sessions that this daemon owned and may not serve any more",
        kind: "counter",
        labels: &[(
            "reason",
            "`taken` (another daemon has it), `late` (its claim was not renewed in time)",
        )],
    },
    Described {
        name: "store_calls",
        help: "Calls of the store",
        kind: "counter",
        labels: &[
            ("access", "`read`, `write`"),
            (
                "outcome",
                "`ok`, `late` (no answer within its deadline), `unreachable` (no connection to the server), `full` (the disk), `failed`",
            ),
        ],
    },
    Described {
        name: "store_ledger_seconds",
        help: "How long a write of the ledger takes, in seconds",
        kind: "histogram",
        labels: &[(
            "step",
            "`dispatch` (before an unsafe callback is sent), `settle` (what became of it)",
        )],
    },
    Described {
        name: "store_broken",
        help: "1 while the store cannot be written, so that unsafe callbacks are refused",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "store_sessions",
        help: "Sessions that this daemon owns in the store now",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "store_outcomes_waiting",
        help: "Outcomes that are known and wait until the store can be written",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "build",
        help: "The version of the daemon",
        kind: "info",
        labels: &[("version", "such as `0.1.0`")],
    },
    Described {
        name: "process_resident_memory_bytes",
        help: "Memory of the process that is in RAM, in bytes",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "process_open_fds",
        help: "Open file descriptors",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "process_start_time_seconds",
        help: "When the process began, in seconds since 1970",
        kind: "gauge",
        labels: &[],
    },
    Described {
        name: "process_cpu_seconds",
        help: "Processor time of the process, user and system, in seconds",
        kind: "counter",
        labels: &[],
    },
];

/// The words of one metric; empty for a name that is not in the table, which a test finds.
pub(super) fn described(name: &str) -> &'static str {
    ALL.iter()
        .find(|metric| metric.name == name)
        .map_or("", |metric| metric.help)
}

#[cfg(test)]
impl Described {
    /// As a scrape shows it, without the endings of its kind.
    pub(super) fn full_name(&self) -> String {
        if self.name.starts_with("process_") {
            self.name.to_owned()
        } else {
            format!("{PREFIX}_{}", self.name)
        }
    }
}

/// `docs/metrics.md`.
#[cfg(test)]
pub(super) fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         `/metrics` on the ops listener of `serve`, as OpenMetrics text. Labels are fixed words: no run, session, issue or agent\n\
         is ever in one, so the number of series has a bound. Counters have `_total` behind their name.\n\n\
         | name | kind | labels | what |\n| --- | --- | --- | --- |\n",
    );
    for metric in ALL {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|(key, values)| format!("`{key}`: {values}"))
            .collect();
        // A `String` takes every write.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            metric.full_name(),
            metric.kind,
            labels.join("; "),
            metric.help
        );
    }
    text
}
