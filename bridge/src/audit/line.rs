//! One record as a line of text.
//!
//! Here: [`Line`], which writes one JSON object member by member so that no value can end the line, and hexadecimal.
//! Not here: which members a record has (`session.rs`, `writer.rs`).

use std::fmt::Write as _;

use crate::telemetry::escape::escape_into;

/// Longest line that is written, and that is read as a record. A path has at most 8 KiB.
pub(crate) const LINE_MAX_BYTES: usize = 64 * 1024;

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// The members of a record after those that every record has.
#[derive(Debug)]
pub struct Line<'a>(pub(super) &'a mut String);

impl Line<'_> {
    /// A member of text.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.0.push('"');
        escape_into(self.0, value);
        self.0.push('"');
    }

    /// A member of text, left out where there is none.
    pub fn text_if(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        // A `String` takes every write.
        let _ = write!(self.0, "{value}");
    }

    /// A digest.
    pub(super) fn hash(&mut self, key: &'static str, value: &Hash) {
        self.key(key);
        self.0.push('"');
        push_hex(self.0, value);
        self.0.push('"');
    }

    /// Members that were written before, with a comma in front of each.
    pub(super) fn members(&mut self, written: &str) {
        self.0.push_str(written);
    }

    /// A value that is JSON already.
    pub(super) fn json(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.0.push_str(value);
    }

    fn key(&mut self, key: &str) {
        self.0.push_str(",\"");
        self.0.push_str(key);
        self.0.push_str("\":");
    }
}

/// Appends `bytes` in lower-case hexadecimal.
pub(super) fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from(if nibble < 10 {
                b'0' + nibble
            } else {
                b'a' + nibble - 10
            }));
        }
    }
}

/// `bytes` in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    push_hex(&mut text, bytes);
    text
}

/// Reads 64 lower-case hexadecimal digits.
pub(super) fn parse_hash(text: &str) -> Option<Hash> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() {
        return None;
    }
    for (place, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *place = digit(*high)? << 4 | digit(*low)?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_end_its_line_or_its_member() {
        let mut text = String::from("{\"seq\":1");
        let mut line = Line(&mut text);

        line.text("path", "/a\n\",\"seq\":2,\"x\":\"\u{2028}\0");
        line.text_if("code", "");
        line.number("status", 200);
        text.push('}');

        assert!(!text.contains('\n'), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&read["seq"], &read["status"]), (&1.into(), &200.into()));
        assert_eq!(read.as_object().unwrap().len(), 3);
    }

    #[test]
    fn a_hash_is_read_as_it_was_written_and_in_no_other_form() {
        let hash: Hash = std::array::from_fn(|at| u8::try_from(at * 7).unwrap());
        let text = hex(&hash);

        assert_eq!(parse_hash(&text), Some(hash));
        for wrong in [
            text.to_uppercase(),
            text.replacen('0', "g", 1),
            text.split_at(1).1.to_owned(),
        ] {
            assert_eq!(parse_hash(&wrong), None, "{wrong}");
        }
    }
}
