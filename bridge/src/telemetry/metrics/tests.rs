//! What is counted is what a scrape reads, and all of it is documented.

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
    metrics.taken_on("another_daemon", 2);
    metrics.hold_lost("late");
    metrics.store_now(StoreNow {
        broken: true,
        sessions: 3,
        outcomes_waiting: 4,
    });
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
        r#"paperclip_bridge_sessions_taken_on_total{from="another_daemon"} 2"#,
        r#"paperclip_bridge_holds_lost_total{reason="late"} 1"#,
        "paperclip_bridge_store_broken 1",
        "paperclip_bridge_store_sessions 3",
        "paperclip_bridge_store_outcomes_waiting 4",
        r#"paperclip_bridge_store_calls_total{access="write",outcome="late"} 0"#,
        r#"paperclip_bridge_store_ledger_seconds_count{step="dispatch"} 0"#,
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_histogram_of_atomics_reads_like_one() {
    let buckets = Buckets::default();
    for took in [50, 100, 101, 60_000_000] {
        buckets.observe(Duration::from_micros(took));
    }
    let mut registry = Registry::default();
    registry.register("took", "How long", buckets);

    let mut text = String::new();
    encode(&mut text, &registry).unwrap();

    for line in [
        r#"took_bucket{le="0.0001"} 2"#,
        r#"took_bucket{le="0.00025"} 3"#,
        r#"took_bucket{le="5.0"} 3"#,
        r#"took_bucket{le="+Inf"} 4"#,
        "took_count 4",
        "took_sum 60.000251",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
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
