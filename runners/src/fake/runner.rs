//! Executions in a lease's sandbox: those of [`LocalRunner`] in the sandbox's folder, with the faults on order.

use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Mutex;

use super::Part;
use super::config::Call;
use super::sandbox::Sandbox;
use crate::local::{BaseEnvironment, LocalRunner};
use crate::runner::DuplexStream;
use crate::shell::{check_parts, check_text};
use crate::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult,
    OutputStream, RunnerError,
};

/// The runner of one lease.
#[derive(Debug)]
pub(super) struct FakeRunner {
    part: Arc<Part>,
    lease: String,
    target: String,
    inside: LocalRunner,
    /// Held by an execution where they may not run side by side.
    alone: Mutex<()>,
}

impl FakeRunner {
    pub(super) fn new(part: Arc<Part>, lease: &str) -> Self {
        let home = Sandbox::of(&part.cloud, lease).home();
        let base = BaseEnvironment {
            home: home.display().to_string(),
            user: "agent".to_owned(),
            lang: "C.UTF-8".to_owned(),
        };
        Self {
            inside: LocalRunner::new(base, Some(home)),
            target: format!("{}:{lease}", super::KEY),
            lease: lease.to_owned(),
            part,
            alone: Mutex::new(()),
        }
    }

    /// The call to the cloud that goes with a command.
    async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<(), RunnerError> {
        let last = self.part.config.lose_after_executions;
        self.part
            .call(call, Some(&self.lease), move |_, effect| {
                effect.held_for_a_command(last, timeout)
            })
            .await
            .map_err(|error| RunnerError::from((self.target.as_str(), error)))
    }

    /// Does `work` within a call: the cloud is asked before it, or after it where a failure after the effect is ordered.
    async fn within<T>(
        &self,
        call: Call,
        timeout: Option<Duration>,
        work: impl Future<Output = Result<T, RunnerError>>,
    ) -> Result<T, RunnerError> {
        let orders = &self.part.config.fail;
        let order = orders.iter().find(|order| order.call == call);
        if order.is_some_and(|order| order.after_effect) {
            let done = work.await?;
            self.call(call, timeout).await?;
            return Ok(done);
        }
        self.call(call, timeout).await?;
        work.await
    }

    async fn run(&self, mut execution: Execution) -> Result<ExecutionResult, RunnerError> {
        check_parts(&(&execution).into())?;
        let _alone = if self.part.config.background {
            None
        } else {
            Some(self.alone.lock().await)
        };
        if execution.timeout.is_none() {
            execution.timeout = self.part.config.timeout_ms.map(Duration::from_millis);
        }
        let timeout = execution.timeout;
        let streams = self.part.config.streaming_output;
        let work = async {
            if streams {
                self.inside.execute(execution).await
            } else {
                self.run_to_the_end(execution).await
            }
        };
        let result = self.within(Call::Execute, timeout, work).await?;
        if result.signal.is_some() {
            self.still_held().await?;
        }
        Ok(result)
    }

    /// A command that a signal ended may have ended with its sandbox.
    async fn still_held(&self) -> Result<(), RunnerError> {
        let part = Arc::clone(&self.part);
        let lease = self.lease.clone();
        let gone = tokio::task::spawn_blocking(move || part.cloud.is_gone(&lease)).await;
        if matches!(gone, Ok(Ok(true))) {
            return Err(RunnerError::LeaseLost {
                target: self.target.clone(),
                reason: "it went while the command ran".to_owned(),
            });
        }
        Ok(())
    }

    /// Output comes in one piece, at the end.
    async fn run_to_the_end(&self, mut execution: Execution) -> Result<ExecutionResult, RunnerError> {
        const HELD_BYTES: usize = 64 * 1024 * 1024;
        let keep = std::mem::replace(&mut execution.keep_output, HELD_BYTES);
        let sink = execution.output.take();
        let mut result = self.inside.execute(execution).await?;
        let outputs = [
            (OutputStream::Stdout, &mut result.stdout),
            (OutputStream::Stderr, &mut result.stderr),
        ];
        for (stream, bytes) in outputs {
            if let Some(sink) = sink.as_ref().filter(|_| !bytes.is_empty()) {
                sink.chunk(stream, Bytes::copy_from_slice(bytes)).await;
            }
            result.truncated |= bytes.len() > keep;
            bytes.truncate(keep);
        }
        Ok(result)
    }
}

impl CommandManagedRuntimeRunner for FakeRunner {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        self.run(execution).boxed()
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        async move {
            if !self.part.config.duplex {
                return Err(RunnerError::Unsupported("a duplex"));
            }
            check_parts(&(&request).into())?;
            let opening = self.inside.open_duplex(request);
            let duplex = self.within(Call::OpenDuplex, None, opening).await?;
            Ok(match self.part.config.cut_duplex_after_bytes {
                Some(left) => Duplex {
                    stream: Box::new(Cut {
                        stream: duplex.stream,
                        left,
                    }),
                },
                None => duplex,
            })
        }
        .boxed()
    }

    fn upload<'a>(
        &'a self,
        path: &'a str,
        bytes: Bytes,
        mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        async move {
            if !self.part.config.file_transfer {
                return Err(RunnerError::Unsupported("file transfer"));
            }
            check_text("the path", path)?;
            if !path.starts_with('/') {
                return Err(RunnerError::Invalid(format!("the path {path:?} is not absolute")));
            }
            let owned = path.to_owned();
            let writing = async {
                let written =
                    tokio::task::spawn_blocking(move || write_whole(Path::new(&owned), &bytes, mode));
                let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                written.map_err(|source| RunnerError::Io {
                    action: format!("cannot write {path:?}"),
                    source,
                })
            };
            self.within(Call::Upload, None, writing).await
        }
        .boxed()
    }

    fn capabilities(&self) -> Capabilities {
        let config = &self.part.config;
        Capabilities {
            duplex: config.duplex,
            streaming_output: config.streaming_output,
            concurrent: config.background,
            file_transfer: config.file_transfer,
        }
    }

    fn target(&self) -> &str {
        &self.target
    }
}

/// Beside the file first, and then in its place.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let parent = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().ok_or_else(invalid)?;
    std::fs::create_dir_all(parent)?;
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let mut beside = name.to_owned();
    beside.push(format!(".{:016x}.part", u64::from_ne_bytes(random)));
    let beside = parent.join(beside);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&beside, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// A duplex that breaks after so many bytes.
struct Cut {
    stream: Box<dyn DuplexStream>,
    left: u64,
}

impl Cut {
    fn spend(&mut self, count: usize) {
        self.left = self.left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        self.spend(read);
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = polled {
            self.spend(count);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
