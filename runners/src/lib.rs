//! How a command is run on a target.
//!
//! Here: the seam [`CommandManagedRuntimeRunner`] and its implementations, with the shell quoting and the SSH
//! machinery they need. Not here: callbacks, tokens, policy; this crate would be the same if the bridge carried
//! mail. Read [`runner`] first, then [`shell`], then one implementation.

pub mod runner;
pub mod shell;
pub mod http;
pub mod provider;
pub mod local;
pub mod ssh;
pub mod fake;
pub mod e2b;
pub mod daytona;
pub mod worker;

pub use runner::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, Input,
    Killed, OutputSink, OutputStream, RunnerError, SecretText,
};
pub use shell::Shell;
