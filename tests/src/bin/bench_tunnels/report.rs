//! Medians, ratios, goals, and the two forms in which they are told.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use paperclip_bridge_tests::measure::{Goal, figures, median};
use serde_json::{Value, json};

use super::ground::Case;
use super::measuring::{AT_ONCE, CONCURRENCIES, Turn};
use super::sides::Who;
use Bound::{Least, Most};

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
    /// Calls answered 200 as soon as 64 at once shall be.
    pub(crate) in_time: f64,
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
            Err(fault) => self.note_fault(turn, format!("c={connections}: {fault:#}")),
        }
    }

    pub(crate) fn note(&mut self, turn: Turn, event: Event, figure: anyhow::Result<f64>) {
        match figure {
            Ok(figure) => self.events.push((turn, event, figure)),
            Err(fault) => self.note_fault(turn, format!("{event}: {fault:#}")),
        }
    }

    fn note_fault(&mut self, turn: Turn, fault: String) {
        // A long run is watched, and perhaps ended.
        let text = format!(
            "bench-tunnels: FAILED {}, {}: {fault}",
            name_of(turn),
            turn.who.name()
        );
        drop(writeln!(std::io::stderr(), "{text}"));
        self.faults.push((turn, fault));
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
        let slow = |who| turn(who, Case::Http2Ssh, true);
        let queue = |who| turn(who, Case::QueueSsh, false);
        let calls = |at: &dyn Fn(Who) -> Turn, connections, of: fn(&Calls) -> f64| {
            [Who::Ours, Who::Peer].map(|who| self.calls(at(who), connections, of))
        };
        let event = |at: &dyn Fn(Who) -> Turn, of| [Who::Ours, Who::Peer].map(|who| self.event(at(who), of));
        let memory: fn(&Calls) -> f64 = |calls| calls.host_mib + calls.sandbox_mib;
        let executions: fn(&Calls) -> f64 = |calls| calls.executions;
        let at_once = self.events.iter();
        let at_once = at_once.filter(|(at, of, _)| *at == queue(Who::Ours) && *of == Event::AtOnce);
        let worst = at_once.map(|(_, _, answered)| *answered).min_by(f64::total_cmp);
        let p50 = calls(&http2, 1, |calls| calls.p50_ms);
        let rate = |at: &dyn Fn(Who) -> Turn| calls(at, 64, |calls| calls.per_second);
        let cpu = |connections| calls(&http2, connections, |calls| calls.cpu_ms);
        let mut goals = vec![
            goal(
                "http2-ssh, c=1: p50, times lower than the peer's",
                lower(p50),
                Least(6.0),
            ),
            goal(
                "http2-ssh, c=64: calls/s, times the peer's",
                times(rate(&http2)),
                Least(10.0),
            ),
            goal(
                "http2-ssh, c=1: CPU a call, times the peer's",
                times(cpu(1)),
                Most(0.1),
            ),
            goal(
                "http2-ssh, c=64: CPU a call, times the peer's",
                times(cpu(64)),
                Most(0.1),
            ),
            goal(
                "http2-ssh, c=64: memory of host and gateway, times the peer's",
                times(calls(&http2, 64, memory)),
                Most(0.1),
            ),
            goal(
                "http2-ssh: p50 beside four 5 s calls, ms",
                ours(event(&http2, Event::BesideFourSlow)),
                Most(5.0),
            ),
            goal(
                "http2-ssh, slow line, c=64: calls/s, times the peer's",
                times(rate(&slow)),
                Least(12.0),
            ),
            goal(
                "queue-ssh, c=1: p50, ms",
                ours(calls(&queue, 1, |calls| calls.p50_ms)),
                Most(150.0),
            ),
            goal(
                "queue-ssh: of 64 at once, answered 200 in 5 s",
                ours([worst, self.event(queue(Who::Peer), Event::AtOnce)]),
                Least(AT_ONCE as f64),
            ),
            goal(
                "queue-ssh: 10 MiB POST, s",
                ours(event(&queue, Event::Upload)),
                Most(30.0),
            ),
            goal(
                "queue-ssh, at rest: CPU, times the peer's",
                times(event(&queue, Event::IdleCpu)),
                Most(0.05),
            ),
        ];
        goals.extend([
            goal(
                "queue-ssh, c=1: executions a call",
                ours(calls(&queue, 1, executions)),
                Most(2.0),
            ),
            goal(
                "queue-ssh, c=64: executions a call",
                ours(calls(&queue, 64, executions)),
                Most(0.3),
            ),
            goal(
                "queue-ssh, at rest: executions a minute",
                ours(event(&queue, Event::IdleExecutions)),
                Most(12.0),
            ),
        ]);
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

/// What a value is held against.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Least(f64),
    Most(f64),
}

/// A value, and the figures of ours and of the peer behind it.
type Held = (Option<f64>, [Option<f64>; 2]);

fn goal(name: &str, (value, sides): Held, bound: Bound) -> Goal {
    let (bound, at_least) = match bound {
        Least(bound) => (bound, true),
        Most(bound) => (bound, false),
    };
    Goal {
        name: name.to_owned(),
        value,
        sides,
        bound,
        at_least,
    }
}

/// Ours in terms of the peer's.
fn times([ours, peer]: [Option<f64>; 2]) -> Held {
    (ours.zip(peer).map(|(ours, peer)| ours / peer), [ours, peer])
}

/// How many times lower ours is than the peer's.
fn lower([ours, peer]: [Option<f64>; 2]) -> Held {
    (ours.zip(peer).map(|(ours, peer)| peer / ours), [ours, peer])
}

/// Ours alone.
fn ours(sides: [Option<f64>; 2]) -> Held {
    (sides[0], sides)
}

fn turn(who: Who, case: Case, slow_line: bool) -> Turn {
    Turn { who, case, slow_line }
}

fn name_of(turn: Turn) -> String {
    let line = if turn.slow_line { ", slow line" } else { "" };
    format!("{}{line}", turn.case)
}
