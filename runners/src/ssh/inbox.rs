//! What one channel has received and not yet handed on.
//!
//! Here: the byte queue that stands between russh's session loop, which must never wait, and whoever reads the
//! channel. The read half of russh's own channel is dropped at once: its bounded queue is awaited by the session
//! loop, so one reader that stops would stall every channel of the connection. Bytes come through the handler's
//! callbacks instead and are held here, up to a cap; beyond it the channel is given up, never the connection. Not
//! here: writing; see [`super::channel`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

use crate::runner::OutputStream;

/// An emptied queue larger than this gives its memory back.
const KEEP_BYTES: usize = 64 * 1024;

/// Why a channel carries nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelEnd {
    /// The server closed it.
    Closed,
    /// More arrived unread than the channel's cap allows, and we closed it.
    Overrun,
    /// Its connection is gone.
    ConnectionLost,
    /// We closed it.
    Aborted,
}

/// How a command on a session channel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Status(u32),
    /// The name without `SIG`.
    Signal(String),
}

/// What a session channel says next.
#[derive(Debug)]
pub(super) enum Event {
    Output(OutputStream, Bytes),
    /// No more output; the exit is what had been reported until then.
    End(ChannelEnd, Option<Exit>),
}

#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stdout: BytesMut,
    stderr: BytesMut,
    cap: usize,
    eof: bool,
    end: Option<ChannelEnd>,
    exit: Option<Exit>,
    /// The answer to the one request (`exec`) that was sent on the channel.
    reply: Option<bool>,
    /// Nobody reads any more: what still comes is dropped.
    discard: bool,
    ignore_stderr: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Inbox {
    pub(super) fn new(cap: usize) -> Self {
        Self {
            state: Mutex::new(State {
                stdout: BytesMut::new(),
                stderr: BytesMut::new(),
                cap,
                eof: false,
                end: None,
                exit: None,
                reply: None,
                discard: false,
                ignore_stderr: false,
                reader: None,
                writer: None,
            }),
        }
    }

    // Nothing panics under this lock; a poisoned one is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the cap; counts from the next arrival.
    pub(super) fn set_cap(&self, cap: usize) {
        self.lock().cap = cap;
    }

    /// Takes bytes from the session loop. `false`: over the cap, the caller closes the channel.
    #[must_use]
    pub(super) fn push(&self, stream: OutputStream, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        let ignored = stream == OutputStream::Stderr && state.ignore_stderr;
        if state.discard || ignored || state.end.is_some() {
            return true;
        }
        if state.stdout.len() + state.stderr.len() + bytes.len() > state.cap {
            state.finish(ChannelEnd::Overrun);
            return false;
        }
        match stream {
            OutputStream::Stdout => state.stdout.extend_from_slice(bytes),
            OutputStream::Stderr => state.stderr.extend_from_slice(bytes),
        }
        state.wake_reader();
        true
    }

    /// The server sends no more.
    pub(super) fn eof(&self) {
        let mut state = self.lock();
        state.eof = true;
        state.wake_reader();
    }

    pub(super) fn set_exit(&self, exit: Exit) {
        self.lock().exit = Some(exit);
    }

    pub(super) fn set_reply(&self, accepted: bool) {
        let mut state = self.lock();
        state.reply = Some(accepted);
        state.wake_reader();
    }

    /// Ends the channel; the first reason stands. Both sides wake up.
    pub(super) fn finish(&self, end: ChannelEnd) {
        self.lock().finish(end);
    }

    /// Nobody will read: drops what is held and what comes.
    pub(super) fn discard(&self) {
        let mut state = self.lock();
        state.discard = true;
        state.stdout = BytesMut::new();
        state.stderr = BytesMut::new();
    }

    /// Only stdout is wanted.
    pub(super) fn ignore_stderr(&self) {
        self.lock().ignore_stderr = true;
    }

    pub(super) fn end(&self) -> Option<ChannelEnd> {
        self.lock().end
    }

    /// Reads stdout as a byte stream. End of input is an empty read; a lost connection is an error at once, also
    /// before bytes that were received earlier.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ChannelEnd>> {
        let mut state = self.lock();
        if let Some(end @ (ChannelEnd::ConnectionLost | ChannelEnd::Overrun | ChannelEnd::Aborted)) =
            state.end
        {
            return Poll::Ready(Err(end));
        }
        if !state.stdout.is_empty() {
            let count = state.stdout.len().min(buf.remaining());
            buf.put_slice(state.stdout.get(..count).unwrap_or_default());
            state.stdout.advance(count);
            state.shrink();
            return Poll::Ready(Ok(()));
        }
        if state.eof || state.end.is_some() {
            return Poll::Ready(Ok(()));
        }
        register(&mut state.reader, cx.waker());
        Poll::Pending
    }

    /// The next output or the end of a session channel. The end comes only with `CLOSE`: exit status and end of
    /// input arrive before it in any order.
    pub(super) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut state = self.lock();
        if let Some(end @ (ChannelEnd::ConnectionLost | ChannelEnd::Overrun | ChannelEnd::Aborted)) =
            state.end
        {
            return Poll::Ready(Event::End(end, state.exit.clone()));
        }
        if !state.stdout.is_empty() {
            return Poll::Ready(Event::Output(OutputStream::Stdout, state.stdout.split().freeze()));
        }
        if !state.stderr.is_empty() {
            return Poll::Ready(Event::Output(OutputStream::Stderr, state.stderr.split().freeze()));
        }
        if let Some(end) = state.end {
            return Poll::Ready(Event::End(end, state.exit.clone()));
        }
        register(&mut state.reader, cx.waker());
        Poll::Pending
    }

    /// The answer to the channel's request; the end of the channel counts as no.
    pub(super) fn poll_reply(&self, cx: &mut Context<'_>) -> Poll<Result<bool, ChannelEnd>> {
        let mut state = self.lock();
        if let Some(accepted) = state.reply {
            return Poll::Ready(Ok(accepted));
        }
        if let Some(end) = state.end {
            return Poll::Ready(Err(end));
        }
        register(&mut state.reader, cx.waker());
        Poll::Pending
    }

    /// For a writer about to wait: says if waiting is in vain, else it is woken when the channel ends.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<ChannelEnd> {
        let mut state = self.lock();
        if let Some(end) = state.end {
            return Poll::Ready(end);
        }
        register(&mut state.writer, cx.waker());
        Poll::Pending
    }
}

impl State {
    fn finish(&mut self, end: ChannelEnd) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        if end != ChannelEnd::Closed {
            self.stdout = BytesMut::new();
            self.stderr = BytesMut::new();
        }
        self.wake_reader();
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn shrink(&mut self) {
        if self.stdout.is_empty() && self.stdout.capacity() > KEEP_BYTES {
            self.stdout = BytesMut::new();
        }
    }
}

fn register(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(known) => known.clone_from(waker),
        None => *slot = Some(waker.clone()),
    }
}
