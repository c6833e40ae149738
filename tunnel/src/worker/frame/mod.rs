//! The frames of a Worker's push relay: bytes to values and back.
//!
//! Here: [`Frames`], which takes one binary WebSocket message apart, and [`Frame`], which writes itself. Strict: a frame
//! that is not exactly of its form is a fault, since both ends are ours. Not here: which frame may come when
//! (`streams`, `serve`).
//!
//! A message holds one or more whole frames. A frame is `u8 type, u8 flags, u16 0, u32 stream, u32 length, payload`,
//! big-endian; flag 1 ends the sender's half of the stream.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// What stands in front of each payload.
pub const HEADER_BYTES: usize = 12;
/// The longest message that is taken.
pub const MESSAGE_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// The longest payload of a [`Frame::Data`], either way.
pub const DATA_LIMIT_BYTES: usize = 64 * 1024;
/// The longest head of a request or an answer: 128 KiB of fields, each byte written as an escape at worst.
pub const HEAD_LIMIT_BYTES: usize = 512 * 1024;
/// The longest [`Hello`].
const HELLO_LIMIT_BYTES: usize = 4096;
/// The longest text of a reset or a farewell.
const TEXT_LIMIT_BYTES: usize = 1024;
/// Flag: the sender's half of the stream ends with this frame.
const END: u8 = 1;

const HELLO: u8 = 1;
const REQUEST_HEAD: u8 = 2;
const DATA: u8 = 3;
const RESPONSE_HEAD: u8 = 4;
const RESET: u8 = 5;
const WINDOW: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const GO_AWAY: u8 = 9;

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The first of each side.
    Hello(Hello),
    /// A callback begins; from the Worker.
    RequestHead {
        /// The stream that it opens.
        stream: u32,
        /// There is no body.
        end: bool,
        /// What is asked.
        head: RequestHead,
    },
    /// A piece of a body.
    Data {
        /// Whose body.
        stream: u32,
        /// Nothing follows.
        end: bool,
        /// At most [`DATA_LIMIT_BYTES`].
        bytes: Bytes,
    },
    /// An answer begins; from the daemon.
    ResponseHead {
        /// The stream it answers.
        stream: u32,
        /// There is no body.
        end: bool,
        /// Status and fields.
        head: ResponseHead,
    },
    /// The stream is over, and what came of it is not whole.
    Reset {
        /// Which.
        stream: u32,
        /// Why, for programs.
        code: ResetCode,
        /// Why, for the log.
        text: String,
    },
    /// So many more bytes of bodies may be sent.
    Window {
        /// On this stream; 0: on the whole connection.
        stream: u32,
        /// Never 0.
        credit: u32,
    },
    /// Asks whether the other side is there.
    Ping([u8; 8]),
    /// It is.
    Pong([u8; 8]),
    /// What is open is finished, and no stream is opened any more.
    GoAway {
        /// The last stream that is still looked after.
        last_stream: u32,
        /// Why, for programs.
        code: u32,
        /// Why, for the log.
        text: String,
    },
}

/// Who speaks, and what it is ready to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Version of these frames: 1.
    pub v: u32,
    /// The Durable Object.
    pub bridge_id: String,
    /// Which life of the daemon; a higher one supersedes a lower one.
    pub epoch: u64,
    /// The longest payload of a [`Frame::Data`] that the sender takes.
    pub max_frame: u32,
    /// Bytes of one body that it takes before it gives credit.
    pub window: u32,
    /// Bytes of all bodies together.
    pub conn_window: u32,
}

/// What a caller asks, as the Worker saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestHead {
    /// As the caller wrote it.
    pub method: String,
    /// Below the relay's own base path, not decoded.
    pub path: String,
    /// With or without its question mark; empty for none.
    #[serde(default)]
    pub query: String,
    /// The `Host` that the caller named.
    pub host: String,
    /// Without `Host` and without fields that concern one hop.
    pub headers: Vec<(String, String)>,
    /// When the Worker took it, in milliseconds of its own clock.
    pub received: u64,
    /// When it gives up, by the same clock.
    #[serde(default)]
    pub deadline: Option<u64>,
    /// The agent's run, where the Worker knows it.
    #[serde(default)]
    pub run: Option<String>,
}

/// Status and fields of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHead {
    /// 200 to 599.
    pub status: u16,
    /// Without fields that concern one hop.
    pub headers: Vec<(String, String)>,
}

/// Why a stream is over before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCode {
    /// The caller has gone.
    Cancel,
    /// It took too long.
    Timeout,
    /// It had no effect; it may be sent again.
    Refused,
    /// It broke, and what became of it is not known here.
    Internal,
    /// More was sent than there was credit for.
    Flow,
    /// A code that this build has no name for.
    Other(u32),
}

impl ResetCode {
    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Cancel,
            2 => Self::Timeout,
            3 => Self::Refused,
            4 => Self::Internal,
            5 => Self::Flow,
            other => Self::Other(other),
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Cancel => 1,
            Self::Timeout => 2,
            Self::Refused => 3,
            Self::Internal => 4,
            Self::Flow => 5,
            Self::Other(number) => number,
        }
    }
}

/// Why a message is not taken; the connection ends with it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameFault {
    /// The message, or a frame in it, is longer than it may be.
    #[error("the relay sent {what} of {bytes} bytes; at most {limit} are taken")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The message ends within a frame.
    #[error("the relay sent a message that ends within a frame")]
    Cut,
    /// A frame is not of its form.
    #[error("the relay sent a frame that is not of its form: {0}")]
    Form(&'static str),
    /// A type that does not exist.
    #[error("the relay sent a frame of the unknown type {0}")]
    Unknown(u8),
}

/// The frames of one message, in order; after the first fault there is nothing more.
#[derive(Debug)]
pub struct Frames {
    rest: Bytes,
    fault: Option<FrameFault>,
}

impl Frames {
    /// Takes one binary message; an empty one holds no frame and is cut.
    #[must_use]
    pub fn of(message: Bytes) -> Self {
        let fault = if message.is_empty() {
            Some(FrameFault::Cut)
        } else {
            within("a message", message.len(), MESSAGE_LIMIT_BYTES).err()
        };
        Self { rest: message, fault }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(fault) = self.fault.take() {
            self.rest.clear();
            return Some(Err(fault));
        }
        if self.rest.is_empty() {
            return None;
        }
        let frame = take(&mut self.rest);
        if frame.is_err() {
            self.rest.clear();
        }
        Some(frame)
    }
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), FrameFault> {
    if bytes > limit {
        return Err(FrameFault::TooLong { what, bytes, limit });
    }
    Ok(())
}

fn take(rest: &mut Bytes) -> Result<Frame, FrameFault> {
    if rest.len() < HEADER_BYTES {
        return Err(FrameFault::Cut);
    }
    let (kind, flags, reserved) = (rest.get_u8(), rest.get_u8(), rest.get_u16());
    let stream = rest.get_u32();
    let length = usize::try_from(rest.get_u32()).unwrap_or(usize::MAX);
    let form = |right: bool, fault| right.then_some(()).ok_or(FrameFault::Form(fault));
    form(reserved == 0, "the reserved field is not 0")?;
    form(flags & !END == 0, "it has a flag that does not exist")?;
    let of_body = matches!(kind, REQUEST_HEAD | DATA | RESPONSE_HEAD);
    form(flags == 0 || of_body, "it ends a half that it is not of")?;
    let of_stream = of_body || kind == RESET || (kind == WINDOW && stream != 0);
    form(of_stream == (stream != 0), "its stream is not one of its kind")?;
    let limit = match kind {
        HELLO => HELLO_LIMIT_BYTES,
        REQUEST_HEAD | RESPONSE_HEAD => HEAD_LIMIT_BYTES,
        DATA => DATA_LIMIT_BYTES,
        RESET => 4 + TEXT_LIMIT_BYTES,
        WINDOW => 4,
        PING | PONG => 8,
        GO_AWAY => 8 + TEXT_LIMIT_BYTES,
        unknown => return Err(FrameFault::Unknown(unknown)),
    };
    within("a frame", length, limit)?;
    if length > rest.len() {
        return Err(FrameFault::Cut);
    }
    let mut payload = rest.split_to(length);
    let end = flags & END != 0;
    let frame = match kind {
        HELLO => Frame::Hello(json(&payload)?),
        REQUEST_HEAD => Frame::RequestHead {
            stream,
            end,
            head: json(&payload)?,
        },
        DATA => Frame::Data {
            stream,
            end,
            bytes: std::mem::take(&mut payload),
        },
        RESPONSE_HEAD => Frame::ResponseHead {
            stream,
            end,
            head: json(&payload)?,
        },
        RESET => Frame::Reset {
            stream,
            code: ResetCode::from_number(number(&mut payload)?),
            text: text(&payload)?,
        },
        WINDOW => Frame::Window {
            stream,
            credit: number(&mut payload)?,
        },
        PING => Frame::Ping(eight(&payload)?),
        PONG => Frame::Pong(eight(&payload)?),
        // The limits above name every other type.
        _ => Frame::GoAway {
            last_stream: number(&mut payload)?,
            code: number(&mut payload)?,
            text: text(&payload)?,
        },
    };
    let whole = kind != WINDOW || payload.is_empty();
    form(whole, "its payload is too long")?;
    form(
        !matches!(frame, Frame::Window { credit: 0, .. }),
        "it gives no credit",
    )?;
    Ok(frame)
}

fn json<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Result<T, FrameFault> {
    serde_json::from_slice(payload).map_err(|_| FrameFault::Form("its JSON is not what it should be"))
}

fn number(payload: &mut Bytes) -> Result<u32, FrameFault> {
    payload
        .try_get_u32()
        .map_err(|_| FrameFault::Form("its payload is too short"))
}

fn text(payload: &[u8]) -> Result<String, FrameFault> {
    let text = std::str::from_utf8(payload).map_err(|_| FrameFault::Form("its text is not UTF-8"))?;
    Ok(text.to_owned())
}

fn eight(payload: &[u8]) -> Result<[u8; 8], FrameFault> {
    payload
        .try_into()
        .map_err(|_| FrameFault::Form("its payload is not of 8 bytes"))
}

impl Frame {
    /// Appends the frame to a message. Text that is too long is cut; a body must come in pieces that fit.
    pub fn write(&self, message: &mut BytesMut) {
        match self {
            Self::Hello(hello) => put(message, HELLO, false, 0, &[&to_json(hello)]),
            Self::RequestHead { stream, end, head } => {
                put(message, REQUEST_HEAD, *end, *stream, &[&to_json(head)]);
            }
            Self::Data { stream, end, bytes } => put(message, DATA, *end, *stream, &[bytes]),
            Self::ResponseHead { stream, end, head } => {
                put(message, RESPONSE_HEAD, *end, *stream, &[&to_json(head)]);
            }
            Self::Reset { stream, code, text } => {
                let code = code.number().to_be_bytes();
                put(message, RESET, false, *stream, &[&code, short(text)]);
            }
            Self::Window { stream, credit } => {
                put(message, WINDOW, false, *stream, &[&credit.to_be_bytes()]);
            }
            Self::Ping(word) => put(message, PING, false, 0, &[word]),
            Self::Pong(word) => put(message, PONG, false, 0, &[word]),
            Self::GoAway {
                last_stream,
                code,
                text,
            } => {
                let (last, code) = (last_stream.to_be_bytes(), code.to_be_bytes());
                put(message, GO_AWAY, false, 0, &[&last, &code, short(text)]);
            }
        }
    }
}

fn put(message: &mut BytesMut, kind: u8, end: bool, stream: u32, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    message.reserve(HEADER_BYTES + length);
    message.put_u8(kind);
    message.put_u8(if end { END } else { 0 });
    message.put_u16(0);
    message.put_u32(stream);
    // The limits are far below.
    message.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for part in payload {
        message.put_slice(part);
    }
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings and numbers only: this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn short(text: &str) -> &[u8] {
    let mut end = text.len().min(TEXT_LIMIT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.as_bytes().get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
