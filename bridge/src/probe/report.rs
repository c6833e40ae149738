//! What a probe found, as a table for people and as JSON.
//!
//! Here: [`Check`] and [`Report`]. Not here: the looking (`mod.rs`). What a target said goes to a terminal here, so that
//! nothing in it can turn a line.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use crate::telemetry::escape::turns_the_line;

/// How one check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should be.
    Ok,
    /// Sessions work, with something less.
    Warn,
    /// What it is about does not work.
    Fail,
    /// There was nothing to look at, or no time.
    Skipped,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// How it came out.
    pub(crate) outcome: Outcome,
    /// A stable name of what is wrong, such as `host_key`.
    pub(crate) reason: Option<&'static str>,
    /// What was found, in one line.
    pub(crate) found: String,
    /// What to do about it.
    pub(crate) to_do: Option<String>,
}

impl Found {
    /// As it should be.
    pub(crate) fn ok(found: impl Into<String>) -> Self {
        Self::of(Outcome::Ok, None, found, None)
    }

    /// Sessions work, with something less.
    pub(crate) fn warn(reason: &'static str, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self::of(Outcome::Warn, Some(reason), found, Some(to_do.into()))
    }

    /// It does not work.
    pub(crate) fn fail(reason: &'static str, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self::of(Outcome::Fail, Some(reason), found, Some(to_do.into()))
    }

    /// There was nothing to look at.
    pub(crate) fn skipped(why: impl Into<String>) -> Self {
        Self::of(Outcome::Skipped, None, why, None)
    }

    fn of(
        outcome: Outcome,
        reason: Option<&'static str>,
        found: impl Into<String>,
        to_do: Option<String>,
    ) -> Self {
        Self {
            outcome,
            reason,
            found: found.into(),
            to_do,
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// What it is about, such as `tunnel http2_v1`.
    pub(crate) name: String,
    /// How long the looking took.
    pub(crate) took: Duration,
    /// What came of it.
    pub(crate) found: Found,
}

/// Whether sessions can be opened there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// A callback came through.
    Fit,
    /// The target is not reached, or no tunnel carries a callback.
    Unfit,
    /// Something on our side has to be put right first.
    Misconfigured,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The target in the operator's words.
    pub(crate) target: String,
    /// In the order in which it was looked at.
    pub(crate) checks: Vec<Check>,
    /// The best tunnel that carried a callback.
    pub(crate) tunnel: Option<&'static str>,
    /// From start to end.
    pub(crate) took: Duration,
}

/// What is wrong on our side has this reason.
pub(crate) const CONFIGURATION: &str = "configuration";

impl Report {
    /// Whether sessions can be opened there.
    pub(crate) fn fitness(&self) -> Fitness {
        let misconfigured = || {
            let failed = self
                .checks
                .iter()
                .find(|check| check.found.outcome == Outcome::Fail);
            failed.is_some_and(|check| check.found.reason == Some(CONFIGURATION))
        };
        match self.tunnel {
            Some(_) => Fitness::Fit,
            None if misconfigured() => Fitness::Misconfigured,
            None => Fitness::Unfit,
        }
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "ok": self.fitness() == Fitness::Fit,
            "target": self.target,
            "tunnel": self.tunnel,
            "seconds": self.took.as_secs_f64(),
            "checks": self.checks.iter().map(|check| json!({
                "name": check.name,
                "result": check.found.outcome.name(),
                "ms": milliseconds(check.took),
                "reason": check.found.reason,
                "found": check.found.found,
                "to_do": check.found.to_do,
            })).collect::<Vec<_>>(),
        })
    }

    /// A table and what it means.
    pub(crate) fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max();
        let width = width.unwrap_or_default().max("Check".len());
        let mut text = format!("{}\n\n", plain(&self.target));
        // A `String` takes every write.
        let _ = writeln!(text, "{:<width$}  Result   {:>7}  Found", "Check", "Time");
        let _ = writeln!(text, "{:-<width$}  -------  -------  -----", "");
        for Check { name, took, found } in &self.checks {
            let ms = format!("{} ms", milliseconds(*took));
            let _ = writeln!(
                text,
                "{name:<width$}  {:<7}  {ms:>7}  {}",
                found.outcome.name(),
                plain(&found.found)
            );
            if let Some(to_do) = &found.to_do {
                let _ = writeln!(text, "{:<width$}  to do: {}", "", plain(to_do));
            }
        }
        let _ = writeln!(text, "\n{}", self.meaning());
        text
    }

    fn meaning(&self) -> String {
        let seconds = self.took.as_secs_f64();
        match self.tunnel {
            Some(tunnel) => format!("Sessions work there, over {tunnel} ({seconds:.1} s)."),
            None => format!("No session can be opened there ({seconds:.1} s)."),
        }
    }
}

fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Text of the target's on one line that obeys us.
fn plain(text: &str) -> String {
    text.chars()
        .map(|character| if turns_the_line(character) { ' ' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<(&str, Found)>, tunnel: Option<&'static str>) -> Report {
        let checks = checks.into_iter().map(|(name, found)| Check {
            name: name.to_owned(),
            took: Duration::from_millis(12),
            found,
        });
        Report {
            target: "ssh://me@host".into(),
            checks: checks.collect(),
            tunnel,
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_target_is_fit_only_where_a_callback_came_through() {
        let failed = |reason| vec![("target", Found::fail(reason, "x", "y"))];

        assert_eq!(report(vec![], Some("local")).fitness(), Fitness::Fit);
        assert_eq!(report(failed("host_key"), None).fitness(), Fitness::Unfit);
        assert_eq!(
            report(failed(CONFIGURATION), None).fitness(),
            Fitness::Misconfigured
        );
        assert_eq!(
            report(failed("forwarding_refused"), Some("http2_v1")).fitness(),
            Fitness::Fit
        );
        assert_eq!(report(vec![], None).fitness(), Fitness::Unfit);
    }

    #[test]
    fn what_a_target_says_cannot_drive_the_terminal_or_forge_a_line() {
        let report = report(
            vec![("tools", Found::warn("x", "a\u{1b}[2J\r\ntools ok", "b\u{202e}"))],
            None,
        );

        let text = report.text();

        assert!(
            text.chars()
                .all(|character| character == '\n' || !turns_the_line(character)),
            "{text:?}"
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("tools")).count(), 1);
        assert_eq!(report.json()["checks"][0]["result"], "warn");
    }
}
