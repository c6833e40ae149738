//! Commands on the operator's own machine.
//!
//! Here: [`LocalRunner`]: what a child is given and what becomes of it. In `output` its two outputs, in `ending`
//! its exit or its end by force, in `duplex` the long-lived kind. Not here: shells; a command is started as it is.

mod output;
mod ending;
mod duplex;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shell::{CommandParts, check_parts};
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, Input,
    RunnerError,
};

use ending::{Cause, Ending, Supervisor};
use output::{Captured, Output, PIPE_GRACE};

/// Where a child looks for programs, whatever the daemon's own path is.
const CHILD_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What of the daemon's environment a child gets, besides a fixed `PATH`; handed in, because this crate reads none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseEnvironment {
    /// `HOME`
    pub home: String,
    /// `USER`
    pub user: String,
    /// `LANG`
    pub lang: String,
}

/// Runs commands as children of this process.
#[derive(Clone, Debug)]
pub struct LocalRunner {
    base: BaseEnvironment,
    directory: Option<PathBuf>,
    kill_grace: Duration,
}

impl LocalRunner {
    /// A runner whose commands start in `directory`, else in this process's own.
    #[must_use]
    pub fn new(base: BaseEnvironment, directory: Option<PathBuf>) -> Self {
        Self {
            base,
            directory,
            kill_grace: crate::shell::kill::KILL_GRACE,
        }
    }

    /// Another time between `TERM` and `KILL` than five seconds.
    #[must_use]
    pub fn with_kill_grace(mut self, grace: Duration) -> Self {
        self.kill_grace = grace;
        self
    }

    /// The command with its own process group, directory and environment, and nothing else of ours.
    fn command(&self, parts: &CommandParts<'_>) -> Result<Command, RunnerError> {
        check_parts(parts)?;
        let mut command = Command::new(parts.command);
        command.args(parts.args).process_group(0).env_clear();
        let base = [
            ("PATH", CHILD_PATH),
            ("HOME", &self.base.home),
            ("USER", &self.base.user),
            ("LANG", &self.base.lang),
        ];
        command.envs(base.into_iter().filter(|(_, value)| !value.is_empty()));
        command.envs(parts.env);
        // A child's environment is readable by the same user only, unlike its argv.
        command.envs(parts.secret_env.iter().map(|(key, value)| (key, value.expose())));
        let directory = match (parts.cwd, &self.directory) {
            (Some(cwd), Some(directory)) => Some(directory.join(cwd)),
            (Some(cwd), None) => Some(PathBuf::from(cwd)),
            (None, directory) => directory.clone(),
        };
        if let Some(directory) = directory {
            check_directory(&directory)?;
            command.current_dir(directory);
        }
        Ok(command)
    }

    async fn run(&self, mut execution: Execution) -> Result<ExecutionResult, RunnerError> {
        let mut command = self.command(&CommandParts::from(&execution))?;
        let stdin = match execution.stdin {
            Input::None => Stdio::null(),
            Input::Bytes(_) | Input::Stream(_) => Stdio::piped(),
        };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        if execution.cancel.is_cancelled() {
            return Ok(ExecutionResult {
                cancelled: true,
                ..ExecutionResult::default()
            });
        }
        // A time too far away to be told is no limit.
        let deadline = execution
            .timeout
            .and_then(|limit| Instant::now().checked_add(limit));
        let mut child = command
            .spawn()
            .map_err(|source| cannot_start(&execution.command, source))?;
        let feed = feed(child.stdin.take(), std::mem::take(&mut execution.stdin));
        let exited = CancellationToken::new();
        let mut captured = Captured::new(execution.keep_output);
        let output = Output {
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            sink: execution.output.clone(),
            exited: exited.clone(),
        };
        let supervisor = Supervisor {
            deadline,
            cancel: execution.cancel.clone(),
            kill_grace: self.kill_grace,
        };

        let (ending, whole) = {
            let pump = output.pump(&mut captured);
            let supervise = supervisor.wait(&mut child);
            tokio::pin!(feed, pump, supervise);
            let (mut fed, mut pumped) = (false, false);
            let ending = loop {
                tokio::select! {
                    ending = &mut supervise => break ending,
                    () = &mut pump, if !pumped => pumped = true,
                    () = &mut feed, if !fed => fed = true,
                }
            };
            exited.cancel();
            if !pumped {
                pumped = tokio::select! {
                    () = &mut pump => true,
                    () = supervisor.give_up(&ending, PIPE_GRACE) => false,
                };
            }
            (ending, pumped)
        };
        Ok(result(ending, captured, whole))
    }
}

impl CommandManagedRuntimeRunner for LocalRunner {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        Box::pin(self.run(execution))
    }

    /// The command is killed with its group when the stream is dropped; its stderr goes to the log at `DEBUG`.
    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        Box::pin(async move {
            let mut command = self.command(&CommandParts::from(&request))?;
            duplex::open(&mut command).map_err(|source| cannot_start(&request.command, source))
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            duplex: true,
            streaming_output: true,
            concurrent: true,
            file_transfer: false,
        }
    }

    fn target(&self) -> &str {
        "local"
    }
}

fn result(ending: Ending, captured: Captured, whole: bool) -> ExecutionResult {
    ExecutionResult {
        exit_code: ending.status.and_then(|status| status.code()),
        signal: ending.status.and_then(ending::signal_name),
        timed_out: ending.cause == Cause::TimedOut,
        cancelled: ending.cause == Cause::Cancelled,
        killed: ending.killed,
        stdout: captured.stdout,
        stderr: captured.stderr,
        truncated: captured.truncated || !whole,
    }
}

fn check_directory(directory: &Path) -> Result<(), RunnerError> {
    let refused =
        |reason: String| RunnerError::Invalid(format!("working directory {}: {reason}", directory.display()));
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(refused("not a directory".to_owned())),
        Err(error) => Err(refused(error.to_string())),
    }
}

fn cannot_start(command: &str, source: std::io::Error) -> RunnerError {
    RunnerError::Io {
        action: format!("cannot start {command:?} (searched in {CHILD_PATH})"),
        source,
    }
}

/// Gives the child its input and closes it. A child that reads none of it is no failure.
async fn feed(stdin: Option<ChildStdin>, input: Input) {
    let Some(mut stdin) = stdin else { return };
    let _ = match input {
        Input::None => Ok(()),
        Input::Bytes(bytes) => stdin.write_all(&bytes).await,
        Input::Stream(mut stream) => tokio::io::copy(&mut stream, &mut stdin).await.map(|_| ()),
    };
}
