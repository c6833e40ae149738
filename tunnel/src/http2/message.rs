//! One HTTP/2 stream of a gateway as a callback.
//!
//! Here: where target and `Host` stand, which differs between our own gateway and the peer's script, and the answer to
//! a stream that follows neither form. Not here: any judgement of what they hold.
//!
//! Our gateway passes on what the caller wrote byte for byte. What `:authority` or `:path` cannot carry stands in
//! `x-pcbridge-host` or `x-pcbridge-target`, base64url without padding. The peer's script tells no `Host` at all.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use uuid::Uuid;
use wire::names;

use super::body::TimedBody;
use crate::launch::GatewayKind;
use crate::{AgentMessage, BodyError, CallerProof, Listening, MessageBody};

const HOST: HeaderName = HeaderName::from_static(names::header::HOST);
const TARGET: HeaderName = HeaderName::from_static(names::header::TARGET);
const REQUEST_ID: HeaderName = HeaderName::from_static(names::header::REQUEST_ID);

/// A stream in a form that no gateway of ours sends; what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

/// Where a callback goes, as the caller wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressed {
    /// The request target.
    pub target: Bytes,
    /// The caller's `Host`, where the gateway tells it.
    pub host: Option<Bytes>,
}

/// Takes the stream apart; `headers` are left with what the caller sent and nothing of the gateway's.
pub(super) fn read<B>(
    request: Request<B>,
    kind: GatewayKind,
    listening: &Listening,
) -> Result<AgentMessage, Malformed>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    let (mut parts, body) = request.into_parts();
    let Addressed { target, host } = address(&mut parts, kind)?;
    Ok(AgentMessage {
        method: parts.method,
        target,
        headers: parts.headers,
        host,
        proof: CallerProof::Token,
        body: TimedBody::new(body).boxed_unsync(),
        listening: listening.clone(),
    })
}

/// Reads target and `Host` of a stream's head, and takes the fields out that carried them.
///
/// # Errors
///
/// [`Malformed`] where a field of ours comes twice, is no base64url, or contradicts its pseudo-header.
pub fn address(parts: &mut Parts, kind: GatewayKind) -> Result<Addressed, Malformed> {
    // The pseudo-header is the `Host` of HTTP/2; a field beside it would be a second one.
    let _ = parts.headers.remove(header::HOST);
    let path = parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    // CONNECT has no path: its target is the authority.
    let plain = Bytes::copy_from_slice(path.or(authority).unwrap_or_default().as_bytes());
    if kind == GatewayKind::Script {
        return Ok(Addressed {
            target: plain,
            host: None,
        });
    }
    let told_host = take(&mut parts.headers, &HOST)?;
    let told_target = take(&mut parts.headers, &TARGET)?;
    let target = match (told_target, path) {
        (None, _) => plain,
        (Some(target), Some("/")) if !target.is_empty() => target,
        (Some(_), _) => return Err(Malformed("its target is given twice")),
    };
    let host = match (told_host, authority) {
        (Some(host), Some(names::NO_AUTHORITY)) => host,
        (Some(_), _) => return Err(Malformed("its host is given twice")),
        (None, Some(authority)) => Bytes::copy_from_slice(authority.as_bytes()),
        (None, None) => return Err(Malformed("its host is not given")),
    };
    Ok(Addressed {
        target,
        host: Some(host),
    })
}

/// Takes one field of the gateway's out and decodes it.
fn take(headers: &mut HeaderMap, name: &HeaderName) -> Result<Option<Bytes>, Malformed> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let decoded = match (first, second) {
        (None, _) => return Ok(None),
        (Some(value), None) => URL_SAFE_NO_PAD
            .decode(value.as_bytes())
            .map_err(|_| Malformed("a field of the gateway's is not base64url"))?,
        (Some(_), Some(_)) => return Err(Malformed("a field of the gateway's comes twice")),
    };
    let _ = headers.remove(name);
    Ok(Some(Bytes::from(decoded)))
}

/// The answer to a malformed stream.
pub(super) fn refuse(fault: Malformed) -> Response<MessageBody> {
    malformed(&format!("The gateway's request is malformed: {}.", fault.0))
}

/// The answer to a message that nobody can act on, in the form of every error.
pub(crate) fn malformed(error: &str) -> Response<MessageBody> {
    let request_id = Uuid::now_v7().to_string();
    let body = json!({
        "error": error,
        "code": "malformed_request",
        "decided_by": "bridge",
        "retryable": false,
        "request_id": request_id,
    });
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn ours(uri: &str, headers: &[(&str, &str)]) -> Result<(String, String), Malformed> {
        let mut parts = parts("GET", uri, headers);
        let addressed = address(&mut parts, GatewayKind::Binary)?;
        assert!(
            parts
                .headers
                .keys()
                .all(|name| name != header::HOST && !name.as_str().starts_with("x-pcbridge-"))
        );
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&addressed.target), text(&addressed.host.unwrap())))
    }

    #[test]
    fn target_and_host_are_those_of_the_caller_byte_for_byte() {
        let encoded = |text: &[u8]| URL_SAFE_NO_PAD.encode(text);
        let rows = [
            (
                "http://127.0.0.1:4000/api/a?b=%2F&c",
                vec![],
                ("/api/a?b=%2F&c", "127.0.0.1:4000"),
            ),
            (
                "http://gateway.invalid/x",
                vec![("x-pcbridge-host", encoded(b"a b"))],
                ("/x", "a b"),
            ),
            (
                "http://gateway.invalid/x",
                vec![("x-pcbridge-host", String::new())],
                ("/x", ""),
            ),
            (
                "http://h/",
                vec![("x-pcbridge-target", encoded(b"/a|b#c<>"))],
                ("/a|b#c<>", "h"),
            ),
            // A caller may really say so, and is answered for it.
            ("http://gateway.invalid/x", vec![], ("/x", "gateway.invalid")),
            ("http://h/x", vec![("host", "other".to_owned())], ("/x", "h")),
        ];
        for (uri, headers, (target, host)) in rows {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            assert_eq!(
                ours(uri, &headers),
                Ok((target.to_owned(), host.to_owned())),
                "{uri} {headers:?}"
            );
        }
    }

    #[test]
    fn every_other_form_is_malformed() {
        let rows: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("http://h/", vec![("x-pcbridge-target", "not base64!")]),
            ("http://h/", vec![("x-pcbridge-target", "L2E=")]),
            ("http://h/", vec![("x-pcbridge-target", "")]),
            ("http://h/x", vec![("x-pcbridge-target", "L2E")]),
            ("http://h/?x", vec![("x-pcbridge-target", "L2E")]),
            (
                "http://h/",
                vec![("x-pcbridge-target", "L2E"), ("x-pcbridge-target", "L2E")],
            ),
            ("http://h/", vec![("x-pcbridge-host", "aA")]),
            ("http://gateway.invalid/", vec![("x-pcbridge-host", "a")]),
            (
                "http://gateway.invalid/",
                vec![("x-pcbridge-host", "aA"), ("x-pcbridge-host", "aA")],
            ),
            ("/x", vec![]),
            ("/x", vec![("x-pcbridge-host", "aA")]),
        ];
        for (uri, headers) in rows {
            assert!(ours(uri, &headers).is_err(), "{uri} {headers:?}");
        }
    }

    #[test]
    fn the_peers_script_tells_no_host_and_has_no_fields_of_ours() {
        let mut parts = parts(
            "GET",
            "http://bridge.internal:80/api?x=1",
            &[("x-pcbridge-target", "L2E"), ("accept", "*/*")],
        );

        let addressed = address(&mut parts, GatewayKind::Script).unwrap();

        assert_eq!(addressed.target, "/api?x=1");
        assert_eq!(addressed.host, None);
        assert_eq!(parts.headers.len(), 2);
    }

    #[tokio::test]
    async fn a_malformed_stream_is_answered_in_the_form_of_every_error() {
        let response = refuse(Malformed("its host is not given"));

        assert_eq!(response.status(), 400);
        let id = response.headers()["x-paperclip-bridge-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "malformed_request");
        assert_eq!(body["decided_by"], "bridge");
        assert_eq!(body["retryable"], false);
        assert_eq!(body["request_id"], id);
    }
}
