//! Every answer that is ours and not the upstream's: status, stable code, words, and whether to try again.
//!
//! Here: one enum and its table. What an agent reads never says anything of our network, another session or the
//! credential. Not here: when each is given; that is with the steps.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use policy::TargetFault;
use policy::content_type::ContentTypeFault;
use serde::Serialize;
use uuid::Uuid;

use super::accept::Fault;
use super::answer::AnswerBody;
use crate::session::hold::NotServed;

/// Why a callback was not answered by the upstream.
#[derive(Debug)]
pub(crate) enum Refusal {
    Framing(Fault),
    /// The head was in order by itself but says something that cannot be acted on.
    Malformed(&'static str),
    HostMismatch,
    InvalidToken,
    PathNotCanonical(TargetFault),
    UnknownBridgePath,
    RouteNotAllowed {
        method: Method,
        path: String,
        why: String,
        hint: Option<String>,
    },
    ContentType(ContentTypeFault),
    BodyTooLarge {
        limit_bytes: u64,
    },
    RateLimited {
        retry_after_seconds: u64,
        why: &'static str,
    },
    Unavailable {
        why: &'static str,
    },
    /// The session is not, or not certainly, this daemon's.
    NotOwner,
    UpstreamUnreachable,
    UpstreamFailed(&'static str),
    UpstreamTimeout,
    Indeterminate(&'static str),
    OutcomeUnknown,
}

/// Who is behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum DecidedBy {
    Bridge,
    Upstream,
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    code: &'a str,
    decided_by: DecidedBy,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    request_id: Uuid,
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Framing(fault) => fault.status(),
            Self::Malformed(_) | Self::PathNotCanonical(_) => StatusCode::BAD_REQUEST,
            Self::HostMismatch => StatusCode::MISDIRECTED_REQUEST,
            Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::UnknownBridgePath | Self::OutcomeUnknown => StatusCode::NOT_FOUND,
            Self::RouteNotAllowed { .. } => StatusCode::FORBIDDEN,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } | Self::NotOwner => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamUnreachable | Self::UpstreamFailed(_) => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Indeterminate(_) => StatusCode::CONFLICT,
        }
    }

    /// Stable; documented in the README and counted in metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Framing(fault) => framing_code(*fault),
            Self::Malformed(_) => "malformed_request",
            Self::HostMismatch => "host_mismatch",
            Self::InvalidToken => "invalid_token",
            Self::PathNotCanonical(_) => "path_not_canonical",
            Self::UnknownBridgePath => "unknown_bridge_path",
            Self::RouteNotAllowed { .. } => "route_not_allowed",
            Self::ContentType(_) => "content_type_not_allowed",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::NotOwner => "not_owner",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamFailed(_) => "upstream_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::Indeterminate(_) => "outcome_indeterminate",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// Whether the same request may be sent again.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            Self::Framing(fault) => matches!(fault, Fault::HeadTimeout | Fault::BodyTimeout),
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout => true,
            Self::Malformed(_)
            | Self::HostMismatch
            | Self::InvalidToken
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::RouteNotAllowed { .. }
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::Indeterminate(_)
            | Self::OutcomeUnknown => false,
        }
    }

    fn decided_by(&self) -> DecidedBy {
        match self {
            Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::Indeterminate(_) => DecidedBy::Upstream,
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::HostMismatch
            | Self::InvalidToken
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::RouteNotAllowed { .. }
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::OutcomeUnknown => DecidedBy::Bridge,
        }
    }

    /// Whether it is said on behalf of the upstream.
    pub(crate) fn is_the_upstreams(&self) -> bool {
        self.decided_by() == DecidedBy::Upstream
    }

    /// Whether policy refused it, and not the bridge for a reason of its own.
    pub(crate) fn is_policys(&self) -> bool {
        matches!(
            self,
            Self::RouteNotAllowed { .. }
                | Self::PathNotCanonical(_)
                | Self::ContentType(_)
                | Self::BodyTooLarge { .. }
        )
    }

    /// The reason by itself, for the audit.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::RouteNotAllowed { why, .. } => why.clone(),
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::HostMismatch
            | Self::InvalidToken
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::Indeterminate(_)
            | Self::OutcomeUnknown => self.text(),
        }
    }

    /// Whether the connection cannot be trusted or used afterwards.
    fn closes(&self) -> bool {
        match self {
            Self::Framing(_) => true,
            Self::Malformed(_)
            | Self::HostMismatch
            | Self::InvalidToken
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::RouteNotAllowed { .. }
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::Indeterminate(_)
            | Self::OutcomeUnknown => false,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Framing(fault) => fault.to_string(),
            Self::Malformed(why) => (*why).to_owned(),
            Self::HostMismatch => "the Host header does not name this session's address".into(),
            Self::InvalidToken => "the bearer token is missing, wrong, or of another session".into(),
            Self::PathNotCanonical(fault) => format!("the request target is not in canonical form: {fault}"),
            Self::UnknownBridgePath => "there is nothing at this path under /_bridge/".into(),
            Self::RouteNotAllowed {
                method, path, why, ..
            } => format!("Route not allowed: {method} {path} ({why})"),
            Self::ContentType(fault) => format!("the content type is not allowed here: {fault}"),
            Self::BodyTooLarge { limit_bytes } => format!("the body is larger than {limit_bytes} bytes"),
            Self::RateLimited { why, .. } => (*why).to_owned(),
            Self::Unavailable { why } => (*why).to_owned(),
            Self::NotOwner => "another daemon may be serving this session by now; nothing was sent".into(),
            Self::UpstreamUnreachable => "the Paperclip API could not be reached; nothing was sent".into(),
            Self::UpstreamFailed(why) => format!("the Paperclip API gave no usable answer: {why}"),
            Self::UpstreamTimeout => "the Paperclip API did not answer in time".into(),
            Self::Indeterminate(why) => {
                format!("the request was sent, but what became of it is not known: {why}")
            }
            Self::OutcomeUnknown => "no callback of this session is known under this id".into(),
        }
    }

    fn hint(&self, request_id: Uuid) -> Option<String> {
        match self {
            Self::RouteNotAllowed { hint, .. } => hint.clone(),
            Self::InvalidToken => Some("send `Authorization: Bearer` with PAPERCLIP_API_KEY as it is in the environment".into()),
            Self::HostMismatch => Some("use PAPERCLIP_API_URL as it is in the environment".into()),
            Self::PathNotCanonical(_) => Some("send the path in its plainest form; it is never repaired".into()),
            Self::ContentType(_) => Some("send `Content-Type: application/json`".into()),
            Self::UnknownBridgePath => {
                Some("known are whoami, routes, limits, health, outcomes and outcome/ID, with GET".into())
            }
            Self::Indeterminate(_) => Some(format!(
                "do not repeat it; read /_bridge/outcome/{request_id}, or ask the API whether it took effect"
            )),
            Self::OutcomeUnknown => Some(
                "give the x-paperclip-bridge-request-id of an answer, or `key:` and the Idempotency-Key that was sent"
                    .into(),
            ),
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::BodyTooLarge { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout => None,
        }
    }

    fn limit_bytes(&self) -> Option<u64> {
        match self {
            Self::BodyTooLarge { limit_bytes } | Self::Framing(Fault::BodyTooLarge { limit_bytes }) => {
                Some(*limit_bytes)
            }
            Self::Framing(Fault::HeadTooLarge { limit_bytes } | Fault::TargetTooLong { limit_bytes }) => {
                u64::try_from(*limit_bytes).ok()
            }
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::HostMismatch
            | Self::InvalidToken
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::RouteNotAllowed { .. }
            | Self::ContentType(_)
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::NotOwner
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::Indeterminate(_)
            | Self::OutcomeUnknown => None,
        }
    }

    /// The answer as the agent gets it. `head_only` leaves the body out (an answer to HEAD).
    pub(crate) fn answer(&self, request_id: Uuid, head_only: bool) -> Response<AnswerBody> {
        let text = self.text();
        let hint = self.hint(request_id);
        let body = Body {
            error: &text,
            code: self.code(),
            decided_by: self.decided_by(),
            retryable: self.retryable(),
            hint: hint.as_deref(),
            limit_bytes: self.limit_bytes(),
            request_id,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = super::answer::json(self.status(), Bytes::from(json), head_only);
        let headers = response.headers_mut();
        match self {
            Self::RateLimited {
                retry_after_seconds, ..
            } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_seconds));
            }
            Self::Unavailable { .. } | Self::NotOwner => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Indeterminate(_) => {
                headers.insert(super::answer::OUTCOME, HeaderValue::from_static("indeterminate"));
            }
            Self::InvalidToken => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Framing(_)
            | Self::Malformed(_)
            | Self::HostMismatch
            | Self::PathNotCanonical(_)
            | Self::UnknownBridgePath
            | Self::RouteNotAllowed { .. }
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::OutcomeUnknown => {}
        }
        if self.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn framing_code(fault: Fault) -> &'static str {
    match fault.status() {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "head_too_large",
        StatusCode::EXPECTATION_FAILED => "expectation_failed",
        StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
        StatusCode::REQUEST_TIMEOUT => "request_timeout",
        _ => "malformed_request",
    }
}

impl From<NotServed> for Refusal {
    fn from(why: NotServed) -> Self {
        match why {
            NotServed::NotOwner => Self::NotOwner,
            NotServed::Unwritten => Self::Unavailable {
                why: "the bridge cannot write its ledger at the moment; nothing was sent",
            },
        }
    }
}
