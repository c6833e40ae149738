//! The frames in which the server inside a sandbox streams, and what is in them.
//!
//! Here: [`FrameReader`], [`message`] and [`Event`], without any IO. Not here: calls (`envd`). The JSON codec
//! leaves out what is a default and writes bytes as base64.
//!
//! Source: the Connect protocol, "Streaming RPCs": one byte of flags, four of length, big endian, and the payload.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde_json::{Map, Value};

/// Longest payload taken: 32 KiB of output are 44 KiB of JSON.
pub const FRAME_LIMIT_BYTES: usize = 1024 * 1024;
/// Flags and length.
const HEAD_BYTES: usize = 5;
/// The payload is compressed; we ask for none that is.
const COMPRESSED: u8 = 1;
/// The payload is the end of the stream.
const END: u8 = 2;

/// Why a stream cannot be read any further.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameFault {
    /// Its length says so; nothing of it is held.
    #[error("a frame of {0} bytes; at most {FRAME_LIMIT_BYTES} are taken")]
    TooLong(usize),
    /// Nobody asked for that.
    #[error("a compressed frame")]
    Compressed,
    /// There are only two flags.
    #[error("a frame with unknown flags {0:#04x}")]
    Flags(u8),
    /// Not what the codec makes.
    #[error("a frame that is not the JSON of a message")]
    NotJson,
}

/// One frame, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// A message.
    Message(Value),
    /// The last one: the stream ended well, or with an error.
    End(Option<RpcFault>),
}

/// An error as the server names it.
#[derive(Clone, Debug, Default, thiserror::Error, PartialEq, Eq)]
#[error("{code}: {message}")]
pub struct RpcFault {
    /// Such as `not_found`; the server's own errors have a number there. Empty where there is none.
    pub code: String,
    /// In its words.
    pub message: String,
}

impl RpcFault {
    /// Reads the JSON of an error; none where that is no object.
    #[must_use]
    pub fn read(error: &Value) -> Option<Self> {
        let text = |value: Option<&Value>| match value {
            None => String::new(),
            Some(value) => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        };
        let error = error.as_object()?;
        Some(Self {
            code: text(error.get("code")),
            message: text(error.get("message")),
        })
    }
}

/// Cuts a stream of bytes into frames; holds at most one.
#[derive(Debug, Default)]
pub struct FrameReader {
    held: BytesMut,
    ended: bool,
}

impl FrameReader {
    /// Takes what came. What comes after the end of the stream is dropped.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.held.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, if there is one; none after the end.
    ///
    /// # Errors
    ///
    /// [`FrameFault`]; nothing after it can be read.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameFault> {
        let Some([flags, length @ ..]) = self.held.first_chunk::<HEAD_BYTES>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if flags & COMPRESSED != 0 {
            return Err(FrameFault::Compressed);
        }
        if flags & !END != 0 {
            return Err(FrameFault::Flags(flags));
        }
        if length > FRAME_LIMIT_BYTES {
            return Err(FrameFault::TooLong(length));
        }
        if self.held.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.held.advance(HEAD_BYTES);
        let payload = self.held.split_to(length);
        if flags & END == 0 {
            let value = serde_json::from_slice(&payload).map_err(|_| FrameFault::NotJson)?;
            return Ok(Some(Frame::Message(value)));
        }
        self.ended = true;
        self.held.clear();
        let end: Map<String, Value> = serde_json::from_slice(&payload).map_err(|_| FrameFault::NotJson)?;
        match end.get("error") {
            None | Some(Value::Null) => Ok(Some(Frame::End(None))),
            Some(error) => match RpcFault::read(error) {
                Some(fault) => Ok(Some(Frame::End(Some(fault)))),
                None => Err(FrameFault::NotJson),
            },
        }
    }
}

/// `value` as the one frame of a request.
#[must_use]
pub fn message(value: &Value) -> Bytes {
    let payload = value.to_string();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    frame.put_u8(0);
    // Requests are far below 4 GiB; a length that is not would be refused by the server.
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.put_slice(payload.as_bytes());
    frame.freeze()
}

/// What happens to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It runs, or it is followed again.
    Started {
        /// Its id in the sandbox.
        pid: u32,
    },
    /// It wrote to stdout.
    Stdout(Bytes),
    /// It wrote to stderr.
    Stderr(Bytes),
    /// It has ended, and so have all who held its outputs.
    Ended(End),
    /// Nothing, said from time to time; and whatever this version does not know.
    Idle,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its status, where it exited.
    pub exit_code: Option<i32>,
    /// The signal's name without `SIG`, where one ended it.
    pub signal: Option<String>,
}

impl Event {
    /// Reads the message of a process's stream.
    ///
    /// # Errors
    ///
    /// [`FrameFault::NotJson`] for what is none.
    pub fn parse(message: &Value) -> Result<Self, FrameFault> {
        let event = message.get("event").ok_or(FrameFault::NotJson)?;
        if let Some(start) = event.get("start") {
            let pid = start.get("pid").and_then(Value::as_u64);
            let pid = pid.and_then(|pid| u32::try_from(pid).ok());
            // 0 and 1 would mean our own group and every process to the command that ends it.
            let pid = pid.filter(|pid| *pid > 1).ok_or(FrameFault::NotJson)?;
            return Ok(Self::Started { pid });
        }
        if let Some(data) = event.get("data") {
            let bytes = |text: &Value| -> Result<Bytes, FrameFault> {
                let text = text.as_str().ok_or(FrameFault::NotJson)?;
                let bytes = STANDARD.decode(text).map_err(|_| FrameFault::NotJson)?;
                Ok(bytes.into())
            };
            return match (data.get("stdout"), data.get("stderr")) {
                (Some(text), _) => bytes(text).map(Self::Stdout),
                (None, Some(text)) => bytes(text).map(Self::Stderr),
                (None, None) => Ok(Self::Idle),
            };
        }
        match event.get("end") {
            Some(end) => Ok(Self::Ended(End::read(end))),
            None => Ok(Self::Idle),
        }
    }
}

impl End {
    fn read(end: &Value) -> Self {
        let status = end.get("status").and_then(Value::as_str).unwrap_or_default();
        if let Some(text) = status.strip_prefix("signal: ") {
            return Self {
                exit_code: None,
                signal: Some(signal_name(text)),
            };
        }
        let code = end.get("exitCode").and_then(Value::as_i64).unwrap_or(0);
        Self {
            exit_code: Some(i32::try_from(code).unwrap_or(i32::MAX)),
            signal: None,
        }
    }
}

/// A signal's name from the words that the server has for it.
fn signal_name(text: &str) -> String {
    let text = text.strip_suffix(" (core dumped)").unwrap_or(text);
    let name = match text {
        "hangup" => "HUP",
        "interrupt" => "INT",
        "quit" => "QUIT",
        "illegal instruction" => "ILL",
        "trace/breakpoint trap" => "TRAP",
        "aborted" => "ABRT",
        "bus error" => "BUS",
        "floating point exception" => "FPE",
        "killed" => "KILL",
        "user defined signal 1" => "USR1",
        "segmentation fault" => "SEGV",
        "user defined signal 2" => "USR2",
        "broken pipe" => "PIPE",
        "alarm clock" => "ALRM",
        "terminated" => "TERM",
        "CPU time limit exceeded" => "XCPU",
        "file size limit exceeded" => "XFSZ",
        "bad system call" => "SYS",
        other => other.strip_prefix("signal ").unwrap_or(other),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Frame>, FrameFault> {
        let mut reader = FrameReader::default();
        reader.feed(bytes);
        let mut frames = vec![];
        while let Some(frame) = reader.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn framed(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[flags], &length[..], payload].concat()
    }

    #[test]
    fn what_is_left_out_is_a_default() {
        let end = |value| Event::parse(&json!({"event": {"end": value}})).unwrap();
        let exited = |code| {
            Event::Ended(End {
                exit_code: Some(code),
                signal: None,
            })
        };

        assert_eq!(end(json!({"exited": true, "status": "exit status 0"})), exited(0));
        assert_eq!(
            end(json!({"exitCode": 3, "exited": true, "status": "exit status 3"})),
            exited(3)
        );
        let killed = Event::Ended(End {
            exit_code: None,
            signal: Some("KILL".to_owned()),
        });
        assert_eq!(end(json!({"exitCode": -1, "status": "signal: killed"})), killed);
        assert_eq!(
            Event::parse(&json!({"event": {"keepalive": {}}})),
            Ok(Event::Idle)
        );
    }

    #[test]
    fn a_pid_that_would_mean_more_than_one_process_is_none() {
        for pid in [
            json!(0),
            json!(1),
            json!(-7),
            json!(4_294_967_296_u64),
            json!("7"),
            json!(null),
        ] {
            let message = json!({"event": {"start": {"pid": pid}}});

            assert_eq!(Event::parse(&message), Err(FrameFault::NotJson), "{message}");
        }
    }

    #[test]
    fn an_error_at_the_end_is_told_by_name_or_number() {
        let end = |payload: &[u8]| read(&framed(2, payload)).unwrap().remove(0);

        assert_eq!(end(b"{}"), Frame::End(None));
        let Frame::End(Some(fault)) = end(br#"{"error":{"code":"not_found","message":"gone"}}"#) else {
            panic!("no error")
        };
        assert_eq!(fault.to_string(), "not_found: gone");
        let Frame::End(Some(fault)) = end(br#"{"error":{"code":401}}"#) else {
            panic!("no error")
        };
        assert_eq!(fault.code, "401");
    }

    #[test]
    fn a_frame_is_refused_by_its_head_alone() {
        assert_eq!(read(&[1, 0, 0, 0, 1]), Err(FrameFault::Compressed));
        assert_eq!(read(&[8, 0, 0, 0, 1]), Err(FrameFault::Flags(8)));
        assert_eq!(
            read(&[0, 255, 255, 255, 255]),
            Err(FrameFault::TooLong(u32::MAX as usize))
        );
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_they_are_cut(
            texts in proptest::collection::vec(".{0,40}", 0..6),
            cuts in proptest::collection::vec(1_usize..9, 0..60),
        ) {
            let mut bytes: Vec<u8> = texts.iter().flat_map(|text| message(&json!(text))).collect();
            bytes.extend(framed(2, b"{}"));
            let mut reader = FrameReader::default();
            let mut frames = vec![];
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                reader.feed(now);
                rest = later;
                while let Some(frame) = reader.next_frame().unwrap() {
                    frames.push(frame);
                }
            }

            let wanted = texts.into_iter().map(|text| Frame::Message(json!(text))).chain([Frame::End(None)]);
            prop_assert_eq!(frames, wanted.collect::<Vec<_>>());
        }
    }
}
