//! What passes on the channel, read from frame heads alone.
//!
//! Here: two facts that `h2` does not tell and that an honest answer needs: whether a stream's HEADERS have left, and
//! up to which stream the host promised to look at (GOAWAY). Not here: HTTP/2 itself; a mistake in a frame is h2's to
//! find.
//!
//! Source: RFC 9113 sections 3.4, 4.1 and 6.8.

const HEADERS: u8 = 0x1;
const GOAWAY: u8 = 0x7;
const FRAME_HEAD: usize = 9;
/// The connection preface of a client, which is no frame.
const PREFACE: usize = 24;
/// Without the reserved bit.
const STREAM_ID: u32 = 0x7fff_ffff;

/// A frame that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A stream was opened.
    Headers(u32),
    /// Streams above this one were not and will not be looked at.
    GoAway(u32),
}

/// Reads one direction, however it is cut up.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes that are no frames, or belong to a payload without interest.
    skip: usize,
    /// A frame head, and of GOAWAY the first four bytes behind it.
    held: [u8; FRAME_HEAD + 4],
    have: usize,
}

impl Frames {
    /// What a client sends: the preface first, behind `before` bytes that are not HTTP/2.
    pub(super) fn of_client(before: usize) -> Self {
        Self {
            skip: before + PREFACE,
            ..Self::of_server()
        }
    }

    /// What a server sends.
    pub(super) fn of_server() -> Self {
        Self {
            skip: 0,
            held: [0; FRAME_HEAD + 4],
            have: 0,
        }
    }

    /// Takes the next bytes and tells what they complete. Linear in the frames, not in the bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Seen)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            if let Some(place) = self.held.get_mut(self.have) {
                *place = *byte;
            }
            self.have += 1;
            bytes = rest;
            self.look(&mut tell);
        }
    }

    fn look(&mut self, tell: &mut impl FnMut(Seen)) {
        let [l0, l1, l2, kind, _, s0, s1, s2, s3, p0, p1, p2, p3] = self.held;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        if self.have == FRAME_HEAD {
            if kind == GOAWAY && length >= 4 {
                return;
            }
            if kind == HEADERS {
                tell(Seen::Headers(u32::from_be_bytes([s0, s1, s2, s3]) & STREAM_ID));
            }
            self.skip = length;
            self.have = 0;
        } else if self.have == FRAME_HEAD + 4 {
            tell(Seen::GoAway(u32::from_be_bytes([p0, p1, p2, p3]) & STREAM_ID));
            self.skip = length - 4;
            self.have = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, 0]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn streams_and_goaway_are_found_however_the_bytes_are_cut() {
        let mut bytes = b"READY PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(0x4, 0, &[0; 12]));
        bytes.extend(frame(0x1, 1, b"\x01\x07block"));
        bytes.extend(frame(0x0, 1, &[0x1; 300]));
        bytes.extend(frame(0x1, 0x8000_0003, b""));
        bytes.extend(frame(0x7, 0, b"\x80\x00\x00\x05\x00\x00\x00\x00debug"));
        bytes.extend(frame(0x7, 0, b""));
        bytes.extend(frame(0x1, 7, b"x"));

        for piece in [1, 2, 9, 13, 100, usize::MAX] {
            let (mut frames, mut seen) = (Frames::of_client(6), Vec::new());
            for chunk in bytes.chunks(piece) {
                frames.feed(chunk, |one| seen.push(one));
            }
            assert_eq!(
                seen,
                [
                    Seen::Headers(1),
                    Seen::Headers(3),
                    Seen::GoAway(5),
                    Seen::Headers(7)
                ],
                "pieces of {piece}"
            );
        }
    }
}
