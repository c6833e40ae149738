//! `bench-daemon`: what a daemon with a thousand sessions costs at rest and under load.
//!
//! A real `serve`, the upstream in a process of its own, sessions over the control API, each on a unix socket. Memory
//! and wake-ups are the kernel's own count; where two settings are compared, they take turns within one run.
//!
//! Here: the options and the order. Not here: the daemon with its sessions ([`ground`]), the load of many sessions
//! ([`open_loop`]), what is measured ([`measuring`]), the goals with their table ([`report`]).

mod ground;
mod open_loop;
mod measuring;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use paperclip_bridge_tests::measure::{Api, api, guard};

use measuring::Case;
use report::Report;

/// Measures a daemon with many sessions.
#[derive(Debug, Parser)]
#[command(name = "bench-daemon")]
struct Options {
    /// Idle sessions.
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Sessions that call.
    #[arg(long, default_value_t = 200)]
    busy: usize,
    /// Callbacks a second, over all of them.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds of each measurement under load.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds at rest of which wake-ups are counted.
    #[arg(long, default_value_t = 20.0)]
    rest: f64,
    /// Turns of what is compared; each figure is the median over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What is measured [default: everything].
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
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
    // Building is not starting.
    paperclip_bridge_tests::binary::bridge_binary();
    let upstream = Api::start().await?;
    let plan = measuring::Plan {
        upstream: &upstream,
        sessions: options.sessions,
        busy: options.busy,
        rate: options.rate,
        length: Duration::from_secs_f64(options.seconds),
        rest: Duration::from_secs_f64(options.rest),
        rounds: options.rounds,
    };
    let cases = match options.cases.is_empty() {
        true => Case::ALL.to_vec(),
        false => options.cases.clone(),
    };
    let mut report = Report::default();
    for case in cases {
        writeln!(std::io::stderr(), "bench-daemon: {}", case.name())?;
        plan.measure(case, &mut report).await?;
    }
    std::io::stdout().lock().write_all(report.table()?.as_bytes())?;
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&report.json())?)?;
    }
    Ok(())
}
