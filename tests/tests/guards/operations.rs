//! Guards of what operators watch by: alerts, the dashboard, and the runbook of each alert.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::read;

/// Prometheus' own, of every target.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// Labels that Prometheus puts on, and a histogram's.
const LABELS_OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

/// A row of `docs/metrics.md`.
struct Row {
    kind: String,
    labels: String,
}

fn metrics() -> BTreeMap<String, Row> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        let row = Row {
            kind: cells[2].to_owned(),
            labels: cells[3].to_owned(),
        };
        Some((name.to_owned(), row))
    });
    rows.collect()
}

/// What a scrape calls the metrics, each with its row.
fn exposed(metrics: &BTreeMap<String, Row>) -> BTreeMap<String, &Row> {
    let named = metrics.iter().flat_map(|(name, row)| {
        let ends: &[&str] = match row.kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            "gauge" => &[""],
            other => panic!("{name} is a {other}, of which nothing is known here"),
        };
        ends.iter().map(move |end| (format!("{name}{end}"), row))
    });
    named.collect()
}

/// Every `expr` of the alerts and of the dashboard.
fn expressions() -> Vec<String> {
    let alerts = read("docs/alerts.yml");
    let mut found = vec![];
    let mut lines = alerts.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(expression) = line.trim().strip_prefix("expr:") else {
            continue;
        };
        let mut expression = expression.trim().to_owned();
        if expression == "|" {
            let deep = |line: &&str| line.starts_with("          ");
            while let Some(line) = lines.next_if(deep) {
                expression.push(' ');
                expression.push_str(line.trim());
            }
        }
        found.push(expression);
    }
    assert_eq!(found.len(), alerts.matches("- alert:").count());
    let dashboard: Value =
        serde_json::from_str(&read("docs/grafana-dashboard.json")).expect("the dashboard is JSON");
    collect(&dashboard, &mut found);
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let text = value.as_str().unwrap_or_default();
                // The other one is a variable's.
                if name == "expr" {
                    found.push(text.to_owned());
                } else if let Some(asked) = text.strip_prefix("label_values(").filter(|_| name == "query") {
                    let (metric, _) = asked.rsplit_once(',').expect("it names a label");
                    found.push(metric.to_owned());
                } else {
                    collect(value, found);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A metric in an expression, with the text between its braces.
fn selectors(expression: &str) -> Vec<(String, String)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = vec![];
    let mut rest = expression;
    while let Some(start) = rest.find(is_word) {
        let word: String = rest[start..].chars().take_while(|c| is_word(*c)).collect();
        let after = &rest[start + word.len()..];
        let braces = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let ours = ["paperclip_bridge", "process_"]
            .iter()
            .any(|begin| word.starts_with(begin));
        // A job's name in a string is no metric.
        let quoted = after.starts_with('-') || rest[..start].ends_with('-');
        if braces.is_some() || (ours && !quoted) {
            found.push((
                word,
                braces.map(|(inside, _)| inside.to_owned()).unwrap_or_default(),
            ));
        }
        rest = braces.map_or(after, |(_, behind)| behind);
    }
    found
}

/// `label=~"one|two"` as its name and its words.
fn matchers(inside: &str) -> Vec<(String, Vec<String>)> {
    let mut found = vec![];
    let mut rest = inside;
    while let Some((name, value)) = rest.split_once('"') {
        let (words, behind) = value.split_once('"').expect("a value ends");
        let name = name.trim_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        found.push((name.to_owned(), words.split('|').map(str::to_owned).collect()));
        rest = behind;
    }
    found
}

#[test]
fn alerts_and_the_dashboard_ask_for_metrics_and_labels_that_there_are() {
    let metrics = metrics();
    let exposed = exposed(&metrics);

    for expression in expressions() {
        let selectors = selectors(&expression);
        assert!(!selectors.is_empty(), "{expression} asks for nothing");
        for (name, inside) in selectors {
            if OF_PROMETHEUS.contains(&name.as_str()) {
                continue;
            }
            let row = exposed
                .get(&name)
                .unwrap_or_else(|| panic!("docs/metrics.md has no {name}, of which {expression} asks"));
            for (label, words) in matchers(&inside) {
                if LABELS_OF_PROMETHEUS.contains(&label.as_str()) {
                    continue;
                }
                assert!(
                    row.labels.contains(&format!("`{label}`:")),
                    "{name} has no label {label}: {expression}"
                );
                for word in words.iter().filter(|word| !word.contains('*')) {
                    assert!(
                        is_said(word, &label, row),
                        "{label} of {name} is never {word}: {expression}"
                    );
                }
            }
        }
    }
}

/// Whether a label takes this word. Where its words are not all listed, the pages for operators have to know it.
fn is_said(word: &str, label: &str, row: &Row) -> bool {
    let quoted = format!("`{word}`");
    row.labels.contains(&quoted)
        || (["code", "reason"].contains(&label)
            && ["docs/request-path.md", "docs/serve.md", "docs/operations.md"]
                .iter()
                .any(|page| read(page).contains(&quoted)))
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    let alerts = read("docs/alerts.yml");
    let after = |prefix: &'static str| {
        let lines = alerts.lines().map(str::trim);
        lines.filter_map(move |line| line.strip_prefix(prefix).map(|rest| rest.trim().to_owned()))
    };
    let named: BTreeSet<_> = after("- alert:").collect();
    let page = read("docs/operations.md");
    let sections: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|title| title.starts_with("PaperclipBridge"))
        .map(str::to_owned)
        .collect();

    assert!(!named.is_empty());
    assert_eq!(named, sections);
    let links: BTreeSet<_> = after("runbook:").collect();
    let wanted = named
        .iter()
        .map(|name| format!("docs/operations.md#{}", name.to_lowercase()));
    assert_eq!(links, wanted.collect());
}

#[test]
fn the_reader_of_expressions_sees_what_stands_in_them() {
    let expression = r#"sum by (le) (rate(paperclip_bridge_a_total{code=~"x|y", job="paperclip-bridge"}[5m])) / process_b > 1"#;

    let found = selectors(expression);

    assert_eq!(
        found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["paperclip_bridge_a_total", "process_b"]
    );
    assert_eq!(
        matchers(&found[0].1),
        [
            ("code".to_owned(), vec!["x".to_owned(), "y".to_owned()]),
            ("job".to_owned(), vec!["paperclip-bridge".to_owned()])
        ]
    );
}
