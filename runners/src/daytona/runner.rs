//! Commands in one sandbox, as one-shot calls of its toolbox.
//!
//! Here: [`DaytonaRunner`]: the course of one command. Not here: what is put there for it first ([`super::staging`]), the
//! shell texts ([`super::script`]), the reading of outputs ([`super::output`]), an end by force ([`super::ending`]).
//!
//! The call itself merges both outputs, knows no stdin and gives nothing after a time-out. So stdin and secrets are
//! files in a private folder, outputs are redirected into files there, and both are read by further calls. If the call
//! is lost on the way, as proxies cut what lasts long, the exit code is in a file, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until};

use super::api::{Fault, jittered};
use super::control::{Control, Phase, gone};
use super::ending::{is_ended, kill};
use super::output::{Output, Page, State};
use super::script::{Ended, Job};
use super::staging::{collect, discard, stage};
use super::toolbox::{CALL_SLACK, LONGEST, Ran, Toolbox};
use super::{DAYTONA, duplex, random_name};
use crate::provider::{Lease, ProviderError};
use crate::shell::{CommandParts, check_parts, quote};
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, Killed,
    RunnerError,
};

/// Calls that may fail in a row while outputs are read.
const READ_TRIES: u32 = 4;

/// Runs commands in one sandbox.
#[derive(Debug)]
pub(super) struct DaytonaRunner {
    control: Control,
    id: String,
    target: String,
    /// Where commands run that name no directory.
    pub(super) cwd: String,
    /// Our own folder in the sandbox.
    pub(super) runtime: String,
    /// Limit of a command that names none.
    timeout: Duration,
    toolbox: OnceCell<Toolbox>,
}

/// Why one command came to its end.
enum Stop {
    Answered(Result<Ran, Fault>),
    TimedOut,
    Cancelled,
}

impl DaytonaRunner {
    pub(super) fn new(control: Control, lease: &Lease, timeout: Duration) -> Result<Self, ProviderError> {
        let text = |key: &str| lease.metadata.get(key).and_then(Value::as_str);
        if text("provider").is_some_and(|provider| provider != DAYTONA.key) {
            return Err(ProviderError::Broken(format!(
                "the metadata of lease {} are another provider's",
                lease.id
            )));
        }
        // A shell of any other name must not get through.
        lease.shell(&DAYTONA)?;
        let milliseconds = lease.metadata.get("timeoutMs").and_then(Value::as_u64);
        Ok(Self {
            control,
            id: lease.id.clone(),
            target: format!("{}:{}", DAYTONA.key, lease.id),
            cwd: lease
                .remote_cwd
                .clone()
                .or_else(|| text("remoteCwd").map(str::to_owned))
                .unwrap_or_else(|| ".".to_owned()),
            runtime: text("runtimeDir").unwrap_or("/tmp/.paperclip-bridge").to_owned(),
            timeout: milliseconds.map_or(timeout, Duration::from_millis),
            toolbox: OnceCell::new(),
        })
    }

    pub(super) async fn toolbox(&self) -> Result<&Toolbox, RunnerError> {
        let found = self.toolbox.get_or_try_init(async || {
            let sandbox = self.control.find(&self.id).await.map_err(Fault::of_query)?;
            let sandbox = sandbox.ok_or_else(|| gone(&self.id))?;
            self.control.toolbox(&sandbox).await.map_err(Fault::of_query)
        });
        found
            .await
            .map_err(|error| RunnerError::from((self.target.as_str(), error)))
    }

    /// What a failed call means: a sandbox that is gone or at rest is a lost lease, whatever the call said.
    ///
    /// - `started`: the command may have been started.
    pub(super) async fn explain(&self, fault: Fault, started: bool) -> RunnerError {
        let target = self.target.clone();
        let lost = |reason: String| RunnerError::LeaseLost {
            target: target.clone(),
            reason,
        };
        match self.control.find(&self.id).await {
            Ok(None) => return lost(format!("Daytona has no sandbox {} any more", self.id)),
            Ok(Some(sandbox)) if sandbox.phase() != Phase::Started => {
                return lost(format!("the sandbox is in state {}", sandbox.state));
            }
            Ok(Some(_)) | Err(_) => {}
        }
        // The sandbox is there: a 404 of the toolbox is no lost lease.
        if let Fault::Status(status) = &fault
            && matches!(status.status, 404 | 410)
        {
            return RunnerError::Refused {
                target,
                reason: fault.to_string(),
            };
        }
        let error = if started {
            fault.of_change()
        } else {
            fault.of_query()
        };
        RunnerError::from((target.as_str(), error))
    }

    async fn run(&self, mut execution: Execution) -> Result<ExecutionResult, RunnerError> {
        check_parts(&CommandParts::from(&execution))?;
        if execution.cancel.is_cancelled() {
            return Ok(cancelled());
        }
        let limit = execution.timeout.unwrap_or(self.timeout).min(LONGEST);
        let end = Instant::now() + limit;
        let stdin = std::mem::take(&mut execution.stdin);
        let stdin = tokio::select! {
            stdin = collect(stdin) => stdin?,
            () = execution.cancel.cancelled() => return Ok(cancelled()),
            () = sleep_until(end) => return Ok(ExecutionResult { timed_out: true, ..ExecutionResult::default() }),
        };
        let nonce = random_name().map_err(RunnerError::Invalid)?;
        let mut job = Job::new(&self.runtime, nonce);
        job.has_stdin = stdin.is_some();
        let toolbox = self.toolbox().await?;
        let parts = CommandParts::from(&execution);
        if let Err(fault) = stage(toolbox, &job, &parts, stdin).await {
            let error = self.explain(fault, false).await;
            discard(toolbox, &job).await;
            return Err(error);
        }

        let text = job.run(&parts, &self.cwd);
        let mut output = Output::new(execution.output.clone(), execution.keep_output);
        let ended = AtomicBool::new(false);
        let (stop, read) = {
            let call = toolbox.execute(&text, limit);
            let reading = self.read(toolbox, &job, &mut output, &ended);
            // The daemon's own clock ends it by the second; ours where that is not exact, or where nothing comes.
            let exact = limit.subsec_nanos() != 0;
            let time_is_up = sleep_until(if exact { end } else { end + CALL_SLACK });
            tokio::pin!(call, reading, time_is_up);
            let streams = execution.output.is_some();
            let mut read = None;
            let stop = loop {
                tokio::select! {
                    biased;
                    answer = &mut call => break Stop::Answered(answer),
                    () = execution.cancel.cancelled() => break Stop::Cancelled,
                    () = &mut time_is_up => break Stop::TimedOut,
                    done = &mut reading, if streams && read.is_none() => read = Some(done),
                }
            };
            let mut killed = None;
            let lost =
                matches!(&stop, Stop::Answered(Err(fault)) if fault.status().is_none() && fault.is_unknown());
            if lost && read.is_none() {
                // The call is lost, the command perhaps not: its files go on telling.
                tokio::select! {
                    done = &mut reading => read = Some(done),
                    () = execution.cancel.cancelled() => killed = kill(&self.target, toolbox, &job).await,
                    () = sleep_until(end) => killed = kill(&self.target, toolbox, &job).await,
                }
            } else if !matches!(stop, Stop::Answered(_)) {
                // Output goes on while the command is being ended: it may say last words.
                let killing = kill(&self.target, toolbox, &job);
                tokio::pin!(killing);
                killed = loop {
                    tokio::select! {
                        killed = &mut killing => break killed,
                        done = &mut reading, if streams && read.is_none() => read = Some(done),
                    }
                };
            }
            ended.store(true, Ordering::Relaxed);
            let read = match read {
                Some(read) => read,
                None => reading.as_mut().await,
            };
            ((stop, killed, lost), read)
        };
        let (stop, killed, lost) = stop;
        let cut = (
            lost && Instant::now() >= end,
            lost && execution.cancel.is_cancelled(),
        );
        self.conclude(stop, killed, cut, read, output, &parts).await
    }

    /// What all of it comes to.
    ///
    /// - `cut`: a lost call's command was ended because its time was up, or because it was cancelled.
    async fn conclude(
        &self,
        stop: Stop,
        killed: Option<Killed>,
        cut: (bool, bool),
        read: Result<State, Fault>,
        output: Output,
        parts: &CommandParts<'_>,
    ) -> Result<ExecutionResult, RunnerError> {
        let mut result = ExecutionResult {
            killed,
            ..ExecutionResult::default()
        };
        let mut state = read;
        match stop {
            Stop::TimedOut => result.timed_out = true,
            Stop::Cancelled => result.cancelled = true,
            Stop::Answered(Ok(ran)) => {
                if let Ok(State::Gone | State::Dead) = state {
                    // The wrapper was ended with its command, or never started.
                    match ran.exit_code() {
                        -1 if matches!(state, Ok(State::Gone)) => {
                            return Err(RunnerError::Refused {
                                target: self.target.clone(),
                                reason: "the toolbox could not start its shell".to_owned(),
                            });
                        }
                        code if code > 0 => state = Ok(State::Ended(Ended::Exited(code))),
                        _ => {}
                    }
                }
            }
            Stop::Answered(Err(Fault::Status(fault))) if fault.status == 408 => {
                result.timed_out = true;
                result.killed = Some(Killed::Group);
            }
            Stop::Answered(Err(fault)) => match (&state, cut) {
                (_, (true, _)) if is_ended(result.killed) => result.timed_out = true,
                (_, (_, true)) if is_ended(result.killed) => result.cancelled = true,
                (Ok(State::Ended(_)), _) => {}
                _ => return Err(self.explain(fault, true).await),
            },
        }
        match state {
            Ok(State::Ended(Ended::NoDirectory)) => {
                return Err(RunnerError::Invalid(format!(
                    "working directory {} cannot be entered in {}",
                    parts.cwd.unwrap_or(&self.cwd),
                    self.target
                )));
            }
            Ok(State::Ended(Ended::Exited(code))) if !result.timed_out && !result.cancelled => {
                result.exit_code = Some(code);
            }
            Ok(State::Ended(Ended::Exited(_)) | State::Running | State::Dead | State::Gone) => {}
            Err(fault) => return Err(self.explain(fault, true).await),
        }
        let ([stdout, stderr], truncated) = output.finish();
        result.stdout = stdout;
        result.stderr = stderr;
        result.truncated = truncated;
        Ok(result)
    }

    /// Reads both outputs until the command has ended and all is taken; gives how it ended.
    async fn read(
        &self,
        toolbox: &Toolbox,
        job: &Job,
        output: &mut Output,
        ended: &AtomicBool,
    ) -> Result<State, Fault> {
        let mut failures = 0;
        loop {
            let last = ended.load(Ordering::Relaxed);
            let text = job.page(output.read_bytes(), output.wanted(), last);
            let page = match toolbox.script(&text).await {
                Ok(ran) => Page::read(&ran, job).ok_or_else(|| {
                    Fault::Broken("a command's outputs cannot be read in the sandbox".to_owned())
                }),
                Err(fault) => Err(fault),
            };
            let page = match page {
                Ok(page) => page,
                Err(fault) => {
                    failures += 1;
                    if failures >= READ_TRIES || fault.status().is_some_and(|status| status < 500) {
                        return Err(fault);
                    }
                    tokio::time::sleep(jittered(Duration::from_millis(250) * failures)).await;
                    continue;
                }
            };
            failures = 0;
            let (state, taken) = (page.state, page.taken);
            output.take(page).await;
            if taken || (state == State::Gone && last) {
                return Ok(state);
            }
            if state == State::Gone {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn put(&self, path: &str, bytes: Bytes, mode: u32) -> Result<(), RunnerError> {
        crate::shell::check_text("the path", path)?;
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        if !path.starts_with('/') || name.is_empty() {
            return Err(RunnerError::Invalid(format!(
                "the path {path:?} does not name a file by an absolute path"
            )));
        }
        let folder = if folder.is_empty() { "/" } else { folder };
        let toolbox = self.toolbox().await?;
        let part = format!("{path}.pcb-{}", random_name().map_err(RunnerError::Invalid)?);
        let staged = async {
            toolbox.folder(folder, "755").await?;
            toolbox.upload(&[(&part, &bytes)]).await?;
            // One call for the mode and the move: `mv` replaces what is there, and never goes into a folder of that name.
            let (from, to) = (quote(&part), quote(path));
            let text = format!(
                "{{ [ ! -d {to} ] && chmod {mode:o} {from} && mv -f -- {from} {to} && echo 'pcb moved'; exit 0; }} </dev/null\n"
            );
            let ran = toolbox.script(&text).await?;
            match ran.line("pcb moved") {
                Some(_) => Ok(()),
                None => Err(Fault::Broken(format!(
                    "{path} cannot be written: {}",
                    ran.result.trim()
                ))),
            }
        };
        let Err(fault) = staged.await else { return Ok(()) };
        // What was uploaded in part must not stay.
        drop(toolbox.remove(&part).await);
        Err(match fault {
            Fault::Broken(reason) => RunnerError::Refused {
                target: self.target.clone(),
                reason,
            },
            other @ (Fault::Http(_) | Fault::Status(_) | Fault::Secret(_)) => {
                self.explain(other, false).await
            }
        })
    }
}

fn cancelled() -> ExecutionResult {
    ExecutionResult {
        cancelled: true,
        ..ExecutionResult::default()
    }
}

impl CommandManagedRuntimeRunner for DaytonaRunner {
    /// All of stdin is taken, at most 64 MiB, before the command starts. A signal is told as exit code 128 + n.
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        Box::pin(self.run(execution))
    }

    /// The command is ended with its terminal when the stream is dropped. What it says on stderr is not kept.
    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        Box::pin(duplex::open(self, request))
    }

    fn upload<'a>(
        &'a self,
        path: &'a str,
        bytes: Bytes,
        mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        Box::pin(self.put(path, bytes, mode))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            duplex: true,
            streaming_output: true,
            concurrent: true,
            file_transfer: true,
        }
    }

    fn target(&self) -> &str {
        &self.target
    }
}
