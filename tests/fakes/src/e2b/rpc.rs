//! Connect: its frames and its errors, for the JSON codec.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Value, json};

use super::reply::{self, Reply};

/// Content type of calls with one request and one answer.
pub(super) const UNARY: &str = "application/json";
/// Content type of the others.
pub(super) const STREAM: &str = "application/connect+json";

/// The frame is the last of its stream.
const END: u8 = 2;

/// An error by its Connect name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn status(&self) -> u16 {
        match self.code {
            "invalid_argument" => 400,
            "unauthenticated" => 401,
            "permission_denied" => 403,
            "not_found" => 404,
            "already_exists" => 409,
            "resource_exhausted" => 429,
            "canceled" => 499,
            "unimplemented" => 501,
            "unavailable" => 503,
            "deadline_exceeded" => 504,
            _ => 500,
        }
    }

    fn value(&self) -> Value {
        json!({"code": self.code, "message": self.message})
    }
}

/// The answer of a call with one answer.
pub(super) fn unary(result: Result<Value, Fault>) -> Reply {
    match result {
        Ok(value) => reply::json(200, &value),
        Err(fault) => reply::json(fault.status(), &fault.value()),
    }
}

/// One message of a stream.
pub(super) fn message(value: &Value) -> Bytes {
    frame(0, value)
}

/// The end of a stream.
pub(super) fn end(fault: Option<&Fault>) -> Bytes {
    match fault {
        Some(fault) => frame(END, &json!({"error": fault.value()})),
        None => frame(END, &json!({})),
    }
}

fn frame(flags: u8, value: &Value) -> Bytes {
    let payload = value.to_string();
    let mut frame = BytesMut::with_capacity(payload.len() + 5);
    frame.put_u8(flags);
    frame.put_u32(u32::try_from(payload.len()).expect("a frame below 4 GiB"));
    frame.put_slice(payload.as_bytes());
    frame.freeze()
}

/// Takes the first whole frame off `buffer`.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Value>, Fault> {
    let Some(head) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let length = usize::try_from(length).expect("64 bits");
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    let frame = buffer.split_to(5 + length);
    parse(&frame[5..]).map(Some)
}

/// A message; an empty one is one of defaults.
pub(super) fn parse(payload: &[u8]) -> Result<Value, Fault> {
    if payload.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(payload)
        .map_err(|error| Fault::new("invalid_argument", format!("unmarshal message: {error}")))
}
