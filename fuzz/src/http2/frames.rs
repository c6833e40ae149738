//! A second opinion on what a gateway says on its connection.
//!
//! Here: RFC 9113 as far as it delimits requests, on the whole input at once. It reads on where the bridge gives up, so
//! that it finds all that anybody could, and stops where nobody could tell what follows. Not here: header lists
//! (`hpack`).

use super::hpack::{Field, Hpack};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// One request as the gateway wrote it.
pub(super) struct Asked {
    pub(super) stream: u32,
    pub(super) fields: Vec<Field>,
    pub(super) body: Vec<u8>,
    /// It was said to end.
    pub(super) ended: bool,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "stream {}:", self.stream)?;
        for (name, value) in &self.fields {
            write!(out, " {}: {};", name.escape_ascii(), value.escape_ascii())?;
        }
        let end = if self.ended { "" } else { ", and more" };
        write!(out, " body b\"{}\"{end}", self.body.escape_ascii())
    }
}

impl Asked {
    /// All values of one field.
    pub(super) fn values(&self, name: &str) -> Vec<&[u8]> {
        self.fields
            .iter()
            .filter(|(have, _)| have == name.as_bytes())
            .map(|(_, value)| value.as_slice())
            .collect()
    }

    /// The value of a pseudo-header. Where one stands twice, the first is the request's, for policy and upstream alike.
    pub(super) fn pseudo(&self, name: &str) -> Option<&[u8]> {
        self.values(name).first().copied()
    }

    /// The value of a field that stands there once.
    pub(super) fn only(&self, name: &str) -> Option<&[u8]> {
        match self.values(name).as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// One frame.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    flags: u8,
    stream: u32,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and, in front of headers, without a priority.
    fn content(&self) -> Option<&[u8]> {
        let mut content = self.payload;
        if self.has(PADDED) {
            let (padding, rest) = content.split_first()?;
            content = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
        }
        if self.kind == HEADERS && self.has(PRIORITY) {
            content = content.get(5..)?;
        }
        Some(content)
    }
}

/// The whole frames in `bytes`, and whether nothing is left over.
pub(super) fn frames(mut bytes: &[u8]) -> (Vec<Frame<'_>>, bool) {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let [high, middle, low, kind, flags, stream @ ..] = *head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        bytes = rest;
        frames.push(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
            payload,
        });
    }
    (frames, bytes.is_empty())
}

/// All requests in `bytes`, which follow the preface, and whether the last frame is whole.
pub(super) fn requests(bytes: &[u8]) -> (Vec<Asked>, bool) {
    let (frames, whole) = frames(bytes);
    let mut asked: Vec<Asked> = Vec::new();
    let mut hpack = Hpack::default();
    let mut left = frames.iter();
    while let Some(frame) = left.next() {
        match frame.kind {
            HEADERS => {
                let Some(block) = block(frame, &mut left) else {
                    return (asked, false);
                };
                let Some(fields) = hpack.block(&block) else {
                    return (asked, false);
                };
                match asked.iter_mut().find(|one| one.stream == frame.stream) {
                    // Trailers say nothing but that it ends.
                    Some(one) => one.ended |= frame.has(END_STREAM),
                    None => asked.push(Asked {
                        stream: frame.stream,
                        fields,
                        body: Vec::new(),
                        ended: frame.has(END_STREAM),
                    }),
                }
            }
            DATA => {
                let one = asked
                    .iter_mut()
                    .find(|one| one.stream == frame.stream && !one.ended);
                if let (Some(one), Some(content)) = (one, frame.content()) {
                    one.body.extend_from_slice(content);
                    one.ended = frame.has(END_STREAM);
                }
            }
            _ => {}
        }
    }
    (asked, whole)
}

/// The header block that begins with `first` and goes on in the frames right behind it.
fn block<'a>(first: &Frame<'_>, left: &mut impl Iterator<Item = &'a Frame<'a>>) -> Option<Vec<u8>> {
    let mut block = first.content()?.to_vec();
    let mut ended = first.has(END_HEADERS);
    while !ended {
        let next = left.next().filter(|next| next.kind == CONTINUATION)?;
        block.extend_from_slice(next.payload);
        ended = next.has(END_HEADERS);
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::super::script::Script;
    use super::*;

    #[test]
    fn requests_are_read_with_their_bodies_however_their_frames_are_cut() {
        let script = Script::read(
            b"0\nh 1 cgp\n:method: POST\n:path: /a\nx: yy\n\nd 1 g hel\nd 3 \nd 1 e lo\nh 3 ei\n:path: /b\n\nd 3 e x\n",
        );

        let (asked, whole) = requests(&script.bytes);

        let seen: Vec<_> = asked
            .iter()
            .map(|one| {
                (
                    one.stream,
                    one.only(":path").unwrap(),
                    one.body.as_slice(),
                    one.ended,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (1, &b"/a"[..], &b"hello"[..], true),
                (3, &b"/b"[..], &b""[..], true)
            ]
        );
        assert_eq!(asked[0].only("x"), Some(&b"yy"[..]));
        assert!(whole);
    }
}
