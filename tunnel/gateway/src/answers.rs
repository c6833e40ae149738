//! Every answer that is the gateway's own, in the words of either role.
//!
//! Here: as our own, the same JSON and the same codes as the daemon's; as peer, `{"error": text}`. Not here: when each
//! is given.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use uuid::Uuid;
use wire::http1::Fault;
use wire::names;

use crate::caller::GatewayBody;
use crate::settings::Role;

/// `x-paperclip-bridge-request-id`.
const REQUEST_ID: HeaderName = HeaderName::from_static(names::header::REQUEST_ID);
/// `x-paperclip-bridge-outcome`.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static(names::header::OUTCOME);

/// Why a caller gets no answer of the host's. Said so under our daemon only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The gate refused the head or the body.
    Framing(Fault),
    /// In order by itself, but it cannot be carried; says why.
    Malformed(&'static str),
    /// The target is none that the daemon would ever forward; says which.
    NotCanonical(&'static str),
    /// The token is missing or wrong.
    InvalidToken,
    /// The body is over its limit.
    BodyTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// Nothing was sent to the host; says why.
    Unavailable(&'static str),
    /// Safe, sent, and without a usable answer; says why.
    UpstreamFailed(&'static str),
    /// Safe, sent, and without an answer in time.
    UpstreamTimeout,
    /// Unsafe, sent, and its answer is lost; says why.
    Indeterminate(&'static str),
}

/// The keys in the order in which they are written.
#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    code: &'a str,
    decided_by: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    request_id: Uuid,
}

#[derive(Serialize)]
struct PeerBody<'a> {
    error: &'a str,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Framing(fault) => fault.status(),
            Self::Malformed(_) | Self::NotCanonical(_) => StatusCode::BAD_REQUEST,
            Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamFailed(_) => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Indeterminate(_) => StatusCode::CONFLICT,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Framing(fault) => match fault.status() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "head_too_large",
                StatusCode::EXPECTATION_FAILED => "expectation_failed",
                StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
                StatusCode::REQUEST_TIMEOUT => "request_timeout",
                _ => "malformed_request",
            },
            Self::Malformed(_) => "malformed_request",
            Self::NotCanonical(_) => "path_not_canonical",
            Self::InvalidToken => "invalid_token",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::Unavailable(_) => "unavailable",
            Self::UpstreamFailed(_) => "upstream_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::Indeterminate(_) => "outcome_indeterminate",
        }
    }

    fn retryable(self) -> bool {
        match self {
            Self::Framing(fault) => matches!(fault, Fault::HeadTimeout | Fault::BodyTimeout),
            Self::Unavailable(_) | Self::UpstreamFailed(_) | Self::UpstreamTimeout => true,
            Self::Malformed(_)
            | Self::NotCanonical(_)
            | Self::InvalidToken
            | Self::BodyTooLarge { .. }
            | Self::Indeterminate(_) => false,
        }
    }

    fn text(self) -> Cow<'static, str> {
        match self {
            Self::Framing(fault) => fault.to_string().into(),
            Self::Malformed(why) | Self::Unavailable(why) => why.into(),
            Self::NotCanonical(why) => format!("the request target is not in canonical form: {why}").into(),
            Self::InvalidToken => "the bearer token is missing, wrong, or of another session".into(),
            Self::BodyTooLarge { limit_bytes } => {
                format!("the body is larger than {limit_bytes} bytes").into()
            }
            Self::UpstreamFailed(why) => format!("the Paperclip API gave no usable answer: {why}").into(),
            Self::UpstreamTimeout => "the Paperclip API did not answer in time".into(),
            Self::Indeterminate(why) => {
                format!("the request was sent, but what became of it is not known: {why}").into()
            }
        }
    }

    fn hint(self) -> Option<&'static str> {
        match self {
            Self::InvalidToken => {
                Some("send `Authorization: Bearer` with PAPERCLIP_API_KEY as it is in the environment")
            }
            Self::Indeterminate(_) => Some(
                "do not repeat it; read /_bridge/outcome/key:KEY with the Idempotency-Key that was sent, or ask the API whether it took effect",
            ),
            Self::NotCanonical(_) => Some("send the path in its plainest form; it is never repaired"),
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::BodyTooLarge { .. }
            | Self::Unavailable(_)
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout => None,
        }
    }

    fn limit_bytes(self) -> Option<u64> {
        match self {
            Self::BodyTooLarge { limit_bytes } | Self::Framing(Fault::BodyTooLarge { limit_bytes }) => {
                Some(limit_bytes)
            }
            Self::Framing(Fault::HeadTooLarge { limit_bytes } | Fault::TargetTooLong { limit_bytes }) => {
                u64::try_from(limit_bytes).ok()
            }
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::NotCanonical(_)
            | Self::InvalidToken
            | Self::Unavailable(_)
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::Indeterminate(_) => None,
        }
    }

    /// The answer as a caller under our daemon gets it, with an id of its own.
    #[must_use]
    pub fn answer(self) -> Response<GatewayBody> {
        let request_id = Uuid::now_v7();
        let body = Body {
            error: &self.text(),
            code: self.code(),
            decided_by: "bridge",
            retryable: self.retryable(),
            hint: self.hint(),
            limit_bytes: self.limit_bytes(),
            request_id,
        };
        let mut response = json(self.status(), &body);
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(request_id.to_string()) {
            headers.insert(REQUEST_ID, id);
        }
        match self {
            Self::Unavailable(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Indeterminate(_) => {
                headers.insert(OUTCOME, HeaderValue::from_static(names::header::INDETERMINATE));
            }
            Self::InvalidToken => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Framing(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Malformed(_)
            | Self::NotCanonical(_)
            | Self::BodyTooLarge { .. }
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout => {}
        }
        response
    }

    /// The same in the words of `role`, where `peer` is the published text for it.
    #[must_use]
    pub fn in_role(self, role: Role, peer: &str) -> Response<GatewayBody> {
        match role {
            Role::Ours => self.answer(),
            Role::Peer => peer_error(self.status(), peer),
        }
    }
}

/// Whether an answer says that nobody knows what became of its request.
pub(crate) fn is_indeterminate(headers: &HeaderMap) -> bool {
    headers.get(OUTCOME).map(HeaderValue::as_bytes) == Some(names::header::INDETERMINATE.as_bytes())
}

/// Paperclip's own form: `{"error": text}`.
#[must_use]
pub fn peer_error(status: StatusCode, text: &str) -> Response<GatewayBody> {
    json(status, &PeerBody { error: text })
}

/// An answer of one JSON document.
#[must_use]
pub fn json(status: StatusCode, body: &impl Serialize) -> Response<GatewayBody> {
    // Strings, numbers and booleans always have a JSON form.
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    let mut response = Response::new(whole(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is all there.
#[must_use]
pub fn whole(bytes: Bytes) -> GatewayBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
