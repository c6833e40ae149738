//! A command's event stream, from a Worker that may say anything.
//!
//! Laws: the bytes read the same however they are cut; a slow reading of the whole text finds the same events; no event
//! holds more than the limit, and one that was longer says so; what never ends is given up or costs no more memory.

use runners::worker::sse::{Event, EventReader};

/// The longest data of an event, here.
const LIMIT: usize = 64;

/// Takes the bytes as an event stream.
///
/// # Panics
///
/// On a broken law.
pub fn sse(data: &[u8]) {
    let shown = || data.escape_ascii().to_string();
    let whole = read(data, data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(read(data, piece), whole, "in pieces of {piece}: {}", shown());
    }
    let (events, fault) = whole;
    for event in &events {
        assert!(event.data.len() <= LIMIT, "{}", shown());
    }
    if fault {
        return;
    }
    let slowly = slow(data);
    let cut: Vec<Event> = slowly
        .into_iter()
        .map(|(name, mut data)| {
            let cut = data.len() > LIMIT;
            data.truncate(LIMIT);
            Event { name, data, cut }
        })
        .collect();
    assert_eq!(events, cut, "{}", shown());
}

/// The events before the first fault, and whether there was one.
fn read(data: &[u8], piece: usize) -> (Vec<Event>, bool) {
    let mut reader = EventReader::new(LIMIT);
    let mut events = Vec::new();
    for chunk in data.chunks(piece) {
        if reader.feed(chunk, &mut events).is_err() {
            return (events, true);
        }
    }
    (events, false)
}

/// Reads the whole text line by line, as the HTML standard describes it, section 9.2.6. A name that is no text is a fault
/// of the reader's, which the caller has looked for.
fn slow(data: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut events = Vec::new();
    let (mut name, mut lines) = (String::new(), Vec::<Vec<u8>>::new());
    for line in ended_lines(data) {
        if line.is_empty() {
            if !lines.is_empty() {
                events.push((name.clone(), lines.join(&b'\n')));
            }
            name.clear();
            lines.clear();
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (&line[..], &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => lines.push(value.to_vec()),
            b"event" => name = String::from_utf8(value.to_vec()).expect("a fault of the reader's"),
            _ => {}
        }
    }
    events
}

/// The lines that have an end.
fn ended_lines(data: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut bytes = data.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | b'\n' => {
                if *byte == b'\r' && bytes.peek() == Some(&&b'\n') {
                    bytes.next();
                }
                lines.push(std::mem::take(&mut line));
            }
            other => line.push(*other),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_reading_knows_fields_line_ends_and_half_events() {
        let events = slow(b"event: a\rdata: 1\r\ndata:2\n\n:c\n\ndata\n\ndata: half\n");

        assert_eq!(
            events,
            [("a".to_owned(), b"1\n2".to_vec()), (String::new(), Vec::new())]
        );
    }
}
