//! The gate in front of hyper: hands it whole, unambiguous heads and vetted body bytes, nothing else.
//!
//! Here: an `AsyncRead` that drives [`Framing`] and keeps, for the service behind hyper, one [`Note`] per head in
//! pipeline order. A head that is refused is replaced by a harmless one, so that hyper writes our answer in its turn;
//! nothing of the request's own content is in what hyper then sees. The close lingers, so that slow clients get to read an
//! early answer. Not here: what is answered.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::framing::{Fault, Framing, HeadLimits, HeadSeen, Step, TargetJudge};

/// Stands in for a head that was refused.
const HARMLESS: &[u8] = b"GET / HTTP/1.1\r\nhost: gate.invalid\r\nconnection: close\r\n\r\n";
/// The same for a refused HEAD, whose answer has no body whatever it says.
const HARMLESS_HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nhost: gate.invalid\r\nconnection: close\r\n\r\n";
/// Read and dropped at most after our last answer.
pub const LINGER_BYTES: u64 = 64 * 1024 * 1024;
/// … and for so long at most.
pub const LINGER_TIME: Duration = Duration::from_secs(2);
/// Room made for a read; a usual head fits with its body.
const READ_SIZE: usize = 8 * 1024;

/// How long the gate waits for bytes that should come.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Between two requests on one connection.
    pub idle: Duration,
    /// Between two reads of a body.
    pub body: Duration,
    /// For an agent that does not read its answer.
    pub write: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(15),
            idle: Duration::from_secs(120),
            body: Duration::from_secs(30),
            write: Duration::from_secs(60),
        }
    }
}

/// What the service must know of a head beside what hyper tells it.
#[derive(Debug)]
pub struct Note<F> {
    /// The head was refused; what hyper shows is the harmless one.
    pub fault: Option<Fault>,
    /// The judge of targets refused this one; hyper shows `/` in its place.
    pub target_fault: Option<F>,
    /// The method, where hyper was shown another one with the replaced target.
    pub method: Option<Method>,
}

impl<F> Note<F> {
    fn of_fault(fault: Fault) -> Self {
        Self {
            fault: Some(fault),
            target_fault: None,
            method: None,
        }
    }
}

/// Notes of one connection, in pipeline order.
#[derive(Debug)]
pub struct Notes<F>(Mutex<Board<F>>);

#[derive(Debug)]
struct Board<F> {
    heads: VecDeque<Note<F>>,
    body_fault: Option<Fault>,
}

impl<F> Default for Notes<F> {
    fn default() -> Self {
        Self(Mutex::new(Board {
            heads: VecDeque::new(),
            body_fault: None,
        }))
    }
}

impl<F> Notes<F> {
    fn with<T>(&self, act: impl FnOnce(&mut Board<F>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The note of the next request that hyper hands to the service.
    pub fn next(&self) -> Note<F> {
        // hyper cannot have seen a head that left no note; were it so, the safe reading is a fault.
        self.with(|board| board.heads.pop_front())
            .unwrap_or_else(|| Note::of_fault(Fault::RequestLine))
    }

    /// Why the body under way broke, if the gate broke it.
    pub fn body_fault(&self) -> Option<Fault> {
        self.with(|board| board.body_fault)
    }
}

/// Reads `inner` for hyper; writes go straight through.
pub struct Gate<S, J: TargetJudge> {
    inner: S,
    /// Read and not handed on; the first `vetted` bytes may be.
    buffer: BytesMut,
    vetted: usize,
    framing: Framing<J>,
    notes: Arc<Notes<J::Fault>>,
    waits: Waits,
    /// When the wait under way began.
    waiting_since: Option<Instant>,
    /// Made once and moved only when it fires, so that a busy connection pays for no timer.
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs while nothing can be written.
    stall: Option<Pin<Box<Sleep>>>,
    /// Bytes and time left for what the other side still sends.
    linger: Option<(u64, Pin<Box<Sleep>>)>,
    faulted: bool,
    end_of_input: bool,
    shut_down: bool,
}

impl<S, J: TargetJudge> std::fmt::Debug for Gate<S, J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("framing", &self.framing)
            .field("faulted", &self.faulted)
            .finish_non_exhaustive()
    }
}

impl<S, J: TargetJudge> Gate<S, J> {
    /// Stands before `inner`; the service behind hyper reads `notes`.
    pub fn new(inner: S, limits: HeadLimits, waits: Waits, notes: Arc<Notes<J::Fault>>) -> Self {
        Self {
            inner,
            buffer: BytesMut::new(),
            vetted: 0,
            framing: Framing::new(limits),
            notes,
            waits,
            waiting_since: None,
            timer: None,
            stall: None,
            linger: None,
            faulted: false,
            end_of_input: false,
            shut_down: false,
        }
    }

    /// Refuses the head under way: hyper is shown the harmless one, and nothing after it.
    fn refuse_head(&mut self, fault: Fault) {
        self.notes
            .with(|board| board.heads.push_back(Note::of_fault(fault)));
        let stand_in = if self.buffer.starts_with(b"HEAD ") {
            HARMLESS_HEAD
        } else {
            HARMLESS
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(stand_in);
        self.vetted = stand_in.len();
        self.faulted = true;
    }

    fn refuse_body(&mut self, fault: Fault) -> io::Error {
        self.notes.with(|board| board.body_fault = Some(fault));
        self.faulted = true;
        io::Error::new(io::ErrorKind::InvalidData, fault)
    }

    /// Lets a head through; a target that the judge refused is replaced, with the method kept in the note.
    fn admit_head(&mut self, length: usize, seen: HeadSeen<J::Fault>) {
        if seen.upgrade {
            hide_upgrade(self.buffer.get_mut(..length).unwrap_or_default());
        }
        let mut note = Note {
            fault: None,
            target_fault: seen.target_fault,
            method: None,
        };
        self.vetted = length;
        if note.target_fault.is_some() {
            let method = self.buffer.get(..seen.method).unwrap_or_default();
            note.method = Method::from_bytes(method).ok();
            let version = self
                .buffer
                .get(seen.request_line.saturating_sub(8)..length)
                .unwrap_or_default();
            let mut head = BytesMut::with_capacity(self.buffer.len() + 16);
            // HEAD stays what it is: hyper must know that its answer has no body.
            head.extend_from_slice(if method == b"HEAD" { b"HEAD / " } else { b"POST / " });
            head.extend_from_slice(version);
            self.vetted = head.len();
            head.extend_from_slice(self.buffer.get(length..).unwrap_or_default());
            self.buffer = head;
        }
        self.notes.with(|board| board.heads.push_back(note));
    }

    /// Vets what is at the front of the buffer. `Ok(true)` when there is something to hand on.
    fn vet(&mut self) -> io::Result<bool> {
        while self.vetted == 0 && !self.faulted {
            let in_head = self.framing.in_head();
            match self.framing.step(&self.buffer) {
                Step::NeedMore => return Ok(false),
                Step::Pass(count) => {
                    self.vetted = count;
                    self.waiting_since = None;
                }
                Step::Skip(count) => self.buffer.advance(count),
                Step::Head(length, seen) => {
                    self.waiting_since = None;
                    self.admit_head(length, seen);
                }
                Step::Fault(fault) if in_head => self.refuse_head(fault),
                Step::Fault(fault) => return Err(self.refuse_body(fault)),
            }
        }
        Ok(self.vetted > 0)
    }

    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.vetted.min(buf.remaining());
        buf.put_slice(self.buffer.get(..count).unwrap_or_default());
        self.buffer.advance(count);
        self.vetted -= count;
    }

    /// Called when nothing can be read now: when is it too late?
    fn poll_too_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = if !self.framing.in_head() {
            self.waits.body
        } else if self.buffer.is_empty() {
            self.waits.idle
        } else {
            self.waits.head
        };
        let deadline = *self.waiting_since.get_or_insert_with(Instant::now) + limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// Renames each `Upgrade` field. Nothing is upgraded here, but hyper would end the connection of a caller that asks for
/// it without a flush: an answer could be cut.
fn hide_upgrade(head: &mut [u8]) {
    const FIELD: &[u8] = b"\r\nupgrade:";
    for start in 0..head.len() {
        if let Some(field) = head.get_mut(start..start + FIELD.len())
            && field.eq_ignore_ascii_case(FIELD)
        {
            field.copy_from_slice(b"\r\nignored:");
        }
    }
}

impl<S: AsyncRead + Unpin, J: TargetJudge> Gate<S, J> {
    /// A body of declared length needs no vetting: it goes straight into hyper's buffer.
    fn poll_declared(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        remaining: u64,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut (&mut self.inner).take(remaining)).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        if count == 0 {
            self.end_of_input = true;
        }
        self.framing.passed_declared(count as u64);
        Poll::Ready(Ok(()))
    }

    /// More bytes into the buffer; `Ok(false)` at the end of input.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.buffer.reserve(READ_SIZE);
        match poll_read_buf(Pin::new(&mut self.inner), cx, &mut self.buffer) {
            Poll::Ready(read) => Poll::Ready(read.map(|count| count > 0)),
            Poll::Pending => {
                // A connection at rest holds no buffer: there may be thousands of them.
                if self.buffer.is_empty() {
                    self.buffer = BytesMut::new();
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + Unpin, J: TargetJudge> AsyncRead for Gate<S, J> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if gate.vet()? {
                gate.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            if gate.faulted {
                // The answer ends the connection; until then there is nothing more for hyper to see.
                return Poll::Pending;
            }
            if gate.end_of_input {
                return Poll::Ready(Ok(()));
            }
            let continues = !gate.buffer.is_empty();
            let read = match (gate.buffer.is_empty(), gate.framing.declared_remaining()) {
                (true, Some(remaining)) => match gate.poll_declared(cx, buf, remaining) {
                    Poll::Ready(result) => {
                        gate.waiting_since = None;
                        return Poll::Ready(result);
                    }
                    Poll::Pending => Poll::Pending,
                },
                _ => gate.poll_fill(cx),
            };
            match read {
                Poll::Ready(Ok(more)) => {
                    // A head that trickles in does not start its clock anew with each byte.
                    if !(continues && gate.framing.in_head()) {
                        gate.waiting_since = None;
                    }
                    if !more {
                        gate.end_of_input = true;
                        if gate.framing.in_head() && !gate.buffer.is_empty() {
                            gate.refuse_head(Fault::Truncated);
                        }
                    }
                }
                Poll::Ready(Err(error)) => {
                    gate.end_of_input = true;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    ready!(gate.poll_too_late(cx));
                    if !gate.framing.in_head() {
                        return Poll::Ready(Err(gate.refuse_body(Fault::BodyTimeout)));
                    }
                    if gate.buffer.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    gate.refuse_head(Fault::HeadTimeout);
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, J: TargetJudge> Gate<S, J> {
    /// Called when nothing can be written now: an agent that never reads does not hold its answer for ever.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.waits.write;
        let timer = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        let text = format!("the agent took nothing for {limit:?}");
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, text))
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(written) => {
                if self.stall.take().is_some() {
                    // hyper does not ask the next request's service while the last answer is still being written,
                    // and after the write that ends it does not look again: so it is woken for one more look.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(written)
            }
            Poll::Pending => self.poll_stalled(cx).map(Err),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, J: TargetJudge> Gate<S, J> {
    /// Reads and drops what the other side still sends: many clients see no answer otherwise.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (left, timer) = self
            .linger
            .get_or_insert_with(|| (LINGER_BYTES, Box::pin(tokio::time::sleep(LINGER_TIME))));
        let mut scratch = [0_u8; 4096];
        loop {
            let mut sink = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut sink) {
                Poll::Ready(Ok(())) if !sink.filled().is_empty() => {
                    match left.checked_sub(sink.filled().len() as u64) {
                        Some(still) => *left = still,
                        None => return Poll::Ready(()),
                    }
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.as_mut().poll(cx),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, J: TargetJudge> AsyncWrite for Gate<S, J> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.inner).poll_write(cx, bytes);
        gate.written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.inner).poll_write_vectored(cx, slices);
        gate.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let flushed = Pin::new(&mut gate.inner).poll_flush(cx);
        gate.written(cx, flushed)
    }

    /// Ends our direction, then lingers. hyper calls this once every answer is out, and never for one that broke.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if !gate.shut_down {
            let shut_down = Pin::new(&mut gate.inner).poll_shutdown(cx);
            ready!(gate.written(cx, shut_down))?;
            gate.shut_down = true;
        }
        if !gate.end_of_input {
            ready!(gate.poll_linger(cx));
            gate.end_of_input = true;
        }
        Poll::Ready(Ok(()))
    }
}
