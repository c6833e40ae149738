//! The audit's reader over an audit that somebody changed, and over bytes that were never one.
//!
//! Laws: an audit as it was written is in order; one whose segments differ in any byte up to what the head has signed is
//! not, whatever was done to them without the key; nothing makes the reader fail, and records are handed out whatever
//! stands beside them.
//!
//! The first byte of an input says what is done; the rest with what.

use std::io::BufRead;
use std::sync::OnceLock;

use bridge::audit::query::{Entry, Joined, record};
use bridge::audit::{Anchor, Audit, AuditError, AuditKey, AuditSettings, Head, Segments, verify_segments};

/// An audit of three segments, and what signs it.
struct Genuine {
    segments: Vec<(u64, Vec<u8>)>,
    head: Vec<u8>,
    key: AuditKey,
}

struct Held<'a> {
    segments: &'a [(u64, Vec<u8>)],
    head: &'a [u8],
}

impl Segments for Held<'_> {
    fn numbers(&self) -> Result<Vec<u64>, AuditError> {
        Ok(self.segments.iter().map(|(number, _)| *number).collect())
    }

    fn open(&self, number: u64) -> std::io::Result<Box<dyn BufRead + '_>> {
        let found = self.segments.iter().find(|(other, _)| *other == number);
        found
            .map(|(_, bytes)| Box::new(bytes.as_slice()) as Box<dyn BufRead + '_>)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn head(&self) -> Result<Option<Vec<u8>>, AuditError> {
        Ok(Some(self.head.to_vec()))
    }
}

/// Changes a genuine audit as the bytes say, and looks whether that is found.
///
/// # Panics
///
/// On a broken law.
pub fn audit(data: &[u8]) {
    let genuine = genuine();
    let mut segments = genuine.segments.clone();
    if let [how, rest @ ..] = data {
        change(*how, rest, &mut segments);
    }
    let held = Held {
        segments: &segments,
        head: &genuine.head,
    };
    let report = verify_segments(&held, &genuine.key, None).expect("memory can be read");
    assert_eq!(
        report.is_clean(),
        segments == genuine.segments || only_behind_the_head(&segments, &genuine.segments),
        "{report:?} of {}",
        data.escape_ascii()
    );
    let mut joined = Joined::default();
    let mut handed_out = 0_usize;
    let mut records = 0_usize;
    let mut take = |entry: Entry| {
        handed_out += match entry {
            Entry::Callback { outcome, .. } => 1 + usize::from(outcome.is_some()),
            Entry::Event(_) => 1,
        };
        true
    };
    for line in segments
        .iter()
        .flat_map(|(_, bytes)| bytes.split(|byte| *byte == b'\n'))
    {
        if let Some(record) = record(line) {
            records += 1;
            joined.add(record, &mut take);
        }
    }
    joined.rest(&mut take);
    assert!(handed_out <= records, "{}", data.escape_ascii());
    // Whatever they make of it.
    let _head = Head::parse(data);
    let _anchor = std::str::from_utf8(data).ok().and_then(Anchor::parse);
}

fn change(how: u8, rest: &[u8], segments: &mut Vec<(u64, Vec<u8>)>) {
    let number = |at: usize| rest.get(at).copied().map_or(0, usize::from);
    let which = number(0) % segments.len();
    let place = (number(1) << 8 | number(2)) % segments[which].1.len();
    let bytes = &mut segments[which].1;
    match how {
        b'x' => bytes[place] ^= u8::try_from(number(3)).expect("a byte"),
        b'c' => bytes.truncate(place),
        b'i' => drop(bytes.splice(place..place, rest.iter().skip(3).copied())),
        b'd' => drop(bytes.drain(place..(place + number(3)).min(bytes.len()))),
        b'e' => bytes.extend_from_slice(rest.get(1..).unwrap_or_default()),
        b'r' => drop(segments.remove(which)),
        b'l' => {
            let mut lines = lines(bytes);
            drop(lines.remove(number(1) % lines.len()));
            *bytes = lines.concat();
        }
        b's' => {
            let mut lines = lines(bytes);
            let length = lines.len();
            lines.swap(number(1) % length, number(2) % length);
            *bytes = lines.concat();
        }
        b'2' => {
            let mut lines = lines(bytes);
            let length = lines.len();
            let line = lines[number(1) % length].clone();
            lines.insert(number(2) % length, line);
            *bytes = lines.concat();
        }
        b'a' => *bytes = rest.get(1..).unwrap_or_default().to_vec(),
        _ => {}
    }
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// The newest segment may go on behind the head in bytes that are no whole line: somebody is writing.
fn only_behind_the_head(segments: &[(u64, Vec<u8>)], genuine: &[(u64, Vec<u8>)]) -> bool {
    let (Some((newest, earlier)), Some((last, before))) = (segments.split_last(), genuine.split_last())
    else {
        return false;
    };
    let more = newest.1.strip_prefix(last.1.as_slice());
    newest.0 == last.0
        && earlier == before
        && more.is_some_and(|more| more.len() < 64 * 1024 && !more.contains(&b'\n'))
}

fn genuine() -> &'static Genuine {
    static GENUINE: OnceLock<Genuine> = OnceLock::new();
    GENUINE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = AuditSettings::in_state_folder(folder.path());
        settings.segment_bytes = 700;
        let path = settings.folder.clone();
        let audit = Audit::open(settings).expect("a new audit");
        for number in 0..6 {
            let id = format!("r{number}");
            for kind in ["attempt", "outcome"] {
                let written = audit.append(kind, |line| line.text("request_id", &id));
                written.expect("a record");
            }
        }
        audit.close().expect("a disk");
        let mut segments = Vec::new();
        for number in 1.. {
            match std::fs::read(path.join(format!("{number:010}.jsonl"))) {
                Ok(bytes) => segments.push((number, bytes)),
                Err(_) => break,
            }
        }
        assert!(segments.len() > 2, "{}", segments.len());
        Genuine {
            segments,
            head: std::fs::read(path.join("head")).expect("a head"),
            key: AuditKey::in_folder(&path).expect("a key"),
        }
    })
}
