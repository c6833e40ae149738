//! The frames that the server inside an E2B sandbox streams, and the events in them.
//!
//! Laws: the same bytes are the same frames however they are cut; a slow reading of the whole agrees; a frame is
//! refused by its head, before its payload came; nothing comes after the end; no event names a pid that would mean
//! more than one process; what we frame ourselves is read back.

use runners::e2b::connect::{Event, FRAME_LIMIT_BYTES, Frame, FrameFault, FrameReader, RpcFault, message};
use serde_json::{Map, Value};

/// Longer inputs are not cut into single bytes.
const MOST_IN_BYTES: usize = 8192;

/// Takes the bytes as the body of an answer.
///
/// # Panics
///
/// On a broken law.
pub fn connect_frames(data: &[u8]) {
    let shown = || data.escape_ascii().to_string();
    let slow = slowly(data);
    let mut sizes = vec![usize::MAX, 7, 4096];
    if data.len() <= MOST_IN_BYTES {
        sizes.push(1);
    }
    for size in sizes {
        assert_eq!(in_pieces(data, size), slow, "in pieces of {size}: {}", shown());
    }
    for frame in &slow.0 {
        let Frame::Message(value) = frame else { continue };
        if let Ok(Event::Started { pid }) = Event::parse(value) {
            assert!(pid > 1, "{}", shown());
        }
        let again = in_pieces(&message(value), usize::MAX);
        // Its text read once more, because the JSON library does not keep every digit of a float.
        let said: Value = serde_json::from_str(&value.to_string()).expect("a value's own text is JSON");
        let text = |frame: &Frame| match frame {
            Frame::Message(value) => value.to_string(),
            Frame::End(_) => "an end".to_owned(),
        };
        assert_eq!(
            again.0.iter().map(text).collect::<Vec<_>>(),
            [said.to_string()],
            "{}",
            shown()
        );
        assert_eq!(again.1, None);
    }
}

fn in_pieces(data: &[u8], size: usize) -> (Vec<Frame>, Option<FrameFault>) {
    let mut reader = FrameReader::default();
    let mut frames = vec![];
    for piece in data.chunks(size.min(data.len().max(1))) {
        reader.feed(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault)),
            }
        }
    }
    (frames, None)
}

/// The Connect protocol, "Streaming RPCs", read anew.
fn slowly(data: &[u8]) -> (Vec<Frame>, Option<FrameFault>) {
    let mut frames = vec![];
    let mut at = 0;
    while let Some(head) = data.get(at..at + 5) {
        let length = head
            .iter()
            .skip(1)
            .fold(0_usize, |length, byte| length * 256 + usize::from(*byte));
        let flags = head.first().copied().unwrap_or_default();
        let fault = match flags {
            0 | 2 if length > FRAME_LIMIT_BYTES => Some(FrameFault::TooLong(length)),
            0 | 2 => None,
            odd if odd % 2 == 1 => Some(FrameFault::Compressed),
            other => Some(FrameFault::Flags(other)),
        };
        if fault.is_some() {
            return (frames, fault);
        }
        let Some(payload) = data.get(at + 5..at + 5 + length) else {
            break;
        };
        at += 5 + length;
        match (flags, frame(flags, payload)) {
            (_, None) => return (frames, Some(FrameFault::NotJson)),
            (2, Some(frame)) => {
                frames.push(frame);
                break;
            }
            (_, Some(frame)) => frames.push(frame),
        }
    }
    (frames, None)
}

fn frame(flags: u8, payload: &[u8]) -> Option<Frame> {
    if flags == 0 {
        return serde_json::from_slice(payload).ok().map(Frame::Message);
    }
    let end: Map<String, Value> = serde_json::from_slice(payload).ok()?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    };
    match end.get("error") {
        None | Some(Value::Null) => Some(Frame::End(None)),
        Some(Value::Object(error)) => Some(Frame::End(Some(RpcFault {
            code: error.get("code").map(text).unwrap_or_default(),
            message: error.get("message").map(text).unwrap_or_default(),
        }))),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => None,
    }
}
