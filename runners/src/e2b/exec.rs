//! One command in a sandbox, from start to end.
//!
//! Here: its stdin, its output, its exit, and ending it when its time is up or the caller cancels. Not here: the line
//! ([`crate::shell::remote`]), which makes the command the leader of a group and keeps secrets out of it, and broken
//! connections ([`super::follow`]).

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::connect::{End, Event, RpcFault};
use super::ending::{end, let_go, unreported};
use super::envd::Envd;
use super::follow::{Followed, Silence};
use super::input::{INPUT_LIMIT_BYTES, Taken, close, send};
use crate::shell::kill::KILL_GRACE;
use crate::shell::{CommandParts, RemoteCommand, Report, ReportReader, StartedProcess};
use crate::{Execution, ExecutionResult, Input, OutputSink, OutputStream, RunnerError};

/// The server's own limit is this much later than ours: the group is ended first, by us.
const SLACK: Duration = Duration::from_secs(2);
/// Between `TERM` and `KILL` where the time is up: before the server kills the leader by itself.
const LATE_GRACE: Duration = Duration::from_millis(1500);
/// How long the last words of an ended command are awaited.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A name for a process that nobody else has: `prefix` and random digits.
pub(super) fn tag(prefix: &str) -> Result<String, RunnerError> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(|error| RunnerError::Io {
        action: "cannot get random bytes from the system".to_owned(),
        source: std::io::Error::other(error),
    })?;
    Ok(random.iter().fold(prefix.to_owned(), |mut tag, byte| {
        // Writing to a string cannot fail.
        let _ = write!(tag, "{byte:02x}");
        tag
    }))
}

/// Runs one command to its end.
pub(super) async fn execute(
    envd: &Envd,
    execution: Execution,
    default_limit: Option<Duration>,
) -> Result<ExecutionResult, RunnerError> {
    let command = RemoteCommand::new(&CommandParts::from(&execution))?;
    let mut result = ExecutionResult::default();
    if execution.cancel.is_cancelled() {
        result.cancelled = true;
        return Ok(result);
    }
    let limit = execution.timeout.or(default_limit);
    let time_is_up = sleep_or_never(limit);
    tokio::pin!(time_is_up);
    let tag = tag("pcb-x-")?;
    let has_input = !command.stdin_prefix.is_empty() || !matches!(execution.stdin, Input::None);
    let server_limit = limit.and_then(|limit| limit.checked_add(SLACK));
    let process = Followed::start(envd, &command.line, &tag, has_input, server_limit).await?;
    let pid = process.pid;
    let watched = Watched::new(&command.nonce);
    let mut pump = Box::pin(pump(
        process,
        watched.clone(),
        execution.output.clone(),
        execution.keep_output,
    ));
    let stop = {
        let feeding = feed(envd, &tag, command.stdin_prefix, execution.stdin);
        tokio::pin!(feeding);
        let mut fed = !has_input;
        loop {
            tokio::select! {
                biased;
                finished = &mut pump => break Stop::Finished(finished),
                () = &mut time_is_up => break Stop::TimedOut,
                () = execution.cancel.cancelled() => break Stop::Cancelled,
                taken = &mut feeding, if !fed => match taken {
                    Taken::Yes => fed = true,
                    Taken::Unknown(reason) => break Stop::InputLost(reason),
                },
            }
        }
    };
    let grace = match &stop {
        Stop::Finished(_) => Duration::ZERO,
        Stop::TimedOut => LATE_GRACE,
        Stop::Cancelled | Stop::InputLost(_) => KILL_GRACE,
    };
    match stop {
        Stop::Finished(finished) => {
            finished.fill(&mut result);
            return match finished.how {
                How::Ended(end) => {
                    result.exit_code = end.exit_code;
                    result.signal = end.signal;
                    Ok(result)
                }
                // The server's own limit, before ours was looked at.
                How::Silent(Silence::Told(fault)) if limit.is_some() && is_deadline(&fault) => {
                    result.timed_out = true;
                    result.killed = end(envd, &watched.process(pid), Duration::ZERO).await;
                    Ok(result)
                }
                How::Silent(silence) => Err(silence.told(&envd.target)),
            };
        }
        Stop::TimedOut => result.timed_out = true,
        Stop::Cancelled => result.cancelled = true,
        Stop::InputLost(reason) => {
            tracing::debug!(target_sandbox = %envd.target, reason, "nobody knows what a command got of its input");
            end(envd, &watched.process(pid), grace).await;
            return Err(RunnerError::Lost {
                target: envd.target.clone(),
            });
        }
    }
    // Output goes on while the command is being ended: it may say last words.
    let process = watched.process(pid);
    let mut finished = None;
    result.killed = {
        let ending = end(envd, &process, grace);
        tokio::pin!(ending);
        loop {
            tokio::select! {
                killed = &mut ending => break killed,
                done = &mut pump, if finished.is_none() => finished = Some(done),
            }
        }
    };
    if finished.is_none() {
        finished = tokio::time::timeout(CLOSE_LIMIT, &mut pump).await.ok();
    }
    if finished.is_none() {
        // Somebody who left the group holds the outputs.
        let_go(envd, &tag).await;
        finished = tokio::time::timeout(CLOSE_LIMIT, &mut pump).await.ok();
    }
    match finished {
        Some(finished) => {
            finished.fill(&mut result);
            if let How::Ended(end) = finished.how {
                result.exit_code = end.exit_code;
                result.signal = end.signal;
            }
        }
        None => result.truncated = true,
    }
    Ok(result)
}

enum Stop {
    Finished(Finished),
    TimedOut,
    Cancelled,
    InputLost(String),
}

fn is_deadline(fault: &RpcFault) -> bool {
    fault.code == "deadline_exceeded"
}

async fn sleep_or_never(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Gives the command its input and the end of it, as long as it takes any.
async fn feed(envd: &Envd, tag: &str, prefix: Zeroizing<Vec<u8>>, stdin: Input) -> Taken {
    if !prefix.is_empty() {
        let taken = send(envd, tag, &prefix).await;
        if !matches!(taken, Taken::Yes) {
            return taken;
        }
    }
    match stdin {
        Input::None => {}
        Input::Bytes(bytes) => {
            for piece in bytes.chunks(INPUT_LIMIT_BYTES) {
                let taken = send(envd, tag, piece).await;
                if !matches!(taken, Taken::Yes) {
                    return taken;
                }
            }
        }
        Input::Stream(mut stream) => {
            let mut buffer = BytesMut::with_capacity(INPUT_LIMIT_BYTES);
            // A source that fails has nothing more to give.
            while stream.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
                let taken = send(envd, tag, &buffer).await;
                if !matches!(taken, Taken::Yes) {
                    return taken;
                }
                buffer.clear();
            }
        }
    }
    close(envd, tag).await
}

/// The report of the running command, for whoever has to end it.
#[derive(Clone)]
struct Watched(Arc<Mutex<ReportReader>>);

impl Watched {
    fn new(nonce: &str) -> Self {
        Self(Arc::new(Mutex::new(ReportReader::new(nonce))))
    }

    fn lock(&self) -> MutexGuard<'_, ReportReader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it reported itself, else as the server told its pid.
    fn process(&self, pid: u32) -> StartedProcess {
        match self.lock().report() {
            Some(Report::Started(process)) if process.pid == pid => process.clone(),
            Some(_) | None => unreported(pid),
        }
    }
}

/// All that was said, and how it ended.
struct Finished {
    how: How,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

enum How {
    Ended(End),
    Silent(Silence),
}

impl Finished {
    fn fill(&self, result: &mut ExecutionResult) {
        result.stdout.clone_from(&self.stdout);
        result.stderr.clone_from(&self.stderr);
        result.truncated = self.truncated;
    }
}

/// Takes output to the sink until the process ends or nothing can be heard of it any more.
async fn pump(
    mut process: Followed<'_>,
    watched: Watched,
    sink: Option<Arc<dyn OutputSink>>,
    keep: usize,
) -> Finished {
    let (mut stdout, mut stderr, mut truncated) = (vec![], vec![], false);
    let mut take = async |stream: OutputStream, bytes: Bytes| {
        if bytes.is_empty() {
            return;
        }
        let kept = match stream {
            OutputStream::Stdout => &mut stdout,
            OutputStream::Stderr => &mut stderr,
        };
        let room = keep.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
        truncated |= bytes.len() > room;
        if let Some(sink) = &sink {
            sink.chunk(stream, bytes).await;
        }
    };
    let how = loop {
        match process.next().await {
            Ok(Event::Stdout(bytes)) => take(OutputStream::Stdout, bytes).await,
            Ok(Event::Stderr(bytes)) => {
                let passed = watched.lock().feed(bytes);
                take(OutputStream::Stderr, passed).await;
            }
            Ok(Event::Started { .. } | Event::Idle) => {}
            Ok(Event::Ended(end)) => break How::Ended(end),
            Err(silence) => break How::Silent(silence),
        }
    };
    let held = watched.lock().finish();
    take(OutputStream::Stderr, held).await;
    Finished {
        how,
        stdout,
        stderr,
        truncated: truncated || process.gap,
    }
}
