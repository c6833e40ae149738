//! A lease's runner with an ear: whatever command first meets the loss of the lease, the session hears of it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use runners::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, RunnerError,
};
use tokio::sync::watch;

/// Tells `lost` of every [`RunnerError::LeaseLost`], and passes everything on as it is.
#[derive(Debug)]
pub(super) struct Listening {
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    lost: watch::Sender<Option<String>>,
}

impl Listening {
    pub(super) fn new(
        runner: Arc<dyn CommandManagedRuntimeRunner>,
        lost: watch::Sender<Option<String>>,
    ) -> Self {
        Self { runner, lost }
    }

    fn heard<T>(&self, result: Result<T, RunnerError>) -> Result<T, RunnerError> {
        if let Err(RunnerError::LeaseLost { reason, .. }) = &result {
            self.lost.send_replace(Some(reason.clone()));
        }
        result
    }
}

impl CommandManagedRuntimeRunner for Listening {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        self.runner
            .execute(execution)
            .map(|result| self.heard(result))
            .boxed()
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.runner
            .open_duplex(request)
            .map(|result| self.heard(result))
            .boxed()
    }

    fn upload<'a>(
        &'a self,
        path: &'a str,
        bytes: Bytes,
        mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        self.runner
            .upload(path, bytes, mode)
            .map(|result| self.heard(result))
            .boxed()
    }

    fn capabilities(&self) -> Capabilities {
        self.runner.capabilities()
    }

    fn target(&self) -> &str {
        self.runner.target()
    }
}
