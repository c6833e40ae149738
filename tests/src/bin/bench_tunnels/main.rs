//! `bench-tunnels`: callbacks over http2_v1 and queue_v1 against the peer's own host with its own gateway.
//!
//! Both sides use the same upstream, the same SSH server and the same cipher and take turns within one run; each is
//! started for its turn and ended after it, so that one at rest never costs the other. CPU time is that of
//! everything which a side starts, on the host and in the sandbox, also of what has ended since; it is told without
//! and with the SSH server. Executions are counted by the SSH server's own log.
//!
//! Here: the options and the order. Not here: what is measured of a side ([`measuring`]), the sides ([`sides`]),
//! what they stand on ([`ground`]), and the goals with their table ([`report`]).

mod measuring;
mod sides;
mod ground;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use paperclip_bridge_tests::measure::{api, cost, guard};

use ground::{Case, Ground, Tunnel};
use measuring::Plan;
use report::Report;
use sides::Who;

/// Measures http2_v1 and queue_v1 against the peer's own host and gateway, in turn in one run.
#[derive(Debug, Parser)]
#[command(name = "bench-tunnels")]
struct Options {
    /// Rounds; each figure is the median over them. The peer's queue has one: its calls take seconds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement of small calls; those of the peer's queue are counted instead.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds at rest of which CPU time and executions are counted; 0 for none.
    #[arg(long, default_value_t = 20.0)]
    idle: f64,
    /// Round trip of the slow line in milliseconds; 0 for none.
    #[arg(long, default_value_t = 40)]
    delay: u64,
    /// Measure one side only.
    #[arg(long, value_enum)]
    only: Option<Who>,
    /// What is measured.
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The API that both sides call; started by the benchmark itself.
    #[command(hide = true)]
    Upstream,
}

fn main() -> anyhow::Result<ExitCode> {
    // The upstream is started with this one word and needs none of the options.
    if std::env::args().nth(1).as_deref() == Some("upstream") {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        return runtime.block_on(api::serve()).map(|()| ExitCode::SUCCESS);
    }
    guard::guarded(measure(Options::parse()))
}

async fn measure(options: Options) -> anyhow::Result<()> {
    cost::inherit_orphans()?;
    let round_trip = (options.delay > 0).then(|| Duration::from_millis(options.delay));
    let ground = Ground::prepare(round_trip).await?;
    let mut sides = vec![Who::Ours, Who::Peer];
    sides.retain(|who| options.only.is_none_or(|only| only == *who));
    if sides.contains(&Who::Ours) {
        // Building is not starting.
        paperclip_bridge_tests::binary::bridge_binary();
    }
    let cases = if options.cases.is_empty() {
        Case::ALL.to_vec()
    } else {
        options.cases.clone()
    };
    let plan = Plan {
        seconds: options.seconds,
        idle: Duration::from_secs_f64(options.idle),
    };
    let mut report = Report::new(options.rounds, options.seconds, options.delay);
    for case in cases {
        for slow_line in [false, true] {
            if slow_line && (round_trip.is_none() || !case.over_ssh()) {
                continue;
            }
            for round in 0..options.rounds {
                for who in &sides {
                    if round > 0 && *who == Who::Peer && case.tunnel() == Tunnel::Queue {
                        continue;
                    }
                    let line = if slow_line { ", slow line" } else { "" };
                    note(&format!(
                        "{case}{line}, {}, round {} of {}",
                        who.name(),
                        round + 1,
                        options.rounds
                    ))?;
                    let turn = measuring::Turn {
                        who: *who,
                        case,
                        slow_line,
                    };
                    plan.measure(turn, round == 0, &ground, &mut report).await;
                }
            }
        }
    }
    drop(ground);
    std::io::stdout().lock().write_all(report.table()?.as_bytes())?;
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&report.json())?)?;
    }
    Ok(())
}

fn note(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "bench-tunnels: {text}")
}
