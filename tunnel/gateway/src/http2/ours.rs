//! A stream between our gateway and our daemon.
//!
//! Here: the request as the daemon reads it back, byte for byte what the caller sent; the answer, passed on while it
//! comes; and the honest words where there is none. Not here: the checks, which are all the daemon's.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use h2::RecvStream;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use wire::names;

use super::Http2;
use super::exchange::{Exchange, Failure, exchange};
use crate::answers::{Refusal, is_indeterminate};
use crate::caller::{BoxError, CallerBodyError, CallerRequest, GatewayBody, path_and_query};
use crate::headers;

const HOST: HeaderName = HeaderName::from_static(names::header::HOST);
const TARGET: HeaderName = HeaderName::from_static(names::header::TARGET);

/// Answers one caller through our daemon.
pub(super) async fn answer(http2: &Http2, request: CallerRequest) -> Response<GatewayBody> {
    let CallerRequest {
        method,
        target,
        host,
        headers,
        body,
    } = request;
    if method == Method::CONNECT {
        return Refusal::NotCanonical("a host and port is for CONNECT; send a path that starts with `/`")
            .answer();
    }
    let safe = method.is_safe();
    let mut head = Request::new(());
    *head.method_mut() = method;
    *head.headers_mut() = headers;
    headers::for_our_host(head.headers_mut());
    match address(&mut head, &host.unwrap_or_default(), &target) {
        Some(uri) => *head.uri_mut() = uri,
        None => return Refusal::Malformed("the request target cannot be carried").answer(),
    }
    match exchange(&http2.sender, &http2.watch, head, body).await {
        Ok((response, exchange)) => pass_on(response, exchange),
        Err(failure) => refusal(failure, safe).answer(),
    }
}

/// `:authority` and `:path`; what they cannot carry unchanged goes into fields of our own.
fn address(head: &mut Request<()>, host: &[u8], target: &[u8]) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(match authority(host) {
        Some(authority) => authority,
        None => {
            head.headers_mut().insert(HOST, encoded(host)?);
            Authority::from_static(names::NO_AUTHORITY)
        }
    });
    parts.path_and_query = Some(match path_and_query(target) {
        Some(same) => same,
        None => {
            head.headers_mut().insert(TARGET, encoded(target)?);
            PathAndQuery::from_static("/")
        }
    });
    Uri::from_parts(parts).ok()
}

/// The caller's `Host` as it stands, if an authority can be that. User information never belongs in one.
fn authority(host: &[u8]) -> Option<Authority> {
    let parsed = Authority::try_from(host).ok()?;
    (parsed.as_str().as_bytes() == host && !host.contains(&b'@')).then_some(parsed)
}

fn encoded(bytes: &[u8]) -> Option<HeaderValue> {
    HeaderValue::try_from(URL_SAFE_NO_PAD.encode(bytes)).ok()
}

fn refusal(failure: Failure, safe: bool) -> Refusal {
    match failure {
        Failure::NeverDispatched => {
            Refusal::Unavailable("the channel to the bridge is not there; nothing was sent")
        }
        Failure::Caller(CallerBodyError::Fault(fault)) => Refusal::Framing(fault),
        Failure::Caller(CallerBodyError::Broken) => {
            Refusal::Malformed("the body ended before its end; the request was withdrawn")
        }
        Failure::Late if safe => Refusal::UpstreamTimeout,
        Failure::Late => Refusal::Indeterminate("no answer came in time"),
        Failure::NoHead | Failure::Lost if safe => {
            Refusal::UpstreamFailed("the channel to the bridge broke before it came")
        }
        Failure::NoHead | Failure::Lost => {
            Refusal::Indeterminate("the channel to the bridge broke before the answer came")
        }
    }
}

/// The daemon's answer as it is, but for an outcome that the API itself does not know: 409 says so in every tunnel.
fn pass_on(response: Response<RecvStream>, exchange: Exchange) -> Response<GatewayBody> {
    let (mut head, stream) = response.into_parts();
    headers::drop_hop_by_hop(&mut head.headers);
    head.version = http::Version::HTTP_11;
    if is_indeterminate(&head.headers) {
        head.status = StatusCode::CONFLICT;
    }
    head.extensions = http::Extensions::new();
    let declared = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let body = AnswerBody {
        stream,
        declared,
        _exchange: exchange,
    };
    Response::from_parts(head, body.boxed_unsync())
}

/// An answer's body while it comes. Whatever is not its proper end is an error, which cuts the caller's connection.
struct AnswerBody {
    stream: RecvStream,
    /// Bytes still to come, where their number was said.
    declared: Option<u64>,
    _exchange: Exchange,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        // `None` stands for END_STREAM alone: `h2` keeps it apart from every reset.
        Poll::Ready(match ready!(body.stream.poll_data(cx)) {
            None => None,
            Some(Err(error)) => Some(Err(error.into())),
            Some(Ok(data)) => {
                body.declared = body.declared.map(|left| left.saturating_sub(data.len() as u64));
                // hyper holds little of it before it asks for more, so the window follows the caller's pace.
                match body.stream.flow_control().release_capacity(data.len()) {
                    Ok(()) => Some(Ok(Frame::data(data))),
                    Err(error) => Some(Err(error.into())),
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.declared {
            // An answer to HEAD declares a length that does not come.
            Some(_) if self.stream.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pseudo_headers_cannot_carry_unchanged_is_in_fields_of_ours() {
        let table = [
            ("127.0.0.1:80", "/a?b", "http://127.0.0.1:80/a?b", None, None),
            ("", "/", "http://gateway.invalid/", Some(""), None),
            ("a b", "/", "http://gateway.invalid/", Some("YSBi"), None),
            ("u@h", "/", "http://gateway.invalid/", Some("dUBo"), None),
            ("h", "http://x/y", "http://h/", None, Some("aHR0cDovL3gveQ")),
            ("h", "*", "http://h/", None, Some("Kg")),
        ];

        for (host, target, uri, host_field, target_field) in table {
            let mut head = Request::new(());
            let given = address(&mut head, host.as_bytes(), target.as_bytes()).expect("an address");
            assert_eq!(given.to_string(), uri);
            let field = |name: &HeaderName| {
                head.headers()
                    .get(name)
                    .map(|value| value.to_str().expect("text").to_owned())
            };
            assert_eq!(field(&HOST).as_deref(), host_field);
            assert_eq!(field(&TARGET).as_deref(), target_field);
        }
    }

    #[test]
    fn no_retryable_status_for_a_write_that_may_have_happened() {
        for failure in [Failure::NoHead, Failure::Lost, Failure::Late] {
            assert!(matches!(refusal(failure, false), Refusal::Indeterminate(_)));
            assert!(!matches!(refusal(failure, true), Refusal::Indeterminate(_)));
        }
        assert!(matches!(
            refusal(Failure::NeverDispatched, false),
            Refusal::Unavailable(_)
        ));
    }
}
