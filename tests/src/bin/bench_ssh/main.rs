//! `bench-ssh`: callbacks over ssh-reverse against what people build by hand, `ssh -R` to an nginx.
//!
//! Both sides use the same SSH server, the same cipher and the same upstream, take turns within one run, check a
//! token, swap the credential and write a line for each call. Figures are medians over the rounds; CPU time is the
//! scheduler's own count of the processes that stand beside the upstream: ours, or `ssh` and every nginx.
//!
//! Here: the order of the measurements. Not here: how load is made and the API that both call
//! ([`paperclip_bridge_tests::measure`]), the two sides ([`sides`]), and the goals with their table ([`report`]).

mod sides;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use paperclip_bridge_tests::measure::{Load, Mode, api, load};
use paperclip_bridge_tests::processes;
use paperclip_bridge_tests::sshd::{Access, Sshd};

use report::{Bulk, Cell, Report};
use sides::Side;

/// Concurrencies of the small calls.
const CONCURRENCIES: [usize; 3] = [1, 16, 64];

/// Measures callbacks over SSH against `ssh -R` with nginx, in turn in one run.
#[derive(Debug, Parser)]
#[command(name = "bench-ssh")]
struct Options {
    /// Rounds; each figure is the median over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement of small calls.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Transfers of 10 MiB in each measurement of bulk.
    #[arg(long, default_value_t = 12)]
    transfers: usize,
    /// Also open this many one-request channels and measure how memory grows.
    #[arg(long, default_value_t = 0)]
    channels: u64,
    /// Measure one side only.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Ours,
    Rival,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The API that both sides call; started by the benchmark itself.
    #[command(hide = true)]
    Upstream,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match options.part {
        Some(Part::Upstream) => runtime.block_on(api::serve()),
        None => runtime.block_on(measure(options)),
    }
}

async fn measure(options: Options) -> anyhow::Result<()> {
    let upstream = api::Api::start().await?;
    let sshd = Sshd::builder().line("Ciphers aes256-gcm@openssh.com").start();
    let mut report = Report::new(options.rounds, options.seconds);

    let sides = start_both(&options, &sshd.access(), &upstream, &mut report).await?;
    for round in 0..options.rounds {
        note(&format!("small calls, round {} of {}", round + 1, options.rounds))?;
        for mode in [Mode::KeepAlive, Mode::NewConnection] {
            for connections in CONCURRENCIES {
                for side in &sides {
                    let cell = small_calls(side, mode, connections, options.seconds).await?;
                    report.cells.push(cell);
                }
            }
        }
    }
    for side in &sides {
        report.resident.push((side.name(), resident(side)));
    }
    for round in 0..options.rounds {
        note(&format!(
            "10 MiB bodies, round {} of {}",
            round + 1,
            options.rounds
        ))?;
        for upload in [false, true] {
            for side in &sides {
                report.bulks.push(bulk(side, upload, options.transfers).await?);
            }
        }
    }
    for side in &sides {
        note(&format!("calls beside 4 stalled uploads, {}", side.name()))?;
        report
            .beside_stalled
            .push(beside_stalled_uploads(side, options.seconds).await?);
    }
    if options.channels > 0 {
        for side in sides.iter().filter(|side| side.is_ours()) {
            note(&format!("{} channels of one call each", options.channels))?;
            report.growth = Some(growth(side, options.channels).await?);
        }
    }
    let text = report.table();
    std::io::stdout().lock().write_all(text.as_bytes())?;
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&report.json())?)?;
    }
    drop((sides, sshd, upstream));
    Ok(())
}

/// Starts each side as often as there are rounds, in turn, timing each to its first answer; keeps the last.
async fn start_both(
    options: &Options,
    access: &Access,
    upstream: &api::Api,
    report: &mut Report,
) -> anyhow::Result<Vec<Side>> {
    let wanted = |only| options.only.is_none_or(|wanted| wanted == only);
    if wanted(Only::Ours) {
        // Building is not starting.
        paperclip_bridge_tests::binary::bridge_binary();
    }
    let mut kept = vec![];
    for _ in 0..options.rounds.max(1) {
        kept.clear();
        if wanted(Only::Ours) {
            let (side, took) = Side::ours(access, upstream).await?;
            report.starts.push((side.name(), took));
            kept.push(side);
        }
        if wanted(Only::Rival) {
            let (side, took) = Side::rival(access, upstream).await?;
            report.starts.push((side.name(), took));
            kept.push(side);
        }
    }
    Ok(kept)
}

async fn small_calls(side: &Side, mode: Mode, connections: usize, seconds: f64) -> anyhow::Result<Cell> {
    let load = Load::small(side.agent(), mode, connections);
    load.clone().lasting(Duration::from_millis(200)).run().await?;
    let before = side.cpu_time();
    let sample = load.lasting(Duration::from_secs_f64(seconds)).run().await?;
    let cpu = side.cpu_time().saturating_sub(before);
    Ok(Cell::new(side.name(), mode, connections, &sample, cpu))
}

async fn bulk(side: &Side, upload: bool, transfers: usize) -> anyhow::Result<Bulk> {
    let load = Load::bulk(side.agent(), upload);
    load.clone().counting(1).run().await?;
    let before = side.cpu_time();
    let sample = load.counting(transfers as u64).run().await?;
    let cpu = side.cpu_time().saturating_sub(before);
    Ok(Bulk::new(side.name(), upload, &sample, cpu))
}

async fn beside_stalled_uploads(side: &Side, seconds: f64) -> anyhow::Result<Cell> {
    let stalled = load::stalled_uploads(side.agent(), 4).await?;
    let cell = small_calls(side, Mode::KeepAlive, 1, seconds).await;
    stalled.abort_all();
    cell
}

async fn growth(side: &Side, channels: u64) -> anyhow::Result<report::Growth> {
    let load = Load::small(side.agent(), Mode::NewConnection, 16);
    load.clone().counting(5_000).run().await?;
    let before = resident(side);
    load.counting(channels).run().await?;
    Ok(report::Growth {
        channels,
        before_bytes: before,
        after_bytes: resident(side),
    })
}

fn resident(side: &Side) -> u64 {
    side.pids().into_iter().map(processes::resident_bytes).sum()
}

fn note(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "bench-ssh: {text}")
}
