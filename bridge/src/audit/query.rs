//! Reading: the callbacks and events of an audit, in the order of their attempts' outcomes.
//!
//! Here: [`read`], which puts an attempt and its outcome together and hands out what a [`Filter`] lets through. Nothing
//! is verified: that is [`super::verify`](fn@super::verify). A line that is no record is passed over.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::folder::{segment_path, segments};
use super::lines::{Lines, OPENED, Piece, REMOVED};
use super::settings::AuditError;

/// Attempts that wait for their outcome at the same time; the oldest is handed out without one.
const MOST_OPEN: usize = 100_000;

/// A record as it stands in its line.
pub type Record = Map<String, Value>;

/// What is handed out.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A callback. `outcome` is absent while it is under way, and where its writer was ended first.
    Callback {
        /// What it asked and what was decided.
        attempt: Record,
        /// What became of it.
        outcome: Option<Record>,
    },
    /// Anything else: a session's beginning or end, a segment's.
    Event(Record),
}

/// What is wanted; the default wants everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this session.
    pub session: Option<String>,
    /// Of this run.
    pub run: Option<String>,
    /// This callback.
    pub request_id: Option<String>,
    /// At this time or later.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// With this verdict: `allow`, `report`, `deny` or `own`.
    pub verdict: Option<String>,
    /// With this status.
    pub status: Option<u16>,
}

impl Filter {
    /// Whether nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        let Self {
            session,
            run,
            request_id,
            since,
            until,
            verdict,
            status,
        } = self;
        [session, run, request_id, verdict]
            .into_iter()
            .all(Option::is_none)
            && since.is_none()
            && until.is_none()
            && status.is_none()
    }

    /// Whether it lets this through.
    #[must_use]
    pub fn admits(&self, entry: &Entry) -> bool {
        let (record, outcome) = match entry {
            Entry::Callback { attempt, outcome } => (attempt, outcome.as_ref()),
            Entry::Event(event) => (event, None),
        };
        let is = |key: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| text(record, key) == Some(wanted))
        };
        let at = text(record, "at").and_then(|at| at.parse::<Timestamp>().ok());
        let status = outcome
            .and_then(|outcome| outcome.get("status"))
            .and_then(Value::as_u64);
        is("session", &self.session)
            && is("run", &self.run)
            && is("request_id", &self.request_id)
            && is("verdict", &self.verdict)
            && self.since.is_none_or(|since| at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| at.is_some_and(|at| at < until))
            && self.status.is_none_or(|wanted| status == Some(wanted.into()))
    }
}

/// A member of text.
#[must_use]
pub fn text<'a>(record: &'a Record, key: &str) -> Option<&'a str> {
    record.get(key).and_then(Value::as_str)
}

/// Hands out every entry that `filter` lets through, until `take` says `false`.
///
/// # Errors
///
/// [`AuditError`] where a segment cannot be read.
pub fn read(folder: &Path, filter: &Filter, take: &mut dyn FnMut(&Entry) -> bool) -> Result<(), AuditError> {
    let mut joined = Joined::default();
    let mut wanted = |entry: Entry| !filter.admits(&entry) || take(&entry);
    let mut more = true;
    lines(folder, &mut |line| {
        let Some(record) = record(line) else { return true };
        more = joined.add(record, &mut wanted);
        more
    })?;
    if more {
        joined.rest(&mut wanted);
    }
    Ok(())
}

/// Hands out every whole line as it stands, oldest first, until `take` says `false`.
///
/// # Errors
///
/// As [`read`].
pub fn lines(folder: &Path, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), AuditError> {
    for number in segments(folder)? {
        let path = segment_path(folder, number);
        let fault = |error| AuditError::io(&path, error);
        let mut lines = Lines::new(BufReader::with_capacity(
            64 * 1024,
            File::open(&path).map_err(fault)?,
        ));
        loop {
            match lines.next().map_err(fault)? {
                Piece::Line => {
                    if !take(lines.line()) {
                        return Ok(());
                    }
                }
                Piece::TooLong => drop(lines.skip_line().map_err(fault)?),
                Piece::Torn | Piece::End => break,
            }
        }
    }
    Ok(())
}

/// Reads what is there, and then again and again what was written since.
#[derive(Debug)]
pub struct Follow {
    folder: PathBuf,
    segment: u64,
    offset: u64,
}

impl Follow {
    /// From the oldest record that is there.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            segment: 0,
            offset: 0,
        }
    }

    /// Hands out the whole lines that have come since, until `take` says `false`.
    ///
    /// # Errors
    ///
    /// As [`read`].
    pub fn lines(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), AuditError> {
        for number in segments(&self.folder)? {
            if number < self.segment {
                continue;
            }
            if number > self.segment {
                (self.segment, self.offset) = (number, 0);
            }
            let path = segment_path(&self.folder, number);
            let fault = |error| AuditError::io(&path, error);
            let mut file = File::open(&path).map_err(fault)?;
            file.seek(SeekFrom::Start(self.offset)).map_err(fault)?;
            let mut lines = Lines::new(BufReader::with_capacity(64 * 1024, file));
            while lines.next().map_err(fault)? == Piece::Line {
                let length = u64::try_from(lines.line().len()).unwrap_or(u64::MAX);
                self.offset = self.offset.saturating_add(length).saturating_add(1);
                if !take(lines.line()) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A line as a record; `None` where it is none.
#[must_use]
pub fn record(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(line).ok()
}

/// Puts attempts and outcomes together.
#[derive(Debug, Default)]
pub struct Joined {
    open: HashMap<String, Record>,
    order: VecDeque<String>,
}

impl Joined {
    /// Takes the next record; hands out what is whole. `false` as soon as `take` says so.
    pub fn add(&mut self, record: Record, take: &mut dyn FnMut(Entry) -> bool) -> bool {
        let id = text(&record, "request_id").map(str::to_owned);
        match (text(&record, "type"), id) {
            (Some("attempt"), Some(id)) => {
                self.order.push_back(id.clone());
                let replaced = self.open.insert(id, record);
                let evicted = if self.open.len() > MOST_OPEN {
                    self.oldest()
                } else {
                    None
                };
                [replaced, evicted].into_iter().flatten().all(|attempt| {
                    take(Entry::Callback {
                        attempt,
                        outcome: None,
                    })
                })
            }
            (Some("outcome"), Some(id)) => match self.open.remove(&id) {
                Some(attempt) => {
                    self.tidy();
                    take(Entry::Callback {
                        attempt,
                        outcome: Some(record),
                    })
                }
                // Its attempt was removed with an earlier segment.
                None => take(Entry::Event(record)),
            },
            (Some(OPENED | REMOVED), _) => true,
            _ => take(Entry::Event(record)),
        }
    }

    /// Hands out the attempts that have no outcome.
    pub fn rest(&mut self, take: &mut dyn FnMut(Entry) -> bool) {
        while let Some(attempt) = self.oldest() {
            let entry = Entry::Callback {
                attempt,
                outcome: None,
            };
            if !take(entry) {
                return;
            }
        }
    }

    fn oldest(&mut self) -> Option<Record> {
        while let Some(id) = self.order.pop_front() {
            if let Some(attempt) = self.open.remove(&id) {
                return Some(attempt);
            }
        }
        None
    }

    /// Forgets the order of what has been handed out, now and then.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.open.len() + 1024 {
            let open = &self.open;
            self.order.retain(|id| open.contains_key(id));
        }
    }
}
