//! What the Worker says when it does not do what was asked.
//!
//! Here: its code and words, when to ask again, and what its clock tells. Not here: what that means for a call (`api`).

use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use serde_json::{Map, Value};

use crate::http::clock_skew;

/// What is shown of the Worker's own words.
const WORDS: usize = 300;
/// What the two clocks may differ by before it is worth a word.
const SKEW_WORTH_TELLING: u64 = 60;

/// Whether an answer is of this media type.
pub(super) fn is_of(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case(media_type))
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// What to do about the clocks; empty where they agree.
pub(super) fn skew(headers: &HeaderMap, now: SystemTime) -> String {
    // Ours tells it where something on the way writes no `Date`.
    let told = headers
        .get("x-paperclip-time")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .map(|theirs| {
            now.duration_since(theirs)
                .unwrap_or_else(|ahead| ahead.duration())
        });
    match told.or_else(|| clock_skew(headers, now)) {
        Some(apart) if apart.as_secs() > SKEW_WORTH_TELLING => format!(
            "this machine's clock and the Worker's are {} s apart: set the clock",
            apart.as_secs()
        ),
        Some(_) | None => String::new(),
    }
}

/// The Worker's code and words, in a form fit for an error line.
#[derive(Default)]
pub(super) struct Said(String);

impl Said {
    pub(super) fn read(body: &[u8]) -> Self {
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(body) else {
            return Self::default();
        };
        let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        let (code, message) = (text("error"), text("message"));
        let words = if message.is_empty() {
            format!(" {code}")
        } else {
            format!(" {code}: {message}")
        };
        Self(
            words
                .chars()
                .filter(|letter| !letter.is_control())
                .take(WORDS)
                .collect(),
        )
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
