//! `paperclip-bridge run TARGET -- COMMAND…`: one command on the target, with the API at its side.
//!
//! Here: the command's environment, its streams, signals and exit code. Not here: how it is run on the target
//! (`runners`), how the session is opened (`opening.rs`).

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use runners::{Execution, ExecutionResult, Input, Killed, RunnerError, SecretText};
use tokio_util::sync::CancellationToken;

use crate::app::{App, OpenSession, TargetSpec};
use crate::cli::exit::{Exit, Failure, signal_number};
use crate::cli::opening;
use crate::cli::options::SessionOptions;
use crate::cli::signals::{Ending, Signals};
use crate::cli::stdio::{PassOn, Stdin, complain};
use crate::config::spelled::duration;

/// What `timeout` of coreutils ends with, too.
const TIMED_OUT: u8 = 124;

/// Arguments of `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    options: Box<SessionOptions>,

    /// Longest time that COMMAND may take, such as 90s, 30m or 4h; then its process group is ended
    /// [default: none, or the provider's timeoutMs]
    #[arg(long, value_name = "DURATION", value_parser = limit)]
    timeout: Option<Duration>,

    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; `Ok` holds its own exit code.
///
/// # Errors
///
/// Codes 1 to 4 before COMMAND was started, 125 if we failed while it ran.
pub(crate) async fn run(app: &App, arguments: RunArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let session = opening::open(app, &arguments.options, opening::Resume::No, &mut signals).await?;
    let ended = {
        // Dropped with this block: the watch ends with the command.
        let watch = std::pin::pin!(async {
            opening::watch(session.tunnel, session.status.clone()).await;
            tracing::error!("the tunnel has ended; calls to the API fail from now on");
            std::future::pending::<()>().await;
        });
        tokio::select! {
            // The command's own end is the better news where both are there.
            biased;
            ended = execute(&session, arguments, &mut signals) => ended,
            why = session.lease_lost() => Err(lease_lost(&why)),
            () = watch => Err(Failure::new(Exit::Bridge, "the tunnel's watch ended")),
        }
    };
    // Whatever became of the command, the session is ended; what it left is told without hiding the command's end.
    if let Err(left) = opening::close(session).await {
        complain(&left.to_string());
    }
    ended
}

async fn execute(
    session: &OpenSession,
    arguments: RunArguments,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let RunArguments {
        options,
        timeout,
        command,
    } = arguments;
    let cancel = CancellationToken::new();
    let pass_on = Arc::new(PassOn::new(cancel.clone()));
    let mut execution = execution(session, &options, timeout, command)?;
    execution.output = Some(pass_on.clone());
    execution.cancel = cancel.clone();
    let mut running = session.runner.execute(execution);
    let mut asked: Option<Ending> = None;
    let result = loop {
        tokio::select! {
            result = &mut running => break result,
            ending = signals.next() => {
                if asked.replace(ending).is_some() {
                    complain("not waiting any longer; COMMAND may still be running on the target");
                    return Ok(Exit::Command(128 + ending.number()));
                }
                cancel.cancel();
            }
        }
    };
    if let Some(error) = pass_on.take_failure()
        && error.kind() != ErrorKind::BrokenPipe
    {
        return Err(Failure::new(Exit::Bridge, "cannot pass COMMAND's output on").because(error));
    }
    conclude(result, asked)
}

fn execution(
    session: &OpenSession,
    options: &SessionOptions,
    timeout: Option<Duration>,
    command: Vec<String>,
) -> Result<Execution, Failure> {
    if command.is_empty() {
        return Err(Failure::new(Exit::Usage, "no COMMAND after `--`"));
    }
    let mut execution = match options.shell.shell() {
        Some(shell) => Execution::new(shell.program(), shell.script_args(command.join(" "))),
        None => {
            let mut words = command.into_iter();
            Execution::new(words.next().unwrap_or_default(), words)
        }
    };
    execution.keep_output = 0;
    execution.cwd = match &options.target {
        TargetSpec::Ssh(target) => target.directory.clone(),
        // A lease has a directory of its own.
        TargetSpec::Local | TargetSpec::Provider(_) => None,
    };
    execution.timeout = timeout;
    // All four go the way of secrets: the token must not stand in argv, and one way is simpler to check than two.
    execution.secret_env = session
        .environment()
        .into_iter()
        .map(|(name, value)| (name, SecretText::new(value)))
        .collect();
    let stdin = Stdin::read()
        .map_err(|error| Failure::new(Exit::Failed, "cannot read standard input").because(error))?;
    execution.stdin = Input::Stream(Box::new(stdin));
    Ok(execution)
}

/// What the command's end means for our own exit code.
///
/// A program that is not there or cannot be started ends as it would in a shell: 127 and 126.
fn conclude(result: Result<ExecutionResult, RunnerError>, asked: Option<Ending>) -> Result<Exit, Failure> {
    let result = result.map_err(|error| {
        if let RunnerError::LeaseLost { reason, .. } = &error {
            return lease_lost(reason);
        }
        let exit = match &error {
            // Nothing was started, so the ordinary codes hold.
            RunnerError::Invalid(_) => Exit::Usage,
            RunnerError::Unreachable { .. } | RunnerError::Refused { .. } => Exit::Unreachable,
            RunnerError::Unsupported(_) => Exit::Failed,
            RunnerError::Io { source, .. } if source.kind() == ErrorKind::NotFound => Exit::Command(127),
            RunnerError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Exit::Command(126)
            }
            RunnerError::Io { .. } | RunnerError::Lost { .. } | _ => Exit::Bridge,
        };
        Failure::new(exit, "COMMAND could not be run to its end").because(error)
    })?;
    match result.killed {
        Some(Killed::LeaderOnly) => {
            complain(
                "only COMMAND itself was ended: the target has no `setsid`, so what it started may still run",
            );
        }
        Some(Killed::Owed) => complain("the connection was lost; COMMAND may still run on the target"),
        Some(Killed::Unconfirmed) => {
            complain("COMMAND could not be ended; it may still run on the target");
        }
        Some(Killed::Group) | None => {}
    }
    if result.timed_out {
        match result.killed {
            Some(Killed::Owed | Killed::Unconfirmed) => complain("COMMAND took longer than it may"),
            Some(Killed::Group | Killed::LeaderOnly) | None => {
                complain("COMMAND was ended: it took longer than it may");
            }
        }
        return Ok(Exit::Command(TIMED_OUT));
    }
    match (result.exit_code, result.signal, asked) {
        (Some(code), _, _) => Ok(Exit::Command(low_byte(code))),
        (None, Some(signal), _) => Ok(Exit::Command(128 + signal_number(&signal))),
        (None, None, Some(ending)) => Ok(Exit::Command(128 + ending.number())),
        (None, None, None) if result.cancelled => Ok(Exit::Command(128 + signal_number("PIPE"))),
        (None, None, None) => Err(Failure::new(
            Exit::Bridge,
            "COMMAND ended and the target did not say how",
        )),
    }
}

/// A limit of nothing would end every command.
fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".into()),
        limit => Ok(limit),
    }
}

/// Told apart from every failure of ours: nothing is left that the command could have run in.
fn lease_lost(why: &str) -> Failure {
    Failure::new(
        Exit::Bridge,
        format!("the lease was lost while COMMAND ran (lease_lost): {why}"),
    )
}

/// Exit codes have eight bits; a wider one keeps its low byte, as `wait` would do.
fn low_byte(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_own_end_is_our_exit_code() {
        let exited = |code| ExecutionResult {
            exit_code: Some(code),
            ..ExecutionResult::default()
        };
        let signalled = |name: &str| ExecutionResult {
            signal: Some(name.into()),
            ..ExecutionResult::default()
        };

        assert_eq!(code(Ok(exited(0)), None), 0);
        assert_eq!(code(Ok(exited(7)), Some(Ending::Interrupt)), 7);
        assert_eq!(code(Ok(exited(256 + 3)), None), 3);
        assert_eq!(code(Ok(signalled("KILL")), None), 137);
        assert_eq!(code(Ok(signalled("TERM")), Some(Ending::Interrupt)), 143);
        assert_eq!(code(Ok(ExecutionResult::default()), Some(Ending::Interrupt)), 130);
        let late = ExecutionResult {
            timed_out: true,
            ..signalled("TERM")
        };
        assert_eq!(code(Ok(late), None), 124);
    }

    #[test]
    fn our_own_failures_are_told_apart() {
        let target = String::from("ssh://h");

        assert_eq!(code(Ok(ExecutionResult::default()), None), 125);
        assert_eq!(
            code(
                Err(RunnerError::Lost {
                    target: target.clone()
                }),
                None
            ),
            125
        );
        assert_eq!(
            code(
                Err(RunnerError::Unreachable {
                    target,
                    reason: "x".into()
                }),
                None
            ),
            4
        );
    }

    fn code(result: Result<ExecutionResult, RunnerError>, asked: Option<Ending>) -> u8 {
        conclude(result, asked)
            .unwrap_or_else(|failure| failure.exit)
            .code()
    }
}
