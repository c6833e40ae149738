//! Medians, ratios, goals, and the two forms in which they are told.

use std::fmt::{self, Write};

use paperclip_bridge_tests::measure::{Goal, figures, median};
use serde_json::{Value, json};

use super::ground::Case;
use super::measuring::{AT_ONCE, CONCURRENCIES, Turn};
use super::sides::Who;

/// What is told of small calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    /// Per call, without the SSH server.
    pub(crate) cpu_ms: f64,
    pub(crate) cpu_with_sshd_ms: f64,
    /// Per call, over SSH.
    pub(crate) executions: f64,
    pub(crate) host_mib: f64,
    pub(crate) sandbox_mib: f64,
    /// Calls with another answer than 200 or none in time.
    pub(crate) not_answered: f64,
}

/// A figure of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    AtOnce,
    BesideOneSlow,
    BesideFourSlow,
    Upload,
    IdleCpu,
    IdleCpuWithSshd,
    IdleExecutions,
}

impl Event {
    const ALL: [Self; 7] = [
        Self::AtOnce,
        Self::BesideOneSlow,
        Self::BesideFourSlow,
        Self::Upload,
        Self::IdleCpu,
        Self::IdleCpuWithSshd,
        Self::IdleExecutions,
    ];
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtOnce => "64 at once: answered 200 in 5 s",
            Self::BesideOneSlow => "p50 beside one 5 s call, ms",
            Self::BesideFourSlow => "p50 beside four 5 s calls, ms",
            Self::Upload => "10 MiB POST, s",
            Self::IdleCpu => "at rest: CPU ms a minute",
            Self::IdleCpuWithSshd => "at rest: CPU with sshd, ms a minute",
            Self::IdleExecutions => "at rest: executions a minute",
        })
    }
}

/// Everything measured in one run.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    round_trip_ms: u64,
    calls: Vec<(Turn, usize, Calls)>,
    events: Vec<(Turn, Event, f64)>,
    faults: Vec<(Turn, String)>,
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64, round_trip_ms: u64) -> Self {
        Self {
            rounds,
            seconds,
            round_trip_ms,
            calls: vec![],
            events: vec![],
            faults: vec![],
        }
    }

    pub(crate) fn note_calls(&mut self, turn: Turn, connections: usize, calls: anyhow::Result<Calls>) {
        match calls {
            Ok(calls) => self.calls.push((turn, connections, calls)),
            Err(fault) => self.faults.push((turn, format!("c={connections}: {fault:#}"))),
        }
    }

    pub(crate) fn note(&mut self, turn: Turn, event: Event, figure: anyhow::Result<f64>) {
        match figure {
            Ok(figure) => self.events.push((turn, event, figure)),
            Err(fault) => self.faults.push((turn, format!("{event}: {fault:#}"))),
        }
    }

    fn calls(&self, turn: Turn, connections: usize, of: fn(&Calls) -> f64) -> Option<f64> {
        let these = self.calls.iter();
        let these = these.filter(|(at, count, _)| *at == turn && *count == connections);
        median(these.map(|(_, _, calls)| of(calls)))
    }

    fn event(&self, turn: Turn, event: Event) -> Option<f64> {
        let these = self.events.iter();
        median(
            these
                .filter(|(at, of, _)| *at == turn && *of == event)
                .map(|(_, _, figure)| *figure),
        )
    }

    fn goals(&self) -> Vec<Goal> {
        let http2 = |who| turn(who, Case::Http2Ssh, false);
        let queue = |who| turn(who, Case::QueueSsh, false);
        let times = |at: &dyn Fn(Who) -> Turn, connections, of: fn(&Calls) -> f64| {
            Some(self.calls(at(Who::Ours), connections, of)? / self.calls(at(Who::Peer), connections, of)?)
        };
        let inverse = |ratio: Option<f64>| ratio.map(|ratio| 1.0 / ratio);
        let memory: fn(&Calls) -> f64 = |calls| calls.host_mib + calls.sandbox_mib;
        let slow = |who| turn(who, Case::Http2Ssh, true);
        let least = |event| {
            let all = self.events.iter();
            all.filter(|(at, of, _)| *at == queue(Who::Ours) && *of == event)
                .map(|(_, _, figure)| *figure)
                .min_by(f64::total_cmp)
        };
        let idle = |event| Some(self.event(queue(Who::Ours), event)? / self.event(queue(Who::Peer), event)?);
        let ours = queue(Who::Ours);
        let mut goals = vec![];
        let mut goal = |name: &str, value: Option<f64>, at_least: bool, bound: f64| {
            goals.push(Goal {
                name: name.to_owned(),
                value,
                bound,
                at_least,
            });
        };
        let p50 = inverse(times(&http2, 1, |calls| calls.p50_ms));
        goal("http2-ssh, c=1: p50, times lower than the peer's", p50, true, 6.0);
        let rate = times(&http2, 64, |calls| calls.per_second);
        goal("http2-ssh, c=64: calls/s, times the peer's", rate, true, 10.0);
        for connections in [1, 64] {
            let cpu = times(&http2, connections, |calls| calls.cpu_ms);
            let name = format!("http2-ssh, c={connections}: CPU a call, times the peer's");
            goal(&name, cpu, false, 0.1);
        }
        goal(
            "http2-ssh, c=64: memory, times the peer's",
            times(&http2, 64, memory),
            false,
            0.1,
        );
        let beside = self.event(http2(Who::Ours), Event::BesideFourSlow);
        goal("http2-ssh: p50 beside four 5 s calls, ms", beside, false, 5.0);
        let rate = times(&slow, 64, |calls| calls.per_second);
        goal(
            "http2-ssh, slow line, c=64: calls/s, times the peer's",
            rate,
            true,
            12.0,
        );
        let p50 = self.calls(ours, 1, |calls| calls.p50_ms);
        goal("queue-ssh, c=1: p50, ms", p50, false, 150.0);
        goal(
            "queue-ssh: of 64 at once, answered 200 in 5 s",
            least(Event::AtOnce),
            true,
            AT_ONCE as f64,
        );
        goal(
            "queue-ssh: 10 MiB POST, s",
            self.event(ours, Event::Upload),
            false,
            60.0,
        );
        goal(
            "queue-ssh, at rest: CPU, times the peer's",
            idle(Event::IdleCpu),
            false,
            0.05,
        );
        let executions: fn(&Calls) -> f64 = |calls| calls.executions;
        goal(
            "queue-ssh, c=1: executions a call",
            self.calls(ours, 1, executions),
            false,
            2.0,
        );
        goal(
            "queue-ssh, c=64: executions a call",
            self.calls(ours, 64, executions),
            false,
            0.3,
        );
        let executions = self.event(ours, Event::IdleExecutions);
        goal("queue-ssh, at rest: executions a minute", executions, false, 12.0);
        goals
    }

    /// Every turn that has figures, in the order of the table.
    fn turns(&self) -> Vec<Turn> {
        let mut turns = vec![];
        for case in Case::ALL {
            for slow_line in [false, true] {
                turns.extend([Who::Ours, Who::Peer].map(|who| turn(who, case, slow_line)));
            }
        }
        turns
    }

    /// For people.
    pub(crate) fn table(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        writeln!(
            text,
            "medians of {} rounds of {} s; slow line: {} ms round trip; CPU of both sides, without and with sshd",
            self.rounds, self.seconds, self.round_trip_ms
        )?;
        writeln!(
            text,
            "\n{:<24}{:>5}{:>5}{:>9}{:>10}{:>10}{:>10}{:>10}{:>8}{:>9}{:>9}{:>7}",
            "small calls",
            "side",
            "c",
            "calls/s",
            "p50 ms",
            "p95 ms",
            "CPU ms",
            "+ sshd",
            "execs",
            "host MiB",
            "sandbox",
            "failed"
        )?;
        for turn in self.turns() {
            for connections in CONCURRENCIES {
                let of = |field| self.calls(turn, connections, field).unwrap_or_default();
                if self.calls(turn, connections, |calls| calls.per_second).is_none() {
                    continue;
                }
                writeln!(
                    text,
                    "{:<24}{:>5}{connections:>5}{:>9.1}{:>10.2}{:>10.2}{:>10.3}{:>10.3}{:>8.2}{:>9.1}{:>9.1}{:>7}",
                    name_of(turn),
                    turn.who.name(),
                    of(|calls| calls.per_second),
                    of(|calls| calls.p50_ms),
                    of(|calls| calls.p95_ms),
                    of(|calls| calls.cpu_ms),
                    of(|calls| calls.cpu_with_sshd_ms),
                    of(|calls| calls.executions),
                    of(|calls| calls.host_mib),
                    of(|calls| calls.sandbox_mib),
                    of(|calls| calls.not_answered),
                )?;
            }
        }
        writeln!(text, "\n{:<24}{:<38}{:>12}{:>12}", "", "", "ours", "peer")?;
        for case in Case::ALL {
            for slow_line in [false, true] {
                for event in Event::ALL {
                    let of = |who| self.event(turn(who, case, slow_line), event);
                    let shown =
                        |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
                    let (ours, peer) = (of(Who::Ours), of(Who::Peer));
                    if ours.is_none() && peer.is_none() {
                        continue;
                    }
                    let name = name_of(turn(Who::Ours, case, slow_line));
                    writeln!(
                        text,
                        "{name:<24}{:<38}{:>12}{:>12}",
                        event.to_string(),
                        shown(ours),
                        shown(peer)
                    )?;
                }
            }
        }
        for (turn, fault) in &self.faults {
            let fault = fault.lines().collect::<Vec<_>>().join(" / ");
            writeln!(text, "FAILED {}, {}: {fault}", name_of(*turn), turn.who.name())?;
        }
        figures::write_goals(&mut text, &self.goals())?;
        Ok(text)
    }

    /// For a program.
    pub(crate) fn json(&self) -> Value {
        let mut small = vec![];
        let mut events = vec![];
        for turn in self.turns() {
            let about = |rest: Value| {
                let mut about = json!({
                    "case": turn.case.to_string(), "slow_line": turn.slow_line, "side": turn.who.name(),
                });
                if let (Some(about), Value::Object(rest)) = (about.as_object_mut(), rest) {
                    about.extend(rest);
                }
                about
            };
            for connections in CONCURRENCIES {
                let of = |field| self.calls(turn, connections, field);
                if of(|calls| calls.per_second).is_none() {
                    continue;
                }
                small.push(about(json!({
                    "concurrency": connections, "requests_per_second": of(|calls| calls.per_second),
                    "p50_ms": of(|calls| calls.p50_ms), "p95_ms": of(|calls| calls.p95_ms),
                    "cpu_ms_per_request": of(|calls| calls.cpu_ms),
                    "cpu_with_sshd_ms_per_request": of(|calls| calls.cpu_with_sshd_ms),
                    "executions_per_request": of(|calls| calls.executions),
                    "host_mib": of(|calls| calls.host_mib), "sandbox_mib": of(|calls| calls.sandbox_mib),
                    "not_answered": of(|calls| calls.not_answered),
                })));
            }
            for event in Event::ALL {
                if let Some(figure) = self.event(turn, event) {
                    events.push(about(json!({ "figure": event.to_string(), "value": figure })));
                }
            }
        }
        let faults = self.faults.iter().map(|(turn, fault)| {
            json!({ "case": turn.case.to_string(), "slow_line": turn.slow_line, "side": turn.who.name(), "fault": fault })
        });
        json!({
            "rounds": self.rounds, "seconds": self.seconds, "round_trip_ms": self.round_trip_ms,
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "small_calls": small, "figures": events, "faults": faults.collect::<Vec<_>>(),
            "goals": self.goals().iter().map(Goal::json).collect::<Vec<_>>(),
        })
    }
}

fn turn(who: Who, case: Case, slow_line: bool) -> Turn {
    Turn { who, case, slow_line }
}

fn name_of(turn: Turn) -> String {
    let line = if turn.slow_line { ", slow line" } else { "" };
    format!("{}{line}", turn.case)
}
