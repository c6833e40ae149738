//! What the demo found, as a table for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

/// What the demo found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each thing that was shown, in order.
    pub steps: Vec<Step>,
    /// The URL that the agent was given.
    pub url: String,
    /// The tunnel that was taken.
    pub tunnel: &'static str,
    /// From start to end.
    pub took: Duration,
}

/// One thing that was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the agent did, or what was looked at.
    pub did: String,
    /// What should come out.
    pub promised: String,
    /// What came out.
    pub came_out: String,
    /// They agree.
    pub ok: bool,
}

impl Report {
    /// Everything came out as promised.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// One JSON object.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        json!({
            "ok": self.ok(),
            "url": self.url,
            "tunnel": self.tunnel,
            "seconds": self.took.as_secs_f64(),
            "steps": self.steps.iter().map(|step| json!({
                "did": step.did,
                "promised": step.promised,
                "came_out": step.came_out,
                "ok": step.ok,
            })).collect::<Vec<_>>(),
        })
    }

    /// A table and what it means.
    #[must_use]
    pub fn text(&self) -> String {
        let headings = ["What the agent did", "Promised", "Came out"];
        let columns = |step: &Step| [step.did.clone(), step.promised.clone(), step.came_out.clone()];
        let mut widths = headings.map(|heading| heading.chars().count());
        for step in &self.steps {
            for (width, cell) in widths.iter_mut().zip(columns(step)) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!(
            "An agent in a sandbox (an SSH server inside this process) calls a Paperclip API (a stand-in).\n\
             It was given {} and a throw-away token. Its calls travel over {}.\n\n",
            self.url, self.tunnel
        );
        let mut line = |cells: [String; 3], mark: &str| {
            let mut row = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                // A `String` takes every write.
                let _ = write!(row, "{cell:<width$}  ");
            }
            row.push_str(mark);
            let _ = writeln!(text, "{}", row.trim_end());
        };
        line(headings.map(str::to_owned), "");
        line(widths.map(|width| "-".repeat(width)), "-");
        for step in &self.steps {
            line(columns(step), if step.ok { "✓" } else { "✗" });
        }
        let _ = writeln!(text, "\n{}", self.meaning());
        text
    }

    fn meaning(&self) -> String {
        let seconds = self.took.as_secs_f64();
        let failed = self.steps.iter().filter(|step| !step.ok).count();
        if failed > 0 {
            return format!(
                "{failed} of {} came out otherwise than promised ({seconds:.1} s). This is a fault of the bridge or of \
                 this machine;\nrun again with --log-level debug and report what it prints.",
                self.steps.len()
            );
        }
        format!(
            "All {} as promised, in {seconds:.1} s. The agent reached what policy allows and nothing else, was told the\n\
             truth about the call whose answer got lost, and never held the real credential.\n\
             Next, with PAPERCLIP_API_KEY set: paperclip-bridge run ssh://user@host -- your-agent",
            self.steps.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_makes_the_demo_fail() {
        let mut report = report(&[true, true]);
        assert!(report.ok());
        assert!(report.text().contains("All 2 as promised"));

        report.steps[1].ok = false;

        assert!(!report.ok());
        assert!(report.text().contains('✗') && report.text().contains("1 of 2"));
        assert_eq!(report.json()["ok"], false);
    }

    #[test]
    fn a_demo_that_showed_nothing_has_not_passed() {
        assert!(!report(&[]).ok());
    }

    fn report(outcomes: &[bool]) -> Report {
        let step = |ok: &bool| Step {
            did: "x".into(),
            promised: "y".into(),
            came_out: "y".into(),
            ok: *ok,
        };
        let steps = outcomes.iter().map(step).collect();
        Report {
            steps,
            url: "http://127.0.0.1:1".into(),
            tunnel: "ssh-reverse",
            took: Duration::from_secs(1),
        }
    }
}
