//! What is measured of a side in its turn.
//!
//! Here: each measurement, on a side started for it and under a deadline; where one fails, the fault stands in the
//! report in the figure's place. Not here: what follows from the figures ([`super::report`]).

use std::time::Duration;

use anyhow::{anyhow, ensure};
use paperclip_bridge_tests::measure::load;
use paperclip_bridge_tests::measure::{Load, Mode};

use super::ground::{Case, Ground, Tunnel};
use super::report::{Calls, Event, Report};
use super::sides::{Side, Who};

/// Concurrencies of the small calls.
pub(crate) const CONCURRENCIES: [usize; 3] = [1, 16, 64];

/// How many call at once, and how long each may wait.
pub(crate) const AT_ONCE: usize = 64;
const AT_ONCE_LIMIT: Duration = Duration::from_secs(5);

/// How long a 10 MiB POST may take.
const UPLOAD_LIMIT: Duration = Duration::from_secs(40);

/// After the time of a measurement, how long calls in flight are still waited for.
const GRACE: Duration = Duration::from_secs(8);

/// The calls of the peer's queue take seconds: so many are made by one caller and by sixteen, and so long those of a
/// measurement are waited for.
const QUEUE_CALLS: [u64; 2] = [4, 32];
const QUEUE_LIMIT: Duration = Duration::from_secs(30);

/// How long any one measurement may take.
const LIMIT: Duration = Duration::from_secs(90);

/// For how long fast calls are made beside slow ones; shorter than those.
const BESIDE_SLOW: Duration = Duration::from_secs(3);

/// What is measured, for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seconds: f64,
    pub(crate) idle: Duration,
}

/// Whose turn it is, at what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) who: Who,
    pub(crate) case: Case,
    pub(crate) slow_line: bool,
}

impl Plan {
    /// Everything of one turn; what needs no median only in the first round.
    pub(crate) async fn measure(&self, turn: Turn, first: bool, ground: &Ground, report: &mut Report) {
        let mut side = None;
        for connections in CONCURRENCIES {
            if turn.of_the_peers_queue() && turn.slow_line && connections == 16 {
                continue;
            }
            let calls = async |side: &Side| self.small_calls(turn, side, connections, ground).await;
            let calls = turn.on_a_side(&mut side, ground, calls).await;
            if let Ok(calls) = &calls
                && turn.of_the_peers_queue()
                && connections == AT_ONCE
            {
                // Its 64 small calls are also the 64 at once.
                report.note(turn, Event::AtOnce, Ok(calls.in_time));
            }
            report.note_calls(turn, connections, calls);
        }
        if !turn.of_the_peers_queue() {
            let answered = turn.on_a_side(&mut side, ground, at_once).await;
            report.note(turn, Event::AtOnce, answered);
        }
        if !first {
            return end(side).await;
        }
        if turn.of_the_peers_queue() && turn.slow_line {
            // Its figures over the plain line say enough, and each would take a minute.
            return end(side).await;
        }
        let uploaded = turn.on_a_side(&mut side, ground, upload).await;
        report.note(turn, Event::Upload, uploaded);
        for (slow, event) in [(1, Event::BesideOneSlow), (4, Event::BesideFourSlow)] {
            // The slow calls of the one measurement would be there in the next.
            end(side.take()).await;
            let beside = async |side: &Side| beside_slow_calls(side, slow).await;
            let beside = turn.on_a_side(&mut side, ground, beside).await;
            report.note(turn, event, beside);
        }
        end(side.take()).await;
        if turn.case.over_ssh() && !turn.slow_line && !self.idle.is_zero() {
            let rest = async |side: &Side| Ok(self.at_rest(turn, side, ground).await);
            match turn.on_a_side(&mut side, ground, rest).await {
                Ok(figures) => {
                    for (event, figure) in figures {
                        report.note(turn, event, Ok(figure));
                    }
                }
                Err(fault) => report.note(turn, Event::IdleCpu, Err(fault)),
            }
            end(side).await;
        }
    }

    async fn small_calls(
        &self,
        turn: Turn,
        side: &Side,
        connections: usize,
        ground: &Ground,
    ) -> anyhow::Result<Calls> {
        let load = Load::small(&side.agent, Mode::KeepAlive, connections);
        let time = Duration::from_secs_f64(self.seconds);
        let load = match turn.of_the_peers_queue() {
            // Each for itself: after that the side is ended, so that no caller given up stays in its queue.
            true => load
                .counting(queue_calls(connections))
                .bearing_faults(QUEUE_LIMIT),
            false => {
                // Its first calls are its slowest.
                load.clone().lasting(Duration::from_millis(300)).run().await?;
                load.lasting(time).bearing_faults(time + GRACE)
            }
        };
        let (before, executions) = (side.family.look(), ground.executions());
        let sample = load.run().await?;
        let after = side.family.look();
        let answered = sample.latencies.len() as f64;
        ensure!(answered > 0.0, "no call was answered within {:?}", sample.elapsed);
        let in_time = sample.latencies.iter().filter(|took| **took <= AT_ONCE_LIMIT);
        let spent = after.since(&before);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Calls {
            per_second: sample.per_second(),
            p50_ms: milliseconds(sample.percentile(0.5)),
            p95_ms: milliseconds(sample.percentile(0.95)),
            cpu_ms: milliseconds(spent.beside_sshd) / answered,
            cpu_with_sshd_ms: milliseconds(spent.with_sshd) / answered,
            executions: (ground.executions() - executions) as f64 / answered,
            host_mib: mebibytes(after.host_bytes),
            sandbox_mib: mebibytes(after.sandbox_bytes),
            in_time: in_time.count() as f64,
            not_answered: (sample.failed + sample.given_up) as f64,
        })
    }

    async fn at_rest(&self, turn: Turn, side: &Side, ground: &Ground) -> Vec<(Event, f64)> {
        // What belongs to the start shall be over.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, executions) = (side.family.look(), ground.executions());
        tokio::time::sleep(self.idle).await;
        let spent = side.family.look().since(&before);
        let per_minute = |count: f64| count * 60.0 / self.idle.as_secs_f64();
        let mut figures = vec![
            (Event::IdleCpu, per_minute(spent.beside_sshd.as_secs_f64() * 1e3)),
            (
                Event::IdleCpuWithSshd,
                per_minute(spent.with_sshd.as_secs_f64() * 1e3),
            ),
        ];
        if turn.case.over_ssh() {
            let executions = ground.executions() - executions;
            figures.push((Event::IdleExecutions, per_minute(executions as f64)));
        }
        figures
    }
}

impl Turn {
    fn of_the_peers_queue(self) -> bool {
        self.who == Who::Peer && self.case.tunnel() == Tunnel::Queue
    }

    /// Works on the side under the deadline; starts it where there is none. One that failed is not worked on again.
    async fn on_a_side<T>(
        self,
        kept: &mut Option<Side>,
        ground: &Ground,
        work: impl AsyncFnOnce(&Side) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let side = match kept.take() {
            Some(side) => side,
            None => Side::start(self.who, self.case, self.slow_line, ground).await?,
        };
        let done = tokio::time::timeout(LIMIT, work(&side)).await;
        let done = done.map_err(|_| anyhow!("not within {LIMIT:?}")).flatten();
        if done.is_ok() && !self.of_the_peers_queue() {
            *kept = Some(side);
        } else {
            side.stop().await;
        }
        done
    }
}

async fn end(side: Option<Side>) {
    if let Some(side) = side {
        side.stop().await;
    }
}

/// How many calls of the peer's queue so many callers make.
fn queue_calls(connections: usize) -> u64 {
    match connections {
        1 => QUEUE_CALLS[0],
        AT_ONCE => AT_ONCE as u64,
        _ => QUEUE_CALLS[1],
    }
}

/// How many of the calls at once were answered 200 in time.
async fn at_once(side: &Side) -> anyhow::Result<f64> {
    let load = Load::small(&side.agent, Mode::NewConnection, AT_ONCE);
    let sample = load
        .counting(AT_ONCE as u64)
        .bearing_faults(AT_ONCE_LIMIT)
        .run()
        .await?;
    Ok(sample.latencies.len() as f64)
}

/// The median of fast calls, in milliseconds, while so many others wait for a slow upstream.
async fn beside_slow_calls(side: &Side, slow: usize) -> anyhow::Result<f64> {
    let slow = load::slow_calls(&side.agent, slow).await?;
    let load = Load::small(&side.agent, Mode::KeepAlive, 1).lasting(BESIDE_SLOW);
    let sample = load.bearing_faults(BESIDE_SLOW + GRACE).run().await?;
    ensure!(
        !sample.latencies.is_empty(),
        "no fast call was answered within {:?}",
        BESIDE_SLOW + GRACE
    );
    drop(slow);
    Ok(sample.percentile(0.5).as_secs_f64() * 1e3)
}

/// Seconds that a 10 MiB POST takes.
async fn upload(side: &Side) -> anyhow::Result<f64> {
    let load = Load::bulk(&side.agent, true).counting(1);
    let sample = tokio::time::timeout(UPLOAD_LIMIT, load.run())
        .await
        .map_err(|_| anyhow!("no answer within {UPLOAD_LIMIT:?}"))??;
    Ok(sample.percentile(0.5).as_secs_f64())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
