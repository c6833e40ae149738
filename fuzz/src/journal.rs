//! The file that remembers which unsafe callbacks of a queue were sent.
//!
//! Laws: a file of which each whole line is one the journal writes is taken, and any other is refused with the number
//! of its first bad line, so that nothing that was sent is forgotten; a last line without its end counts for nothing;
//! what the lines say is what is known of each callback; opening twice is opening once; what is begun is known after
//! the next start.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tunnel::queue::journal::Seen;
use tunnel::queue::listing::FileId;
use tunnel::queue::{Journal, JournalFault};

/// The longest name of a session.
const SESSION: usize = 128;
/// Memory that looks like a disk, where there is some: the journal waits for its disk.
const QUICK: &str = "/dev/shm";

/// Whether a callback's answer was written, by session and file name.
type Known = BTreeMap<(String, String), bool>;

/// Takes the bytes as a journal that an earlier process left behind.
///
/// # Panics
///
/// On a broken law.
pub fn journal(data: &[u8]) {
    let folder = tempfile::tempdir_in(QUICK)
        .or_else(|_| tempfile::tempdir())
        .expect("a folder");
    let path = folder.path().join("journal");
    leave(&path, data);
    let shown = data.escape_ascii();
    let known = match (Journal::open(&path), slow(data)) {
        (Ok(journal), Ok(known)) => {
            says(&journal, &known);
            known
        }
        (Err(JournalFault::Malformed { line, .. }), Err(expected)) => {
            assert_eq!(line, expected, "{shown}");
            return;
        }
        (opened, expected) => panic!("{opened:?} where {expected:?} was expected: {shown}"),
    };
    let written = std::fs::read(&path).expect("the journal is there");
    assert!(written.is_empty() || written.ends_with(b"\n"), "{shown}");
    assert_eq!(slow(&written).as_ref(), Ok(&known), "{shown}");
    let journal = Journal::open(&path).expect("what it wrote itself can be read");
    says(&journal, &known);
    let fresh = FileId::of_file("never-seen.json").expect("a name");
    let before = known.get(&("of-the-harness".to_owned(), "never-seen".to_owned()));
    if before.is_none() {
        assert_eq!(journal.begin("of-the-harness", &fresh).ok(), Some(Seen::Never));
        drop(journal);
        let journal = Journal::open(&path).expect("what it wrote itself can be read");
        assert_eq!(
            journal.begin("of-the-harness", &fresh).ok(),
            Some(Seen::Unanswered),
            "{shown}"
        );
        says(&journal, &known);
    }
}

fn leave(path: &Path, data: &[u8]) {
    std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(data))
        .expect("a file can be written");
}

/// Asking for a callback that is known writes nothing down.
fn says(journal: &Journal, known: &Known) {
    for ((session, name), answered) in known {
        // Sessions have plain names, and the journal is asked for no others.
        if session.is_ascii() {
            let id = FileId::of_file(&format!("{name}.json")).expect("it was read as one");
            let expected = if *answered {
                Seen::Answered
            } else {
                Seen::Unanswered
            };
            assert_eq!(
                journal.begin(session, &id).ok(),
                Some(expected),
                "{session:?} {name:?}"
            );
        }
    }
}

/// What the whole lines say, or the number of the first that says nothing known.
fn slow(data: &[u8]) -> Result<Known, usize> {
    let mut known = Known::new();
    let lines = data.iter().filter(|byte| **byte == b'\n').count();
    for (index, line) in data.split(|byte| *byte == b'\n').take(lines).enumerate() {
        slow_line(line, &mut known).ok_or(index + 1)?;
    }
    Ok(known)
}

fn slow_line(line: &[u8], known: &mut Known) -> Option<()> {
    let Entry { event, session, id } = entry(line)?;
    if session.len() > SESSION {
        return None;
    }
    let id = match id {
        Some(id) => Some(FileId::of_file(&format!("{id}.json"))?.as_str().to_owned()),
        None => None,
    };
    match (event.as_str(), id) {
        ("sent", Some(id)) => drop(known.insert((session, id), false)),
        ("answered", Some(id)) => {
            if let Some(answered) = known.get_mut(&(session, id)) {
                *answered = true;
            }
        }
        ("closed", None) => known.retain(|(other, _), _| *other != session),
        _ => return None,
    }
    Some(())
}

struct Entry {
    event: String,
    session: String,
    id: Option<String>,
}

/// The three values of a line, each key once. The same values as a list in their order are the same line, and an event
/// is also the only key of an object that holds nothing.
fn entry(line: &[u8]) -> Option<Entry> {
    let (mut event, mut session, mut id) = match serde_json::from_slice(line).ok()? {
        Line::List(list) if list.len() <= 3 => {
            let mut list = list.into_iter();
            (list.next(), list.next(), list.next())
        }
        Line::List(_) => return None,
        Line::Pairs(pairs) => {
            let mut found = (None, None, None);
            for (key, value) in pairs {
                let place = match key.as_str() {
                    "event" => &mut found.0,
                    "session" => &mut found.1,
                    "id" => &mut found.2,
                    _ => return None,
                };
                if place.replace(value).is_some() {
                    return None;
                }
            }
            found
        }
    };
    let text = |value: &mut Option<Value>| match value.take() {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    if let Some(Value::Object(object)) = &event {
        let mut keys = object.iter();
        let alone = keys
            .next()
            .filter(|(_, held)| held.is_null() && object.len() == 1);
        event = alone.map(|(key, _)| Value::String(key.clone()));
    }
    let id = match &mut id {
        None | Some(Value::Null) => None,
        some => Some(text(some)?),
    };
    Some(Entry {
        event: text(&mut event)?,
        session: text(&mut session)?,
        id,
    })
}

/// JSON that keeps what stands there twice.
enum Line {
    Pairs(Vec<(String, Value)>),
    List(Vec<Value>),
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Line;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a line")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Line::Pairs(pairs))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Line, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Line::List(values))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_reading_tells_lines_from_a_torn_end() {
        let sent = "{\"event\":\"sent\",\"session\":\"s\",\"id\":\"a\"}\n";
        let known = Known::from([(("s".to_owned(), "a".to_owned()), false)]);

        assert_eq!(slow(format!("{sent}{{\"ev").as_bytes()).as_ref(), Ok(&known));
        assert_eq!(slow(format!("{sent}{{\"ev\n").as_bytes()), Err(2));
        assert_eq!(slow(sent.replace("}", ",\"id\":\"a\"}").as_bytes()), Err(1));
        assert_eq!(slow(sent.replace("}", ",\"more\":1}").as_bytes()), Err(1));
        assert_eq!(slow(sent.replace("\"a\"", "\"../a\"").as_bytes()), Err(1));
    }
}
