//! `paperclip-bridge top`: a daemon in a terminal, drawn anew each second.
//!
//! Here: what is asked, what is drawn as plain lines, and the terminal, which is left as it was found. Not here: where the
//! figures come from (`daemon/traffic.rs`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use crate::cli::control::{ControlOptions, SOON, failure};
use crate::cli::exit::{Exit, Failure};
use crate::cli::signals::Signals;
use crate::cli::stdio::{Stdin, as_value, print_json};
use crate::control::{Client, ClientError};
use crate::daemon::{SessionShown, SessionState, SessionsShown, StatusShown};

/// So often it is asked and drawn.
const EVERY: Duration = Duration::from_secs(1);
/// The terminal's other screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// What a terminal in raw mode sends for Control-C and Control-D.
const CONTROL_C: u8 = 3;
const CONTROL_D: u8 = 4;

/// Arguments of `top`.
#[derive(Args, Debug)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    daemon: ControlOptions,
}

/// What is known at one moment.
#[derive(Debug, Serialize)]
struct Snapshot {
    status: StatusShown,
    sessions: Vec<SessionShown>,
}

impl Snapshot {
    async fn take(client: &Client) -> Result<Self, ClientError> {
        let status = client.get("/v1/status", SOON).await?;
        let SessionsShown { mut sessions } = client.get("/v1/sessions", SOON).await?;
        sessions.retain(|session| session.state != SessionState::Ended);
        Ok(Self { status, sessions })
    }

    fn calls(&self) -> HashMap<String, u64> {
        let calls = self
            .sessions
            .iter()
            .map(|session| (session.session.clone(), session.traffic.callbacks));
        calls.collect()
    }
}

/// Draws until `q` is typed. Without a terminal, or with `--json`, prints one object and ends.
///
/// # Errors
///
/// Code 4 where no daemon answers at the beginning.
pub(crate) async fn top(arguments: &TopArguments) -> Result<Exit, Failure> {
    let client = arguments.daemon.client()?;
    let mut snapshot = Snapshot::take(&client).await.map_err(failure)?;
    if arguments.daemon.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        print_json(&as_value(&snapshot)?)?;
        return Ok(Exit::Ok);
    }
    let mut signals = Signals::listen()?;
    let screen = Screen::take().map_err(unusable)?;
    let mut keys = Stdin::read().map_err(unusable)?;
    let mut before = snapshot.calls();
    let mut fault = None;
    let mut tick = tokio::time::interval(EVERY);
    loop {
        let (columns, rows) = screen.size();
        let lines = drawn(&snapshot, &before, fault.as_deref(), columns, rows);
        screen.show(&lines).map_err(unusable)?;
        tokio::select! {
            _ = signals.next() => return Ok(Exit::Ok),
            typed = keys.read_u8() => match typed {
                Ok(b'q' | b'Q' | CONTROL_C | CONTROL_D) | Err(_) => return Ok(Exit::Ok),
                Ok(_) => {}
            },
            _ = tick.tick() => {
                let calls = snapshot.calls();
                fault = match Snapshot::take(&client).await {
                    Ok(now) => {
                        (snapshot, before) = (now, calls);
                        None
                    }
                    Err(error) => Some(error.to_string()),
                };
            }
        }
    }
}

fn unusable(error: io::Error) -> Failure {
    Failure::new(Exit::Failed, "the terminal cannot be used").because(error)
}

/// The whole screen, the first line highlighted; no line is wider than `columns`.
fn drawn(
    snapshot: &Snapshot,
    before: &HashMap<String, u64>,
    fault: Option<&str>,
    columns: usize,
    rows: usize,
) -> Vec<String> {
    let Snapshot { status, sessions } = snapshot;
    let mut states = String::new();
    for (state, count) in status.sessions.iter().filter(|(state, _)| *state != "ended") {
        // A `String` takes every write.
        let _ = write!(states, "  {count} {state}");
    }
    if states.is_empty() {
        states.push_str("  no session");
    }
    let ending = if status.draining { "  ENDING" } else { "" };
    let up = status
        .started_at
        .parse::<Timestamp>()
        .map_or(0, |at| (Timestamp::now() - at).get_seconds());
    let recent = &status.recent;
    let traffic = &recent.traffic;
    let mut lines = vec![
        format!(
            "paperclip-bridge {}  up {}{ending}{states}",
            status.version,
            span(up)
        ),
        format!(
            "{:.1}/s  p50 {}  p95 {}  denied {}  throttled {}  no answer {}  indeterminate {}",
            recent.per_second,
            duration(traffic.p50_us),
            duration(traffic.p95_us),
            traffic.denied,
            traffic.throttled,
            traffic.failed,
            traffic.indeterminate,
        ),
        format!(
            "since start: {} callbacks, {} denied, {} tokens astray, {} outcomes open",
            status.callbacks, status.denied, status.wrong_channel, status.open_outcomes
        ),
        String::new(),
        row(
            columns,
            ["STATE", "RUN", "TARGET", "TUNNEL", "/S", "CALLS", "DENIED", "P95"],
        ),
    ];
    let mut rest: Vec<_> = sessions
        .iter()
        .map(|session| {
            let earlier = before.get(&session.session).copied().unwrap_or_default();
            (session, session.traffic.callbacks.saturating_sub(earlier))
        })
        .collect();
    // What is not well comes first, then what is busy, then what is new.
    rest.sort_by_key(|(session, now)| (session.state == SessionState::Ready, std::cmp::Reverse(*now)));
    let room = rows.saturating_sub(lines.len() + 1);
    for (session, now) in rest.iter().take(room) {
        lines.push(row(
            columns,
            [
                session.state.name(),
                &session.run_id,
                &session.target,
                session.tunnel.as_deref().unwrap_or("-"),
                &now.to_string(),
                &session.traffic.callbacks.to_string(),
                &session.traffic.denied.to_string(),
                &duration(session.traffic.p95_us),
            ],
        ));
    }
    lines.truncate(rows.saturating_sub(1));
    let more = match rest.len().saturating_sub(room) {
        0 => String::new(),
        more => format!("  and {more} more"),
    };
    lines.push(match fault {
        Some(fault) => format!("! {fault}; trying again   q quits"),
        None => format!("q quits{more}"),
    });
    lines.iter().map(|line| fitted(line, columns)).collect()
}

/// One line of the table; what there is of room beyond 80 columns goes to run and target.
fn row(columns: usize, cells: [&str; 8]) -> String {
    let beyond = columns.saturating_sub(80);
    let (run, target) = (18 + beyond / 2, 16 + beyond - beyond / 2);
    let [state, run_id, on, tunnel, now, calls, denied, p95] = cells;
    format!(
        "{state:<9} {} {} {tunnel:<7} {now:>4} {calls:>6} {denied:>6} {p95:>6}",
        padded(run_id, run),
        padded(on, target),
        state = fitted(state, 9),
        tunnel = fitted(tunnel, 7),
    )
}

fn padded(text: &str, width: usize) -> String {
    format!("{:<width$}", fitted(text, width))
}

/// So many characters of it, and nothing that a terminal would obey.
fn fitted(text: &str, width: usize) -> String {
    let plain = |character: char| if character.is_control() { '?' } else { character };
    if text.chars().count() <= width {
        return text.chars().map(plain).collect();
    }
    let cut = text.chars().take(width.saturating_sub(1)).map(plain);
    cut.chain(['…']).take(width).collect()
}

fn duration(us: Option<u64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us) if us < 1_000 => format!("{us}us"),
        Some(us) if us < 1_000_000 => format!("{}ms", us / 1_000),
        Some(us) => format!("{}s", us / 1_000_000),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

/// The terminal, until it is given back as it was.
struct Screen {
    found: Termios,
}

impl Screen {
    fn take() -> io::Result<Self> {
        let found = tcgetattr(io::stdin())?;
        let mut raw = found.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let screen = Self { found };
        screen.write(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows; those of the oldest terminals where it does not say.
    fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            Ok(_) | Err(_) => (80, 24),
        }
    }

    fn show(&self, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        for (row, line) in (1..).zip(lines) {
            // The head, and the names of the columns.
            let strong = if matches!(row, 1 | 5) { "\x1b[1m" } else { "" };
            // A `String` takes every write.
            let _ = write!(text, "\x1b[{row};1H{strong}{line}\x1b[m\x1b[K");
        }
        text.push_str("\x1b[J");
        self.write(&text)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to be told where that fails.
        let _left = self.write(LEAVE);
        let _cooked = tcsetattr(io::stdin(), OptionalActions::Now, &self.found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session(number: usize, state: &str, calls: u64) -> SessionShown {
        serde_json::from_value(json!({
            "session": number.to_string(), "state": state, "reason": null, "detail": null, "since": "", "url": null,
            "target": "ssh://someone@a-host-with-a-long-name.example:22", "tunnel": "ssh-reverse",
            "run_id": format!("run-\u{1b}[31m-{number}"), "agent_id": null, "company_id": null, "issue_id": null,
            "environment_id": null, "lease": null, "ladder": [], "uid": 0, "created_at": "", "expires_at": "",
            "heartbeat_ms": null, "open_outcomes": 0,
            "traffic": { "callbacks": calls, "denied": 2, "p50_us": 900, "p95_us": 12_345 },
        }))
        .unwrap()
    }

    fn snapshot(sessions: Vec<SessionShown>) -> Snapshot {
        let status = serde_json::from_value(json!({
            "version": "0.1.0", "pid": 1, "started_at": "2026-01-01T00:00:00Z", "draining": false,
            "sessions": { "ready": sessions.len(), "ended": 7 }, "callbacks": 5, "denied": 1, "wrong_channel": 0,
            "open_outcomes": 0, "recent": { "seconds": 60, "per_second": 12.34, "callbacks": 740, "p95_us": 12_345 },
        }))
        .unwrap();
        Snapshot { status, sessions }
    }

    #[test]
    fn it_fits_80_by_24_and_obeys_no_escape_of_a_session() {
        let many = snapshot((0..100).map(|number| session(number, "ready", 1)).collect());

        for (columns, rows) in [(80, 24), (200, 50), (20, 6), (1, 1)] {
            let lines = drawn(&many, &HashMap::new(), None, columns, rows);

            assert!(lines.len() <= rows, "{} lines in {rows}", lines.len());
            for line in &lines {
                assert!(line.chars().count() <= columns, "{line:?} in {columns}");
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
        let lines = drawn(&many, &HashMap::new(), None, 80, 24);
        assert!(
            lines[0].contains("100 ready") && !lines[0].contains("ended"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("12.3/s") && lines[1].contains("p95 12ms"),
            "{lines:?}"
        );
        assert_eq!(lines[23], "q quits  and 82 more");
    }

    #[test]
    fn what_is_not_well_comes_first_and_then_what_is_busy() {
        let seen = snapshot(vec![
            session(1, "ready", 5),
            session(2, "ready", 50),
            session(3, "reconnecting", 0),
        ]);
        let before = HashMap::from([("1".to_owned(), 4), ("2".to_owned(), 10)]);

        let lines = drawn(&seen, &before, Some("no daemon answers"), 80, 24);

        let runs: Vec<_> = lines[5..8]
            .iter()
            .map(|line| line.split_whitespace().nth(1).unwrap())
            .collect();
        assert_eq!(runs, ["run-?[31m-3", "run-?[31m-2", "run-?[31m-1"], "{lines:?}");
        assert!(lines[6].contains("  40 "), "{lines:?}");
        assert!(lines.last().unwrap().contains("no daemon answers"));
    }
}
