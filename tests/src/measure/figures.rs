//! Medians, and promises with what became of them.

use std::fmt::Write;

use serde_json::{Value, json};

/// A promise of the project about measured figures.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is promised.
    pub name: String,
    /// What was measured, if it was.
    pub value: Option<f64>,
    /// What it is held against.
    pub bound: f64,
    /// The figures behind it, ours first.
    pub sides: [Option<f64>; 2],
    /// The bound is the least, else the most.
    pub at_least: bool,
}

impl Goal {
    /// Whether it was kept; none where it was not measured.
    pub fn met(&self) -> Option<bool> {
        self.value.map(|value| {
            if self.at_least {
                value >= self.bound
            } else {
                value <= self.bound
            }
        })
    }

    /// For a program.
    pub fn json(&self) -> Value {
        json!({
            "goal": self.name, "value": self.value, "bound": self.bound, "at_least": self.at_least,
            "ours": self.sides[0], "peer": self.sides[1],
            "met": self.met(),
        })
    }
}

/// The goals as lines of a table.
///
/// # Errors
///
/// Never in practice: `text` is memory.
pub fn write_goals(text: &mut String, goals: &[Goal]) -> std::fmt::Result {
    let width = goals
        .iter()
        .map(|goal| goal.name.len())
        .max()
        .unwrap_or(0)
        .max(52);
    writeln!(
        text,
        "\n{:<width$}{:>10}{:>10}  {:<14}ours / peer",
        "goal", "value", "bound", ""
    )?;
    for goal in goals {
        let sign = if goal.at_least { ">=" } else { "<=" };
        let value = goal.value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let met = goal
            .met()
            .map_or("not measured", |met| if met { "met" } else { "MISSED" });
        let bound = format!("{sign} {}", goal.bound);
        let [ours, peer] = goal
            .sides
            .map(|side| side.map_or("-".to_owned(), |figure| format!("{figure:.2}")));
        writeln!(
            text,
            "{:<width$}{value:>10}{bound:>10}  {met:<14}{ours} / {peer}",
            goal.name
        )?;
    }
    Ok(())
}

/// The middle of these values; none of none.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn a_goal_that_was_not_measured_is_neither_met_nor_missed() {
        let mut goal = Goal {
            name: "ratio".to_owned(),
            value: None,
            sides: [None, None],
            bound: 2.0,
            at_least: true,
        };
        assert_eq!(goal.met(), None);

        goal.value = Some(1.9);

        assert_eq!(goal.met(), Some(false));
    }
}
