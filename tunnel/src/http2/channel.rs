//! A gateway's byte stream as HTTP/2 sees it.
//!
//! Here: what was read ahead comes first, and a write that makes no progress for too long is an error, so that neither
//! a gateway that stopped reading nor a stalled SSH window can hold a session. Not here: reading deadlines; a gateway
//! that says nothing is found by PING.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::handshake::{Established, Stream};

/// Without progress of any write for so long, the channel is no good.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// The stream of an established gateway.
pub(super) struct Channel {
    stream: Stream,
    replay: Bytes,
    limit: Duration,
    /// Running while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Channel {
    pub(super) fn new(established: Established) -> Self {
        let Established { stream, replay } = established;
        Self {
            stream,
            replay,
            limit: WRITE_LIMIT,
            stalled: None,
        }
    }

    /// Passes the result of a write on, unless it has been pending for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match stalled.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the gateway's channel took no bytes for {limit:?}"),
            ))),
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.replay.len().min(buf.remaining());
        buf.put_slice(self.replay.get(..count).unwrap_or_default());
        self.replay.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, ended)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn channel(replay: &'static [u8], room: usize) -> (Channel, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        let established = Established {
            stream: Box::new(near),
            replay: Bytes::from_static(replay),
        };
        (Channel::new(established), far)
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first() {
        let (mut channel, mut far) = channel(b"ahead ", 64);
        far.write_all(b"behind").await.unwrap();
        drop(far);

        let mut text = String::new();
        channel.read_to_string(&mut text).await.unwrap();

        assert_eq!(text, "ahead behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_stops_reading_is_given_up() {
        let (mut channel, far) = channel(b"", 4);
        let started = Instant::now();

        let error = channel.write_all(b"more than fits").await.unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), WRITE_LIMIT);
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_goes_on_is_not() {
        let (mut channel, mut far) = channel(b"", 4);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            for _ in 0..5 {
                tokio::time::sleep(WRITE_LIMIT - Duration::from_secs(1)).await;
                let mut some = [0; 4];
                far.read_exact(&mut some).await.unwrap();
                all.extend_from_slice(&some);
            }
            all
        });

        channel.write_all(b"01234567890123456789").await.unwrap();

        assert_eq!(reading.await.unwrap(), b"01234567890123456789");
    }
}
