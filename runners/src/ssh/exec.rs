//! One command on a session channel, from start to end.
//!
//! Here: starting it, stdin in, output out, its exit, and ending it when its time is up or the caller cancels. Not
//! here: the command line ([`crate::shell::remote`]) and which connection it runs on ([`super::pool`]).
//!
//! Closing a channel ends nothing on the other side, and the SSH `signal` request works only sometimes; so a kill is
//! a second command, on a channel that is kept for it. If the connection is lost, the kill is owed and done on the
//! next one: nobody can receive the command's result any more.
//!
//! Output that the sink does not take is held up to the connection's `output_cap`. russh cannot make the server
//! wait, so beyond it the channel is closed, the command ended, and the error says `output_overrun`.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use zeroize::Zeroizing;

use super::channel::ChannelIo;
use super::connection::{Connection, OpenError};
use super::inbox::{ChannelEnd, Event, Exit, Inbox};
use super::pool::{Purpose, Session, SshHost};
use crate::runner::{OutputSink, OutputStream};
use crate::shell::kill::KILL_GRACE;
use crate::shell::{
    CommandParts, KillOutcome, RemoteCommand, Report, ReportReader, Shell, StartedProcess, kill_line,
};
use crate::{DuplexRequest, Execution, ExecutionResult, Input, Killed, RunnerError};

/// How long a command that is to be ended has to tell its pid, if it has not yet.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
/// How long the channel of an ended command may stay open: something else may hold its output.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// A kill command waits [`KILL_GRACE`] itself; beyond this the connection is no good.
const KILL_LIMIT: Duration = Duration::from_secs(15);

const SCRIPT_OUTPUT_LIMIT: usize = 1024 * 1024;

/// Runs one command to its end.
pub(super) async fn execute(
    host: &Arc<SshHost>,
    execution: Execution,
) -> Result<ExecutionResult, RunnerError> {
    let command = RemoteCommand::new(&CommandParts::from(&execution))?;
    if execution.cancel.is_cancelled() {
        return Ok(ExecutionResult {
            cancelled: true,
            ..ExecutionResult::default()
        });
    }
    let mut session = host.session(Purpose::Command).await?;
    start(&mut session, &command.line).await?;
    let watched = Watched::new(&command.nonce);
    let inbox = Arc::clone(session.io.inbox());
    let mut pump = Box::pin(pump(
        Arc::clone(&inbox),
        watched.clone(),
        execution.output.clone(),
        execution.keep_output,
    ));
    let stop = {
        let feeding = feed(&mut session.io, command.stdin_prefix, execution.stdin);
        tokio::pin!(feeding);
        let mut fed = false;
        let time_is_up = sleep_or_never(execution.timeout);
        tokio::pin!(time_is_up);
        loop {
            tokio::select! {
                biased;
                finished = &mut pump => break Stop::Finished(finished),
                () = &mut time_is_up => break Stop::TimedOut,
                () = execution.cancel.cancelled() => break Stop::Cancelled,
                () = &mut feeding, if !fed => fed = true,
            }
        }
    };
    let mut result = match stop {
        Stop::Finished(finished) => return conclude(host, &watched, finished).await,
        Stop::TimedOut => ExecutionResult {
            timed_out: true,
            ..ExecutionResult::default()
        },
        Stop::Cancelled => ExecutionResult {
            cancelled: true,
            ..ExecutionResult::default()
        },
    };
    // Output goes on while the command is being ended: it may say last words.
    let mut finished = None;
    let killed = {
        let ending = end(host, &session, &watched);
        tokio::pin!(ending);
        loop {
            tokio::select! {
                killed = &mut ending => break killed,
                done = &mut pump, if finished.is_none() => finished = Some(done),
            }
        }
    };
    result.killed = killed;
    let finished = match finished {
        Some(finished) => Some(finished),
        None => tokio::time::timeout(CLOSE_LIMIT, &mut pump).await.ok(),
    };
    match finished {
        Some(finished) => fill(&mut result, finished),
        // Somebody else holds the outputs open: let go of the channel.
        None => session.io.abort(),
    }
    Ok(result)
}

enum Stop {
    Finished(Finished),
    TimedOut,
    Cancelled,
}

async fn sleep_or_never(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Sends the `exec` request and waits for the server's word.
async fn start(session: &mut Session, line: &str) -> Result<(), RunnerError> {
    let target = session.connection.target();
    let lost = || RunnerError::Lost {
        target: target.to_owned(),
    };
    let limit = session.connection.limits().request;
    let writer = Arc::clone(session.io.writer());
    let inbox = Arc::clone(session.io.inbox());
    let asked = async {
        writer.exec(true, line).await.map_err(|_| lost())?;
        poll_fn(|cx| inbox.poll_reply(cx)).await.map_err(|end| match end {
            ChannelEnd::Closed => refused(target),
            ChannelEnd::Overrun | ChannelEnd::ConnectionLost | ChannelEnd::Aborted => lost(),
        })
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(true)) => {
            session.connection.no_more_quick_ack();
            Ok(())
        }
        Ok(Ok(false)) => Err(refused(target)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(lost()),
    }
}

fn refused(target: &str) -> RunnerError {
    RunnerError::Refused {
        target: target.to_owned(),
        reason: "the SSH server does not run commands for this account".to_owned(),
    }
}

/// Writes all of stdin, then its end. Failure is not an error: a command need not read its input.
async fn feed(io: &mut ChannelIo, prefix: Zeroizing<Vec<u8>>, stdin: Input) {
    let fed = async {
        if !prefix.is_empty() {
            io.write_all(&prefix).await?;
        }
        match stdin {
            Input::None => {}
            Input::Bytes(bytes) => io.write_all(&bytes).await?,
            Input::Stream(mut stream) => {
                tokio::io::copy(&mut stream, io).await?;
            }
        }
        io.shutdown().await
    };
    if let Err(error) = fed.await {
        tracing::debug!(%error, "stdin of a remote command was not taken to its end");
    }
}

/// The report of the running command, for whoever has to end it.
#[derive(Clone)]
struct Watched(Arc<Mutex<ReportReader>>, Arc<tokio::sync::Notify>);

impl Watched {
    fn new(nonce: &str) -> Self {
        Self(Arc::new(Mutex::new(ReportReader::new(nonce))), Arc::default())
    }

    fn lock(&self) -> MutexGuard<'_, ReportReader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, chunk: Bytes) -> Bytes {
        let mut reader = self.lock();
        let passed = reader.feed(chunk);
        if !reader.is_searching() {
            self.1.notify_one();
        }
        passed
    }

    fn process(&self) -> Option<StartedProcess> {
        match self.lock().report() {
            Some(Report::Started(process)) => Some(process.clone()),
            Some(Report::NoDirectory) | None => None,
        }
    }

    async fn wait(&self) -> Option<StartedProcess> {
        if self.lock().is_searching() {
            let _ = tokio::time::timeout(REPORT_LIMIT, self.1.notified()).await;
        }
        self.process()
    }
}

/// All output has been taken.
struct Finished {
    end: ChannelEnd,
    exit: Option<Exit>,
    stdout: Kept,
    stderr: Kept,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn take(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len());
        match bytes.get(..room) {
            Some(fitting) if fitting.len() < bytes.len() => {
                self.bytes.extend_from_slice(fitting);
                self.truncated = true;
            }
            Some(_) | None => self.bytes.extend_from_slice(bytes),
        }
    }
}

/// Takes output to the sink until the channel ends.
async fn pump(
    inbox: Arc<Inbox>,
    watched: Watched,
    sink: Option<Arc<dyn OutputSink>>,
    keep: usize,
) -> Finished {
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    loop {
        let (stream, bytes, last) = match poll_fn(|cx| inbox.poll_event(cx)).await {
            Event::Output(OutputStream::Stdout, bytes) => (OutputStream::Stdout, bytes, None),
            Event::Output(OutputStream::Stderr, bytes) => (OutputStream::Stderr, watched.feed(bytes), None),
            Event::End(end, exit) => (OutputStream::Stderr, watched.lock().finish(), Some((end, exit))),
        };
        if !bytes.is_empty() {
            match stream {
                OutputStream::Stdout => stdout.take(&bytes, keep),
                OutputStream::Stderr => stderr.take(&bytes, keep),
            }
            if let Some(sink) = &sink {
                sink.chunk(stream, bytes).await;
            }
        }
        if let Some((end, exit)) = last {
            return Finished {
                end,
                exit,
                stdout,
                stderr,
            };
        }
    }
}

fn fill(result: &mut ExecutionResult, finished: Finished) {
    match finished.exit {
        // What does not fit is no exit status of any system; the wrap keeps it non-zero.
        Some(Exit::Status(status)) => result.exit_code = Some(i32::try_from(status).unwrap_or(i32::MAX)),
        Some(Exit::Signal(name)) => result.signal = Some(name),
        None => {}
    }
    result.truncated = finished.stdout.truncated || finished.stderr.truncated;
    result.stdout = finished.stdout.bytes;
    result.stderr = finished.stderr.bytes;
}

/// The channel ended by itself: a result, or the fate is unknown.
async fn conclude(
    host: &Arc<SshHost>,
    watched: &Watched,
    finished: Finished,
) -> Result<ExecutionResult, RunnerError> {
    match finished.end {
        ChannelEnd::Closed => {
            let mut result = ExecutionResult::default();
            fill(&mut result, finished);
            Ok(result)
        }
        ChannelEnd::ConnectionLost | ChannelEnd::Aborted => {
            if let Some(process) = watched.process()
                && finished.exit.is_none()
            {
                host.owe(process);
            }
            Err(RunnerError::Lost {
                target: host.target().to_owned(),
            })
        }
        ChannelEnd::Overrun => {
            if let Some(process) = watched.process() {
                let _ = kill_or_owe(host, process).await;
            }
            let cap = host.settings().limits.output_cap;
            Err(RunnerError::Io {
                action: format!(
                    "output_overrun: the command wrote {cap} bytes more than were taken, and was ended"
                ),
                source: io::ErrorKind::QuotaExceeded.into(),
            })
        }
    }
}

/// Ends the command whose channel is still open.
async fn end(host: &Arc<SshHost>, session: &Session, watched: &Watched) -> Option<Killed> {
    if let Some(process) = watched.wait().await {
        return kill_or_owe(host, process).await;
    }
    // No pid, so only what the protocol has: a request that few servers honour.
    let _ = session.io.writer().signal(russh::Sig::TERM).await;
    None
}

async fn kill_or_owe(host: &Arc<SshHost>, process: StartedProcess) -> Option<Killed> {
    match kill(host, &process, KILL_GRACE).await {
        Ok(KillOutcome::Ended(killed)) => Some(killed),
        Ok(KillOutcome::AlreadyGone) => None,
        Ok(outcome @ (KillOutcome::NotPermitted | KillOutcome::Failed)) => {
            tracing::warn!(target_host = %host.target(), pid = process.pid, ?outcome, "a remote process could not be ended");
            None
        }
        Err(error) => {
            tracing::warn!(target_host = %host.target(), pid = process.pid, %error, "a remote process is owed an end");
            host.owe(process);
            Some(Killed::Owed)
        }
    }
}

/// Ends a process on the target: `TERM`, and `KILL` after `grace`, which is at most [`KILL_GRACE`].
///
/// Boxed: opening a session may settle what is owed, which comes back here.
pub(super) fn kill<'a>(
    host: &'a Arc<SshHost>,
    process: &'a StartedProcess,
    grace: Duration,
) -> futures_util::future::BoxFuture<'a, Result<KillOutcome, RunnerError>> {
    Box::pin(async move {
        let mut session = host.session(Purpose::Control).await?;
        start(&mut session, &kill_line(process, grace)).await?;
        let code = run_to_exit(&session, KILL_LIMIT).await;
        match code {
            Some(code) => Ok(KillOutcome::from_exit_code(Some(code), process.scope)),
            None => Err(RunnerError::Lost {
                target: host.target().to_owned(),
            }),
        }
    })
}

/// Waits for the exit code of a started command, dropping its output.
async fn run_to_exit(session: &Session, limit: Duration) -> Option<i32> {
    collect(session, limit, 0).await.ok()?.exit_code
}

/// What a short script said.
#[derive(Clone, Debug, Default)]
pub struct ScriptOutput {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Exit status, where it exited.
    pub exit_code: Option<i32>,
}

async fn collect(
    session: &Session,
    limit: Duration,
    keep: usize,
) -> Result<ScriptOutput, tokio::time::error::Elapsed> {
    let inbox = session.io.inbox();
    let mut stdout = Kept::default();
    let ended = async {
        loop {
            match poll_fn(|cx| inbox.poll_event(cx)).await {
                Event::Output(OutputStream::Stdout, bytes) => stdout.take(&bytes, keep),
                Event::Output(OutputStream::Stderr, _) => {}
                Event::End(_, exit) => return exit,
            }
        }
    };
    let exit_code = match tokio::time::timeout(limit, ended).await? {
        Some(Exit::Status(status)) => i32::try_from(status).ok(),
        Some(Exit::Signal(_)) | None => None,
    };
    Ok(ScriptOutput {
        stdout: stdout.bytes,
        exit_code,
    })
}

impl Connection {
    /// Runs a short POSIX script on this very connection, without input, and keeps up to 1 MiB of its output.
    ///
    /// - `limit`: after it the script is left to itself.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Refused`] where the server lets nothing run here, [`RunnerError::Lost`] without an answer.
    pub async fn run_script(
        self: &Arc<Self>,
        script: &str,
        limit: Duration,
    ) -> Result<ScriptOutput, RunnerError> {
        let args = Shell::Sh.script_args(script);
        let (env, secret_env) = (BTreeMap::new(), BTreeMap::new());
        let parts = CommandParts {
            command: "sh",
            args: &args,
            cwd: None,
            env: &env,
            secret_env: &secret_env,
        };
        let command = RemoteCommand::new(&parts)?;
        let lost = || RunnerError::Lost {
            target: self.target().to_owned(),
        };
        let guard = self.reserve();
        let io = self.open_session().await.map_err(|error| match error {
            OpenError::Refused(reason) => RunnerError::Refused {
                target: self.target().to_owned(),
                reason,
            },
            OpenError::Lost(_) => lost(),
        })?;
        let mut session = Session {
            io,
            _guard: guard,
            connection: Arc::clone(self),
        };
        start(&mut session, &command.line).await?;
        let _ = session.io.shutdown().await;
        collect(&session, limit, SCRIPT_OUTPUT_LIMIT)
            .await
            .map_err(|_| lost())
    }
}

/// Starts a long-lived command as a byte stream.
pub(super) async fn open_duplex(
    host: &Arc<SshHost>,
    request: &DuplexRequest,
) -> Result<DuplexIo, RunnerError> {
    let command = RemoteCommand::new(&CommandParts::from(request))?;
    let mut session = host.session(Purpose::Command).await?;
    session.io.inbox().ignore_stderr();
    start(&mut session, &command.line).await?;
    Ok(DuplexIo(session))
}

/// stdin and stdout of a command. The connection lives as long as this.
#[derive(Debug)]
pub(super) struct DuplexIo(Session);

impl AsyncRead for DuplexIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for DuplexIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.io).poll_shutdown(cx)
    }
}
