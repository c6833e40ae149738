//! The socket under an SSH connection.
//!
//! Here: what russh cannot be told: `TCP_QUICKACK` for as long as the far side's Nagle is on, a deadline for a write
//! that makes no progress (russh awaits its flush without one, and sends no keepalive meanwhile), and a switch that
//! ends the session task, which russh spawns and does not let go of. Small packets leave together at the end of a turn.
//! Not here: anything of SSH itself; see
//! [`super::connection`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
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
    /// Written by russh and not yet on the wire.
    out: BytesMut,
    /// The other tasks have had their turn since the first of it.
    yielded: bool,
    controls: Arc<Controls>,
    stall_limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

/// russh reads a packet in two steps: its length, then the rest. From a buffer that is one system call instead of three.
const READ_BUFFER: usize = 64 * 1024;
/// russh flushes after each message. Writes smaller than this wait for the end of the turn and leave together: fewer
/// system calls here, and the server is woken once for them.
const PUT_BY: usize = 16 * 1024;
/// Put by at most.
const MOST_PUT_BY: usize = 128 * 1024;

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
            out: BytesMut::new(),
            yielded: false,
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

impl Socket {
    fn poll_wire_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Hop(channel) => Pin::new(channel).poll_write(cx, bytes),
        };
        self.after_write(cx, result)
    }

    fn poll_wire_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Hop(channel) => Pin::new(channel).poll_flush(cx),
        };
        self.after_write(cx, result)
    }

    /// Writes out what was put by.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let bytes = self.out.split().freeze();
            let written = match self.poll_wire_write(cx, &bytes) {
                Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(done) => done,
                Poll::Pending => Ok(0),
            };
            match written {
                Ok(count) if count == bytes.len() => {}
                Ok(count) => {
                    self.out.extend_from_slice(bytes.get(count..).unwrap_or_default());
                    if count == 0 {
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.yielded = false;
        Poll::Ready(Ok(()))
    }

    /// Called when there is nothing to read: what was put by goes out now, or after one more turn of the other tasks,
    /// which may have more to add.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if !self.yielded {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Ok(());
        }
        match self.poll_out(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }
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
            this.poll_idle(cx)?;
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
        if buf.len() < PUT_BY {
            if this.out.len() + buf.len() > MOST_PUT_BY {
                ready!(this.poll_out(cx))?;
            }
            this.out.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_out(cx))?;
        this.poll_wire_write(cx, buf)
    }

    /// Small packets are put by until there is nothing left to read: see [`Socket::poll_idle`].
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.controls.ended() {
            return Poll::Ready(Err(ended()));
        }
        if !this.out.is_empty() && this.out.len() < PUT_BY {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_out(cx))?;
        this.poll_wire_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_out(cx))?;
        let result = match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Hop(channel) => Pin::new(channel).poll_shutdown(cx),
        };
        this.after_write(cx, result)
    }
}
