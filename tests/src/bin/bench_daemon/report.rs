//! The figures and the goals, as a table and as JSON.

use std::fmt::Write as _;

use paperclip_bridge_tests::measure::Goal;
use paperclip_bridge_tests::measure::figures::write_goals;
use serde_json::{Value, json};

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<(String, f64)>,
    goals: Vec<Goal>,
}

impl Report {
    /// A figure without a promise.
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.push((name.to_owned(), value));
    }

    /// A figure that is at most `bound`.
    pub(crate) fn goal(&mut self, name: &str, value: f64, bound: f64) {
        self.goals.push(Goal {
            name: name.to_owned(),
            value: Some(value),
            bound,
            sides: [Some(value), None],
            at_least: false,
        });
    }

    pub(crate) fn table(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &self.figures {
            writeln!(text, "{name:<width$}  {value:>12.2}")?;
        }
        write_goals(&mut text, &self.goals)?;
        Ok(text)
    }

    pub(crate) fn json(&self) -> Value {
        let figures: Vec<_> = self
            .figures
            .iter()
            .map(|(name, value)| json!({ "figure": name, "value": value }))
            .collect();
        let goals: Vec<_> = self.goals.iter().map(Goal::json).collect();
        json!({ "figures": figures, "goals": goals })
    }
}
