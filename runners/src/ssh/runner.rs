//! The seam over SSH.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::exec;
use super::pool::SshHost;
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, RunnerError,
};

/// Runs commands on one SSH server, over the host's shared connections.
#[derive(Clone, Debug)]
pub struct SshRunner {
    host: Arc<SshHost>,
}

impl SshRunner {
    /// A runner on this host; connects when it has something to do.
    #[must_use]
    pub fn new(host: Arc<SshHost>) -> Self {
        Self { host }
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Arc<SshHost> {
        &self.host
    }
}

impl CommandManagedRuntimeRunner for SshRunner {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        Box::pin(exec::execute(&self.host, execution))
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        Box::pin(async move {
            let stream = exec::open_duplex(&self.host, &request).await?;
            Ok(Duplex {
                stream: Box::new(stream),
            })
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
        self.host.target()
    }
}
