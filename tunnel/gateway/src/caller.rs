//! One request of a caller, as the gate and hyper delivered it.
//!
//! Here: [`CallerRequest`] and its body, which says why it broke. Not here: reading it off the socket (`listen.rs`) and
//! what becomes of it (`http2/`, `queue/`).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use wire::http1::{Fault, Note, TargetJudge};

/// Why an answer's body broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer; an error in it cuts the caller's connection.
pub type GatewayBody = UnsyncBoxBody<Bytes, BoxError>;

/// Notes of one caller's connection.
pub(crate) type Notes = wire::http1::Notes<Bytes>;

/// Keeps every target that hyper would show otherwise than it stands; the gateway judges none.
#[derive(Debug)]
pub(crate) struct AsItStands;

impl TargetJudge for AsItStands {
    /// The target byte for byte.
    type Fault = Bytes;

    fn judge(target: &[u8]) -> Result<(), Bytes> {
        if path_and_query(target).is_some() {
            Ok(())
        } else {
            Err(Bytes::copy_from_slice(target))
        }
    }

    fn connect(target: &[u8]) -> Bytes {
        Bytes::copy_from_slice(target)
    }
}

/// The target as `http` has it, if that is byte for byte the same.
pub(crate) fn path_and_query(target: &[u8]) -> Option<PathAndQuery> {
    let parsed = PathAndQuery::try_from(target).ok()?;
    (target.starts_with(b"/") && parsed.as_str().as_bytes() == target).then_some(parsed)
}

/// One request of a caller who holds the token. Nothing else of it has been looked at but its framing.
#[derive(Debug)]
pub struct CallerRequest {
    /// As the caller wrote it.
    pub method: Method,
    /// The request target byte for byte.
    pub target: Bytes,
    /// The one `Host`; the gate refuses requests without.
    pub host: Option<Bytes>,
    /// Every header as it came, in its order, `host` and `authorization` among them.
    pub headers: HeaderMap,
    /// What follows the head.
    pub body: CallerBody,
}

impl CallerRequest {
    /// What hyper shows, put right by the gate's note of it.
    pub(crate) fn new(request: Request<Incoming>, note: Note<Bytes>, notes: &Arc<Notes>) -> Self {
        let (head, incoming) = request.into_parts();
        let host = head
            .headers
            .get(header::HOST)
            .map(|host| Bytes::copy_from_slice(host.as_bytes()));
        let target = note.target_fault.unwrap_or_else(|| {
            let shown = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
            Bytes::copy_from_slice(shown.as_bytes())
        });
        Self {
            method: note.method.unwrap_or(head.method),
            target,
            host,
            headers: head.headers,
            body: CallerBody {
                incoming,
                notes: Arc::clone(notes),
            },
        }
    }
}

/// The body of a caller's request, as it comes in.
#[derive(Debug)]
pub struct CallerBody {
    incoming: Incoming,
    notes: Arc<Notes>,
}

/// Why a caller's body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerBodyError {
    /// The gate refused what came; the caller can still be told.
    Fault(Fault),
    /// The caller's connection broke.
    Broken,
}

impl std::fmt::Display for CallerBodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Broken => f.write_str("the caller's connection broke"),
        }
    }
}

impl std::error::Error for CallerBodyError {}

impl CallerBody {
    /// The declared length, 0 without a body; `None` for one in chunks.
    #[must_use]
    pub fn declared(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }
}

impl Body for CallerBody {
    type Data = Bytes;
    type Error = CallerBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CallerBodyError>>> {
        let body = self.get_mut();
        let frame = ready!(Pin::new(&mut body.incoming).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|_| {
                body.notes
                    .body_fault()
                    .map_or(CallerBodyError::Broken, CallerBodyError::Fault)
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_targets_that_hyper_shows_unchanged_are_shown_to_it() {
        for same in ["/", "/a/../b", "/a?b=c%2Fd", "//x", "/?", "/a?b?c", "/\u{e9}"] {
            assert_eq!(AsItStands::judge(same.as_bytes()), Ok(()), "{same}");
        }
        for other in ["", "*", "a", "http://h/x", "/a#b", "/a b", "/a?\"", "h:80"] {
            assert_eq!(
                AsItStands::judge(other.as_bytes()),
                Err(Bytes::copy_from_slice(other.as_bytes())),
                "{other}"
            );
        }
        assert!(AsItStands::judge(b"/\xff").is_err());
    }
}
