//! What `host.sh` prints, read as a stream: requests, what became of answers, signs of life.
//!
//! Here: [`Listing`], a state machine over chunks of bytes, without IO. Not here: who feeds it (`pump.rs`,
//! `batch.rs`). The target's user may have written the files; what is read here is held to its bounds before it is
//! kept.
//!
//! One item a line: `H VERSION EXACT CLOCK`, `R ID SIZE` and base64 up to `.`, `L ID SIZE` (longer than the limit),
//! `O ID` (a response that lies there), `K` (alive), `X` (the gateway's process has
//! ended), `Z` (all of a batch). The reader of orders writes into the same
//! pipe at any time, always between `<` and `>`: `A ID` (written), `G ID` (its request is gone), `F ID` (not written). In
//! the same way anybody there says `B FENCE`: a later owner of the session was there, and nothing is done any more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use wire::envelope::entry_id;

/// The longest line that is no body.
const LINE_MAX_BYTES: usize = 512;
/// Base64 is decoded in pieces of so many characters; a multiple of four.
const PIECE_CHARS: usize = 16 * 1024;

/// The name of a queue file without `.json`, as `wire::envelope::entry_id` accepts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(Box<str>);

impl FileId {
    /// Accepts the name of a file that ends in `.json`, or says no.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Self> {
        entry_id(name).map(|id| Self(id.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One thing that was found in a queue directory, or that became of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The script runs.
    Hello {
        /// Its `head -c` reads no further than it prints.
        exact_head: bool,
        /// The target's clock in seconds since 1970, where it told it.
        clock: Option<u64>,
    },
    /// A claimed request, whole.
    Request {
        /// Its file's name.
        id: FileId,
        /// What the file held.
        bytes: Bytes,
    },
    /// A claimed request that changed while it was read, or is not what it was said to be.
    Unreadable {
        /// Its file's name.
        id: FileId,
    },
    /// A claimed request that is longer than the limit; it was not read.
    TooLong {
        /// Its file's name.
        id: FileId,
    },
    /// A response from before lies there.
    Response {
        /// Its file's name.
        id: FileId,
    },
    /// The script lives.
    Beat,
    /// The gateway's process has ended.
    GatewayGone,
    /// A later owner of the session was there; nothing is done any more.
    Behind {
        /// Its fence.
        fence: u64,
    },
    /// An answer stands at its place.
    Written {
        /// Its file's name.
        id: FileId,
    },
    /// The claimed request is gone, so its answer was not written.
    Gone {
        /// Its file's name.
        id: FileId,
    },
    /// An answer could not be written.
    NotWritten {
        /// Its file's name.
        id: FileId,
    },
    /// A batch ends here, whole.
    End,
}

/// Why a stream is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingFault {
    /// A line that says nothing known.
    #[error("the queue's shell printed a line that is not understood")]
    Unknown,
    /// A line or a mark without end.
    #[error("the queue's shell printed a line of more than {LINE_MAX_BYTES} bytes")]
    LongLine,
    /// More than was announced, or announced more than is allowed.
    #[error("the queue's shell sent more than the limit of {0} bytes")]
    TooMuch(usize),
}

/// Reads the stream; see the module.
#[derive(Debug)]
pub struct Listing {
    limit_bytes: usize,
    line: Vec<u8>,
    mark: Option<Vec<u8>>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    id: FileId,
    size: usize,
    chars: Vec<u8>,
    bytes: Vec<u8>,
    broken: bool,
}

impl Listing {
    /// A reader that takes requests of at most `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            line: Vec::new(),
            mark: None,
            body: None,
        }
    }

    /// Takes the next bytes and appends what they complete to `found`.
    ///
    /// # Errors
    ///
    /// [`ListingFault`]; the stream is useless from there on.
    pub fn feed(&mut self, chunk: &[u8], found: &mut Vec<Found>) -> Result<(), ListingFault> {
        let mut rest = chunk;
        while let Some((&byte, after)) = rest.split_first() {
            if let Some(mark) = &mut self.mark {
                rest = after;
                match byte {
                    b'>' => {
                        found.push(marked(mark)?);
                        self.mark = None;
                    }
                    other if mark.len() < LINE_MAX_BYTES => mark.push(other),
                    _ => return Err(ListingFault::LongLine),
                }
            } else if byte == b'<' {
                rest = after;
                self.mark = Some(Vec::new());
            } else if self.body.is_some() {
                rest = self.body_bytes(rest, found)?;
            } else {
                rest = after;
                match byte {
                    b'\n' => self.whole_line(found)?,
                    other if self.line.len() < LINE_MAX_BYTES => self.line.push(other),
                    _ => return Err(ListingFault::LongLine),
                }
            }
        }
        Ok(())
    }

    /// Takes base64 up to the next mark or the end of the body; gives back what is left.
    fn body_bytes<'a>(&mut self, bytes: &'a [u8], found: &mut Vec<Found>) -> Result<&'a [u8], ListingFault> {
        let limit = self.limit_bytes;
        let Some(body) = &mut self.body else {
            return Ok(bytes);
        };
        let run = bytes
            .iter()
            .position(|byte| matches!(byte, b'<' | b'.'))
            .unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at_checked(run).unwrap_or((bytes, &[]));
        body.take(text).map_err(|()| ListingFault::TooMuch(limit))?;
        match rest.split_first() {
            Some((b'.', after)) => {
                if let Some(body) = self.body.take() {
                    found.push(body.finish());
                }
                Ok(after)
            }
            _ => Ok(rest),
        }
    }

    fn whole_line(&mut self, found: &mut Vec<Found>) -> Result<(), ListingFault> {
        let line = std::mem::take(&mut self.line);
        let text = std::str::from_utf8(&line).map_err(|_| ListingFault::Unknown)?;
        let mut words = text.split_ascii_whitespace();
        let Some(kind) = words.next() else { return Ok(()) };
        let mut word = || words.next().ok_or(ListingFault::Unknown);
        let item = match kind {
            "H" => {
                if word()? != "1" {
                    return Err(ListingFault::Unknown);
                }
                let exact_head = word()? == "1";
                let clock = word()?.parse().ok();
                Found::Hello { exact_head, clock }
            }
            "R" => {
                let id = id(word()?)?;
                let size: usize = word()?.parse().map_err(|_| ListingFault::Unknown)?;
                if size > self.limit_bytes {
                    return Err(ListingFault::TooMuch(self.limit_bytes));
                }
                self.body = Some(Body::new(id, size));
                return Ok(());
            }
            "L" => Found::TooLong { id: id(word()?)? },
            "O" => Found::Response { id: id(word()?)? },
            "K" => Found::Beat,
            "X" => Found::GatewayGone,
            "Z" => Found::End,
            _ => return Err(ListingFault::Unknown),
        };
        found.push(item);
        Ok(())
    }
}

impl Body {
    fn new(id: FileId, size: usize) -> Self {
        Self {
            id,
            size,
            chars: Vec::new(),
            bytes: Vec::new(),
            broken: false,
        }
    }

    /// Takes characters; fails when they make more bytes than were announced.
    fn take(&mut self, text: &[u8]) -> Result<(), ()> {
        for line in text.split(|byte| byte.is_ascii_whitespace()) {
            let mut rest = line;
            while !rest.is_empty() {
                let room = PIECE_CHARS.saturating_sub(self.chars.len());
                let (piece, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
                self.chars.extend_from_slice(piece);
                rest = after;
                if self.chars.len() >= PIECE_CHARS {
                    self.decode();
                }
            }
            // A shell that sends on and on is stopped here, broken or not.
            if self.bytes.len() > self.size {
                return Err(());
            }
        }
        Ok(())
    }

    fn decode(&mut self) {
        let before = self.bytes.len();
        if STANDARD.decode_vec(&self.chars, &mut self.bytes).is_err() {
            self.broken = true;
            // Counted all the same, so that the bound holds.
            self.bytes.truncate(before);
            self.bytes.resize(before + self.chars.len() / 4 * 3, 0);
        }
        self.chars.clear();
    }

    fn finish(mut self) -> Found {
        self.decode();
        if self.broken || self.bytes.len() != self.size {
            return Found::Unreadable { id: self.id };
        }
        Found::Request {
            id: self.id,
            bytes: self.bytes.into(),
        }
    }
}

fn id(word: &str) -> Result<FileId, ListingFault> {
    FileId::of_file(&format!("{word}.json")).ok_or(ListingFault::Unknown)
}

fn marked(mark: &[u8]) -> Result<Found, ListingFault> {
    let text = std::str::from_utf8(mark).map_err(|_| ListingFault::Unknown)?;
    let (kind, name) = text.split_once(' ').ok_or(ListingFault::Unknown)?;
    if kind == "B" {
        let fence = name.parse().map_err(|_| ListingFault::Unknown)?;
        return Ok(Found::Behind { fence });
    }
    let id = id(name)?;
    match kind {
        "A" => Ok(Found::Written { id }),
        "G" => Ok(Found::Gone { id }),
        "F" => Ok(Found::NotWritten { id }),
        _ => Err(ListingFault::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&[u8]]) -> Result<Vec<Found>, ListingFault> {
        let mut listing = Listing::new(1000);
        let mut found = Vec::new();
        for chunk in chunks {
            listing.feed(chunk, &mut found)?;
        }
        Ok(found)
    }

    fn id(name: &str) -> FileId {
        FileId::of_file(&format!("{name}.json")).unwrap()
    }

    #[test]
    fn a_stream_reads_the_same_however_it_is_cut() {
        let stream = b"H 1 1 1700000000\nR a 5\naGVs\nbG8=\n.\nL b 9999\nO c\nK\nR e 0\n.\n<A a>\nZ\n";

        let whole = read(&[stream]).unwrap();
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();

        assert_eq!(read(&bytes).unwrap(), whole);
        assert_eq!(
            whole,
            [
                Found::Hello {
                    exact_head: true,
                    clock: Some(1_700_000_000)
                },
                Found::Request {
                    id: id("a"),
                    bytes: Bytes::from_static(b"hello")
                },
                Found::TooLong { id: id("b") },
                Found::Response { id: id("c") },
                Found::Beat,
                Found::Request {
                    id: id("e"),
                    bytes: Bytes::new()
                },
                Found::Written { id: id("a") },
                Found::End,
            ]
        );
    }

    #[test]
    fn what_became_of_an_answer_may_stand_inside_a_body() {
        let found = read(&[b"R a 5\naGV<G x>\ns\nbG8=\n<F", b" y>\n.\n"]).unwrap();

        assert_eq!(
            found,
            [
                Found::Gone { id: id("x") },
                Found::NotWritten { id: id("y") },
                Found::Request {
                    id: id("a"),
                    bytes: Bytes::from_static(b"hello")
                },
            ]
        );
    }

    #[test]
    fn that_a_later_owner_was_there_may_be_said_anywhere() {
        let found = read(&[b"<B 7>H 1 1 -\nR a 5\naGV<B 18446744073709551615>s\nbG8=\n.\n"]).unwrap();

        assert_eq!(found[0], Found::Behind { fence: 7 });
        assert_eq!(found[2], Found::Behind { fence: u64::MAX });
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_file_that_changed_while_it_was_read_is_unreadable() {
        for body in ["aGVs\n", "aGVsbG8\n", "aG=s\nbG8=\n", "!!!!\n", "aGVsbG9=\n"] {
            let stream = format!("R a 5\n{body}.\n");

            assert_eq!(
                read(&[stream.as_bytes()]),
                Ok(vec![Found::Unreadable { id: id("a") }]),
                "{body}"
            );
        }
    }

    #[test]
    fn more_than_was_announced_ends_the_stream() {
        assert_eq!(read(&[b"R a 1001\n"]), Err(ListingFault::TooMuch(1000)));
        let mut flood = b"R a 5\n".to_vec();
        flood.resize(100_000, b'A');
        assert_eq!(read(&[&flood]), Err(ListingFault::TooMuch(1000)));
        let mut noise = b"R a 5\n".to_vec();
        noise.resize(100_000, b'!');
        assert_eq!(read(&[&noise]), Err(ListingFault::TooMuch(1000)));
    }

    #[test]
    fn a_line_that_is_not_ours_ends_the_stream() {
        let lines: [&[u8]; 11] = [
            b"Welcome!\n",
            b"R ../x 5\n",
            b"R .x 5\n",
            b"R a -5\n",
            b"R a\n",
            b"H 2 1 -\n",
            b"<A ../x>",
            b"<Q x>",
            b"<B x>",
            b"<B -1>",
            b"\xff\n",
        ];
        for line in lines {
            assert_eq!(read(&[line]), Err(ListingFault::Unknown), "{line:?}");
        }
        assert_eq!(read(&[&[b'x'; 600]]), Err(ListingFault::LongLine));
        assert_eq!(read(&[&[b'<'; 600]]), Err(ListingFault::LongLine));
    }

    #[test]
    fn names_with_anything_unusual_are_no_entries() {
        for name in [
            "", ".", "..", ".a", "-a", "a/b", "a b", "a\nb", "ä", "a\0", "-\u{7f}",
        ] {
            assert_eq!(FileId::of_file(&format!("{name}.json")), None, "{name:?}");
        }
        assert_eq!(FileId::of_file(&format!("{}.json", "a".repeat(129))), None);
        assert_eq!(FileId::of_file("a.txt"), None);
        assert!(FileId::of_file("8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11.json").is_some());
    }
}
