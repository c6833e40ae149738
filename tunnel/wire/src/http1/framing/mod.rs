//! Where one HTTP/1 message ends and the next begins, and whether two readers could disagree about it.
//!
//! Here: a state machine over bytes, without IO and without a clock. It finds heads, lengths, chunks and trailers and
//! refuses whatever is ambiguous, so that hyper behind it never has to repair anything. Not here: what a target may
//! look like, which a [`TargetJudge`] says, and the reading itself (`gate.rs`).
//!
//! Source: RFC 9112 sections 2.2, 3, 5, 6 and 7.

mod fault;
mod head;

use std::fmt;
use std::marker::PhantomData;

pub use fault::Fault;
use head::{Delimited, read_head};

/// Says of a request target whether hyper may see it as it stands.
pub trait TargetJudge {
    /// Kept in the note of a request whose target hyper was not shown.
    type Fault: Clone + fmt::Debug + PartialEq + Send;

    /// Looks at the raw bytes between method and version.
    ///
    /// # Errors
    ///
    /// What the service must know of a target that hyper may not see; hyper is shown `/` in its place.
    fn judge(target: &[u8]) -> Result<(), Self::Fault>;

    /// The fault of a CONNECT whose target is in order by itself: hyper must never see that method.
    fn connect(target: &[u8]) -> Self::Fault;
}

/// Sizes a head is held to.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of request line and fields together.
    pub max_head: usize,
    /// Bytes of the request target.
    pub max_target: usize,
    /// Field lines; at most [`MAX_HEADERS`].
    pub max_headers: usize,
    /// Bytes of a chunked body, announced by its chunk sizes.
    pub max_body: u64,
}

/// What `httparse` is given room for; also hyper's own limit.
pub const MAX_HEADERS: usize = 100;
/// A chunk-size line with its extensions.
const MAX_CHUNK_LINE: usize = 256;
/// A trailer section; its fields are dropped, so it has no reason to be larger.
const MAX_TRAILERS: usize = 8 * 1024;

/// What stands at the front of the bytes given to [`Framing::step`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step<F> {
    /// Nothing can be said yet.
    NeedMore,
    /// So many bytes belong to the message under way and are in order.
    Pass(usize),
    /// So many bytes in front of a head mean nothing and are dropped.
    Skip(usize),
    /// A whole, unambiguous head of so many bytes.
    Head(usize, HeadSeen<F>),
    /// From here on nothing can be trusted; the connection ends.
    Fault(Fault),
}

/// What the gate keeps of a head that is in order.
#[derive(Debug, PartialEq, Eq)]
pub struct HeadSeen<F> {
    /// Bytes of the request line, without its CR LF.
    pub request_line: usize,
    /// Bytes of the method.
    pub method: usize,
    /// What the judge found, if it found something.
    pub target_fault: Option<F>,
    /// There is an `Upgrade` field.
    pub upgrade: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head { scanned: usize },
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers { scanned: usize },
    Faulted,
}

/// Delimits the messages of one connection.
pub struct Framing<J> {
    limits: HeadLimits,
    state: State,
    /// One empty line in front of a request line is tolerated, a second is not.
    skipped_empty_line: bool,
    /// Bytes announced by the chunks of the body under way.
    chunked_bytes: u64,
    judge: PhantomData<fn() -> J>,
}

impl<J> fmt::Debug for Framing<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framing")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<J: TargetJudge> Framing<J> {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::Head { scanned: 0 },
            skipped_empty_line: false,
            chunked_bytes: 0,
            judge: PhantomData,
        }
    }

    /// Whether the next byte would begin or continue a head.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Bytes of a body of declared length still to come, if that is the state.
    pub fn declared_remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(remaining) => Some(remaining),
            State::Head { .. }
            | State::ChunkSize
            | State::ChunkData(_)
            | State::ChunkEnd
            | State::Trailers { .. }
            | State::Faulted => None,
        }
    }

    /// Takes note of `count` bytes of a declared length that went past without [`Self::step`].
    pub fn passed_declared(&mut self, count: u64) {
        if let State::Length(remaining) = self.state {
            self.state = after_body(remaining.saturating_sub(count));
        }
    }

    /// Looks at the front of `input`, the bytes not yet passed on, and moves on.
    ///
    /// Linear in the bytes not looked at before, but for one `httparse` pass over a head that is whole.
    pub fn step(&mut self, input: &[u8]) -> Step<J::Fault> {
        let step = match self.state {
            State::Head { scanned } => self.head(input, scanned),
            State::Length(remaining) => self.declared(input, remaining),
            State::ChunkSize => self.chunk_size(input),
            State::ChunkData(remaining) => self.chunk_data(input, remaining),
            State::ChunkEnd => self.chunk_end(input),
            State::Trailers { scanned } => self.trailers(input, scanned),
            State::Faulted => Step::NeedMore,
        };
        if matches!(step, Step::Fault(_)) {
            self.state = State::Faulted;
        }
        step
    }

    fn head(&mut self, input: &[u8], scanned: usize) -> Step<J::Fault> {
        if scanned == 0 && !self.skipped_empty_line {
            match input {
                [b'\r', b'\n', ..] => {
                    self.skipped_empty_line = true;
                    return Step::Skip(2);
                }
                [b'\r'] => return Step::NeedMore,
                _ => {}
            }
        }
        let end = match section_end(input, scanned, self.limits.max_head) {
            Section::Whole(end) => end,
            Section::Partial(scanned) => {
                self.state = State::Head { scanned };
                return Step::NeedMore;
            }
            Section::BadLineEnd => return Step::Fault(Fault::LineEnd),
            Section::TooLarge => return Step::Fault(self.too_large(input)),
        };
        let (head, _) = input.split_at(end);
        match read_head::<J>(head, self.limits) {
            Ok((seen, body)) => {
                self.skipped_empty_line = false;
                self.state = match body {
                    Delimited::Length(length) => after_body(length),
                    Delimited::Chunked => {
                        self.chunked_bytes = 0;
                        State::ChunkSize
                    }
                };
                Step::Head(end, seen)
            }
            Err(fault) => Step::Fault(fault),
        }
    }

    /// Which limit a head without an end went over: the target's, if the first line alone is too long.
    fn too_large(&self, input: &[u8]) -> Fault {
        let first_line = input
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(input.len());
        if first_line > self.limits.max_target.saturating_add(64) {
            Fault::TargetTooLong {
                limit_bytes: self.limits.max_target,
            }
        } else {
            Fault::HeadTooLarge {
                limit_bytes: self.limits.max_head,
            }
        }
    }

    fn declared(&mut self, input: &[u8], remaining: u64) -> Step<J::Fault> {
        let count = bounded(remaining, input.len());
        if count == 0 {
            return Step::NeedMore;
        }
        self.state = after_body(remaining - count as u64);
        Step::Pass(count)
    }

    fn chunk_size(&mut self, input: &[u8]) -> Step<J::Fault> {
        let Some(line_feed) = input.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
            return if input.len() >= MAX_CHUNK_LINE {
                Step::Fault(Fault::ChunkSize)
            } else {
                Step::NeedMore
            };
        };
        let Some(line) = input.get(..line_feed).and_then(|line| line.strip_suffix(b"\r")) else {
            return Step::Fault(Fault::ChunkSize);
        };
        match parse_chunk_size(line) {
            Some(0) => self.state = State::Trailers { scanned: 0 },
            Some(size) => {
                self.chunked_bytes = self.chunked_bytes.saturating_add(size);
                if self.chunked_bytes > self.limits.max_body {
                    // Said at once: the bytes themselves may never come.
                    return Step::Fault(Fault::BodyTooLarge {
                        limit_bytes: self.limits.max_body,
                    });
                }
                self.state = State::ChunkData(size);
            }
            None => return Step::Fault(Fault::ChunkSize),
        }
        Step::Pass(line_feed + 1)
    }

    fn chunk_data(&mut self, input: &[u8], remaining: u64) -> Step<J::Fault> {
        let count = bounded(remaining, input.len());
        if count == 0 {
            return Step::NeedMore;
        }
        let left = remaining - count as u64;
        self.state = if left == 0 {
            State::ChunkEnd
        } else {
            State::ChunkData(left)
        };
        Step::Pass(count)
    }

    fn chunk_end(&mut self, input: &[u8]) -> Step<J::Fault> {
        match input {
            [b'\r', b'\n', ..] => {
                self.state = State::ChunkSize;
                Step::Pass(2)
            }
            [] | [b'\r'] => Step::NeedMore,
            _ => Step::Fault(Fault::ChunkEnd),
        }
    }

    fn trailers(&mut self, input: &[u8], scanned: usize) -> Step<J::Fault> {
        if let [b'\r', b'\n', ..] = input {
            self.state = State::Head { scanned: 0 };
            return Step::Pass(2);
        }
        let end = match section_end(input, scanned, MAX_TRAILERS) {
            Section::Whole(end) => end,
            Section::Partial(scanned) => {
                self.state = State::Trailers { scanned };
                return Step::NeedMore;
            }
            Section::BadLineEnd | Section::TooLarge => return Step::Fault(Fault::Trailer),
        };
        let (section, _) = input.split_at(end);
        let mut fields = [httparse::EMPTY_HEADER; 32];
        match httparse::parse_headers(section, &mut fields) {
            Ok(httparse::Status::Complete((_, fields)))
                if !fields.iter().any(|field| delimits(field.name)) =>
            {
                self.state = State::Head { scanned: 0 };
                Step::Pass(end)
            }
            Ok(_) | Err(_) => Step::Fault(Fault::Trailer),
        }
    }
}

fn after_body(remaining: u64) -> State {
    if remaining == 0 {
        State::Head { scanned: 0 }
    } else {
        State::Length(remaining)
    }
}

fn bounded(remaining: u64, available: usize) -> usize {
    usize::try_from(remaining).map_or(available, |remaining| remaining.min(available))
}

enum Section {
    /// The empty line ends after so many bytes.
    Whole(usize),
    /// No end yet; looking may go on from this offset.
    Partial(usize),
    BadLineEnd,
    TooLarge,
}

/// Finds the end of a head or trailer section, CR LF CR LF, and refuses any LF without CR and any CR without LF.
fn section_end(input: &[u8], scanned: usize, limit: usize) -> Section {
    let mut at = scanned;
    while let Some(rest) = input.get(at..) {
        let Some(found) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) else {
            break;
        };
        let line_end = at + found;
        if line_end >= limit {
            return Section::TooLarge;
        }
        match input.get(line_end..) {
            Some([b'\r', b'\n', b'\r', b'\n', ..]) => {
                let end = line_end + 4;
                return if end > limit {
                    Section::TooLarge
                } else {
                    Section::Whole(end)
                };
            }
            Some([b'\r'] | [b'\r', b'\n'] | [b'\r', b'\n', b'\r']) => {
                return Section::Partial(line_end);
            }
            Some([b'\r', b'\n', ..]) => at = line_end + 2,
            _ => return Section::BadLineEnd,
        }
    }
    if input.len() >= limit {
        Section::TooLarge
    } else {
        Section::Partial(input.len())
    }
}

/// `1*HEXDIG`, at most 15 of them, and an optional extension of visible characters.
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    if size.is_empty() || size.len() > 15 || !extension.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
    {
        return None;
    }
    size.iter().try_fold(0_u64, |number, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(number * 16 + u64::from(digit))
    })
}

/// Fields that must never stand in a trailer section (RFC 9110 section 6.5.1).
fn delimits(name: &str) -> bool {
    [
        "content-length",
        "transfer-encoding",
        "host",
        "trailer",
        "authorization",
        "content-type",
        "content-encoding",
        "te",
    ]
    .iter()
    .any(|field| name.eq_ignore_ascii_case(field))
}

#[cfg(test)]
mod tests;
