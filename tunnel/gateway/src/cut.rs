//! When a caller's connection is cut rather than closed.
//!
//! Here: the caller's socket. It ends with a reset while an answer is unfinished whose end is the end of the connection,
//! as in HTTP/1.0, so that it does not look whole; and it gives up a caller who takes nothing of an answer, so that the
//! answer's window goes back to the others. Not here: answers in chunks or of declared length, whose end a caller sees
//! for itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::caller::{BoxError, GatewayBody};

/// For a caller who takes nothing of an answer.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Whether an answer that ends with its connection is under way on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unfinished(Arc<AtomicBool>);

impl Unfinished {
    /// Whether the caller of `request` knows the end of an answer of unknown length only by the connection's.
    pub(crate) fn is_for<B>(request: &Request<B>) -> bool {
        request.version() == Version::HTTP_10
    }

    /// Follows the answer to its end.
    pub(crate) fn follow(&self, response: Response<GatewayBody>) -> Response<GatewayBody> {
        let body = response.body();
        if body.is_end_stream() || body.size_hint().exact().is_some() {
            return response;
        }
        self.0.store(true, Ordering::Relaxed);
        response.map(|inner| {
            let unfinished = self.clone();
            Followed { inner, unfinished }.boxed_unsync()
        })
    }
}

struct Followed {
    inner: GatewayBody,
    unfinished: Unfinished,
}

impl Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        let frame = ready!(Pin::new(&mut body.inner).poll_frame(cx));
        if frame.is_none() {
            body.unfinished.0.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.inner.is_end_stream();
        if ended {
            self.unfinished.0.store(false, Ordering::Relaxed);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A caller's connection.
#[derive(Debug)]
pub(crate) struct CallerSocket {
    stream: TcpStream,
    unfinished: Unfinished,
    /// Runs while nothing can be written.
    stall: Option<Pin<Box<Sleep>>>,
}

impl CallerSocket {
    pub(crate) fn new(stream: TcpStream, unfinished: Unfinished) -> Self {
        Self {
            stream,
            unfinished,
            stall: None,
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_LIMIT)));
        ready!(stall.as_mut().poll(cx));
        let text = format!("the caller took nothing for {STALL_LIMIT:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl Drop for CallerSocket {
    fn drop(&mut self) {
        if self.unfinished.0.load(Ordering::Relaxed) {
            // Where it fails the connection is gone already.
            let _set = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for CallerSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for CallerSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_caller_who_takes_nothing_is_given_up() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut caller = TcpStream::connect(address).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("a caller");
        let mut socket = CallerSocket::new(stream, Unfinished::default());
        // Until the kernel takes no more of it; only then may the clock be stopped, which runs ahead when all wait.
        let full = async { while socket.write(&[0; 65_536]).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_secs(1), full).await.is_err());
        tokio::time::pause();
        let began = tokio::time::Instant::now();

        let error = socket.write(&[0; 65_536]).await.expect_err("nobody reads");

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= STALL_LIMIT);
        caller.read_u8().await.expect("what was taken before");
    }
}
