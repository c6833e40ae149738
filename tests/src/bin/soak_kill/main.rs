//! `soak-kill`: what is killed in the middle of callbacks, and what must hold afterwards.
//!
//! Mixed reads and writes run without a pause while the gateway, the channel or the process on the host is killed
//! again and again. What must hold: no write reaches the upstream twice; none that reached it is answered as if it
//! might be sent again; nobody waits longer than its deadline; the session comes back; and once it ends in order,
//! nothing is left in the sandbox. The exit status is 1 where any of it did not.
//!
//! Here: the options, the scenarios and the table. Not here: the callers ([`callers`]), the sessions and their
//! restarts ([`lives`]), and what is killed ([`victims`]).

mod callers;
mod lives;
mod victims;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::upstream::{Script, Upstream};

use callers::{Callers, Tally};
use lives::{Life, Way};
use victims::Victim;

/// How long the session may take to serve again after a kill.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// How long the sandbox may take to be empty after the session's end in order.
const EMPTY_LIMIT: Duration = Duration::from_secs(20);

/// Kills the gateway, the channel and the host's process in the middle of callbacks.
#[derive(Debug, Parser)]
#[command(name = "soak-kill")]
struct Options {
    /// Kills in each scenario.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Callers at the same time.
    #[arg(long, default_value_t = 6)]
    callers: usize,
    /// Only scenarios whose name has one of these in it, such as `queue_v1` or `open http2_v1: channel`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// One line of the table.
#[derive(Debug)]
struct Line {
    name: String,
    kills: usize,
    tally: Tally,
    recoveries: Vec<Duration>,
    violations: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let lines = runtime.block_on(soak(&options))?;
    let mut out = std::io::stdout().lock();
    out.write_all(table(&lines).as_bytes())?;
    let violated = lines.iter().any(|line| !line.violations.is_empty());
    Ok(if violated {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn soak(options: &Options) -> anyhow::Result<Vec<Line>> {
    paperclip_bridge_tests::binary::bridge_binary();
    let mut lines = vec![];
    for (way, victim) in scenarios() {
        let name = format!("{way}: {victim}");
        if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only)) {
            continue;
        }
        writeln!(std::io::stderr(), "soak-kill: {name}")?;
        let line = scenario(name, way, victim, options).await?;
        // A long run is watched; the table comes only at its end.
        for violation in &line.violations {
            writeln!(std::io::stderr(), "soak-kill: VIOLATED: {violation}")?;
        }
        lines.push(line);
    }
    anyhow::ensure!(!lines.is_empty(), "no scenario has such a name");
    Ok(lines)
}

/// Every way to serve with everything that can be killed in it.
fn scenarios() -> Vec<(Way, Victim)> {
    let mut all = vec![];
    for tunnel in ["http2_v1", "queue_v1"] {
        all.extend(
            [Victim::Gateway, Victim::Channel, Victim::Host].map(|victim| (Way::Open(tunnel), victim)),
        );
        all.push((Way::Run(tunnel), Victim::Host));
    }
    all.push((Way::HostedQueue, Victim::Host));
    for tunnel in ["ssh-reverse", "http2_v1", "queue_v1"] {
        all.push((Way::Serve(tunnel), Victim::Host));
    }
    all
}

async fn scenario(name: String, way: Way, victim: Victim, options: &Options) -> anyhow::Result<Line> {
    let sshd = Sshd::start();
    let before = victims::in_temp_folder(&sshd);
    let upstream = Upstream::start().await;
    for method in ["GET", "POST"] {
        let slow = Script::json(200, r#"{"ok":true}"#).after(Duration::from_millis(120));
        upstream.on(method, callers::SLOW_PATH, slow);
    }
    let mut life = Life::begin(way, &sshd, &upstream).await?;
    let mut recoveries = vec![];
    let mut violations = vec![];
    let callers = Callers::start(life.agent(), options.callers);
    for kill in 0..options.kills {
        // The calls of the last recovery shall not be the only ones between two kills.
        callers.answered_again(1 + kill % 5, RECOVERY_LIMIT).await;
        if let Err(fault) = callers.write_in_flight(RECOVERY_LIMIT).await {
            violations.push(format!("before kill {}: {fault}", kill + 1));
            break;
        }
        let killed = Instant::now();
        victim.kill(&life, &sshd);
        if victim == Victim::Host {
            match life.begin_again(&sshd, &upstream).await {
                Ok(()) => callers.call(life.agent()),
                Err(fault) => {
                    violations.push(format!("after kill {}: {fault:#}", kill + 1));
                    break;
                }
            }
        }
        if callers.answered_again(1, RECOVERY_LIMIT).await {
            recoveries.push(killed.elapsed());
        } else {
            violations.push(format!(
                "no call was answered after kill {}; {}",
                kill + 1,
                life.log()
            ));
            break;
        }
    }
    let kills = recoveries.len();
    let tally = Arc::unwrap_or_clone(callers.end().await);
    let seen = upstream.seen();
    violations.extend(tally.violations(&seen));
    if matches!(way, Way::Serve(_)) {
        violations.extend(callers::untold(&tally, &seen, &life.agent()).await);
    }
    violations.extend(life.end().await.err().map(|fault| format!("{fault:#}")));
    let left = victims::left_in_sandbox(&sshd, &before, EMPTY_LIMIT).await;
    violations.extend(
        left.into_iter()
            .map(|what| format!("left in the sandbox: {what}")),
    );
    Ok(Line {
        name,
        kills,
        tally,
        recoveries,
        violations,
    })
}

fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<26}{:>6}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>10}{:>12}{:>12}\n",
        "scenario",
        "kills",
        "calls",
        "200",
        "409",
        "5xx",
        "other",
        "broken",
        "longest s",
        "back, med s",
        "back, max s"
    );
    for line in lines {
        let mut recoveries: Vec<f64> = line.recoveries.iter().map(Duration::as_secs_f64).collect();
        recoveries.sort_by(f64::total_cmp);
        let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
        let tally = line.tally.counts();
        text += &format!(
            "{:<26}{:>6}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>10.2}{median:>12.2}{:>12.2}\n",
            line.name,
            line.kills,
            tally.calls,
            tally.ok,
            tally.indeterminate,
            tally.server_faults,
            tally.other,
            tally.broken,
            tally.longest.as_secs_f64(),
            recoveries.last().copied().unwrap_or_default(),
        );
    }
    for line in lines {
        for violation in &line.violations {
            text += &format!("VIOLATED {}: {violation}\n", line.name);
        }
    }
    text
}
