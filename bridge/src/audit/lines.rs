//! Segments read line by line.
//!
//! Here: [`Lines`], which holds one line at a time and never more than a record may have, [`Link`], what of a line the
//! chain is made of, and the signed records [`Opened`] and [`Removed`]. Not here: what must hold of them (`verify/`,
//! `resume.rs`).

use std::borrow::Cow;
use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::key::AuditKey;
use super::line::{Hash, LINE_MAX_BYTES, parse_hash};

/// The kind of a segment's first record.
pub(super) const OPENED: &str = "segment_opened";
/// The kind of the record of a segment that retention removes.
pub(super) const REMOVED: &str = "segment_removed";

/// What stands in front of a signature, at the end of a line.
const MAC: &str = ",\"mac\":\"";

/// One segment, a line at a time.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

/// What comes next in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A whole line, without its end: [`Lines::line`].
    Line,
    /// The beginning of a line that is longer than any record.
    TooLong,
    /// Bytes without a line's end: [`Lines::line`].
    Torn,
    End,
}

/// Bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) bytes: u64,
    pub(super) sha256: Hash,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            line: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Piece> {
        self.line.clear();
        let limit = u64::try_from(LINE_MAX_BYTES).unwrap_or(u64::MAX);
        self.reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut self.line)?;
        Ok(if self.line.last() == Some(&b'\n') {
            self.line.pop();
            Piece::Line
        } else if self.line.len() == LINE_MAX_BYTES {
            Piece::TooLong
        } else if self.line.is_empty() {
            Piece::End
        } else {
            Piece::Torn
        })
    }

    /// What was read last, without its end.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Passes over the rest of a line that is too long; whether it has an end.
    pub(super) fn skip_line(&mut self) -> io::Result<bool> {
        loop {
            match self.next()? {
                Piece::Line => return Ok(true),
                Piece::TooLong => {}
                Piece::Torn | Piece::End => return Ok(false),
            }
        }
    }

    /// All that comes from here on; with `piece`, that one first.
    pub(super) fn rest(&mut self, piece: Option<Piece>) -> io::Result<Rest> {
        let mut hash = Sha256::new();
        let mut bytes = 0_u64;
        let mut add = |part: &[u8]| {
            hash.update(part);
            bytes = bytes.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        };
        match piece {
            Some(Piece::Line) => {
                add(&self.line);
                add(b"\n");
            }
            Some(Piece::TooLong | Piece::Torn) => add(&self.line),
            Some(Piece::End) | None => {}
        }
        loop {
            let part = self.reader.fill_buf()?;
            if part.is_empty() {
                break;
            }
            add(part);
            let length = part.len();
            self.reader.consume(length);
        }
        Ok(Rest {
            bytes,
            sha256: hash.finalize().into(),
        })
    }
}

/// The digest that the next record names.
pub(super) fn hash_of(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

/// What of a record the chain is made of.
#[derive(Debug)]
pub(super) struct Link<'a> {
    pub(super) seq: u64,
    pub(super) prev: Hash,
    pub(super) kind: Cow<'a, str>,
}

impl<'a> Link<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Raw<'a> {
            seq: u64,
            #[serde(borrow)]
            prev: Cow<'a, str>,
            #[serde(borrow, rename = "type")]
            kind: Cow<'a, str>,
        }
        let raw: Raw<'a> = serde_json::from_slice(line).ok()?;
        Some(Self {
            seq: raw.seq,
            prev: parse_hash(&raw.prev)?,
            kind: raw.kind,
        })
    }
}

/// A segment's first record.
#[derive(Debug, Deserialize)]
pub(super) struct Opened {
    pub(super) segment: u64,
    /// Every segment since the last one that has a record, and that one.
    pub(super) after: Vec<Ended>,
    /// After a start: the record that the head had signed then.
    #[serde(default)]
    pub(super) sealed_seq: Option<u64>,
}

/// How a segment ended, as its successor found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) segment: u64,
    /// Whole records.
    pub(super) records: u64,
    /// Bytes after them.
    pub(super) torn_bytes: u64,
    /// Their SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) torn_sha256: Option<String>,
}

/// A segment that retention removes, and with it all before it.
#[derive(Debug, Deserialize)]
pub(super) struct Removed {
    pub(super) segment: u64,
    pub(super) last_seq: u64,
    pub(super) last_hash: String,
}

/// The record of a line that ends with a signature of this key over all in front of it.
pub(super) fn signed<'a, T: Deserialize<'a>>(key: &AuditKey, purpose: &str, line: &'a [u8]) -> Option<T> {
    let text = line.strip_suffix(b"\"}")?;
    let (front, mac) = text.split_at_checked(text.len().checked_sub(64)?)?;
    let message = front.strip_suffix(MAC.as_bytes())?;
    let mac = parse_hash(std::str::from_utf8(mac).ok()?)?;
    if !key.signed(purpose, message, &mac) {
        return None;
    }
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_falls_into_its_lines_and_what_is_left() {
        let long = vec![b'x'; LINE_MAX_BYTES + 3];
        let text = [b"a\n\n".as_slice(), &long, b"\nb\ntail"].concat();
        let mut lines = Lines::new(text.as_slice());

        assert_eq!(
            (lines.next().unwrap(), lines.line()),
            (Piece::Line, b"a".as_slice())
        );
        assert_eq!(
            (lines.next().unwrap(), lines.line()),
            (Piece::Line, b"".as_slice())
        );
        assert_eq!(lines.next().unwrap(), Piece::TooLong);
        assert!(lines.skip_line().unwrap());
        assert_eq!(
            (lines.next().unwrap(), lines.line()),
            (Piece::Line, b"b".as_slice())
        );
        assert_eq!(
            (lines.next().unwrap(), lines.line()),
            (Piece::Torn, b"tail".as_slice())
        );
        assert_eq!(lines.next().unwrap(), Piece::End);

        let mut lines = Lines::new(b"a\nb\nc".as_slice());
        lines.next().unwrap();
        let piece = lines.next().unwrap();
        let rest = lines.rest(Some(piece)).unwrap();
        assert_eq!((rest.bytes, rest.sha256), (3, hash_of(b"b\nc")));
    }
}
