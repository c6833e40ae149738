//! A second opinion on header lists: RFC 7541 as directly as it reads.
//!
//! Here: the reading of one header block after the other, and a writer that uses no table. Not here: frames.

use std::collections::VecDeque;

/// Bytes that the dynamic table may have, as the session's settings say.
const TABLE: usize = 4096;
/// Section 4.1: what an entry counts beside its text.
const ENTRY: usize = 32;
/// The end of a text in Huffman's code never stands in it.
const END: usize = 256;

/// A name and a value, as they stood there.
pub(super) type Field = (Vec<u8>, Vec<u8>);

/// The table of one direction of a connection.
#[derive(Debug)]
pub(super) struct Hpack {
    entries: VecDeque<Field>,
    size: usize,
}

impl Default for Hpack {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: TABLE,
        }
    }
}

impl Hpack {
    /// The fields of a block, or `None` from where nobody can read on.
    pub(super) fn block(&mut self, mut block: &[u8]) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                fields.push(self.indexed(number(&mut block, 7)?)?);
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut block, 6)?;
                self.entries.push_front(field.clone());
                self.evict();
                fields.push(field);
            } else if first & 0x20 != 0 {
                self.size = number(&mut block, 5).filter(|size| *size <= TABLE)?;
                self.evict();
            } else {
                fields.push(self.literal(&mut block, 4)?);
            }
        }
        Some(fields)
    }

    fn literal(&self, block: &mut &[u8], bits: u32) -> Option<Field> {
        let name = match number(block, bits)? {
            0 => text(block)?,
            index => self.indexed(index)?.0,
        };
        Some((name, text(block)?))
    }

    fn indexed(&self, index: usize) -> Option<Field> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        self.entries.get(index - STATIC.len()).cloned()
    }

    fn evict(&mut self) {
        let cost = |(name, value): &Field| name.len() + value.len() + ENTRY;
        while self.entries.iter().map(cost).sum::<usize>() > self.size {
            self.entries.pop_back();
        }
    }
}

/// Section 5.1.
fn number(block: &mut &[u8], bits: u32) -> Option<usize> {
    let (first, mut rest) = block.split_first()?;
    let most = (1 << bits) - 1;
    let mut value = usize::from(*first) & most;
    if value == most {
        for shift in (0..28).step_by(7) {
            let (byte, behind) = rest.split_first()?;
            rest = behind;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *block = rest;
                return Some(value);
            }
        }
        return None;
    }
    *block = rest;
    Some(value)
}

/// Section 5.2.
fn text(block: &mut &[u8]) -> Option<Vec<u8>> {
    let coded = block.first()? & 0x80 != 0;
    let length = number(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length)?;
    *block = rest;
    if coded {
        huffman(bytes)
    } else {
        Some(bytes.to_vec())
    }
}

/// Appendix B: the code is the canonical one of its lengths.
fn huffman(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut by_length: Vec<usize> = (0..=END).collect();
    by_length.sort_by_key(|symbol| (length_of(*symbol), *symbol));
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let mut text = Vec::new();
    loop {
        let (mut code, mut length) = (0_u32, 0);
        let (mut lowest, mut symbols) = (0_u32, by_length.as_slice());
        loop {
            let Some(bit) = bits.next() else {
                // What is left over is the beginning of END: ones, and fewer than a byte of them.
                let padding = length < 8 && code == (1 << length) - 1;
                return padding.then_some(text);
            };
            code = code << 1 | u32::from(bit);
            length += 1;
            lowest <<= 1;
            let of_this = symbols
                .iter()
                .take_while(|symbol| length_of(**symbol) == length)
                .count();
            let at = usize::try_from(code - lowest).ok()?;
            if at < of_this {
                let symbol = *symbols.get(at)?;
                text.push(u8::try_from(symbol).ok()?);
                break;
            }
            lowest += u32::try_from(of_this).ok()?;
            symbols = symbols.get(of_this..)?;
        }
    }
}

fn length_of(symbol: usize) -> u32 {
    LENGTHS.get(symbol).map_or(30, |length| u32::from(*length))
}

/// Writes fields without any table; `index` has the other end keep them in its own.
pub(super) fn write(fields: &[Field], index: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(if index { 0x40 } else { 0 });
        for text in [name, value] {
            write_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

fn write_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut left) = length.checked_sub(127) else {
        block.push(u8::try_from(length).unwrap_or_default());
        return;
    };
    block.push(127);
    while left >= 128 {
        block.push(u8::try_from(left % 128).unwrap_or_default() | 128);
        left /= 128;
    }
    block.push(u8::try_from(left).unwrap_or_default());
}

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Appendix B, bits of each symbol's code; END has 30.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6,
    6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8,
    13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15,
    11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23,
    23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26,
    26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21,
    22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27,
    27, 26,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(expected: &[(&str, &str)]) -> Vec<Field> {
        let owned = |text: &str| text.as_bytes().to_vec();
        expected
            .iter()
            .map(|(name, value)| (owned(name), owned(value)))
            .collect()
    }

    #[test]
    fn the_examples_of_the_rfc_read_as_printed_there() {
        // Appendix C.4: three requests on one connection, with Huffman's code.
        let mut hpack = Hpack::default();

        let first = hpack.block(b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff");
        let second = hpack.block(b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf");

        let mut expected = fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ]);
        assert_eq!(first.as_ref(), Some(&expected));
        expected.extend(fields(&[("cache-control", "no-cache")]));
        assert_eq!(second, Some(expected));
    }

    #[test]
    fn what_is_written_reads_the_same_and_may_be_kept() {
        let long = "x".repeat(300);
        let written = fields(&[("a", ""), ("b", &long)]);
        let mut hpack = Hpack::default();

        assert_eq!(hpack.block(&write(&written, false)).as_ref(), Some(&written));
        assert_eq!(hpack.block(&[0x80 | 62]), None);
        assert_eq!(hpack.block(&write(&written, true)).as_ref(), Some(&written));
        assert_eq!(hpack.block(&[0x80 | 63]), Some(fields(&[("a", "")])));
        assert_eq!(
            hpack.block(&[0x20, 0x80 | 62]),
            None,
            "an empty table keeps nothing"
        );
    }
}
