//! The seam: what a runner does and what its callers may assume.
//!
//! Here: the trait, what goes in, what comes out, and the one error type. Not here: any transport. Read next:
//! [`crate::shell`] for how arguments become one remote string.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// Runs commands on one target.
///
/// A non-zero exit, a signal or a time-out is a *result*; an error means that the channel to the target failed or
/// that the command was never started. No implementation ever runs a command anywhere but on its own target: a
/// target that cannot be reached is an error.
pub trait CommandManagedRuntimeRunner: fmt::Debug + Send + Sync {
    /// Runs one command to its end.
    ///
    /// Output chunks reach `execution.output` in the order in which each stream produced them, and the result holds
    /// the complete output as well unless `execution.keep_output` is zero.
    ///
    /// # Errors
    ///
    /// [`RunnerError`] where the command could not be started or its fate is unknown.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the command without a kill. Cancel `execution.cancel` to end it: the process
    /// group then gets `TERM`, and `KILL` after five seconds, and the future resolves with `cancelled` set.
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>>;

    /// Starts a long-lived command and hands over its stdin and stdout as one byte stream, 8-bit clean.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Unsupported`] where [`Capabilities::duplex`] is false, else as [`Self::execute`].
    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>>;

    /// Writes a file on the target, whole or not at all, with the mode given; parents are made.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Unsupported`] where [`Capabilities::file_transfer`] is false, else as [`Self::execute`].
    fn upload<'a>(
        &'a self,
        _path: &'a str,
        _bytes: Bytes,
        _mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        Box::pin(std::future::ready(Err(RunnerError::Unsupported("file transfer"))))
    }

    /// What this runner can do; fixed for its lifetime.
    fn capabilities(&self) -> Capabilities;

    /// The target in the words of the operator, such as `ssh://agent@host:22`. Never holds a secret.
    fn target(&self) -> &str;
}

/// What a runner can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`CommandManagedRuntimeRunner::open_duplex`] works.
    pub duplex: bool,
    /// Output reaches the sink while the command still runs.
    pub streaming_output: bool,
    /// Several executions may run at the same time.
    pub concurrent: bool,
    /// [`CommandManagedRuntimeRunner::upload`] works.
    pub file_transfer: bool,
}

/// A value that must not be printed; wiped when dropped.
#[derive(Clone, Default)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes a secret; empty text is allowed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The only way to the value: a search for `.expose(` is the review.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// Where a command's standard input comes from.
#[derive(Default)]
pub enum Input {
    /// End of input at once.
    #[default]
    None,
    /// These bytes, then end of input.
    Bytes(Bytes),
    /// Copied as it comes, then end of input. Dropped when the command ends first.
    Stream(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Which of a command's two outputs a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Receives output while the command runs; called in order, never concurrently for one execution.
///
/// The returned future is awaited before the next chunk is taken: this is the back-pressure.
pub trait OutputSink: Send + Sync {
    /// Takes one non-empty chunk.
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()>;
}

/// One command to run.
#[derive(Default)]
pub struct Execution {
    /// Program to run; with [`crate::Shell`] scripts this is the shell itself.
    pub command: String,
    /// Its arguments, exactly as it shall see them; quoting is the runner's business.
    pub args: Vec<String>,
    /// Working directory on the target; `None` is the target's own.
    pub cwd: Option<String>,
    /// Extra variables that may be seen in argv of the target. Keys must match `[A-Za-z_][A-Za-z0-9_]*`.
    pub env: BTreeMap<String, String>,
    /// Extra variables that must not: they travel over stdin ahead of [`Self::stdin`] and never stand in argv.
    pub secret_env: BTreeMap<String, SecretText>,
    /// Standard input.
    pub stdin: Input,
    /// Limit from start to end; `None` is no limit.
    pub timeout: Option<Duration>,
    /// Where output goes while the command runs.
    pub output: Option<Arc<dyn OutputSink>>,
    /// Bytes of each output kept for the result; what is beyond is dropped and `truncated` says so.
    pub keep_output: usize,
    /// Ends the command early.
    pub cancel: CancellationToken,
}

impl Execution {
    /// A command with 1 MiB of each output kept and no time limit.
    pub fn new<A: Into<String>>(command: impl Into<String>, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            command: command.into(),
            args: args.into_iter().map(Into::into).collect(),
            keep_output: 1024 * 1024,
            ..Self::default()
        }
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments and values stay out: they may hold what the caller would not log.
        f.debug_struct("Execution")
            .field("command", &self.command)
            .field("args", &self.args.len())
            .field("cwd", &self.cwd)
            .field("env", &self.env.keys())
            .field("secret_env", &self.secret_env.keys())
            .field("stdin", &self.stdin)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What a time-out or a cancellation really ended on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// The whole process group.
    Group,
    /// Only the leader: the target has no `setsid` and shares its group with others.
    LeaderOnly,
    /// Nothing yet: the connection was lost; the kill is owed and done on reconnect.
    Owed,
    /// Nothing that we know of: the kill did not get through, or was not permitted. It may still run.
    Unconfirmed,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutionResult {
    /// Exit status, where it exited.
    pub exit_code: Option<i32>,
    /// Signal name without `SIG`, such as `TERM`, where a signal ended it.
    pub signal: Option<String>,
    /// The time limit was reached.
    pub timed_out: bool,
    /// The cancellation token was cancelled.
    pub cancelled: bool,
    /// What was killed, if a time-out or a cancellation killed something.
    pub killed: Option<Killed>,
    /// Standard output, at most `keep_output` bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most `keep_output` bytes.
    pub stderr: Vec<u8>,
    /// One of the outputs was longer than what was kept.
    pub truncated: bool,
}

impl ExecutionResult {
    /// Exited with zero, in time.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit_code == Some(0) && !self.timed_out && !self.cancelled
    }
}

/// A long-lived command to start on a byte stream.
#[derive(Debug, Default)]
pub struct DuplexRequest {
    /// Program to run.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory on the target; `None` is the target's own.
    pub cwd: Option<String>,
}

/// A running command's stdin and stdout.
///
/// Shutting down the writing side is end of input there. Dropping it closes the channel; the command is expected
/// to end itself at end of input.
pub struct Duplex {
    /// Reads stdout, writes stdin.
    pub stream: Box<dyn DuplexStream>,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}

/// Both directions in one object.
pub trait DuplexStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> DuplexStream for T {}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunnerError {
    /// The request itself is not acceptable; nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// The target cannot be reached or refused us; nothing was started.
    #[error("cannot reach {target}: {reason}")]
    Unreachable {
        /// The target in the operator's words.
        target: String,
        /// What failed and what to do about it.
        reason: String,
    },
    /// The target is reachable but does not let this run.
    #[error("{target} does not allow this: {reason}")]
    Refused {
        /// The target in the operator's words.
        target: String,
        /// Which setting is in the way.
        reason: String,
    },
    /// The connection went away while the command ran; its fate is unknown.
    #[error("connection to {target} was lost while the command ran")]
    Lost {
        /// The target in the operator's words.
        target: String,
    },
    /// The provider's hold on the sandbox is gone, and everything in it.
    #[error("the lease of {target} is lost: {reason}")]
    LeaseLost {
        /// The target in the operator's words.
        target: String,
        /// In the provider's words.
        reason: String,
    },
    /// This runner cannot do that.
    #[error("{0} is not supported by this runner")]
    Unsupported(&'static str),
    /// Starting or talking to a process on this machine failed.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
