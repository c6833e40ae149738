//! The socket under an SSH connection.
//!
//! Here: what russh cannot be told: `TCP_QUICKACK` for as long as the far side's Nagle is on, a deadline for a write
//! that makes no progress (russh awaits its flush without one, and sends no keepalive meanwhile), and a switch that
//! ends the session task, which russh spawns and does not let go of. Not here: anything of SSH itself; see
//! [`super::connection`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::channel::ChannelIo;

/// What the owner of a connection steers its socket with.
#[derive(Debug, Default)]
pub(super) struct Controls {
    ended: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// The far side may have Nagle on, so every read is acknowledged at once.
    quick_ack: AtomicBool,
}

impl Controls {
    /// Makes every read and write fail from now on.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// sshd turns Nagle off when a session channel runs something; until then its small packets wait for our
    /// delayed acknowledgement, 40 ms at a time.
    pub(super) fn set_quick_ack(&self, on: bool) {
        self.quick_ack.store(on, Ordering::Relaxed);
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Bytes to the SSH server: a TCP socket or a channel of the connection before it.
pub(super) struct Socket {
    wire: Wire,
    controls: Arc<Controls>,
    stall_limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

/// russh reads a packet in two steps: its length, then the rest. From a buffer that is one system call instead of four.
const READ_BUFFER: usize = 64 * 1024;

enum Wire {
    Tcp(BufReader<TcpStream>),
    Hop(ChannelIo),
}

impl Socket {
    /// Connects by TCP with `TCP_NODELAY`.
    pub(super) async fn connect(
        host: &str,
        port: u16,
        controls: Arc<Controls>,
        stall_limit: Duration,
    ) -> io::Result<(Self, SocketAddr)> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        let stream = BufReader::with_capacity(READ_BUFFER, stream);
        Ok((Self::new(Wire::Tcp(stream), controls, stall_limit), peer))
    }

    /// Runs over a `direct-tcpip` channel of another connection.
    pub(super) fn over(channel: ChannelIo, controls: Arc<Controls>, stall_limit: Duration) -> Self {
        Self::new(Wire::Hop(channel), controls, stall_limit)
    }

    fn new(wire: Wire, controls: Arc<Controls>, stall_limit: Duration) -> Self {
        Self {
            wire,
            controls,
            stall_limit,
            stall: None,
            stalled: false,
        }
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.stall_limit;
        let sleep = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.stalled {
            self.stalled = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        sleep.as_mut().poll(cx).map(|()| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the SSH server read nothing for {limit:?}"),
            )
        })
    }

    fn after_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(done) => {
                self.stalled = false;
                Poll::Ready(done)
            }
            Poll::Pending => {
                self.controls.writer.register(cx.waker());
                if self.controls.ended() {
                    return Poll::Ready(Err(ended()));
                }
                self.poll_stall(cx).map(Err)
            }
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was ended on this side",
    )
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.controls.ended() {
            return Poll::Ready(Err(ended()));
        }
        let result = match &mut this.wire {
            Wire::Tcp(stream) => {
                let result = Pin::new(&mut *stream).poll_read(cx, buf);
                if result.is_ready() && this.controls.quick_ack.load(Ordering::Relaxed) {
                    quick_ack(stream.get_ref());
                }
                result
            }
            Wire::Hop(channel) => Pin::new(channel).poll_read(cx, buf),
        };
        if result.is_pending() {
            this.controls.reader.register(cx.waker());
            if this.controls.ended() {
                return Poll::Ready(Err(ended()));
            }
        }
        result
    }
}

/// Failure is of no consequence: the option is a hint, and only Linux has it.
fn quick_ack(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.controls.ended() {
            return Poll::Ready(Err(ended()));
        }
        let result = match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Wire::Hop(channel) => Pin::new(channel).poll_write(cx, buf),
        };
        this.after_write(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let result = match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Hop(channel) => Pin::new(channel).poll_flush(cx),
        };
        this.after_write(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let result = match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Hop(channel) => Pin::new(channel).poll_shutdown(cx),
        };
        this.after_write(cx, result)
    }
}
