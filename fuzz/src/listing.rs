//! What a shell in a queue directory prints, under the eyes of whoever may write there.
//!
//! Laws: the bytes read the same however they are cut; a slow reading of the whole text finds the same things in the same
//! order and gives up at the same kind of fault; no name leaves its folder or breaks a line; no body is longer than it
//! was announced or than the limit; what never ends is given up, after as much as the limit and a little more.

use tunnel::queue::listing::{FileId, Found, Listing, ListingFault};
use wire::envelope::{MAX_ID_BYTES, entry_id};

use crate::envelope::slow_base64;

/// The longest request.
const LIMIT: usize = 20_000;
/// The longest line, and the longest mark.
const LINE: usize = 512;
/// Base64 is judged in pieces of so many characters.
const PIECE: usize = 16 * 1024;
/// This byte stands for many characters, so that short inputs reach the limits.
const MANY: u8 = 0xfe;
/// How many it stands for.
const CHARACTERS: usize = 4096;
/// So often at most.
const MOST: usize = 12;

/// Takes the bytes as the output of the shell.
///
/// # Panics
///
/// On a broken law.
pub fn listing(data: &[u8]) {
    let text = grown(data);
    let (found, fault) = read(&text, text.len().max(1));
    let (slowly, slow_fault) = slow(&text);
    let shown = || data.escape_ascii().to_string();
    assert_eq!(found, slowly, "{}", shown());
    assert_eq!(fault, slow_fault, "{}", shown());
    for piece in [1, 7, 1000] {
        let (cut, cut_fault) = read(&text, piece);
        assert_eq!(
            (&cut, cut_fault),
            (&found, fault),
            "in pieces of {piece}: {}",
            shown()
        );
    }
    let mut bytes = 0;
    for item in &found {
        if let Some(id) = id_of(item) {
            is_a_name(id);
        }
        if let Found::Request { bytes: body, .. } = item {
            assert!(body.len() <= LIMIT, "{}", shown());
            bytes += body.len();
        }
    }
    assert!(
        bytes <= text.len(),
        "{bytes} bytes out of {}: {}",
        text.len(),
        shown()
    );
    if fault.is_none() {
        for flood in [b'A', b'=', 0xff] {
            ends_in_time(&text, flood);
        }
    }
}

fn grown(data: &[u8]) -> Vec<u8> {
    let mut left = MOST;
    let mut text = Vec::with_capacity(data.len());
    for byte in data {
        if *byte == MANY && left > 0 {
            left -= 1;
            text.resize(text.len() + CHARACTERS, b'A');
        } else {
            text.push(*byte);
        }
    }
    text
}

fn read(text: &[u8], piece: usize) -> (Vec<Found>, Option<ListingFault>) {
    let mut listing = Listing::new(LIMIT);
    let mut found = Vec::new();
    for chunk in text.chunks(piece) {
        if let Err(fault) = listing.feed(chunk, &mut found) {
            return (found, Some(fault));
        }
    }
    (found, None)
}

/// Whatever state `text` leaves behind, a shell that says one thing for ever is given up.
fn ends_in_time(text: &[u8], flood: u8) {
    let mut listing = Listing::new(LIMIT);
    let mut found = Vec::new();
    let began = listing.feed(text, &mut found);
    assert_eq!(began, Ok(()));
    let most = (LIMIT + PIECE).div_ceil(3) * 4 + PIECE;
    let given_up = (0..most / 1024).any(|_| listing.feed(&[flood; 1024], &mut found).is_err());
    assert!(given_up, "{} then {flood} without end", text.escape_ascii());
}

fn id_of(found: &Found) -> Option<&FileId> {
    match found {
        Found::Request { id, .. }
        | Found::Unreadable { id }
        | Found::TooLong { id }
        | Found::Response { id }
        | Found::Written { id }
        | Found::Gone { id }
        | Found::NotWritten { id } => Some(id),
        Found::Hello { .. } | Found::Beat | Found::GatewayGone | Found::Behind { .. } | Found::End => None,
    }
}

fn is_a_name(id: &FileId) {
    let text = id.as_str();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    assert!(
        text.bytes().all(plain) && (1..=MAX_ID_BYTES).contains(&text.len()),
        "{text:?}"
    );
    assert!(!text.starts_with(['.', '-']), "{text:?}");
    assert_eq!(entry_id(&format!("{text}.json")), Some(text));
}

/// A byte of the shell's own output, or what the reader of orders wrote in between.
enum Piece {
    Byte(u8),
    Mark(Vec<u8>),
    Endless,
}

/// Takes the marks out first, then reads what is left line by line and body by body.
fn slow(text: &[u8]) -> (Vec<Found>, Option<ListingFault>) {
    let mut found = Vec::new();
    let mut line = Vec::new();
    let mut body: Option<SlowBody> = None;
    for piece in pieces(text) {
        let step = match piece {
            Piece::Endless => Err(ListingFault::LongLine),
            Piece::Mark(mark) => slow_mark(&mark).map(Some),
            Piece::Byte(b'.') if body.is_some() => Ok(body.take().map(SlowBody::end)),
            Piece::Byte(byte) => match &mut body {
                Some(body) => body.take(byte),
                None if byte == b'\n' => slow_line(&std::mem::take(&mut line), &mut body),
                None if line.len() == LINE => Err(ListingFault::LongLine),
                None => {
                    line.push(byte);
                    Ok(None)
                }
            },
        };
        match step {
            Ok(item) => found.extend(item),
            Err(fault) => return (found, Some(fault)),
        }
    }
    (found, None)
}

fn pieces(mut text: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        text = rest;
        if *first != b'<' {
            pieces.push(Piece::Byte(*first));
            continue;
        }
        let end = text.iter().position(|byte| *byte == b'>');
        match end {
            Some(end) if end <= LINE => {
                pieces.push(Piece::Mark(text[..end].to_vec()));
                text = &text[end + 1..];
            }
            Some(_) => pieces.push(Piece::Endless),
            None if text.len() > LINE => pieces.push(Piece::Endless),
            None => text = b"",
        }
    }
    pieces
}

fn slow_mark(mark: &[u8]) -> Result<Found, ListingFault> {
    let name = mark.get(2..).and_then(|name| std::str::from_utf8(name).ok());
    if mark.get(..2) == Some(b"B ") {
        let fence = name.and_then(|fence| fence.parse().ok());
        return fence
            .map(|fence| Found::Behind { fence })
            .ok_or(ListingFault::Unknown);
    }
    let id = name
        .and_then(|name| FileId::of_file(&format!("{name}.json")))
        .ok_or(ListingFault::Unknown)?;
    match mark.get(..2) {
        Some(b"A ") => Ok(Found::Written { id }),
        Some(b"G ") => Ok(Found::Gone { id }),
        Some(b"F ") => Ok(Found::NotWritten { id }),
        _ => Err(ListingFault::Unknown),
    }
}

fn slow_line(line: &[u8], body: &mut Option<SlowBody>) -> Result<Option<Found>, ListingFault> {
    let line = std::str::from_utf8(line).map_err(|_| ListingFault::Unknown)?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let id = |word: &str| FileId::of_file(&format!("{word}.json")).ok_or(ListingFault::Unknown);
    Ok(Some(match words.as_slice() {
        [] => return Ok(None),
        ["H", "1", exact_head, clock, ..] => Found::Hello {
            exact_head: *exact_head == "1",
            clock: clock.parse().ok(),
        },
        ["R", name, size, ..] => {
            let id = id(name)?;
            let size = size.parse().map_err(|_| ListingFault::Unknown)?;
            if size > LIMIT {
                return Err(ListingFault::TooMuch(LIMIT));
            }
            *body = Some(SlowBody {
                id,
                size,
                decoded: Some(Vec::new()),
                counted: 0,
                characters: String::new(),
            });
            return Ok(None);
        }
        ["L", name, ..] => Found::TooLong { id: id(name)? },
        ["O", name, ..] => Found::Response { id: id(name)? },
        ["K", ..] => Found::Beat,
        ["X", ..] => Found::GatewayGone,
        ["Z", ..] => Found::End,
        _ => return Err(ListingFault::Unknown),
    }))
}

struct SlowBody {
    id: FileId,
    size: usize,
    /// All whole pieces; nothing once one of them was no base64.
    decoded: Option<Vec<u8>>,
    /// Bytes of all whole pieces, right or wrong.
    counted: usize,
    characters: String,
}

impl SlowBody {
    fn take(&mut self, byte: u8) -> Result<Option<Found>, ListingFault> {
        if !byte.is_ascii_whitespace() {
            self.characters.push(char::from(byte));
        }
        if self.characters.len() >= PIECE {
            self.decode();
        }
        if self.counted > self.size {
            return Err(ListingFault::TooMuch(LIMIT));
        }
        Ok(None)
    }

    fn decode(&mut self) {
        let piece = slow_base64(&std::mem::take(&mut self.characters));
        self.counted += piece.as_ref().map_or(PIECE / 4 * 3, Vec::len);
        match (&mut self.decoded, piece) {
            (Some(decoded), Some(piece)) => decoded.extend(piece),
            (_, None) => self.decoded = None,
            (None, Some(_)) => {}
        }
    }

    fn end(mut self) -> Found {
        self.decode();
        match self.decoded {
            Some(bytes) if bytes.len() == self.size => Found::Request {
                id: self.id,
                bytes: bytes.into(),
            },
            Some(_) | None => Found::Unreadable { id: self.id },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_reading_takes_marks_out_of_lines_and_bodies() {
        let id = |name: &str| FileId::of_file(&format!("{name}.json")).expect("a name");

        let (found, fault) = slow(b"K<A a>\nR b 3\nQU<G c>JD\n.\nO ../d\nK\n");

        let expected = [
            Found::Written { id: id("a") },
            Found::Beat,
            Found::Gone { id: id("c") },
            Found::Request {
                id: id("b"),
                bytes: "ABC".into(),
            },
        ];
        assert_eq!(found, expected);
        assert_eq!(fault, Some(ListingFault::Unknown));
    }
}
