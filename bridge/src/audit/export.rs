//! Callbacks in the forms that other programs read.
//!
//! Here: one row of CSV (RFC 4180) and one entry of HAR 1.2 for a callback. Bodies and headers are in no audit, so they
//! are in no export. Not here: the lines as they stand, which [`super::query::lines`] hands out.

use serde_json::{Value, json};

use super::query::{Entry, Record, text};

/// The columns of [`csv`], in their order.
pub const COLUMNS: [&str; 21] = [
    "at",
    "session",
    "run",
    "agent",
    "company",
    "issue",
    "environment",
    "request_id",
    "method",
    "route",
    "path",
    "verdict",
    "rule",
    "reason",
    "decided_by",
    "status",
    "code",
    "broken",
    "request_bytes",
    "answer_bytes",
    "duration_us",
];

/// What only an outcome says.
const OF_OUTCOME: [&str; 7] = [
    "decided_by",
    "status",
    "code",
    "broken",
    "request_bytes",
    "answer_bytes",
    "duration_us",
];

/// The first row.
#[must_use]
pub fn csv_head() -> String {
    COLUMNS.join(",") + "\r\n"
}

/// A callback's row; `None` for anything else.
#[must_use]
pub fn csv(entry: &Entry) -> Option<String> {
    let Entry::Callback { attempt, outcome } = entry else {
        return None;
    };
    let cell = |column: &&str| {
        let ended = outcome.as_ref().filter(|_| OF_OUTCOME.contains(column));
        match ended
            .and_then(|ended| ended.get(*column))
            .or_else(|| attempt.get(*column))
        {
            Some(Value::String(text)) => quoted(text),
            Some(value) => value.to_string(),
            None => String::new(),
        }
    };
    Some(COLUMNS.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n")
}

/// A spreadsheet takes text that begins so for a formula.
fn quoted(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if !formula && !text.contains(['"', ',', '\n', '\r']) {
        return text.to_owned();
    }
    let guard = if formula { "'" } else { "" };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

/// A callback as an entry of a HAR's `log.entries`; `None` for anything else.
#[must_use]
pub fn har_entry(entry: &Entry) -> Option<Value> {
    let Entry::Callback { attempt, outcome } = entry else {
        return None;
    };
    let none = Record::new();
    let outcome = outcome.as_ref().unwrap_or(&none);
    let number = |key: &str| outcome.get(key).and_then(Value::as_i64);
    let milliseconds = |time: Option<i64>| time.map_or(-1.0, |time| f64_of(time) / 1000.0);
    let total = number("duration_us");
    let (before, waited) = (number("dispatched_us"), number("upstream_us"));
    let receive = match (total, before, waited) {
        (Some(total), Some(before), Some(waited)) => Some((total - before - waited).max(0)),
        _ => None,
    };
    let path = text(attempt, "path").unwrap_or("/");
    Some(json!({
        "startedDateTime": text(attempt, "at"),
        "time": milliseconds(total).max(0.0),
        "request": {
            "method": text(attempt, "method"),
            "url": format!("http://paperclip.invalid{path}"),
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": [],
            "queryString": [],
            "headersSize": -1,
            "bodySize": number("request_bytes").unwrap_or(-1),
        },
        "response": {
            "status": number("status").unwrap_or(0),
            "statusText": "",
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": [],
            "content": { "size": number("answer_bytes").unwrap_or(0), "mimeType": "" },
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": number("answer_bytes").unwrap_or(-1),
        },
        "cache": {},
        "timings": {
            "blocked": milliseconds(before),
            "send": 0,
            "wait": milliseconds(waited.or(total)).max(0.0),
            "receive": milliseconds(receive).max(0.0),
        },
        "_attempt": attempt,
        "_outcome": if outcome.is_empty() { Value::Null } else { Value::Object(outcome.clone()) },
    }))
}

/// What stands before and behind the entries, which commas part.
#[must_use]
pub fn har_frame() -> (String, &'static str) {
    let creator = json!({ "name": "paperclip-bridge", "version": env!("CARGO_PKG_VERSION") });
    (
        format!("{{\"log\":{{\"version\":\"1.2\",\"creator\":{creator},\"entries\":["),
        "]}}\n",
    )
}

/// Microseconds of a callback are far below what a `f64` holds exactly.
fn f64_of(number: i64) -> f64 {
    i32::try_from(number).map_or(f64::MAX, f64::from)
}
