//! Server-sent events, as the Worker streams a command's output.
//!
//! Here: [`EventReader`], which takes bytes as they come. Not here: what the events mean (`stream`). An event that is
//! longer than its limit is cut and says so, so that its beginning can still be read: the last one repeats all output.

use bytes::BytesMut;

/// Longest name of a field with its value, where the field is not `data`.
const FIELD_LIMIT_BYTES: usize = 1024;

/// One event with data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its kind; empty where none was named.
    pub name: String,
    /// Its data; several lines are joined with a line feed.
    pub data: Vec<u8>,
    /// The data were longer than the limit; what is beyond it is dropped.
    pub cut: bool,
}

/// What breaks the stream.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EventFault {
    /// A line that is not of the data goes on and on.
    #[error("an event stream holds a line of more than {FIELD_LIMIT_BYTES} bytes that is no data")]
    LongLine,
    /// The name of an event is no text.
    #[error("an event stream holds an event whose name is not UTF-8")]
    Name,
}

/// Takes an event stream apart, however it is cut.
#[derive(Debug)]
pub struct EventReader {
    limit: usize,
    /// The line that is being read, up to its colon or, for `data`, nothing any more.
    line: BytesMut,
    kind: Line,
    event: Event,
    has_data: bool,
    after_return: bool,
}

/// What the line is, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Not known yet.
    Open,
    /// Its value goes straight into the event's data; `true` while a space in front of it would be dropped.
    Data(bool),
    /// A comment; nobody reads it.
    Comment,
}

impl EventReader {
    /// A reader that keeps at most `limit` bytes of one event's data.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: BytesMut::new(),
            kind: Line::Open,
            event: Event::default(),
            has_data: false,
            after_return: false,
        }
    }

    /// Takes the next bytes and adds the events that they complete to `events`.
    ///
    /// # Errors
    ///
    /// [`EventFault`]; the reader is of no use any more.
    pub fn feed(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), EventFault> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.part(part)?;
            bytes = rest;
            if let Some((ending, rest)) = rest.split_first() {
                self.after_return = *ending == b'\r';
                bytes = rest;
                events.extend(self.end_line()?);
            }
        }
        Ok(())
    }

    fn part(&mut self, mut part: &[u8]) -> Result<(), EventFault> {
        if self.kind == Line::Open {
            // The field's name decides, and it is short.
            while let Some((first, rest)) = part.split_first() {
                part = rest;
                if *first == b':' {
                    match self.line.as_ref() {
                        b"" => self.kind = Line::Comment,
                        b"data" => {
                            self.kind = Line::Data(true);
                            self.begin_data();
                        }
                        _ => {}
                    }
                }
                if self.kind != Line::Open {
                    self.line.clear();
                    break;
                }
                if self.line.len() >= FIELD_LIMIT_BYTES {
                    return Err(EventFault::LongLine);
                }
                self.line.extend_from_slice(&[*first]);
            }
        }
        if let Line::Data(at_start) = self.kind
            && !part.is_empty()
        {
            let value = if at_start {
                part.strip_prefix(b" ").unwrap_or(part)
            } else {
                part
            };
            self.kind = Line::Data(false);
            self.keep(value);
        }
        Ok(())
    }

    /// Another line of data is on a line of its own.
    fn begin_data(&mut self) {
        if std::mem::replace(&mut self.has_data, true) {
            self.keep(b"\n");
        }
    }

    fn keep(&mut self, value: &[u8]) {
        let room = self.limit.saturating_sub(self.event.data.len());
        if value.len() > room {
            self.event.cut = true;
        }
        let kept = value.get(..room).unwrap_or(value);
        self.event.data.extend_from_slice(kept);
    }

    fn end_line(&mut self) -> Result<Option<Event>, EventFault> {
        let line = self.line.split();
        match std::mem::replace(&mut self.kind, Line::Open) {
            Line::Data(_) | Line::Comment => return Ok(None),
            Line::Open => {}
        }
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return Ok(std::mem::take(&mut self.has_data).then_some(event));
        }
        if line.as_ref() == b"data" {
            self.begin_data();
        }
        if let Some(name) = line.strip_prefix(b"event") {
            let name = name.strip_prefix(b":").unwrap_or(name);
            let name = name.strip_prefix(b" ").unwrap_or(name);
            // Of `eventual: x` nothing is left that could be a name.
            if line.get(5).is_none_or(|byte| *byte == b':') {
                self.event.name = std::str::from_utf8(name)
                    .map_err(|_| EventFault::Name)?
                    .to_owned();
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, piece: usize, limit: usize) -> Vec<(String, String, bool)> {
        let mut reader = EventReader::new(limit);
        let mut events = Vec::new();
        for chunk in text.as_bytes().chunks(piece) {
            reader.feed(chunk, &mut events).unwrap();
        }
        let told = |event: Event| (event.name, String::from_utf8(event.data).unwrap(), event.cut);
        events.into_iter().map(told).collect()
    }

    fn events(text: &str) -> Vec<(String, String)> {
        let whole = read(text, text.len().max(1), 1000);
        for piece in [1, 2, 3, 7] {
            assert_eq!(read(text, piece, 1000), whole, "in pieces of {piece}");
        }
        whole.into_iter().map(|(name, data, _)| (name, data)).collect()
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn events_are_read_however_their_lines_end_and_wherever_they_are_cut() {
        for end in ["\n", "\r\n", "\r"] {
            let text = "event: stdout\ndata: {\"a\": 1}\n\n: alive\n\nevent:stderr\ndata:x\ndata:  y\ndata\n\ndata: z\n\n";

            assert_eq!(
                events(&text.replace('\n', end)),
                [
                    event("stdout", "{\"a\": 1}"),
                    event("stderr", "x\n y\n"),
                    event("", "z")
                ],
                "{end:?}"
            );
        }
    }

    #[test]
    fn an_event_without_data_and_one_without_its_end_are_none() {
        assert_eq!(events("event: stdout\n\ndata: x\n"), []);
        assert_eq!(events("id: 4\nretry: 5\neventual: x\ndatum: y\n\n"), []);
    }

    #[test]
    fn an_event_over_its_limit_is_cut_and_the_next_is_not() {
        let text = format!(
            "event: a\ndata: {}\ndata: x\n\nevent: b\ndata: short\n\n",
            "1".repeat(50)
        );

        for piece in [1, 5, 1000] {
            assert_eq!(
                read(&text, piece, 10),
                [
                    ("a".to_owned(), "1".repeat(10), true),
                    ("b".to_owned(), "short".to_owned(), false)
                ]
            );
        }
    }

    #[test]
    fn a_line_without_end_that_is_no_data_is_a_fault() {
        let mut reader = EventReader::new(10);

        let fed = reader.feed(&[b'x'; FIELD_LIMIT_BYTES + 1], &mut Vec::new());

        assert_eq!(fed, Err(EventFault::LongLine));
        let mut reader = EventReader::new(10);
        let fed = reader.feed(
            &[b":".as_slice(), &[b'x'; 10 * FIELD_LIMIT_BYTES]].concat(),
            &mut Vec::new(),
        );
        assert_eq!(fed, Ok(()));
    }

    #[test]
    fn a_name_that_is_no_text_is_a_fault() {
        let fed = EventReader::new(10).feed(b"event: \xff\n", &mut Vec::new());

        assert_eq!(fed, Err(EventFault::Name));
    }
}
