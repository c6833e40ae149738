//! `soak-leases`: daemons that hold leases are killed, and what must hold afterwards.
//!
//! In each round some sessions share a state folder, every other one is told to end, and all are killed a little later
//! than in the round before. What must hold: every lease that is still there stands in the book; once it was reaped, by
//! two processes at once, every lease is gone and was released exactly once by the provider's own log. The exit status
//! is 1 where any of it did not.
//!
//! Here: the options and the table. Not here: the round itself (`leased::kill`).

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use paperclip_bridge_tests::leased::kill::{Killed, round};

/// Kills daemons while they hold leases and give them back.
#[derive(Debug, Parser)]
#[command(name = "soak-leases")]
struct Options {
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Leases in each.
    #[arg(long, default_value_t = 20)]
    leases: usize,
    /// The kill comes so long after the wish to end in the last round; at once in the first.
    #[arg(long, default_value_t = 1200)]
    last_after_ms: u32,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:>6}{:>12}{:>8}{:>17}{:>6}{:>14}{:>12}",
        "round", "killed, ms", "leases", "released before", "left", "written down", "violations"
    )?;
    let mut violated = false;
    paperclip_bridge_tests::binary::bridge_binary();
    for number in 0..options.rounds {
        let last = options.rounds.saturating_sub(1).max(1);
        let after = u64::from(options.last_after_ms) * u64::from(number) / u64::from(last);
        let killed = runtime.block_on(round(options.leases, Duration::from_millis(after)));
        writeln!(out, "{}", line(number + 1, after, &killed))?;
        for violation in &killed.violations {
            writeln!(out, "VIOLATED: {violation}")?;
        }
        violated |= !killed.violations.is_empty();
    }
    Ok(if violated {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn line(round: u32, after: u64, killed: &Killed) -> String {
    format!(
        "{round:>6}{after:>12}{:>8}{:>17}{:>6}{:>14}{:>12}",
        killed.leases,
        killed.released_before,
        killed.left,
        killed.written_down,
        killed.violations.len()
    )
}
