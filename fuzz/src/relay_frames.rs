//! A message of a push relay, from a Worker that may say anything.
//!
//! Laws: a slow reading finds the same boundaries; what is read and written again is the same bytes where its payload is
//! no JSON, and reads as the same frame in any case; nothing follows a fault; no frame holds more than its limit.

use bytes::{Bytes, BytesMut};
use tunnel::worker::frame::{DATA_LIMIT_BYTES, Frame, Frames, HEADER_BYTES};

/// Takes the bytes as one message.
///
/// # Panics
///
/// On a broken law.
pub fn relay_frames(data: &[u8]) {
    let shown = || data.escape_ascii().to_string();
    let mut frames = Frames::of(Bytes::copy_from_slice(data));
    let (mut at, mut fault) = (0, data.is_empty());
    for frame in frames.by_ref() {
        let Ok(frame) = frame else {
            fault = true;
            break;
        };
        let length =
            slow_length(&data[at..]).unwrap_or_else(|| panic!("a frame out of nothing: {}", shown()));
        let raw = &data[at..at + length];
        at += length;
        holds(&frame, raw, &shown);
    }
    assert_eq!(frames.next(), None, "{}", shown());
    assert!(fault || at == data.len(), "{at} of {}: {}", data.len(), shown());
}

fn holds(frame: &Frame, raw: &[u8], shown: &dyn Fn() -> String) {
    let mut written = BytesMut::new();
    frame.write(&mut written);
    let again: Vec<_> = Frames::of(written.clone().freeze()).collect();
    assert_eq!(again, [Ok(frame.clone())], "{}", shown());
    match frame {
        Frame::Hello(_) | Frame::RequestHead { .. } | Frame::ResponseHead { .. } => {}
        Frame::Data { bytes, .. } => {
            assert!(bytes.len() <= DATA_LIMIT_BYTES, "{}", shown());
            assert!(written == raw, "{}", shown());
        }
        Frame::Reset { .. }
        | Frame::Window { .. }
        | Frame::Ping(_)
        | Frame::Pong(_)
        | Frame::GoAway { .. } => assert!(written == raw, "{}", shown()),
    }
}

/// What the frame's own words say, header and payload.
fn slow_length(data: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(data.get(8..12)?.try_into().ok()?);
    let whole = HEADER_BYTES.checked_add(usize::try_from(length).ok()?)?;
    (data.len() >= whole).then_some(whole)
}
