//! One request to the fake: read, remembered, made to fail where a test says so, and routed.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::world::{Call, Fault, Shared};
use super::{API_KEY, control, toolbox};

pub(super) type Answer = Response<Full<Bytes>>;

/// A request as the routes see it.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Decoded, without the empty one ahead of the first slash.
    pub(super) segments: Vec<String>,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// For a WebSocket: what becomes of the connection.
    pub(super) upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl Asked {
    /// The body as JSON; null where it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(super) fn query(&self, key: &str) -> Option<&str> {
        let found = self.query.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Method and path for matching: `("POST", ["process", "execute"])`.
    pub(super) fn route(&self, skip: usize) -> (&str, Vec<&str>) {
        let path = self.segments.iter().skip(skip).map(String::as_str);
        (self.method.as_str(), path.collect())
    }
}

/// Answers one request; an error cuts the connection.
pub(super) async fn serve(shared: Arc<Shared>, mut request: Request<Incoming>) -> io::Result<Answer> {
    let upgrade = request
        .headers()
        .contains_key("sec-websocket-key")
        .then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let line = format!("{} {}", parts.method, parts.uri);
    let headers = parts.headers.iter();
    let call = Call {
        line: line.clone(),
        headers: headers
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let (fault, latency) = {
        let mut world = shared.world();
        world.calls.push(call);
        let at = world
            .faults
            .iter()
            .position(|(what, _)| line.contains(what.as_str()));
        (
            at.and_then(|at| world.faults.remove(at)).map(|(_, fault)| fault),
            world.latency,
        )
    };
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let asked = Asked {
        method: parts.method,
        segments: parts
            .uri
            .path()
            .split('/')
            .skip(1)
            .map(|segment| decoded(segment, false))
            .collect(),
        query: pairs(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        body,
        upgrade,
    };
    let answer = match fault {
        Some(Fault::Status(status)) => error(status, "FAKE_FAULT", "the test asked for this failure"),
        Some(Fault::NoAnswer) => {
            drop(route(&shared, asked).await);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        None => route(&shared, asked).await,
    };
    Ok(answer)
}

async fn route(shared: &Arc<Shared>, asked: Asked) -> Answer {
    let key = shared.world().key.clone();
    let expected = format!("Bearer {}", key.as_deref().unwrap_or(API_KEY));
    let authorized = asked.headers.get(AUTHORIZATION);
    if authorized.is_none_or(|value| value.as_bytes() != expected.as_bytes()) {
        return error(401, "UNAUTHORIZED", "Invalid credentials");
    }
    match asked.segments.first().map(String::as_str) {
        Some("api") => control::route(shared, &asked),
        Some("toolbox") => toolbox::route(shared, asked).await,
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}

/// A JSON answer.
pub(super) fn answer(status: u16, body: &Value) -> Answer {
    let mut response = raw(status, "application/json", body.to_string().into());
    if body.is_null() {
        *response.body_mut() = Full::default();
    }
    response
}

/// An answer with a body of any kind.
pub(super) fn raw(status: u16, content_type: &str, body: Bytes) -> Answer {
    let response = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    response
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(body))
        .expect("the fake's own header fields are valid")
}

/// An error as the service writes it.
pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({
        "statusCode": status,
        "message": message,
        "code": code,
        "source": "DAYTONA_DAEMON",
        "path": "",
        "method": "",
        "timestamp": "2026-01-01T00:00:00Z",
    });
    answer(status, &body)
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key, true), decoded(value, true))
        })
        .collect()
}

fn decoded(text: &str, form: bool) -> String {
    let mut bytes = text.bytes();
    let mut decoded = vec![];
    while let Some(byte) = bytes.next() {
        let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next()), hex(bytes.next()));
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                decoded.extend(value.and_then(|value| u8::try_from(value).ok()));
            }
            b'+' if form => decoded.push(b' '),
            other => decoded.push(other),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
