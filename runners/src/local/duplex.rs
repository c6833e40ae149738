//! A long-lived child as one byte stream.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio_util::task::AbortOnDropHandle;

use super::ending::{group_of, signal_group};
use crate::Duplex;

/// Bytes of a child's stderr that reach the log; the rest is read and dropped, so that the child never blocks on it.
const LOG_LIMIT_BYTES: usize = 16 * 1024;

/// Starts `command` and joins its stdin and stdout.
pub(super) fn open(command: &mut Command) -> io::Result<Duplex> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let missing = || io::Error::other("a pipe of the child is missing");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let stderr = AbortOnDropHandle::new(tokio::spawn(log(stderr)));
    Ok(Duplex {
        stream: Box::new(ChildStream {
            stdin: Some(stdin),
            stdout,
            child,
            _stderr: stderr,
        }),
    })
}

/// Both pipes of a child, and the child itself: dropping it kills the group and leaves the reaping to tokio.
struct ChildStream {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    child: Child,
    _stderr: AbortOnDropHandle<()>,
}

impl Drop for ChildStream {
    fn drop(&mut self) {
        // Never waited for before, so the pid is still the child's, exited or not.
        signal_group(group_of(&self.child), Signal::KILL);
    }
}

impl AsyncRead for ChildStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for ChildStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe knows no half-close but closing it.
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

async fn log(mut stderr: ChildStderr) {
    let mut buffer = [0_u8; 1024];
    let mut logged_bytes = 0;
    while let Ok(count) = stderr.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        if logged_bytes < LOG_LIMIT_BYTES {
            logged_bytes += count;
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
            tracing::debug!(stderr = text.trim_end(), "duplex command on this machine");
        }
    }
}
