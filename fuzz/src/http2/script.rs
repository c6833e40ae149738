//! A gateway's part, written in lines, so that a changed byte changes what it says and seldom whether it can be read.
//!
//! Here: the lines and what they become. `h STREAM FLAGS` and lines `name: value` up to an empty one: a request (`e` it
//! ends there, `c` cut into several frames, `g` padded, `p` with a priority, `i` to be kept in the other end's table).
//! `d STREAM FLAGS TEXT`: a piece of its body. `f TYPE FLAGS STREAM HEX`: any frame. `x HEX`: any bytes. `w`: a while
//! without a word. Other lines say nothing. The first byte says how: its bits are [`IN_PIECES`], [`SCRIPT`], [`NOISE`] and [`BARE`].

use super::hpack::{self, Field};

/// Every read gives a few bytes only.
const IN_PIECES: u8 = 1;
/// The gateway is the peer's script.
const SCRIPT: u8 = 2;
/// Something stands between READY and the preface.
const NOISE: u8 = 4;
/// Neither preface nor SETTINGS come by themselves.
const BARE: u8 = 8;
/// Bytes of a piece of a header block that is cut.
const CUT: usize = 64;
/// The largest frame that may be sent unasked.
const FRAME: usize = 16_384;

/// So many pauses are kept at most.
const PAUSES: usize = 3;

/// What a gateway says, and how.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) in_pieces: bool,
    pub(super) is_script: bool,
    pub(super) noise: bool,
    pub(super) bare: bool,
    /// All frames behind the preface.
    pub(super) bytes: Vec<u8>,
    /// Where in them nothing is said for a while.
    pub(super) pauses: Vec<usize>,
}

impl Script {
    pub(super) fn read(data: &[u8]) -> Self {
        let (options, text) = data.split_first().unwrap_or((&0, b""));
        let mut script = Self {
            in_pieces: options & IN_PIECES != 0,
            is_script: options & SCRIPT != 0,
            noise: options & NOISE != 0,
            bare: options & BARE != 0,
            bytes: Vec::new(),
            pauses: Vec::new(),
        };
        if !script.bare {
            script.frame(4, 0, 0, b"");
        }
        let mut lines = text.split(|byte| *byte == b'\n');
        while let Some(line) = lines.next() {
            let words: Vec<&[u8]> = line.splitn(5, |byte| *byte == b' ').collect();
            match words.as_slice() {
                [b"h", stream, flags, ..] => {
                    let fields: Vec<Field> = lines
                        .by_ref()
                        .take_while(|line| !line.is_empty())
                        .filter_map(field)
                        .collect();
                    script.headers(number(stream), flags, &fields);
                }
                [b"d", stream, flags, ..] => {
                    let before = 4 + stream.len() + flags.len();
                    let content = line.get(before..).unwrap_or_default();
                    script.framed(0, number(stream), flags, content);
                }
                [b"f", kind, flags, stream, hex] => {
                    let byte = |word| u8::try_from(number(word) & 0xff).unwrap_or_default();
                    script.frame(byte(kind), byte(flags), number(stream), &bytes(hex));
                }
                [b"x", ..] => script.bytes.extend(bytes(line.get(2..).unwrap_or_default())),
                [b"w"] if script.pauses.len() < PAUSES => script.pauses.push(script.bytes.len()),
                _ => {}
            }
        }
        script
    }

    fn headers(&mut self, stream: u32, flags: &[u8], fields: &[Field]) {
        let mut block = hpack::write(fields, flags.contains(&b'i'));
        block.truncate(FRAME - 512);
        if !flags.contains(&b'c') {
            self.framed(4, stream, flags, &block);
            return;
        }
        let rest = block.split_off(CUT.min(block.len()));
        self.framed(0x10, stream, flags, &block);
        let mut pieces = rest.chunks(CUT).peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            self.frame(9, if last { 4 } else { 0 }, stream, piece);
        }
        if rest.is_empty() {
            self.frame(9, 4, stream, b"");
        }
    }

    /// A frame of content: DATA for 0, HEADERS for others, with 4 for a whole block.
    fn framed(&mut self, how: u8, stream: u32, flags: &[u8], content: &[u8]) {
        let mut bits = how & 4;
        let mut payload = Vec::new();
        let padding: &[u8] = if flags.contains(&b'g') { b"\0\0\0" } else { b"" };
        if flags.contains(&b'g') {
            bits |= 8;
            payload.push(3);
        }
        if flags.contains(&b'e') {
            bits |= 1;
        }
        if how != 0 && flags.contains(&b'p') {
            bits |= 0x20;
            payload.extend_from_slice(&[0, 0, 0, 0, 16]);
        }
        payload.extend_from_slice(content);
        payload.extend_from_slice(padding);
        self.frame(u8::from(how != 0), bits, stream, &payload);
    }

    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or_default();
        self.bytes.extend_from_slice(&length.to_be_bytes()[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }
}

/// `name: value`; the colon that a pseudo-header begins with is part of its name.
fn field(line: &[u8]) -> Option<Field> {
    let colon = line.iter().skip(1).position(|byte| *byte == b':')? + 1;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..)?;
    Some((name.to_vec(), value.strip_prefix(b" ").unwrap_or(value).to_vec()))
}

fn number(word: &[u8]) -> u32 {
    let digits = std::str::from_utf8(word).ok();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(1)
}

/// Two hexadecimal digits a byte; what is none is passed over.
fn bytes(hex: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .iter()
        .filter_map(|byte| char::from(*byte).to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
