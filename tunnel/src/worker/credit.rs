//! Credit for bodies, both ways.
//!
//! Here: [`SendCredit`], what a sender may still send, and [`Inbound`], what came of a caller's body and is not read yet.
//! A Durable Object cannot feel that a socket is slow, so that either side sends no more than it was given credit for.
//! Not here: who gives and takes it (`serve`, `answer`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::outbox::Outbox;
use crate::BodyError;

/// Bytes of one caller's body that are held unread.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of all bodies of a connection.
pub(super) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Credit goes back in no smaller pieces.
const GIVE_BACK: u32 = STREAM_WINDOW / 4;
/// A sender waits for that much rather than send crumbs.
const LEAST: u32 = 16 * 1024;
/// Nobody has reason to give more.
const MOST: usize = 1 << 31;

/// What one sender may still send.
#[derive(Debug)]
pub(super) struct SendCredit {
    bytes: Semaphore,
    least: u32,
}

/// More credit than any sender can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuchCredit;

impl SendCredit {
    pub(super) fn new(window: u32) -> Self {
        Self {
            bytes: Semaphore::new(usize::try_from(window).unwrap_or(MOST).min(MOST)),
            least: LEAST.min(window / 2).max(1),
        }
    }

    pub(super) fn add(&self, credit: u32) -> Result<(), TooMuchCredit> {
        let credit = usize::try_from(credit).unwrap_or(usize::MAX);
        if self.bytes.available_permits().saturating_add(credit) > MOST {
            return Err(TooMuchCredit);
        }
        self.bytes.add_permits(credit);
        Ok(())
    }

    /// Waits for credit: 1 to `wanted` bytes, never a crumb of what is wanted. It comes back when the permit is dropped.
    ///
    /// Cancel safe. Waiters are served in their order.
    pub(super) async fn take(&self, wanted: u32) -> Option<SemaphorePermit<'_>> {
        let mut permit = self.bytes.acquire_many(wanted.min(self.least)).await.ok()?;
        let free = u32::try_from(self.bytes.available_permits()).unwrap_or(u32::MAX);
        let more = wanted.saturating_sub(self.least).min(free);
        if let Ok(rest) = self.bytes.try_acquire_many(more) {
            permit.merge(rest);
        }
        Some(permit)
    }
}

/// A caller's body between the connection and whoever reads it.
#[derive(Debug)]
pub(super) struct Inbound {
    stream: u32,
    state: Mutex<State>,
    outbox: Arc<Outbox>,
}

#[derive(Debug, Default)]
struct State {
    held: BytesMut,
    /// Read, and the sender has not been told.
    owed: u32,
    ended: bool,
    /// Why it will never be whole.
    broken: Option<&'static str>,
    /// Nobody reads it any more.
    dropped: bool,
    waker: Option<Waker>,
}

/// A stream whose sender went beyond its credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BeyondCredit;

impl Inbound {
    pub(super) fn new(stream: u32, ended: bool, outbox: Arc<Outbox>) -> Arc<Self> {
        let state = State {
            ended,
            ..State::default()
        };
        Arc::new(Self {
            stream,
            state: Mutex::new(state),
            outbox,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece off the connection. The bytes are copied: a piece of a message would keep all of it in memory.
    pub(super) fn push(&self, bytes: &[u8], end: bool) -> Result<(), BeyondCredit> {
        let mut state = self.lock();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let held = u32::try_from(state.held.len()).unwrap_or(u32::MAX);
        if state.ended || held.saturating_add(state.owed).saturating_add(length) > STREAM_WINDOW {
            return Err(BeyondCredit);
        }
        state.ended = end;
        if state.dropped {
            self.give_back(&mut state, length);
        } else {
            state.held.extend_from_slice(bytes);
        }
        wake(state);
        Ok(())
    }

    /// Bytes held unread.
    pub(super) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// It will never be whole; what was held goes.
    pub(super) fn fail(&self, why: &'static str) {
        let mut state = self.lock();
        if !state.ended {
            state.broken = Some(why);
            self.drain(&mut state);
        }
        wake(state);
    }

    fn drain(&self, state: &mut State) {
        let held = u32::try_from(state.held.len()).unwrap_or(u32::MAX);
        state.held = BytesMut::new();
        self.give_back(state, held);
    }

    fn give_back(&self, state: &mut State, bytes: u32) {
        self.outbox.give_back_connection(bytes);
        state.owed = state.owed.saturating_add(bytes);
        if state.owed >= GIVE_BACK && !state.ended {
            self.outbox.give_back(self.stream, state.owed);
            state.owed = 0;
        }
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The reading end of an [`Inbound`]. Dropped, it lets the rest of the body pass by.
#[derive(Debug)]
pub(super) struct InboundBody {
    inbound: Arc<Inbound>,
    /// What the caller declared and has not come yet.
    declared: Option<u64>,
    over: bool,
}

impl InboundBody {
    pub(super) fn new(inbound: Arc<Inbound>, declared: Option<u64>) -> Self {
        Self {
            inbound,
            declared,
            over: false,
        }
    }

    fn piece(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut state = self.inbound.lock();
        if let Some(why) = state.broken {
            return Poll::Ready(Some(Err(why.into())));
        }
        let length = state.held.len().min(super::frame::DATA_LIMIT_BYTES);
        if length == 0 && !state.ended {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if length == 0 {
            return Poll::Ready(match self.declared {
                None | Some(0) => None,
                Some(_) => Some(Err("the body is shorter than declared".into())),
            });
        }
        let bytes = state.held.split_to(length).freeze();
        let taken = u32::try_from(length).unwrap_or(u32::MAX);
        self.inbound.give_back(&mut state, taken);
        if let Some(declared) = &mut self.declared {
            let Some(left) = declared.checked_sub(u64::from(taken)) else {
                return Poll::Ready(Some(Err("the body is longer than declared".into())));
            };
            *declared = left;
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

impl Body for InboundBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        if body.over {
            return Poll::Ready(None);
        }
        let piece = body.piece(cx);
        body.over = matches!(piece, Poll::Ready(None | Some(Err(_))));
        piece.map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.inbound.lock();
        state.ended && state.held.is_empty() && matches!(self.declared, None | Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        match self.declared {
            Some(length) => SizeHint::with_exact(length),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for InboundBody {
    fn drop(&mut self) {
        let mut state = self.inbound.lock();
        state.dropped = true;
        self.inbound.drain(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::super::frame::Frame as Wire;
    use super::*;

    fn inbound() -> (Arc<Inbound>, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::default());
        (Inbound::new(1, false, Arc::clone(&outbox)), outbox)
    }

    fn given(outbox: &Outbox) -> Vec<(u32, u32)> {
        let windows = outbox.control().into_iter().map(|frame| {
            let Wire::Window { stream, credit } = frame else {
                panic!("{frame:?}")
            };
            (stream, credit)
        });
        windows.collect()
    }

    #[tokio::test]
    async fn a_body_beyond_its_credit_is_refused_and_nothing_of_it_held() {
        let (inbound, _) = inbound();
        for _ in 0..4 {
            inbound.push(&[0; 64 * 1024], false).unwrap();
        }

        assert_eq!(inbound.push(b"x", false), Err(BeyondCredit));
    }

    #[tokio::test]
    async fn credit_comes_back_as_the_body_is_read_and_not_before() {
        let (inbound, outbox) = inbound();
        let mut body = InboundBody::new(Arc::clone(&inbound), None);
        for _ in 0..4 {
            inbound.push(&[0; 64 * 1024], false).unwrap();
        }
        assert_eq!(given(&outbox), []);

        for _ in 0..4 {
            body.frame().await.unwrap().unwrap();
        }

        let mut back = given(&outbox);
        back.sort_unstable();
        assert_eq!(back, [(0, STREAM_WINDOW), (1, STREAM_WINDOW)]);
        assert_eq!(inbound.push(&[0; 64 * 1024], false), Ok(()));
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_any_more_passes_by() {
        let (inbound, outbox) = inbound();
        drop(InboundBody::new(Arc::clone(&inbound), None));

        for _ in 0..64 {
            inbound.push(&[0; 64 * 1024], false).unwrap();
            let _ = given(&outbox);
        }

        assert!(inbound.lock().held.is_empty());
    }

    #[tokio::test]
    async fn a_body_that_broke_never_looks_whole() {
        let (inbound, _) = inbound();
        let body = InboundBody::new(Arc::clone(&inbound), None);
        inbound.push(b"half", false).unwrap();

        inbound.fail("the caller has gone");

        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn a_body_of_another_length_than_declared_is_broken() {
        for (declared, right) in [(3, false), (4, true), (5, false)] {
            let (inbound, _) = inbound();
            let body = InboundBody::new(Arc::clone(&inbound), Some(declared));
            inbound.push(b"four", true).unwrap();

            assert_eq!(body.collect().await.is_ok(), right, "{declared}");
        }
    }

    #[tokio::test]
    async fn a_sender_waits_for_more_than_a_crumb() {
        let credit = SendCredit::new(64 * 1024);
        let first = credit.take(65_536).await.unwrap();
        assert_eq!(first.num_permits(), 65_536);
        first.forget();

        credit.add(100).unwrap();
        assert!(credit.take(65_536).now_or_never().is_none());
        assert_eq!(credit.take(50).await.unwrap().num_permits(), 50);
        credit.add(20_000).unwrap();
        assert_eq!(credit.take(65_536).await.unwrap().num_permits(), 20_100);
    }

    #[tokio::test]
    async fn credit_without_end_is_refused() {
        let credit = SendCredit::new(1);

        assert_eq!(credit.add(u32::MAX), Err(TooMuchCredit));
    }
}
