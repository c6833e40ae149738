//! `soak-kill`: what is killed in the middle of callbacks, and what must hold afterwards.
//!
//! Mixed reads and writes run without a pause while the gateway, the channel or the process on the host is killed
//! again and again. What must hold: no write reaches the upstream twice; none that reached it is answered as if it
//! might be sent again; nobody waits longer than its deadline; the session comes back; and once it ends in order,
//! nothing is left in the sandbox. The exit status is 1 where any of it did not.
//!
//! Here: the options, the scenarios and the table. Not here: the callers ([`callers`]), what a session tells of their
//! writes ([`outcomes`]), the sessions and their restarts ([`lives`], [`mixed`]), and what is killed ([`victims`]).

mod callers;
mod outcomes;
mod lives;
mod served;
mod mixed;
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
    /// From which the moments of the kills follow, where they are random; a fresh one without it.
    #[arg(long)]
    seed: Option<u32>,
    /// A caller that no gateway can answer must see its connection closed within so many milliseconds of a kill; told
    /// in the table in any case.
    #[arg(long)]
    closed_within_ms: Option<u64>,
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
    let single = scenarios().into_iter().map(Some);
    for one in single.chain([None]) {
        let name = one.map_or_else(
            || mixed::NAME.to_owned(),
            |(way, victim)| format!("{way}: {victim}"),
        );
        if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only)) {
            continue;
        }
        writeln!(std::io::stderr(), "soak-kill: {name}")?;
        let mut line = ground(name, one, options).await?;
        line.look_at_closings(options.closed_within_ms.map(Duration::from_millis));
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

/// What every scenario stands on, and what must be gone from it afterwards.
async fn ground(name: String, one: Option<(Way, Victim)>, options: &Options) -> anyhow::Result<Line> {
    let sshd = Sshd::start();
    let before = victims::in_temp_folder(&sshd);
    let upstream = Upstream::start().await;
    for method in ["GET", callers::WRITE] {
        let slow = Script::json(200, r#"{"ok":true}"#).after(Duration::from_millis(120));
        upstream.on(method, callers::SLOW_PATH, slow);
    }
    let mut line = match one {
        Some((way, victim)) => scenario(name, way, victim, &sshd, &upstream, options).await?,
        None => mixed::scenario(&sshd, &upstream, options).await?,
    };
    let left = victims::left_in_sandbox(&sshd, &before, EMPTY_LIMIT).await;
    line.violations.extend(
        left.into_iter()
            .map(|what| format!("left in the sandbox: {what}")),
    );
    Ok(line)
}

async fn scenario(
    name: String,
    way: Way,
    victim: Victim,
    sshd: &Sshd,
    upstream: &Upstream,
    options: &Options,
) -> anyhow::Result<Line> {
    let mut life = Life::begin(way, sshd, upstream).await?;
    let mut recoveries = vec![];
    let mut violations = vec![];
    let callers = Callers::start(vec![life.called()], options.callers);
    for kill in 0..options.kills {
        // The calls of the last recovery shall not be the only ones between two kills.
        callers.answered_again(1 + kill % 5, RECOVERY_LIMIT).await;
        if let Err(fault) = callers.write_in_flight(RECOVERY_LIMIT).await {
            violations.push(format!("before kill {}: {fault}", kill + 1));
            break;
        }
        let killed = Instant::now();
        victim.kill(&life, sshd);
        callers.killed();
        if victim == Victim::Host {
            match life.begin_again(sshd, upstream).await {
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
        violations.extend(outcomes::untold(&tally, 0, &seen, &life.agent()).await);
    }
    violations.extend(life.end().await.err().map(|fault| format!("{fault:#}")));
    Ok(Line {
        name,
        kills,
        tally,
        recoveries,
        violations,
    })
}

impl Line {
    /// Callers without a gateway that waited too long for the end of their connection.
    fn look_at_closings(&mut self, limit: Option<Duration>) {
        let late = |closing: &&Duration| limit.is_some_and(|limit| **closing > limit);
        let counts = self.tally.counts();
        let slow = counts.closings.iter().filter(late).count();
        if slow > 0 {
            self.violations
                .push(format!("{slow} connections were closed late"));
            self.violations.extend(self.tally.slowest_closings(slow.min(20)));
        }
    }
}

fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<26}{:>6}{:>8}{:>8}{:>6}{:>7}{:>8}{:>10}{:>13}{:>12}{:>12}  {}\n",
        "scenario",
        "kills",
        "calls",
        "200",
        "409",
        "5xx",
        "broken",
        "longest s",
        "closed, max",
        "back, med s",
        "back, max s",
        "other"
    );
    for line in lines {
        let mut recoveries = line.recoveries.clone();
        recoveries.sort();
        let tally = line.tally.counts();
        let others: Vec<String> = tally
            .other
            .iter()
            .map(|((status, code), count)| format!("{status} {code}: {count}"))
            .collect();
        text += &format!(
            "{:<26}{:>6}{:>8}{:>8}{:>6}{:>7}{:>8}{:>10.2}{:>13}{:>12}{:>12}  {}\n",
            line.name,
            line.kills,
            tally.calls,
            tally.ok,
            tally.indeterminate,
            tally.server_faults,
            tally.broken,
            tally.longest.as_secs_f64(),
            seconds(tally.closings.last()),
            seconds(recoveries.get(recoveries.len() / 2)),
            seconds(recoveries.last()),
            if others.is_empty() {
                "-".to_owned()
            } else {
                others.join(", ")
            },
        );
    }
    for line in lines {
        for violation in &line.violations {
            text += &format!("VIOLATED {}: {violation}\n", line.name);
        }
    }
    text
}

fn seconds(duration: Option<&Duration>) -> String {
    duration.map_or_else(
        || "-".to_owned(),
        |duration| format!("{:.3}", duration.as_secs_f64()),
    )
}
