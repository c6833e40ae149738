//! The channel to the host, watched while `h2` reads and writes it.
//!
//! Here: both directions as one object, when the host was last heard, which streams have left, and the deadline for a
//! host that reads nothing. Not here: opening the descriptors (`stdio.rs`), and what the facts are used for.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::frames::{Frames, Seen};
use super::stdio::{Input, Output};

/// For a host that takes nothing of what is written to it.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// What was seen on the channel so far.
#[derive(Debug)]
pub(super) struct Watch(Mutex<Board>);

#[derive(Debug)]
struct Board {
    heard: Instant,
    ended: bool,
    /// Of the streams under way, those whose HEADERS have not left yet.
    unsent: BTreeSet<u32>,
    go_away: Option<u32>,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Board {
            heard: Instant::now(),
            ended: false,
            unsent: BTreeSet::new(),
            go_away: None,
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Board) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the last byte of the host came.
    pub(super) fn heard(&self) -> Instant {
        self.with(|board| board.heard)
    }

    /// Whether the host has closed its direction, or takes nothing any more.
    pub(super) fn ended(&self) -> bool {
        self.with(|board| board.ended)
    }

    /// Follows a stream from here on, until the value is dropped.
    pub(super) fn stream(self: &Arc<Self>, id: u32) -> Stream {
        self.with(|board| board.unsent.insert(id));
        Stream {
            watch: Arc::clone(self),
            id,
        }
    }
}

/// One stream under way.
#[derive(Debug)]
pub(super) struct Stream {
    watch: Arc<Watch>,
    id: u32,
}

impl Stream {
    /// Whether the host certainly did nothing with it: it never left, or the host said that it stopped before.
    pub(super) fn never_dispatched(&self) -> bool {
        self.watch
            .with(|board| board.unsent.contains(&self.id) || board.go_away.is_some_and(|last| self.id > last))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.watch.with(|board| board.unsent.remove(&self.id));
    }
}

/// Both directions, for `h2`.
pub(super) struct Channel {
    input: Input,
    output: Output,
    watch: Arc<Watch>,
    incoming: Frames,
    outgoing: Frames,
    /// Runs while nothing can be written.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Channel {
    /// - `before`: bytes that will be written before HTTP/2 begins.
    pub(super) fn new((input, output): (Input, Output), watch: Arc<Watch>, before: usize) -> Self {
        Self {
            input,
            output,
            watch,
            incoming: Frames::of_server(),
            outgoing: Frames::of_client(before),
            stall: None,
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = written {
            self.stall = None;
            if result.is_err() {
                self.watch.with(|board| board.ended = true);
            }
            return Poll::Ready(result);
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_DEADLINE)));
        ready!(stall.as_mut().poll(cx));
        self.watch.with(|board| board.ended = true);
        let text = format!("the host took nothing for {WRITE_DEADLINE:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let channel = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut channel.input).poll_read(cx, buf));
        let came = buf.filled().get(before..).unwrap_or_default();
        let incoming = &mut channel.incoming;
        channel.watch.with(|board| {
            if read.is_err() || came.is_empty() {
                board.ended = true;
                return;
            }
            board.heard = Instant::now();
            incoming.feed(came, |seen| {
                if let Seen::GoAway(last) = seen {
                    board.go_away = Some(board.go_away.map_or(last, |other| other.min(last)));
                }
            });
        });
        Poll::Ready(read)
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let channel = self.get_mut();
        let written = Pin::new(&mut channel.output).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            let outgoing = &mut channel.outgoing;
            channel.watch.with(|board| {
                for slice in slices {
                    let (gone, _) = slice.split_at(left.min(slice.len()));
                    left -= gone.len();
                    outgoing.feed(gone, |seen| {
                        if let Seen::Headers(id) = seen {
                            board.unsent.remove(&id);
                        }
                    });
                }
            });
        }
        channel.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.output.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let channel = self.get_mut();
        let flushed = Pin::new(&mut channel.output).poll_flush(cx);
        channel.written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().output).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn channel(room: usize) -> (Channel, tokio::io::DuplexStream, Arc<Watch>) {
        let (near, far) = tokio::io::duplex(room);
        let (input, output) = tokio::io::split(near);
        let watch = Watch::new();
        let channel = Channel::new((Box::new(input), Box::new(output)), Arc::clone(&watch), 0);
        (channel, far, watch)
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_reads_nothing_is_given_up() {
        let (mut channel, _far, watch) = channel(8);
        let began = Instant::now();

        let error = channel.write_all(&[0; 64]).await.expect_err("nobody reads");

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), WRITE_DEADLINE.as_secs());
        assert!(watch.ended());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_reads_slowly_is_not() {
        let (mut channel, mut far, watch) = channel(8);
        let reading = async {
            for _ in 0..10 {
                tokio::time::sleep(WRITE_DEADLINE - Duration::from_secs(1)).await;
                far.read_exact(&mut [0; 8]).await.expect("bytes");
            }
        };

        let (written, ()) = tokio::join!(channel.write_all(&[0; 80]), reading);

        written.expect("all of it");
        assert!(!watch.ended());
    }

    #[tokio::test]
    async fn the_end_of_input_is_noted() {
        let (mut channel, far, watch) = channel(8);
        drop(far);

        let count = channel.read(&mut [0; 8]).await.expect("an end");

        assert_eq!(count, 0);
        assert!(watch.ended());
    }
}
