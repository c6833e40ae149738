//! Answers: JSON, errors of both planes, bytes, streams.

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

/// A body; an error in it closes the connection without an end of the body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer, or an error that closes the connection without one.
pub(super) type Reply = Result<Response<Body>, io::Error>;

/// `bytes` as a body.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Frames as they come.
pub(super) fn streamed(
    content_type: &str,
    frames: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Reply {
    use futures_util::StreamExt as _;
    let body = StreamBody::new(frames.map(|frame| frame.map(Frame::data)));
    Ok(with_type(StatusCode::OK, content_type, body.boxed_unsync()))
}

/// An answer of this type.
pub(super) fn with_type(status: StatusCode, content_type: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body)
        .expect("a valid response")
}

/// `value` as JSON.
pub(super) fn json(status: u16, value: &Value) -> Reply {
    let status = StatusCode::from_u16(status).expect("a status");
    Ok(with_type(status, "application/json", full(value.to_string())))
}

/// A status alone.
pub(super) fn empty(status: u16) -> Reply {
    Ok(Response::builder()
        .status(status)
        .body(full(Bytes::new()))
        .expect("a valid response"))
}

/// An error of the control plane or of `/files`: the code is the status, as a number.
pub(super) fn fault(status: u16, message: &str) -> Reply {
    json(status, &json!({"code": status, "message": message}))
}

/// What the edge says for a sandbox that does not run.
pub(super) fn no_sandbox(id: &str) -> Reply {
    json(
        502,
        &json!({"sandboxId": id, "message": "The sandbox was not found", "code": 502}),
    )
}

/// Closes the connection.
pub(super) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the fake")
}
