//! Medians, ratios, goals, and the two forms in which they are told.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use paperclip_bridge_tests::measure::api::BULK_BYTES;
use paperclip_bridge_tests::measure::{Goal, Mode, Sample, figures, median};

use super::CONCURRENCIES;

const MIB: f64 = 1024.0 * 1024.0;

/// One measurement of small calls.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    side: &'static str,
    mode: Mode,
    connections: usize,
    figures: Figures,
}

/// What is told of small calls.
#[derive(Clone, Copy, Debug)]
struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

impl Cell {
    pub(crate) fn new(
        side: &'static str,
        mode: Mode,
        connections: usize,
        sample: &Sample,
        cpu: Duration,
    ) -> Self {
        let requests = sample.latencies.len() as f64;
        let figures = Figures {
            per_second: requests / sample.elapsed.as_secs_f64(),
            p50_us: sample.percentile(0.5).as_secs_f64() * 1e6,
            p99_us: sample.percentile(0.99).as_secs_f64() * 1e6,
            cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        };
        Self {
            side,
            mode,
            connections,
            figures,
        }
    }
}

/// One measurement of 10 MiB bodies.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    side: &'static str,
    upload: bool,
    mib_per_second: f64,
    cpu_ms_per_mib: f64,
}

impl Bulk {
    pub(crate) fn new(side: &'static str, upload: bool, sample: &Sample, cpu: Duration) -> Self {
        let mib = sample.latencies.len() as f64 * BULK_BYTES as f64 / MIB;
        let mib_per_second = mib / sample.elapsed.as_secs_f64();
        Self {
            side,
            upload,
            mib_per_second,
            cpu_ms_per_mib: cpu.as_secs_f64() * 1e3 / mib,
        }
    }
}

/// Memory before and after many channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    pub(crate) channels: u64,
    pub(crate) before_bytes: u64,
    pub(crate) after_bytes: u64,
}

impl Growth {
    fn mib_per_100_000(&self) -> f64 {
        let grown = self.after_bytes as f64 - self.before_bytes as f64;
        grown / MIB * 100_000.0 / self.channels as f64
    }
}

/// Everything measured in one run.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    pub(crate) starts: Vec<(&'static str, Duration)>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) bulks: Vec<Bulk>,
    pub(crate) resident: Vec<(&'static str, u64)>,
    pub(crate) beside_stalled: Vec<Cell>,
    pub(crate) growth: Option<Growth>,
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64) -> Self {
        Self {
            rounds,
            seconds,
            starts: vec![],
            cells: vec![],
            bulks: vec![],
            resident: vec![],
            beside_stalled: vec![],
            growth: None,
        }
    }

    fn figures(&self, side: &str, mode: Mode, connections: usize) -> Option<Figures> {
        let of = |field: fn(&Figures) -> f64| {
            median(
                self.cells
                    .iter()
                    .filter(|cell| cell.side == side && cell.mode == mode && cell.connections == connections)
                    .map(|cell| field(&cell.figures)),
            )
        };
        Some(Figures {
            per_second: of(|f| f.per_second)?,
            p50_us: of(|f| f.p50_us)?,
            p99_us: of(|f| f.p99_us)?,
            cpu_us: of(|f| f.cpu_us)?,
        })
    }

    fn bulk(&self, side: &str, upload: bool) -> Option<(f64, f64)> {
        let these = || {
            self.bulks
                .iter()
                .filter(|bulk| bulk.side == side && bulk.upload == upload)
        };
        Some((
            median(these().map(|bulk| bulk.mib_per_second))?,
            median(these().map(|bulk| bulk.cpu_ms_per_mib))?,
        ))
    }

    fn start_ms(&self, side: &str) -> Option<f64> {
        median(
            self.starts
                .iter()
                .filter(|(name, _)| *name == side)
                .map(|(_, took)| took.as_secs_f64() * 1e3),
        )
    }

    fn resident_mib(&self, side: &str) -> Option<f64> {
        self.resident
            .iter()
            .find(|(name, _)| *name == side)
            .map(|(_, bytes)| *bytes as f64 / MIB)
    }

    fn ratio(&self, mode: Mode, connections: usize, field: fn(&Figures) -> f64) -> Option<f64> {
        let ours = self.figures("ours", mode, connections)?;
        let rival = self.figures("rival", mode, connections)?;
        Some(field(&ours) / field(&rival))
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = vec![];
        let mut goal = |name: String, value: Option<f64>, at_least: bool, bound: f64| {
            goals.push(Goal {
                name,
                value,
                sides: [None, None],
                bound,
                at_least,
            });
        };
        let new = Mode::NewConnection;
        goal(
            "new connection, c=1: rate, times the rival's".into(),
            self.ratio(new, 1, |f| f.per_second),
            true,
            1.5,
        );
        goal(
            "new connection, c=1: CPU, times the rival's".into(),
            self.ratio(new, 1, |f| f.cpu_us),
            false,
            0.6,
        );
        let keep = Mode::KeepAlive;
        for (connections, rate, cpu) in [(1, 1.05, 0.95), (16, 1.2, 0.8), (64, 0.9, 0.9)] {
            let name = |what: &str| format!("keep-alive, c={connections}: {what}, times the rival's");
            goal(
                name("rate"),
                self.ratio(keep, connections, |f| f.per_second),
                true,
                rate,
            );
            goal(
                name("CPU"),
                self.ratio(keep, connections, |f| f.cpu_us),
                false,
                cpu,
            );
        }
        for (mode, what) in [(keep, "keep-alive"), (new, "new connection")] {
            let ours = self.figures("ours", mode, 1);
            let above = ours.map(|ours| (ours.p99_us - ours.p50_us) / 1e3);
            goal(
                format!("{what}, c=1: p50, times the rival's"),
                self.ratio(mode, 1, |f| f.p50_us),
                false,
                1.0,
            );
            goal(format!("{what}, c=1: p99 above p50, ms"), above, false, 5.0);
        }
        for (upload, what, bound) in [(false, "down", 1.1), (true, "up", 0.75)] {
            let ratio = self.bulk("ours", upload).zip(self.bulk("rival", upload));
            let ratio = ratio.map(|(ours, rival)| ours.0 / rival.0);
            goal(
                format!("10 MiB {what}: rate, times the rival's"),
                ratio,
                true,
                bound,
            );
        }
        goal(
            "resident after small calls, MiB".into(),
            self.resident_mib("ours"),
            false,
            40.0,
        );
        let stalled = self.beside_stalled.iter().find(|cell| cell.side == "ours");
        let stalled = stalled.map(|cell| cell.figures.p50_us / 1e3);
        goal("p50 beside 4 stalled uploads, ms".into(), stalled, false, 3.0);
        let growth = self.growth.map(|growth| growth.mib_per_100_000());
        goal("growth over 100,000 channels, MiB".into(), growth, false, 5.0);
        goals
    }

    /// For a person.
    pub(crate) fn table(&self) -> String {
        self.written()
            .unwrap_or_else(|error| format!("the table cannot be written: {error}\n"))
    }

    fn written(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        writeln!(
            text,
            "medians of {} rounds of {} s; CPU without sshd and upstream",
            self.rounds, self.seconds
        )?;
        writeln!(
            text,
            "\n{:<22}{:>6}{:>10}{:>10}{:>10}{:>12}",
            "small calls", "side", "calls/s", "p50 us", "p99 us", "CPU us/call"
        )?;
        for mode in [Mode::KeepAlive, Mode::NewConnection] {
            for connections in CONCURRENCIES {
                for side in ["ours", "rival"] {
                    let Some(f) = self.figures(side, mode, connections) else {
                        continue;
                    };
                    let name = format!("{}, c={connections}", name_of(mode));
                    writeln!(
                        text,
                        "{name:<22}{side:>6}{:>10.0}{:>10.0}{:>10.0}{:>12.1}",
                        f.per_second, f.p50_us, f.p99_us, f.cpu_us
                    )?;
                }
            }
        }
        writeln!(
            text,
            "\n{:<22}{:>6}{:>10}{:>12}",
            "10 MiB bodies", "side", "MiB/s", "CPU ms/MiB"
        )?;
        for (upload, name) in [(false, "down"), (true, "up")] {
            for side in ["ours", "rival"] {
                let Some((rate, cpu)) = self.bulk(side, upload) else {
                    continue;
                };
                writeln!(text, "{name:<22}{side:>6}{rate:>10.0}{cpu:>12.2}")?;
            }
        }
        writeln!(
            text,
            "\n{:<22}{:>6}{:>14}{:>14}",
            "process", "side", "start ms", "resident MiB"
        )?;
        for side in ["ours", "rival"] {
            let (Some(start), Some(resident)) = (self.start_ms(side), self.resident_mib(side)) else {
                continue;
            };
            writeln!(text, "{:<22}{side:>6}{start:>14.0}{resident:>14.1}", "")?;
        }
        for cell in &self.beside_stalled {
            let f = cell.figures;
            writeln!(
                text,
                "beside 4 stalled uploads, {}: {:.0} calls/s, p50 {:.0} us, p99 {:.0} us",
                cell.side, f.per_second, f.p50_us, f.p99_us
            )?;
        }
        figures::write_goals(&mut text, &self.goals())?;
        Ok(text)
    }

    /// For a program.
    pub(crate) fn json(&self) -> Value {
        let mut small = vec![];
        let mut bulk = vec![];
        let mut process = vec![];
        for side in ["ours", "rival"] {
            for mode in [Mode::KeepAlive, Mode::NewConnection] {
                for connections in CONCURRENCIES {
                    let Some(f) = self.figures(side, mode, connections) else {
                        continue;
                    };
                    small.push(json!({
                        "side": side, "mode": name_of(mode), "concurrency": connections,
                        "requests_per_second": f.per_second, "p50_us": f.p50_us, "p99_us": f.p99_us,
                        "cpu_us_per_request": f.cpu_us,
                    }));
                }
            }
            for upload in [false, true] {
                let Some((rate, cpu)) = self.bulk(side, upload) else {
                    continue;
                };
                let direction = if upload { "up" } else { "down" };
                bulk.push(json!({
                    "side": side, "direction": direction, "mib_per_second": rate, "cpu_ms_per_mib": cpu,
                }));
            }
            let stalled = self.beside_stalled.iter().find(|cell| cell.side == side);
            process.push(json!({
                "side": side, "start_to_first_answer_ms": self.start_ms(side),
                "resident_mib": self.resident_mib(side),
                "p50_us_beside_stalled_uploads": stalled.map(|cell| cell.figures.p50_us),
            }));
        }
        let goals = self.goals();
        let growth = self.growth.map(|growth| {
            json!({
                "channels": growth.channels, "before_bytes": growth.before_bytes, "after_bytes": growth.after_bytes,
            })
        });
        json!({
            "rounds": self.rounds, "seconds": self.seconds,
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "small_calls": small, "bulk": bulk, "process": process, "growth": growth,
            "goals": goals.iter().map(Goal::json).collect::<Vec<_>>(),
        })
    }
}

fn name_of(mode: Mode) -> &'static str {
    match mode {
        Mode::KeepAlive => "keep-alive",
        Mode::NewConnection => "new connection",
    }
}
