//! The seam, for one sandbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::task::TaskTracker;

use super::access::Access;
use super::envd::Envd;
use super::{duplex, exec, upload};
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, RunnerError,
};

/// Runs commands in one sandbox. Needs no more of it than `/bin/sh`; with `setsid` a command's group is ended as one.
#[derive(Debug)]
pub(super) struct E2bRunner {
    envd: Arc<Envd>,
    /// Where commands start that name no folder.
    cwd: Option<String>,
    limit: Option<Duration>,
    tasks: TaskTracker,
}

impl E2bRunner {
    pub(super) fn new(access: Arc<Access>, cwd: Option<String>) -> Self {
        Self {
            cwd,
            limit: access.control.settings.execution_limit,
            envd: Arc::new(Envd::new(access)),
            tasks: TaskTracker::new(),
        }
    }
}

impl CommandManagedRuntimeRunner for E2bRunner {
    fn execute(&self, mut execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        execution.cwd = execution.cwd.or_else(|| self.cwd.clone());
        Box::pin(exec::execute(&self.envd, execution, self.limit))
    }

    /// A dropped stream ends the command's input, and five seconds later the command.
    fn open_duplex(&self, mut request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        request.cwd = request.cwd.or_else(|| self.cwd.clone());
        Box::pin(async move { duplex::open(&self.envd, &self.tasks, &request).await })
    }

    fn upload<'a>(
        &'a self,
        path: &'a str,
        bytes: Bytes,
        mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        Box::pin(upload::upload(&self.envd, path, bytes, mode))
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
        &self.envd.target
    }
}
