//! Step 7, answer: what of the upstream's answer reaches the caller, and how.
//!
//! Here: the header list, the sizes, and the choice between streaming and holding. An answer to a safe callback of known
//! length streams; what must be whole before its status can be true is held. Not here: our own answers
//! (`refusal.rs`). Next: `record.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use policy::headers::response_header_allowed;
use tokio::time::{Instant, Sleep};

use super::body::UploadControl;
use super::forward::{Sent, connection_named};
use super::record::Record;
use super::refusal::Refusal;
use super::throttle::{Admitted, Place};
use crate::session::budget::Reservation;

/// On every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-paperclip-bridge-request-id");
/// `indeterminate` where a write may have happened.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("x-paperclip-bridge-outcome");
/// An event stream may be quiet for so long.
const EVENT_STREAM_IDLE: Duration = Duration::from_secs(300);

/// An answer of the upstream, held against the lists and sizes.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: AnswerBody,
}

/// Makes the answer of what came; nothing in it can fail any more.
pub(crate) fn head_and_body(reply: Reply) -> Response<AnswerBody> {
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

/// One of our own answers.
pub(crate) fn json(status: StatusCode, body: Bytes, head_only: bool) -> Response<AnswerBody> {
    let length = body.len();
    let mut response = Response::new(AnswerBody::held(if head_only { Bytes::new() } else { body }));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// An answer to a safe method: a failure changes nothing, so its status may leave before its body has come.
pub(crate) async fn of_safe(sent: Sent, admitted: Admitted, deadline: Instant) -> Result<Reply, Refusal> {
    let limit = admitted.request.session.limits.max_body;
    let seen = Seen::of(&sent.response, &admitted.request.method);
    seen.acceptable(limit).map_err(Refusal::UpstreamFailed)?;
    let (parts, incoming) = sent.response.into_parts();
    let headers = relayed(&parts.headers, &seen);
    let body = match seen.length {
        Length::None => {
            abandon(sent.upload.as_ref());
            AnswerBody::held(Bytes::new())
        }
        Length::Known(length) => AnswerBody::Stream(Box::new(StreamBody {
            incoming,
            remaining: Some(length),
            limit: Patience::Until(Box::pin(tokio::time::sleep_until(deadline))),
            upload: sent.upload,
            record: None,
            _place: admitted.place,
            _held: admitted.held,
        })),
        Length::Unknown if seen.event_stream => AnswerBody::Stream(Box::new(StreamBody {
            incoming,
            remaining: None,
            limit: Patience::Between(EVENT_STREAM_IDLE, Box::pin(tokio::time::sleep(EVENT_STREAM_IDLE))),
            upload: sent.upload,
            record: None,
            _place: admitted.place,
            _held: admitted.held,
        })),
        Length::Unknown => {
            let mut held = admitted.held;
            let bytes = hold(incoming, limit, deadline, &mut held, sent.upload.as_ref())
                .await
                .map_err(|lost| match lost {
                    Lost::Late => Refusal::UpstreamTimeout,
                    Lost::Broken => Refusal::UpstreamFailed("its answer broke off"),
                    Lost::TooLarge => Refusal::UpstreamFailed("its answer is too large"),
                    Lost::NoRoom => Refusal::Unavailable {
                        why: "no room for this answer now",
                    },
                })?;
            AnswerBody::held(bytes)
        }
    };
    Ok(Reply {
        status: parts.status,
        headers,
        body,
    })
}

/// An answer to an unsafe method: held whole, so that its status still tells the truth when its body breaks.
pub(crate) async fn of_unsafe(sent: Sent, admitted: Admitted, deadline: Instant) -> Result<Reply, Refusal> {
    let limit = admitted.request.session.limits.max_body;
    let seen = Seen::of(&sent.response, &admitted.request.method);
    seen.acceptable(limit).map_err(Refusal::Indeterminate)?;
    let (parts, incoming) = sent.response.into_parts();
    let headers = relayed(&parts.headers, &seen);
    let mut held = admitted.held;
    let bytes = match seen.length {
        Length::None => {
            abandon(sent.upload.as_ref());
            Bytes::new()
        }
        Length::Known(_) | Length::Unknown => {
            hold(incoming, limit, deadline, &mut held, sent.upload.as_ref())
                .await
                .map_err(|lost| {
                    Refusal::Indeterminate(match lost {
                        Lost::Late => "the answer did not end in time",
                        Lost::Broken => "the answer broke off",
                        Lost::TooLarge => "the answer is too large",
                        Lost::NoRoom => "there was no room for the answer",
                    })
                })?
        }
    };
    Ok(Reply {
        status: parts.status,
        headers,
        body: AnswerBody::held(bytes),
    })
}

fn abandon(upload: Option<&Arc<UploadControl>>) {
    if let Some(control) = upload {
        control.abandon();
    }
}

enum Length {
    /// No body belongs to this answer.
    None,
    Known(u64),
    Unknown,
}

/// What decides how an answer is treated.
struct Seen {
    length: Length,
    event_stream: bool,
    encoded: bool,
    /// HEAD tells the length of what GET would bring.
    head: bool,
    /// A status that ends with its head whatever its fields say.
    informational: bool,
}

impl Seen {
    fn of(response: &Response<Incoming>, method: &Method) -> Self {
        let headers = response.headers();
        let status = response.status();
        let head = *method == Method::HEAD;
        let bodiless = head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        let exact = response.body().size_hint().exact();
        let encoded = headers
            .get_all(header::CONTENT_ENCODING)
            .iter()
            .any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"));
        let event_stream = headers.get(header::CONTENT_TYPE).is_some_and(|value| {
            let essence = value
                .as_bytes()
                .split(|byte| *byte == b';')
                .next()
                .unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
        });
        let length = match exact {
            _ if bodiless => Length::None,
            Some(length) => Length::Known(length),
            None => Length::Unknown,
        };
        Self {
            length,
            event_stream,
            encoded,
            head,
            informational: status.is_informational(),
        }
    }

    fn acceptable(&self, limit: u64) -> Result<(), &'static str> {
        if self.informational {
            return Err("it wants to change protocols");
        }
        match self.length {
            Length::None => Ok(()),
            Length::Known(_) | Length::Unknown if self.encoded => Err("its answer has a content coding"),
            Length::Known(length) if length > limit => Err("its answer is too large"),
            Length::Known(_) | Length::Unknown => Ok(()),
        }
    }
}

/// The headers that go back; the length is ours to say, but for HEAD.
fn relayed(headers: &HeaderMap, seen: &Seen) -> HeaderMap {
    let named = connection_named(headers);
    let mut relayed = HeaderMap::with_capacity(8);
    for (name, value) in headers {
        let length = *name == header::CONTENT_LENGTH;
        if response_header_allowed(name.as_str()) && !named.drops(name.as_str()) && (!length || seen.head) {
            relayed.append(name, value.clone());
        }
    }
    relayed
}

enum Lost {
    Late,
    Broken,
    TooLarge,
    NoRoom,
}

/// Reads an answer to its end. A paused upload is given up once it is read.
async fn hold(
    mut incoming: Incoming,
    limit: u64,
    deadline: Instant,
    held: &mut Reservation,
    upload: Option<&Arc<UploadControl>>,
) -> Result<Bytes, Lost> {
    let read = async {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|_| Lost::Broken)?.into_data() else {
                continue;
            };
            let length = data.len() as u64;
            let sum = (first.len() as u64).max(whole.len() as u64) + length;
            if sum > limit {
                return Err(Lost::TooLarge);
            }
            if !held.grow(length) {
                return Err(Lost::NoRoom);
            }
            // Most answers are one frame, which is then passed on as it is.
            if whole.is_empty() && first.is_empty() {
                first = data;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&first);
                }
                whole.extend_from_slice(&data);
            }
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    };
    let result = tokio::time::timeout_at(deadline, read)
        .await
        .unwrap_or(Err(Lost::Late));
    abandon(upload);
    result
}

/// What hyper's server sends to the caller.
#[derive(Debug)]
pub(crate) enum AnswerBody {
    Held(Option<Bytes>),
    Stream(Box<StreamBody>),
}

impl AnswerBody {
    pub(crate) fn held(bytes: Bytes) -> Self {
        Self::Held(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

/// An answer under way. Dropped before its end, or failing, it aborts the caller's connection.
#[derive(Debug)]
pub(crate) struct StreamBody {
    incoming: Incoming,
    /// Bytes still to come; `None` for an event stream.
    remaining: Option<u64>,
    limit: Patience,
    upload: Option<Arc<UploadControl>>,
    pub(super) record: Option<Record>,
    _place: Place,
    _held: Reservation,
}

#[derive(Debug)]
enum Patience {
    Until(Pin<Box<Sleep>>),
    /// Starts anew with each frame.
    Between(Duration, Pin<Box<Sleep>>),
}

/// Why a streamed answer was cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the upstream's answer did not end in time")]
    Late,
    #[error("the upstream's answer broke off")]
    Broken,
}

impl StreamBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    return Poll::Ready(Some(Ok(Frame::data(self.passed(data)))));
                }
                Poll::Ready(None) => {
                    self.end(None);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(_))) => {
                    self.end(Some("answer_broken"));
                    return Poll::Ready(Some(Err(Cut::Broken)));
                }
                Poll::Pending => {}
            }
            let (Patience::Until(sleep) | Patience::Between(_, sleep)) = &mut self.limit;
            return match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => {
                    self.end(Some("answer_late"));
                    Poll::Ready(Some(Err(Cut::Late)))
                }
                Poll::Pending => Poll::Pending,
            };
        }
    }

    fn passed(&mut self, data: Bytes) -> Bytes {
        let length = data.len() as u64;
        if let Some(record) = &mut self.record {
            record.passes(&data);
        }
        if let Patience::Between(idle, sleep) = &mut self.limit {
            sleep.as_mut().reset(Instant::now() + *idle);
        }
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(length);
            if *remaining == 0 {
                // hyper does not ask again once the length is reached.
                self.end(None);
            }
        }
        data
    }

    fn end(&mut self, broken: Option<&'static str>) {
        abandon(self.upload.as_ref());
        if let Some(record) = self.record.take() {
            record.ended(broken);
        }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let broken = if self.remaining == Some(0) {
            None
        } else {
            Some("caller_gone")
        };
        self.end(broken);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.remaining == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(stream) => stream
                .remaining
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
