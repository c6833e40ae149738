//! A child's two outputs: to the sink as they come, and into the result.
//!
//! Here: the pump and its end. Background processes of the child may hold the pipes open for ever; once the child
//! itself is gone they get [`PIPE_GRACE`].

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdout};
use tokio_util::sync::CancellationToken;

use crate::{OutputSink, OutputStream};

/// How long output is awaited after the child's exit.
pub(super) const PIPE_GRACE: Duration = Duration::from_secs(2);
/// Largest chunk handed to the sink.
const CHUNK_BYTES: usize = 32 * 1024;
/// What may still lie in a pipe when the grace is over (Linux: 64 KiB, at most 1 MiB for ordinary users).
const PIPE_BYTES: usize = 1024 * 1024;

/// What is kept for the result.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) truncated: bool,
    keep_bytes: usize,
}

impl Captured {
    pub(super) fn new(keep_bytes: usize) -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
            keep_bytes,
        }
    }

    fn keep(&mut self, stream: OutputStream, bytes: &[u8]) {
        let kept = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let room = self.keep_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.truncated |= bytes.len() > room;
    }
}

/// The outputs of one child and where they go.
pub(super) struct Output {
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    pub(super) sink: Option<Arc<dyn OutputSink>>,
    /// Cancelled once the child itself is gone.
    pub(super) exited: CancellationToken,
}

impl Output {
    /// Runs until both outputs have ended, or the child has and the grace is over.
    pub(super) async fn pump(mut self, captured: &mut Captured) {
        let exited = self.exited.clone();
        let over = async move {
            exited.cancelled().await;
            tokio::time::sleep(PIPE_GRACE).await;
        };
        tokio::pin!(over);
        while self.stdout.is_some() || self.stderr.is_some() {
            let (stream, chunk) = tokio::select! {
                () = &mut over => return self.drain(captured).await,
                chunk = read(&mut self.stdout) => (OutputStream::Stdout, chunk),
                chunk = read(&mut self.stderr) => (OutputStream::Stderr, chunk),
            };
            self.take(stream, chunk, captured).await;
        }
    }

    /// What lies in the pipes already: a slow sink must not cost the child's last words.
    async fn drain(&mut self, captured: &mut Captured) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let mut drained_bytes = 0;
            while drained_bytes < PIPE_BYTES {
                let chunk = match stream {
                    OutputStream::Stdout => read(&mut self.stdout).now_or_never(),
                    OutputStream::Stderr => read(&mut self.stderr).now_or_never(),
                };
                let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) else {
                    break;
                };
                drained_bytes += chunk.len();
                self.take(stream, chunk, captured).await;
            }
        }
    }

    async fn take(&mut self, stream: OutputStream, chunk: Bytes, captured: &mut Captured) {
        if chunk.is_empty() {
            match stream {
                OutputStream::Stdout => self.stdout = None,
                OutputStream::Stderr => self.stderr = None,
            }
            return;
        }
        captured.keep(stream, &chunk);
        if let Some(sink) = &self.sink {
            sink.chunk(stream, chunk).await;
        }
    }
}

/// The next chunk; empty at the end. Pends for ever on an output that has ended. Cancel safe.
async fn read<R: AsyncRead + Unpin>(output: &mut Option<R>) -> Bytes {
    let Some(output) = output else {
        return std::future::pending().await;
    };
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    match output.read_buf(&mut chunk).await {
        Ok(_) => chunk.freeze(),
        // A pipe that fails has nothing more to give.
        Err(_) => Bytes::new(),
    }
}
