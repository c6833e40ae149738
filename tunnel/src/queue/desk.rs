//! One request of the queue: read strictly, written down, answered once.
//!
//! Here: what becomes of the bytes of one request file. Not here: how they came and where the answer goes
//! (`worker.rs`), and any rule: `Callbacks` decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use tokio::time::{Instant, timeout};
use wire::envelope::{
    EnvelopeBody, EnvelopeFault, INDETERMINATE, OUTCOME_HEADER, RequestEnvelope, ResponseEnvelope,
};

use super::journal::{Journal, Seen};
use super::listing::FileId;
use super::stamp;
use crate::{AgentMessage, BodyError, Callbacks, CallerProof, Listening, MessageBody};

/// Larger envelopes are read and written beside the runtime's threads.
const LARGE_BYTES: usize = 256 * 1024;
/// How far a request may be over its caller's time before it counts as left behind: clocks are read in seconds.
const CLOCK_SLACK: Duration = Duration::from_secs(2);
/// Never part of a response envelope: they belong to one connection, or the gateway makes them anew.
const DROPPED: [HeaderName; 9] = [
    header::CONTENT_LENGTH,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

const INVALID: &str = "Invalid bridge request payload.";
const TOO_LONG: &str = "Bridge request envelope exceeded the configured size limit.";
const UNKNOWN_OUTCOME: &str = "The outcome of this request is not known.";
const BROKEN_ANSWER: &str = "The answer of the API could not be carried.";
const NOT_WRITTEN_DOWN: &str = "The bridge cannot record this request now. Retry later.";
const STOPPED: &str = "Bridge worker stopped before request could be handled.";

/// How bodies stand in responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bodies {
    /// As base64: our gateway, and the published one since 2026.916.
    #[default]
    Base64,
    /// As text, which loses what is not UTF-8: the published gateway before that. It knows no outcome either, so that
    /// it is told of one by the status that the caller must see.
    Text,
}

impl Bodies {
    /// How an unknown outcome stands on the wire: a gateway that knows outcomes makes 409 of whatever it reads.
    const fn indeterminate(self) -> StatusCode {
        match self {
            Self::Base64 => StatusCode::GATEWAY_TIMEOUT,
            Self::Text => StatusCode::CONFLICT,
        }
    }
}

/// What all requests of a queue share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) callbacks: Arc<dyn Callbacks>,
    pub(super) journal: Journal,
    pub(super) session: String,
    pub(super) listening: Listening,
    pub(super) max_body: usize,
    pub(super) response_timeout: Duration,
    pub(super) bodies: Bodies,
    /// When it began, where an earlier host's journal is not ours: what came before may have been sent.
    pub(super) taken_over: Option<Instant>,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Write this response envelope.
    Answer(Bytes),
    /// Nobody waits any more: remove what is there.
    Forget,
}

/// When the queue's clock was read, and what it said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// The target's clock less ours, where the target told its own.
    ahead_seconds: Option<i128>,
}

impl Clock {
    /// The target said `clock` just now.
    pub(super) fn read(clock: Option<u64>) -> Self {
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            ahead_seconds: clock.map(|theirs| i128::from(theirs) - i128::from(ours.as_secs())),
        }
    }

    /// How long ago the gateway wrote this; `None` where that cannot be told.
    fn age(self, created_at: &str) -> Option<Duration> {
        let (ahead, created) = (self.ahead_seconds?, stamp::read(created_at)?);
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i128::from(ours.as_secs()) + ahead - i128::from(created.as_secs());
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

impl Desk {
    /// Answers one request, or finds that nobody waits for the answer.
    ///
    /// - `sent`: set before anything that changes the world may happen.
    pub(super) async fn handle(
        self: Arc<Self>,
        id: FileId,
        bytes: Bytes,
        clock: Clock,
        sent: Arc<AtomicBool>,
    ) -> Decision {
        let envelope = match self.parse(&id, bytes).await {
            Ok(envelope) => envelope,
            Err(EnvelopeFault::TooLarge { .. }) => {
                return Decision::Answer(self.too_long(&id));
            }
            Err(fault) => {
                tracing::debug!(session = self.session, %fault, "a queue file is no request");
                return Decision::Answer(self.invalid(&id));
            }
        };
        let written = clock.age(&envelope.created_at);
        let age = written.unwrap_or_default();
        if age > self.response_timeout + CLOCK_SLACK {
            tracing::debug!(
                session = self.session,
                ?age,
                "a request whose caller has gone is removed"
            );
            return Decision::Forget;
        }
        if !acceptable(&envelope) {
            return Decision::Answer(self.invalid(&id));
        }
        let safe = is_safe(&envelope.method);
        if !safe && self.may_have_been_sent(written) {
            // Written down, so that it is not sent later either.
            sent.store(true, Ordering::Release);
            let _known = self.write_down(&id).await;
            return Decision::Answer(self.indeterminate(&id));
        }
        if !safe {
            match self.write_down(&id).await {
                Some(Seen::Never) => sent.store(true, Ordering::Release),
                Some(Seen::Unanswered) => return Decision::Answer(self.indeterminate(&id)),
                Some(Seen::Answered) => return Decision::Forget,
                None => {
                    return Decision::Answer(self.own(
                        &id,
                        StatusCode::SERVICE_UNAVAILABLE,
                        NOT_WRITTEN_DOWN,
                    ));
                }
            }
        }
        let patience = self.response_timeout.saturating_sub(age);
        if self.bodies == Bodies::Text && !safe {
            // That gateway would end its wait with a status that invites to send the request again.
            let patience = patience.saturating_sub(CLOCK_SLACK.min(self.response_timeout / 4));
            let answered = timeout(patience, self.ask(envelope, safe, &id)).await;
            return Decision::Answer(answered.unwrap_or_else(|_| self.indeterminate(&id)));
        }
        let answered = timeout(patience, self.ask(envelope, safe, &id)).await;
        answered.map_or(Decision::Forget, Decision::Answer)
    }

    /// Whether a host before us, whose journal is not ours, may have sent a request that was written so long ago.
    fn may_have_been_sent(&self, written: Option<Duration>) -> bool {
        let Some(since) = self.taken_over.map(|since| since.elapsed()) else {
            return false;
        };
        match written {
            Some(age) => age + CLOCK_SLACK >= since,
            // Later, nobody waits for it any more.
            None => since <= self.response_timeout + CLOCK_SLACK,
        }
    }

    async fn parse(&self, id: &FileId, bytes: Bytes) -> Result<RequestEnvelope, EnvelopeFault> {
        if bytes.len() < LARGE_BYTES {
            return RequestEnvelope::parse(&bytes, id.as_str(), self.max_body);
        }
        let (id, max_body) = (id.clone(), self.max_body);
        tokio::task::spawn_blocking(move || RequestEnvelope::parse(&bytes, id.as_str(), max_body))
            .await
            .unwrap_or(Err(EnvelopeFault::NotAnObject))
    }

    async fn write_down(&self, id: &FileId) -> Option<Seen> {
        let (journal, session, id) = (self.journal.clone(), self.session.clone(), id.clone());
        let written = tokio::task::spawn_blocking(move || journal.begin(&session, &id)).await;
        match written {
            Ok(Ok(seen)) => Some(seen),
            Ok(Err(fault)) => {
                tracing::error!(session = self.session, %fault, "a callback is refused: it cannot be written down");
                None
            }
            Err(_) => None,
        }
    }

    async fn ask(&self, envelope: RequestEnvelope, safe: bool, id: &FileId) -> Bytes {
        let target = Bytes::from(envelope.target());
        let body = envelope.body.into_bytes();
        let mut headers = envelope.headers;
        headers.remove(header::HOST);
        let message = AgentMessage {
            method: envelope.method,
            target,
            headers,
            host: envelope.host.map(Bytes::from),
            proof: CallerProof::Channel,
            body: message_body(body),
            listening: self.listening.clone(),
        };
        let response = self.callbacks.serve_message(message).await;
        let (parts, body) = response.into_parts();
        match whole(body, self.max_body).await {
            Ok(bytes) => self.relayed(id, Response::from_parts(parts, bytes)).await,
            Err(error) => {
                tracing::debug!(session = self.session, %error, "an answer did not come whole");
                if safe {
                    self.own(id, StatusCode::BAD_GATEWAY, BROKEN_ANSWER)
                } else {
                    self.indeterminate(id)
                }
            }
        }
    }

    /// The answer as it came, in an envelope.
    async fn relayed(&self, id: &FileId, response: Response<Bytes>) -> Bytes {
        let (parts, body) = response.into_parts();
        let unknown = parts
            .headers
            .get(OUTCOME_HEADER)
            .is_some_and(|value| value.as_bytes() == INDETERMINATE.as_bytes());
        let mut headers = parts.headers;
        for name in DROPPED {
            headers.remove(name);
        }
        let envelope = ResponseEnvelope {
            id: id.as_str().to_owned(),
            // The gateway makes 409 of it again: on this wire 504 is the peer's word for it.
            status: if unknown && parts.status == StatusCode::CONFLICT {
                self.bodies.indeterminate()
            } else {
                parts.status
            },
            headers,
            body: match self.bodies {
                Bodies::Base64 => EnvelopeBody::Base64(body),
                Bodies::Text => EnvelopeBody::Text(String::from_utf8_lossy(&body).into_owned()),
            },
            completed_at: stamp::write(SystemTime::now()),
        };
        let large = matches!(&envelope.body, EnvelopeBody::Base64(bytes) if bytes.len() > LARGE_BYTES);
        if large {
            let written = tokio::task::spawn_blocking(move || envelope.to_bytes()).await;
            return written.map_or_else(|_| self.indeterminate(id), Bytes::from);
        }
        envelope.to_bytes().into()
    }

    /// A file that is no request.
    pub(super) fn invalid(&self, id: &FileId) -> Bytes {
        self.own(id, StatusCode::BAD_REQUEST, INVALID)
    }

    /// A file that is longer than a request can be.
    pub(super) fn too_long(&self, id: &FileId) -> Bytes {
        self.own(id, StatusCode::PAYLOAD_TOO_LARGE, TOO_LONG)
    }

    /// For a caller whose request was not sent when the tunnel stopped.
    pub(super) fn stopped(&self, id: &FileId) -> Bytes {
        self.own(id, StatusCode::SERVICE_UNAVAILABLE, STOPPED)
    }

    /// For a caller whose write may have happened.
    pub(super) fn indeterminate(&self, id: &FileId) -> Bytes {
        let mut headers = json_headers();
        headers.insert(
            HeaderName::from_static(OUTCOME_HEADER),
            HeaderValue::from_static(INDETERMINATE),
        );
        let body = json!({ "error": UNKNOWN_OUTCOME, "outcome": INDETERMINATE, "retryable": false });
        envelope(id, self.bodies.indeterminate(), headers, body.to_string())
    }

    #[expect(clippy::unused_self, reason = "reads as one family with its neighbours")]
    fn own(&self, id: &FileId, status: StatusCode, error: &str) -> Bytes {
        envelope(id, status, json_headers(), json!({ "error": error }).to_string())
    }
}

/// GET, HEAD, OPTIONS and TRACE change nothing; all others are sent at most once.
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// Nothing in the target that another reader would take for its end.
fn acceptable(envelope: &RequestEnvelope) -> bool {
    let plain = |text: &str| !text.contains('#') && !text.chars().any(|c| c.is_control() || c == ' ');
    plain(&envelope.path) && !envelope.path.contains('?') && plain(&envelope.query)
}

fn message_body(bytes: Bytes) -> MessageBody {
    Full::new(bytes)
        .map_err(|never| -> BodyError { match never {} })
        .boxed_unsync()
}

/// The whole of an answer's body, at most `limit` bytes.
async fn whole(mut body: MessageBody, limit: usize) -> Result<Bytes, BodyError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len().saturating_add(data.len()) > limit {
            return Err(format!("it is longer than {limit} bytes").into());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

fn envelope(id: &FileId, status: StatusCode, headers: HeaderMap, body: String) -> Bytes {
    ResponseEnvelope {
        id: id.as_str().to_owned(),
        status,
        headers,
        body: EnvelopeBody::Text(body),
        completed_at: stamp::write(SystemTime::now()),
    }
    .to_bytes()
    .into()
}
