//! One command in a leased sandbox, from its request to its result.
//!
//! Here: [`WorkerRunner`]: sessions to run in, standard input, following the events, and ending a command by a second
//! one. Not here: the script around it (`wrap`) and its output (`output`).
//!
//! The Worker's own time limit is the command's; when it strikes, the Worker ends its session, and we end what the command
//! left in its own process group. A broken connection is no end: the request is repeated under its id, and the Worker
//! answers with what became of it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::{Api, Call, CallFault, Context};
use super::config::{SessionStrategy, WorkerConfig};
use super::follow::{Followed, Follower, Unfinished};
use super::output::Decoder;
use super::sessions::{Sessions, Taken};
use super::wrap::Wrapped;
use crate::provider::{Lease, ProviderError};
use crate::shell::kill::KILL_GRACE;
use crate::shell::{CommandParts, KillOutcome, StartedProcess, kill_line};
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, Input,
    Killed, RunnerError,
};

/// Beyond its time limit, for the way there and back.
const SLACK: Duration = Duration::from_secs(10);
/// The longest limit that the bridge API knows.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Commands at the same time: each has a shell of its own in the sandbox.
const SESSIONS: usize = 16;
/// All of a command's standard input; the Worker takes it in one request.
const INPUT_LIMIT_BYTES: usize = 11 * 1024 * 1024;
/// A kill waits [`KILL_GRACE`] itself.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// How long a command that is to be ended has to tell its pid, if it has not yet.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
/// How long an ended command's events may go on: something else may hold its output.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Before a request whose command still runs is repeated.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// So often at most after an answer that nobody signed.
const UNPROVEN: u32 = 3;

/// Runs commands in one lease's sandbox.
pub(super) struct WorkerRunner {
    api: Arc<Api>,
    config: Arc<WorkerConfig>,
    lease_id: String,
    cwd: Option<String>,
    context: Context,
    target: String,
    sessions: Sessions,
}

impl fmt::Debug for WorkerRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerRunner")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// The session of what must not wait for a command.
pub(super) fn control_session(config: &WorkerConfig) -> String {
    format!("{}-control", config.session_id)
}

impl WorkerRunner {
    pub(super) fn new(api: Arc<Api>, config: Arc<WorkerConfig>, lease: &Lease, context: Context) -> Self {
        let several = config.session_strategy == SessionStrategy::Named;
        Self {
            sessions: Sessions::new(config.session_id.clone(), if several { SESSIONS } else { 1 }),
            api,
            config,
            lease_id: lease.id.clone(),
            cwd: lease.remote_cwd.clone(),
            context,
            target: format!("{}:{}", super::KEY, lease.id),
        }
    }

    async fn run(&self, mut execution: Execution) -> Result<ExecutionResult, RunnerError> {
        let stdin = std::mem::take(&mut execution.stdin);
        let parts = CommandParts {
            cwd: execution.cwd.as_deref().or(self.cwd.as_deref()),
            ..CommandParts::from(&execution)
        };
        // What cannot be run at all is said before anything is waited for.
        crate::shell::check_parts(&parts)?;
        let asked = tokio::select! {
            biased;
            () = execution.cancel.cancelled() => return Ok(cancelled()),
            asked = self.ask(parts, execution.timeout, stdin) => asked?,
        };
        let Asked {
            request,
            wrapped,
            limit,
            session,
            repeatable,
        } = asked;
        let watched = Watched::new(&wrapped.nonce);
        let follower = Follower {
            watched: watched.clone(),
            sink: execution.output.clone(),
            keep: execution.keep_output,
        };
        let mut running = Box::pin(self.follow(&request, follower, limit, repeatable));
        let ended = tokio::select! {
            biased;
            ended = &mut running => Some(ended?),
            () = execution.cancel.cancelled() => None,
        };
        let Some(ended) = ended else {
            return Ok(self.cancel(&watched, running, session).await);
        };
        let mut result = ended.result;
        if ended.whole {
            session.done();
        }
        if result.timed_out {
            result.killed = self.end(&watched).await;
        }
        Ok(result)
    }

    /// Ends the command and waits a little for its last words.
    async fn cancel(
        &self,
        watched: &Watched,
        mut running: std::pin::Pin<Box<impl Future<Output = Result<Followed, RunnerError>>>>,
        session: Taken<'_>,
    ) -> ExecutionResult {
        let mut followed = None;
        let killed = {
            let ending = self.end(watched);
            tokio::pin!(ending);
            loop {
                tokio::select! {
                    killed = &mut ending => break killed,
                    ended = &mut running, if followed.is_none() => followed = Some(ended),
                }
            }
        };
        let followed = match followed {
            Some(followed) => followed.ok(),
            None => tokio::time::timeout(CLOSE_LIMIT, running)
                .await
                .ok()
                .and_then(Result::ok),
        };
        let mut result = ExecutionResult::default();
        if let Some(followed) = followed {
            if followed.whole {
                session.done();
            }
            result = followed.result;
        }
        // It was ended from here; how its shell put that into a number means nothing.
        result.exit_code = None;
        result.timed_out = false;
        result.cancelled = true;
        result.killed = killed;
        result
    }

    /// The request of one command.
    async fn ask(
        &self,
        parts: CommandParts<'_>,
        timeout: Option<Duration>,
        stdin: Input,
    ) -> Result<Asked<'_>, RunnerError> {
        let health = self.api.health().await.map_err(|error| self.error(error))?;
        let input = self.input(stdin).await?;
        let wrapped = Wrapped::new(&parts, &input, health.stdin_base64)?;
        let limit = timeout
            .unwrap_or(Duration::from_millis(self.config.timeout_ms))
            .clamp(Duration::from_millis(1), LONGEST);
        let session = self.sessions.take().await;
        let mut body = Map::new();
        body.insert("providerLeaseId".to_owned(), json!(self.lease_id));
        body.insert("command".to_owned(), json!("sh"));
        body.insert("args".to_owned(), json!(["-c", wrapped.script]));
        let field = if wrapped.stdin_is_base64 {
            "stdinBase64"
        } else {
            "stdin"
        };
        if let Some(stdin) = &wrapped.stdin {
            body.insert(field.to_owned(), json!(stdin.expose()));
        }
        body.insert("timeoutMs".to_owned(), json!(milliseconds(limit)));
        body.insert("streamOutput".to_owned(), json!(true));
        body.insert("sessionStrategy".to_owned(), json!(self.config.strategy()));
        body.insert("sessionId".to_owned(), json!(session.name));
        if health.request_id {
            body.insert("requestId".to_owned(), json!(wrapped.nonce));
        }
        Ok(Asked {
            request: Value::Object(body).to_string().into(),
            wrapped,
            limit,
            session,
            repeatable: health.request_id,
        })
    }

    /// The Worker takes a command's input in one piece.
    async fn input(&self, stdin: Input) -> Result<Bytes, RunnerError> {
        let too_long = || {
            RunnerError::Invalid(format!(
                "the standard input has more than {INPUT_LIMIT_BYTES} bytes, the most that a Worker takes"
            ))
        };
        match stdin {
            Input::None => Ok(Bytes::new()),
            Input::Bytes(bytes) if bytes.len() <= INPUT_LIMIT_BYTES => Ok(bytes),
            Input::Bytes(_) => Err(too_long()),
            Input::Stream(stream) => {
                let mut bytes = Vec::new();
                let limit = u64::try_from(INPUT_LIMIT_BYTES).unwrap_or(u64::MAX);
                stream
                    .take(limit + 1)
                    .read_to_end(&mut bytes)
                    .await
                    .map_err(|source| RunnerError::Io {
                        action: "cannot read the command's standard input".to_owned(),
                        source,
                    })?;
                if bytes.len() > INPUT_LIMIT_BYTES {
                    return Err(too_long());
                }
                Ok(bytes.into())
            }
        }
    }

    /// Sends the request and follows its events; asks again where the connection broke and the Worker keeps results.
    async fn follow(
        &self,
        request: &Bytes,
        mut follower: Follower,
        limit: Duration,
        repeatable: bool,
    ) -> Result<Followed, RunnerError> {
        let whole = limit.max(Duration::from_millis(self.config.bridge_request_timeout_ms)) + SLACK;
        let end = Instant::now() + whole;
        let mut followed = Followed::default();
        let mut unproven = 0;
        loop {
            let call = Call {
                method: http::Method::POST,
                path: "/exec",
                body: request.clone(),
                context: &self.context,
            };
            let left = end.saturating_duration_since(Instant::now());
            let pause = match self.api.send(&call, left).await {
                Ok(answer) => match follower.follow(answer, end, &mut followed).await {
                    Ok(()) => return Ok(followed),
                    Err(Unfinished::Broken(reason)) => {
                        return Err(self.error(ProviderError::Broken(reason)));
                    }
                    Err(Unfinished::Refused(reason)) => {
                        return Err(self.error(ProviderError::Refused(reason)));
                    }
                    Err(Unfinished::LeaseLost(reason)) => {
                        return Err(self.error(ProviderError::LeaseLost(reason)));
                    }
                    Err(Unfinished::Unproven(reason)) => {
                        return Err(self.unproven(reason));
                    }
                    Err(Unfinished::Cut(reason)) => {
                        tracing::debug!(target = %self.target, reason, "a command's events broke off");
                        ASK_AGAIN
                    }
                },
                Err(CallFault::InProgress(after)) => after.unwrap_or(ASK_AGAIN),
                // What stands in front of a Worker may fail for a moment, and cannot sign; asking again tells.
                Err(CallFault::Unproven(status, reason))
                    if status.is_server_error() && unproven < UNPROVEN =>
                {
                    unproven += 1;
                    tracing::debug!(target = %self.target, reason, "a command's request was not answered by the Worker");
                    ASK_AGAIN
                }
                Err(CallFault::Unproven(_, reason)) => return Err(self.unproven(reason)),
                Err(CallFault::Other(ProviderError::Unknown(reason))) => {
                    tracing::debug!(target = %self.target, reason, "a command's request broke off");
                    ASK_AGAIN
                }
                Err(fault @ (CallFault::Lost(_) | CallFault::Other(_))) => {
                    return Err(self.error(fault.into()));
                }
            };
            // A wait that would not end in time is not begun.
            if !repeatable || Instant::now() + pause >= end {
                return Err(RunnerError::Lost {
                    target: self.target.clone(),
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The command may have run, and nobody who can be believed says so.
    fn unproven(&self, reason: String) -> RunnerError {
        tracing::warn!(target = %self.target, reason, "what became of a command is unknown");
        self.error(ProviderError::Unproven(reason))
    }

    fn error(&self, error: ProviderError) -> RunnerError {
        RunnerError::from((self.target.as_str(), error))
    }

    /// Ends the command's process group by a command of its own.
    async fn end(&self, watched: &Watched) -> Option<Killed> {
        let process = watched.wait().await?;
        match self.kill(&process).await {
            Ok(KillOutcome::Ended(killed)) => Some(killed),
            Ok(KillOutcome::AlreadyGone) => None,
            Ok(outcome @ (KillOutcome::NotPermitted | KillOutcome::Failed)) => {
                tracing::warn!(target = %self.target, pid = process.pid, ?outcome, "a process of the sandbox could not be ended");
                Some(Killed::Unconfirmed)
            }
            // With the sandbox, everything in it is gone.
            Err(ProviderError::LeaseLost(_)) => Some(Killed::Group),
            Err(error) => {
                tracing::warn!(target = %self.target, pid = process.pid, %error, "a process of the sandbox may be left");
                Some(Killed::Unconfirmed)
            }
        }
    }

    async fn kill(&self, process: &StartedProcess) -> Result<KillOutcome, ProviderError> {
        let mut body = Map::new();
        body.insert("providerLeaseId".to_owned(), json!(self.lease_id));
        body.insert("command".to_owned(), json!("sh"));
        body.insert("args".to_owned(), json!(["-c", kill_line(process, KILL_GRACE)]));
        body.insert("timeoutMs".to_owned(), json!(milliseconds(KILL_LIMIT)));
        // A session serves one command at a time.
        body.insert("sessionStrategy".to_owned(), json!("named"));
        body.insert("sessionId".to_owned(), json!(control_session(&self.config)));
        let call = Call::post("/exec", body, &self.context);
        let reply = self.api.call_within(&call, KILL_LIMIT + SLACK).await?;
        let code = reply.get("exitCode").and_then(Value::as_i64);
        let code = code.and_then(|code| i32::try_from(code).ok());
        Ok(KillOutcome::from_exit_code(code, process.scope))
    }
}

fn cancelled() -> ExecutionResult {
    ExecutionResult {
        cancelled: true,
        ..ExecutionResult::default()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A command that is about to be sent.
struct Asked<'a> {
    request: Bytes,
    wrapped: Wrapped,
    limit: Duration,
    session: Taken<'a>,
    repeatable: bool,
}

/// What is known of the running command, for whoever has to end it.
#[derive(Clone)]
pub(super) struct Watched(Arc<Mutex<Decoder>>, Arc<Notify>);

impl Watched {
    fn new(nonce: &str) -> Self {
        Self(Arc::new(Mutex::new(Decoder::new(nonce))), Arc::default())
    }

    /// Gives the decoder to `then`, and tells who waits when it knows the process.
    pub(super) fn with<T>(&self, then: impl FnOnce(&mut Decoder) -> T) -> T {
        let mut decoder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = then(&mut decoder);
        if !decoder.is_searching() {
            self.1.notify_one();
        }
        value
    }

    async fn wait(&self) -> Option<StartedProcess> {
        if self.with(|decoder| decoder.is_searching()) {
            let _late = tokio::time::timeout(REPORT_LIMIT, self.1.notified()).await;
        }
        self.with(|decoder| decoder.process())
    }
}

impl CommandManagedRuntimeRunner for WorkerRunner {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        self.run(execution).boxed()
    }

    fn open_duplex(&self, _: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        std::future::ready(Err(RunnerError::Unsupported("a duplex"))).boxed()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            duplex: false,
            streaming_output: true,
            concurrent: self.config.session_strategy == SessionStrategy::Named,
            file_transfer: false,
        }
    }

    fn target(&self) -> &str {
        &self.target
    }
}
