//! A long-lived process as one byte stream: what it writes comes as events, what it reads goes in calls.
//!
//! Here: both directions between the caller's stream and the process, and their end. Nothing that was lost comes again:
//! a broken stream of events, or a call whose fate is unknown, breaks the whole, and the reader is told so instead of
//! an end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::connect::Event;
use super::ending::{end, let_go, unreported};
use super::envd::Envd;
use super::exec::tag;
use super::follow::{Followed, Silence};
use super::input::{INPUT_LIMIT_BYTES, Taken, close, send};
use crate::shell::{CommandParts, RemoteCommand, Report, ReportReader, StartedProcess};
use crate::{Duplex, DuplexRequest, RunnerError};

/// How long a process whose stream was dropped has to end itself after the end of its input.
const LEAVE: Duration = Duration::from_secs(5);
/// Bytes of a process's stderr that reach the log.
const LOG_LIMIT_BYTES: usize = 16 * 1024;

/// Starts a long-lived command. The task behind it belongs to `tasks` and ends with the command.
pub(super) async fn open(
    envd: &Arc<Envd>,
    tasks: &TaskTracker,
    request: &DuplexRequest,
) -> Result<Duplex, RunnerError> {
    let command = RemoteCommand::new(&CommandParts::from(request))?;
    let (near, far) = tokio::io::duplex(INPUT_LIMIT_BYTES);
    let (opened, is_open) = tokio::sync::oneshot::channel();
    let fault = Arc::new(OnceLock::new());
    let dropped = CancellationToken::new();
    let channel = Channel {
        envd: Arc::clone(envd),
        dropped: dropped.clone(),
        tag: tag("pcb-d-")?,
        report: ReportReader::new(&command.nonce),
        fault: Arc::clone(&fault),
    };
    tasks.spawn(channel.run(command.line, far, opened));
    let lost = || RunnerError::Lost {
        target: envd.target.clone(),
    };
    is_open.await.map_err(|_| lost())??;
    Ok(Duplex {
        stream: Box::new(Near {
            stream: near,
            fault,
            _dropped: dropped.drop_guard(),
        }),
    })
}

/// One process and what is known of it.
struct Channel {
    envd: Arc<Envd>,
    tag: String,
    report: ReportReader,
    fault: Arc<OnceLock<String>>,
    dropped: CancellationToken,
}

impl Channel {
    async fn run(
        mut self,
        line: String,
        far: DuplexStream,
        opened: tokio::sync::oneshot::Sender<Result<(), RunnerError>>,
    ) {
        let (envd, tag) = (Arc::clone(&self.envd), self.tag.clone());
        let mut process = match Followed::start(&envd, &line, &tag, true, None).await {
            Ok(process) => process,
            Err(error) => {
                // Whoever asked may have gone.
                let _ = opened.send(Err(error));
                return;
            }
        };
        let pid = process.pid;
        let wanted = opened.send(Ok(())).is_ok();
        let (reading, writing) = tokio::io::split(far);
        let over = if wanted {
            let (dropped, fault) = (self.dropped.clone(), Arc::clone(&self.fault));
            let up = up(&envd, &tag, reading);
            let down = self.down(&mut process, writing);
            tokio::pin!(up, down);
            let over = tokio::select! {
                over = &mut down => over,
                reason = &mut up => Over::Broken(reason),
                () = dropped.cancelled() => Over::Dropped,
            };
            if let Over::Broken(reason) = &over {
                tracing::debug!(target_sandbox = %envd.target, reason, "a duplex channel broke");
                // Before the far side goes: the caller must not take that for an end.
                let _ = fault.set(reason.clone());
            }
            over
        } else {
            Over::Dropped
        };
        match over {
            Over::Ended => return,
            Over::Broken(_) => {}
            Over::Dropped => {
                close(&envd, &tag).await;
                if self.ends_itself(&mut process).await {
                    return;
                }
            }
        }
        end(&envd, &self.process(pid), LEAVE).await;
        let_go(&envd, &tag).await;
    }

    /// What the process writes, to the caller.
    async fn down(&mut self, process: &mut Followed<'_>, mut writing: WriteHalf<DuplexStream>) -> Over {
        let mut log = Log::default();
        loop {
            match process.next_here().await {
                Ok(Event::Stdout(bytes)) => {
                    if writing.write_all(&bytes).await.is_err() {
                        return Over::Dropped;
                    }
                }
                Ok(Event::Stderr(bytes)) => log.take(&self.report.feed(bytes)),
                Ok(Event::Started { .. } | Event::Idle) => {}
                Ok(Event::Ended(_)) => return Over::Ended,
                Err(Silence::Broken(reason)) => return Over::Broken(reason),
                Err(Silence::Told(fault)) => return Over::Broken(fault.to_string()),
                Err(Silence::Lost(fault)) => return Over::Broken(fault.to_string()),
            }
        }
    }

    /// Whether it does within [`LEAVE`] of the end of its input.
    async fn ends_itself(&mut self, process: &mut Followed<'_>) -> bool {
        let ended = async {
            loop {
                match process.next_here().await {
                    Ok(Event::Ended(_)) => return true,
                    Ok(Event::Stderr(bytes)) => drop(self.report.feed(bytes)),
                    Ok(Event::Started { .. } | Event::Stdout(_) | Event::Idle) => {}
                    Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(LEAVE, ended).await.unwrap_or(false)
    }

    fn process(&self, pid: u32) -> StartedProcess {
        match self.report.report() {
            Some(Report::Started(process)) if process.pid == pid => process.clone(),
            Some(_) | None => unreported(pid),
        }
    }
}

/// What the caller writes, to the process: all that is there in one call, then the next. Returns why it broke.
async fn up(envd: &Envd, tag: &str, mut reading: ReadHalf<DuplexStream>) -> String {
    let mut buffer = BytesMut::with_capacity(INPUT_LIMIT_BYTES);
    while reading.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
        if let Taken::Unknown(reason) = send(envd, tag, &buffer).await {
            return reason;
        }
        buffer.clear();
    }
    if let Taken::Unknown(reason) = close(envd, tag).await {
        return reason;
    }
    // Its end is told from the other direction.
    std::future::pending().await
}

enum Over {
    /// The process ended.
    Ended,
    /// The caller dropped its stream.
    Dropped,
    Broken(String),
}

#[derive(Default)]
struct Log {
    logged_bytes: usize,
}

impl Log {
    fn take(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.logged_bytes < LOG_LIMIT_BYTES {
            self.logged_bytes += bytes.len();
            let text = String::from_utf8_lossy(bytes);
            tracing::debug!(stderr = text.trim_end(), "duplex command in a sandbox");
        }
    }
}

/// The caller's side: an end that is none is an error.
struct Near {
    stream: DuplexStream,
    fault: Arc<OnceLock<String>>,
    _dropped: DropGuard,
}

impl AsyncRead for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read
            && buf.filled().len() == before
            && buf.remaining() > 0
            && let Some(reason) = self.fault.get()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                reason.clone(),
            )));
        }
        read
    }
}

impl AsyncWrite for Near {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
