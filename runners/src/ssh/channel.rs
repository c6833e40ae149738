//! One SSH channel as a byte stream.
//!
//! Here: [`ChannelIo`], which reads from the channel's inbox and writes through russh's write half, and how a
//! channel is let go of. Not here: who opens channels ([`super::connection`]) and who receives for them
//! (`dispatch.rs`).
//!
//! Two habits of russh shape this file. A writer waits for window for ever, also on a channel that has closed: so
//! every wait also watches the inbox, and has a deadline. And a channel that *we* close first stays in russh's tables
//! for the life of the connection (about 3.5 KB each): so dropping a stream only ends our direction, and the server
//! closes; one that it has not closed after `linger` is closed by us after all, and counted.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use russh::client::Msg;
use russh::{ChannelId, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::ReusableBoxFuture;

use super::inbox::{ChannelEnd, Inbox};
use super::shared::{Farewell, Shared};

/// Most bytes taken over per write: two packets of the usual size.
const WRITE_CHUNK: usize = 64 * 1024;

/// One channel: reads what the server sends, writes what it shall get.
///
/// Shutting down ends our direction. Dropping ends it too, throws away what still comes, and leaves closing to the
/// server. A lost connection is an error at once, for reads and writes, whatever was still buffered.
pub struct ChannelIo {
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    writer: Arc<ChannelWriteHalf<Msg>>,
    /// The write or end of input that russh has not taken yet; reuses its memory.
    sending: Option<ReusableBoxFuture<'static, Result<(), russh::Error>>>,
    is_sending: bool,
    sent_eof: bool,
    /// A write that gets no window for so long fails; `None` where a time limit of its own covers the wait.
    stall_limit: Option<Duration>,
    stall: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    aborted: bool,
}

impl ChannelIo {
    pub(super) fn new(shared: Arc<Shared>, inbox: Arc<Inbox>, writer: ChannelWriteHalf<Msg>) -> Self {
        Self {
            inbox,
            shared,
            writer: Arc::new(writer),
            sending: None,
            is_sending: false,
            sent_eof: false,
            stall_limit: None,
            stall: None,
            stalled: false,
            aborted: false,
        }
    }

    /// Fails a write that gets no window for so long. A command may leave its input unread for hours; an agent that
    /// does not take its answer is gone.
    pub(super) fn with_stall_limit(mut self, limit: Duration) -> Self {
        self.stall_limit = Some(limit);
        self
    }

    pub(super) fn id(&self) -> ChannelId {
        self.writer.id()
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(super) fn writer(&self) -> &Arc<ChannelWriteHalf<Msg>> {
        &self.writer
    }

    /// Why the channel ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<ChannelEnd> {
        self.inbox.end()
    }

    /// Closes both directions at once. Costs russh's tables an entry, so it is for streams that must not look whole.
    pub fn abort(mut self) {
        self.aborted = true;
    }

    /// Drives what russh has not taken yet; `Ready` means that nothing is left.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_sending {
            return match self.inbox.end() {
                Some(end) => Poll::Ready(Err(ended(end))),
                None => Poll::Ready(Ok(())),
            };
        }
        if let Poll::Ready(end) = self.inbox.poll_end(cx) {
            self.is_sending = false;
            self.sending = None;
            return Poll::Ready(Err(ended(end)));
        }
        let Some(sending) = &mut self.sending else {
            return Poll::Ready(Ok(()));
        };
        match sending.poll(cx) {
            Poll::Ready(Ok(())) => {
                self.is_sending = false;
                self.stalled = false;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(_)) => {
                self.is_sending = false;
                Poll::Ready(Err(ended(ChannelEnd::ConnectionLost)))
            }
            Poll::Pending => self.poll_stall(cx),
        }
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(limit) = self.stall_limit else {
            return Poll::Pending;
        };
        let sleep = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.stalled {
            self.stalled = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        std::task::ready!(sleep.as_mut().poll(cx));
        let text = format!("the other end took nothing for {limit:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }

    /// Hands one chunk to russh and gives it the first push.
    fn send(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> io::Result<()> {
        let writer = Arc::clone(&self.writer);
        self.start(async move { writer.data_bytes(bytes).await });
        match self.poll_sent(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }

    fn start(&mut self, future: impl Future<Output = Result<(), russh::Error>> + Send + 'static) {
        match &mut self.sending {
            Some(sending) => sending.set(future),
            None => self.sending = Some(ReusableBoxFuture::new(future)),
        }
        self.is_sending = true;
    }
}

fn ended(end: ChannelEnd) -> io::Error {
    match end {
        ChannelEnd::Closed => io::Error::new(io::ErrorKind::BrokenPipe, "the other end closed the channel"),
        ChannelEnd::Overrun => io::Error::new(
            io::ErrorKind::QuotaExceeded,
            "channel_overrun: more arrived unread than is held",
        ),
        ChannelEnd::ConnectionLost => {
            io::Error::new(io::ErrorKind::ConnectionReset, "the SSH connection is gone")
        }
        ChannelEnd::Aborted => {
            io::Error::new(io::ErrorKind::ConnectionAborted, "the channel was closed here")
        }
    }
}

impl AsyncRead for ChannelIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inbox.poll_read(cx, buf).map_err(ended)
    }
}

impl AsyncWrite for ChannelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_sent(cx))?;
        let chunk = buf.get(..WRITE_CHUNK).unwrap_or(buf);
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = chunk.len();
        self.send(cx, Bytes::copy_from_slice(chunk))?;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_sent(cx))?;
        let total = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(WRITE_CHUNK);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut chunk = BytesMut::with_capacity(total);
        for buf in bufs {
            let room = total - chunk.len();
            chunk.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        self.send(cx, chunk.freeze())?;
        Poll::Ready(Ok(total))
    }

    // Head and body of a small answer travel as one packet.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_sending {
            return Poll::Ready(Ok(()));
        }
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.inbox.end() == Some(ChannelEnd::Closed) && !self.is_sending {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(self.poll_sent(cx))?;
        if self.sent_eof {
            return Poll::Ready(Ok(()));
        }
        self.sent_eof = true;
        let writer = Arc::clone(&self.writer);
        self.start(async move { writer.eof().await });
        self.poll_sent(cx)
    }
}

impl Drop for ChannelIo {
    fn drop(&mut self) {
        let end = self.inbox.end();
        self.inbox.discard();
        if end.is_some() {
            return;
        }
        if self.aborted {
            self.inbox.finish(ChannelEnd::Aborted);
            if self.writer.close().now_or_never().is_none() {
                self.shared.say_later(Farewell::Close(Arc::clone(&self.writer)));
            }
            self.shared.forget_closed_by_us(self.id());
            return;
        }
        // An end of input that russh has not taken yet is said again; twice does no harm to a channel on its way out.
        let eof_is_out = self.sent_eof && !self.is_sending;
        if !eof_is_out && self.writer.eof().now_or_never().is_none() {
            self.shared.say_later(Farewell::Eof(Arc::clone(&self.writer)));
        }
        self.shared.linger(self.id(), &self.writer);
    }
}

impl fmt::Debug for ChannelIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelIo")
            .field("id", &self.id())
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}
