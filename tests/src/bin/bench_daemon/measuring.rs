//! What is measured, case by case.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use paperclip_bridge_tests::measure::{Api, median};
use paperclip_bridge_tests::processes;

use crate::ground::{Ground, Setting, straight_to};
use crate::open_loop::beat;
use crate::report::Report;

/// What belongs to the start is over by then, and allocators have given back what they do.
const SETTLING: Duration = Duration::from_secs(5);
/// The first calls are the slowest.
const WARMING: Duration = Duration::from_secs(2);
/// Of what is compared with something else.
const TURN: Duration = Duration::from_secs(2);
/// Sessions of a first look at memory.
const FEW: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// Memory at rest, wake-ups at rest and what scrapes cost.
    Idle,
    /// Latency of the busy sessions.
    Busy,
    /// CPU of a callback with everything on and off.
    Cost,
}

impl Case {
    pub(crate) const ALL: [Self; 3] = [Self::Idle, Self::Busy, Self::Cost];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle sessions",
            Self::Busy => "busy sessions",
            Self::Cost => "CPU of a callback",
        }
    }
}

/// How much, for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) upstream: &'a Api,
    pub(crate) sessions: usize,
    pub(crate) busy: usize,
    pub(crate) rate: u32,
    pub(crate) length: Duration,
    pub(crate) rest: Duration,
    pub(crate) rounds: usize,
}

/// Memory of a process now, in KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    resident: f64,
    proportional: f64,
}

impl Memory {
    async fn settled(pid: u32) -> Self {
        tokio::time::sleep(SETTLING).await;
        Self {
            resident: processes::resident_bytes(pid) as f64 / 1024.0,
            proportional: processes::proportional_bytes(pid) as f64 / 1024.0,
        }
    }
}

impl Plan<'_> {
    pub(crate) async fn measure(&self, case: Case, report: &mut Report) -> anyhow::Result<()> {
        match case {
            Case::Idle => self.idle(report).await.context("idle sessions"),
            Case::Busy => self.busy(report).await.context("busy sessions"),
            Case::Cost => self.cost(report).await.context("CPU of a callback"),
        }
    }

    async fn idle(&self, report: &mut Report) -> anyhow::Result<()> {
        let mut ground = Ground::start(Setting::Default, self.upstream).await?;
        let pid = ground.pid();
        let empty = Memory::settled(pid).await;
        ground.grow_to(FEW).await?;
        let few = Memory::settled(pid).await;
        ground.grow_to(self.sessions).await?;
        let many = Memory::settled(pid).await;
        self.wakes(report, "idle sessions", Some(5.0), pid).await;
        let connections = ground.one_call_each().await?;
        // Idle connections to the upstream are closed within two seconds.
        let connected = Memory::settled(pid).await;
        self.wakes(report, "idle sessions with a connection each", Some(5.0), pid)
            .await;
        let count = self.sessions as f64;
        for (name, memory) in [
            ("memory without sessions".to_owned(), empty),
            (format!("memory with {FEW} sessions"), few),
            (format!("memory with {count} sessions"), many),
            (
                format!("memory with {count} sessions and a connection each"),
                connected,
            ),
        ] {
            report.figure(&format!("{name}, VmRSS KiB"), memory.resident);
            report.figure(&format!("{name}, Pss KiB"), memory.proportional);
        }
        report.goal(
            "KiB for each idle session",
            (many.resident - empty.resident) / count,
            16.0,
        );
        report.figure(
            "KiB for each idle session beyond the first hundred",
            (many.resident - few.resident) / (count - FEW as f64),
        );
        report.goal(
            "KiB more with one idle keep-alive connection each",
            (connected.resident - many.resident) / count,
            32.0,
        );
        drop(connections);
        self.scrapes(report, &ground).await
    }

    async fn wakes(&self, report: &mut Report, what: &str, bound: Option<f64>, pid: u32) {
        let (before, cpu) = (processes::wake_ups(pid), processes::cpu_time(pid));
        tokio::time::sleep(self.rest).await;
        let seconds = self.rest.as_secs_f64();
        // A thread that has ended meanwhile was of a pool; one that is new counts with all of its own.
        let since = processes::wake_ups(pid)
            .into_iter()
            .map(|(thread, count)| count - before.get(&thread).copied().unwrap_or_default())
            .sum::<u64>();
        let wakes = since as f64 / seconds;
        let name = format!("wake-ups a second, {} {what}", self.sessions);
        match bound {
            Some(bound) => report.goal(&name, wakes, bound),
            None => report.figure(&name, wakes),
        }
        let spent = processes::cpu_time(pid).saturating_sub(cpu).as_secs_f64();
        report.figure(
            &format!("CPU ms a second, {} {what}", self.sessions),
            spent / seconds * 1e3,
        );
    }

    async fn scrapes(&self, report: &mut Report, ground: &Ground) -> anyhow::Result<()> {
        let pid = ground.pid();
        let mut bytes = ground.scrape().await?;
        let before = processes::cpu_time(pid);
        let turns = self.rest.as_secs().max(1);
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..turns {
            beat.tick().await;
            bytes = ground.scrape().await?;
        }
        let spent = processes::cpu_time(pid).saturating_sub(before).as_secs_f64();
        report.goal(
            "% of a CPU, /metrics scraped each second",
            spent / turns as f64 * 100.0,
            2.0,
        );
        report.figure("bytes of a scrape", bytes as f64);
        Ok(())
    }

    async fn busy(&self, report: &mut Report) -> anyhow::Result<()> {
        for (setting, name, bound) in [(Setting::Default, "write", 10.0), (Setting::Fsync, "fsync", 20.0)] {
            let mut ground = Ground::start(setting, self.upstream).await?;
            ground.grow_to(self.sessions).await?;
            let busy = &ground.sessions[..self.busy.min(ground.sessions.len())];
            beat(busy, self.rate, WARMING).await?;
            let straight = straight_to(self.upstream, busy.len());
            let (mut rounds, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..self.rounds {
                bare.push(beat(&straight, self.rate, self.length).await?);
                rounds.push(beat(busy, self.rate, self.length).await?);
            }
            let over = |share: f64| median(rounds.iter().map(|beaten| beaten.percentile_ms(share)));
            let machine = |share: f64| median(bare.iter().map(|beaten| beaten.percentile_ms(share)));
            let lost: u64 = rounds.iter().map(|beaten| beaten.lost).sum();
            if let Some(fault) = rounds.iter().find_map(|beaten| beaten.fault.as_ref()) {
                writeln!(std::io::stderr(), "bench-daemon: a call was lost: {fault}")?;
            }
            let made: usize = rounds.iter().map(|beaten| beaten.took.len()).sum();
            let load = format!("{} sessions, {}/s, audit at {name}", self.busy, self.rate);
            for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                // What the machine and the upstream take by themselves.
                let name = format!("{name} ms, straight to the upstream, {}/s", self.rate);
                report.figure(&name, machine(share).unwrap_or_default());
            }
            report.figure(&format!("p50 ms, {load}"), over(0.5).unwrap_or_default());
            report.goal(&format!("p99 ms, {load}"), over(0.99).unwrap_or_default(), bound);
            let of_unsafe =
                |share: f64| median(rounds.iter().map(|beaten| beaten.unsafe_percentile_ms(share)));
            report.figure(
                &format!("p50 ms of unsafe calls, {load}"),
                of_unsafe(0.5).unwrap_or_default(),
            );
            report.figure(
                &format!("p99 ms of unsafe calls, {load}"),
                of_unsafe(0.99).unwrap_or_default(),
            );
            report.figure(&format!("calls answered, {load}"), made as f64);
            report.goal(&format!("calls lost, {load}"), lost as f64, 0.0);
            report.figure(
                &format!("VmRSS KiB afterwards, {load}"),
                processes::resident_bytes(ground.pid()) as f64 / 1024.0,
            );
        }
        Ok(())
    }

    async fn cost(&self, report: &mut Report) -> anyhow::Result<()> {
        const SIDES: [(Setting, &str); 6] = [
            (Setting::AllOff, "all off"),
            (Setting::NoDigests, "audit at write, log and metrics"),
            (Setting::Default, "the same with body digests"),
            (Setting::OnlyAudit, "audit at write alone"),
            (Setting::OnlyLog, "log alone"),
            (Setting::OnlyMetrics, "metrics alone"),
        ];
        let mut grounds = Vec::new();
        for (setting, _) in SIDES {
            let mut ground = Ground::start(setting, self.upstream).await?;
            ground.grow_to(self.busy).await?;
            beat(&ground.sessions, self.rate, WARMING).await?;
            grounds.push((ground, Vec::new()));
        }
        // A machine's pace changes from second to second: short turns, so that all sides share it.
        let turns = (self.length.as_secs_f64() / TURN.as_secs_f64()).ceil() as usize * self.rounds;
        for _ in 0..turns {
            for (ground, spent) in &mut grounds {
                let before = processes::cpu_time(ground.pid());
                let beaten = beat(&ground.sessions, self.rate, TURN).await?;
                let cost = processes::cpu_time(ground.pid()).saturating_sub(before);
                spent.push(cost.as_secs_f64() * 1e6 / beaten.took.len() as f64);
            }
        }
        let costs: Vec<f64> = grounds
            .iter()
            .map(|(_, spent)| median(spent.iter().copied()).unwrap_or_default())
            .collect();
        for ((_, name), cost) in SIDES.iter().zip(&costs) {
            report.figure(&format!("CPU us a callback at {}/s, {name}", self.rate), *cost);
        }
        if let [off, on, digests, ..] = costs[..] {
            report.goal(
                "% more CPU a callback, all on against all off",
                (on / off - 1.0) * 100.0,
                15.0,
            );
            report.figure(
                "% more CPU a callback, with body digests",
                (digests / off - 1.0) * 100.0,
            );
        }
        Ok(())
    }
}
