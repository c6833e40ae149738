//! Bodies on their way to the upstream.
//!
//! Here: what the caller sends ([`CallerBody`], from a byte stream or a message), which never vanishes unread without being drained, and what hyper's
//! client sends on ([`UpstreamBody`]), which can be stopped when the upstream answers early. Not here: answers.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tunnel::{BodyError, MessageBody};

use super::accept::{Fault, LINGER_BYTES, LINGER_TIME, Notes};
use super::trail::Tap;
use crate::session::budget::Reservation;

/// The body of a callback, as it comes in.
///
/// Dropped before its end, the rest is read and thrown away for a while, so that the caller gets to see its answer.
#[derive(Debug)]
pub(crate) struct CallerBody {
    source: Option<Source>,
    tasks: TaskTracker,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    /// A byte stream, behind the gate.
    Stream {
        incoming: Incoming,
        /// The caller waits for `100 Continue`: an unread body will not come at all.
        awaits_continue: bool,
        notes: Arc<Notes>,
    },
    /// A message. The lock is never contended: it lends a body that only one task can have to types that are shared.
    Message(Mutex<MessageBody>),
}

/// Why a body could not be held whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HoldError {
    TooLarge,
    NoRoom,
    /// The gate refused what came.
    Fault(Fault),
    /// It ended before its end.
    Broken,
}

impl Source {
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Stream { incoming, .. } => incoming.size_hint(),
            Self::Message(body) => {
                let body = body.lock().unwrap_or_else(PoisonError::into_inner);
                if body.is_end_stream() {
                    SizeHint::with_exact(0)
                } else {
                    body.size_hint()
                }
            }
        }
    }

    /// Whether reading on is of no use: nothing is left, or nothing will come.
    fn is_over(&self) -> bool {
        match self {
            Self::Stream {
                incoming,
                awaits_continue,
                ..
            } => *awaits_continue || incoming.is_end_stream(),
            Self::Message(body) => body
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_end_stream(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Stream {
                incoming,
                awaits_continue,
                ..
            } => {
                *awaits_continue = false;
                Pin::new(incoming).poll_frame(cx).map_err(BodyError::from)
            }
            Self::Message(body) => {
                Pin::new(body.get_mut().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
            }
        }
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Why it broke, where the gate broke it.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Stream { notes, .. } => notes.body_fault(),
            Self::Message(_) => None,
        }
    }
}

impl CallerBody {
    /// The body of a request on a byte stream.
    pub(crate) fn stream(
        incoming: Incoming,
        headers: &HeaderMap,
        notes: Arc<Notes>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            source: Some(Source::Stream {
                incoming,
                awaits_continue: headers.contains_key(header::EXPECT),
                notes,
            }),
            tasks,
        }
    }

    /// The body of a message.
    pub(crate) fn message(body: MessageBody, tasks: TaskTracker) -> Self {
        Self {
            source: Some(Source::Message(Mutex::new(body))),
            tasks,
        }
    }

    /// Its length in bytes, where it was declared; 0 where there is none.
    pub(crate) fn declared_length(&self) -> Option<u64> {
        self.source
            .as_ref()
            .map_or(Some(0), |source| source.size_hint().exact())
    }

    /// Moves the body out; what is left behind is empty.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            source: self.source.take(),
            tasks: self.tasks.clone(),
        }
    }

    /// Reads it to its end, against `limit_bytes` and the budget. Trailers are dropped.
    pub(crate) async fn hold(mut self, limit_bytes: u64, held: &mut Reservation) -> Result<Bytes, HoldError> {
        let mut whole = BytesMut::new();
        while let Some(source) = self.source.as_mut() {
            match source.frame().await {
                None => {
                    self.source = None;
                }
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let length = data.len() as u64;
                    if (whole.len() as u64).saturating_add(length) > limit_bytes {
                        return Err(HoldError::TooLarge);
                    }
                    if !held.grow(length) {
                        return Err(HoldError::NoRoom);
                    }
                    whole.extend_from_slice(&data);
                }
                Some(Err(_)) => {
                    let fault = source.fault();
                    self.source = None;
                    return Err(fault.map_or(HoldError::Broken, HoldError::Fault));
                }
            }
        }
        Ok(whole.freeze())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Some(source) = self.source.as_mut() else {
                return Poll::Ready(None);
            };
            match ready!(source.poll_frame(cx)) {
                None => {
                    self.source = None;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    self.source = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

impl Drop for CallerBody {
    fn drop(&mut self) {
        let Some(mut source) = self.source.take() else {
            return;
        };
        if source.is_over() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.tasks.spawn(async move {
            let mut room = LINGER_BYTES;
            let rest = async {
                while let Some(Ok(frame)) = source.frame().await {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    match room.checked_sub(length) {
                        Some(left) => room = left,
                        None => break,
                    }
                }
            };
            // Whatever is left after that, the connection is closed on, or the stream reset.
            let _in_time = tokio::time::timeout(LINGER_TIME, rest).await;
        });
    }
}

/// What hyper's client sends.
#[derive(Debug)]
pub(crate) enum UpstreamBody {
    Empty,
    Held(Option<Bytes>),
    Upload(Upload),
}

/// A streaming body with a control that outlives it.
#[derive(Debug)]
pub(crate) struct Upload {
    length: u64,
    sent: u64,
    control: Arc<UploadControl>,
    /// Taken from the control at the first poll: until then the request can still be tried anew.
    body: Option<CallerBody>,
}

/// Holds a streaming body until it is first asked for, and stops it when the upstream has answered.
#[derive(Debug)]
pub(crate) struct UploadControl {
    body: Mutex<Option<CallerBody>>,
    state: AtomicU8,
    waker: Mutex<Option<Waker>>,
    /// Sees every byte that is sent.
    tap: OnceLock<Tap>,
}

const RUNNING: u8 = 0;
/// The upstream has answered: nothing more is sent, but its answer is still being read.
const PAUSED: u8 = 1;
/// The answer has been read: the connection is of no more use.
const ABANDONED: u8 = 2;
const FINISHED: u8 = 3;

impl UploadControl {
    pub(crate) fn new(body: CallerBody) -> Arc<Self> {
        Arc::new(Self {
            body: Mutex::new(Some(body)),
            state: AtomicU8::new(RUNNING),
            waker: Mutex::new(None),
            tap: OnceLock::new(),
        })
    }

    /// Every byte that is sent is shown to `tap` from now on.
    pub(super) fn tapped_by(&self, tap: Tap) {
        // There is one record a callback, so nobody was before.
        let _was = self.tap.set(tap);
    }

    /// A body for one try; the first that is polled gets the bytes.
    pub(crate) fn upload(self: &Arc<Self>, length: u64) -> UpstreamBody {
        UpstreamBody::Upload(Upload {
            length,
            sent: 0,
            control: Arc::clone(self),
            body: None,
        })
    }

    /// Whether no byte was asked for yet.
    pub(crate) fn untouched(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The upstream answered: sends no more. Does nothing to an upload that is through.
    pub(crate) fn pause(&self) {
        let _was = self
            .state
            .compare_exchange(RUNNING, PAUSED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The answer is read: ends a paused upload, and its connection with it.
    pub(crate) fn abandon(&self) {
        if self
            .state
            .compare_exchange(PAUSED, ABANDONED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            && let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            waker.wake();
        }
    }
}

/// Why an upload ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the caller's body broke")]
    Caller(#[source] BodyError),
    #[error("the caller's body is shorter or longer than declared")]
    Length,
    #[error("the upstream answered before the upload was through")]
    Answered,
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.control.state.load(Ordering::Acquire) {
            PAUSED => {
                *self.control.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
                // The state may have moved on between the two.
                if self.control.state.load(Ordering::Acquire) == PAUSED {
                    return Poll::Pending;
                }
                return Poll::Ready(Some(Err(UploadError::Answered)));
            }
            ABANDONED => return Poll::Ready(Some(Err(UploadError::Answered))),
            _ => {}
        }
        if self.body.is_none() {
            self.body = self
                .control
                .body
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        match ready!(body.poll_data(cx)) {
            Some(Ok(data)) => {
                self.sent += data.len() as u64;
                if let Some(tap) = self.control.tap.get() {
                    tap.add(&data);
                }
                if self.sent > self.length {
                    return Poll::Ready(Some(Err(UploadError::Length)));
                }
                if self.sent == self.length {
                    self.control.state.store(FINISHED, Ordering::Release);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(UploadError::Caller(error)))),
            None if self.sent == self.length => Poll::Ready(None),
            None => Poll::Ready(Some(Err(UploadError::Length))),
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upload(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Upload(upload) => upload.sent == upload.length,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Empty => 0,
            Self::Held(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Upload(upload) => upload.length - upload.sent.min(upload.length),
        })
    }
}
