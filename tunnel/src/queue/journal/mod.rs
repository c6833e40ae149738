//! Which unsafe callbacks of a queue were sent, so that none is ever sent twice.
//!
//! Here: [`Journal`], an append-only file of one JSON line per event, or a table in memory where there is no file. A
//! callback is on disk before it is sent. Not here: what an answer was; who asks (`worker.rs`).

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::listing::FileId;

/// A longer file is none of ours.
const FILE_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// A file of this size is written anew with what still counts.
const COMPACT_BYTES: u64 = 8 * 1024 * 1024;
/// Callbacks that are remembered; the oldest answered ones make room.
const ENTRIES: usize = 20_000;
/// The longest name of a session.
const SESSION_MAX_BYTES: usize = 128;

/// Remembers unsafe callbacks by session and file name. A clone is the same journal.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

/// What is known of a callback when it is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it is written down now and may be sent.
    Never,
    /// It was sent, and no answer to it was written.
    Unanswered,
    /// It was sent, and its answer was written.
    Answered,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalFault {
    /// Reading or writing failed.
    #[error("the journal {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("the journal {} is in use by another process: end that, or use another state folder", .0.display())]
    InUse(PathBuf),
    /// It is no regular file, or others may write it.
    #[error("the journal {} must be a regular file that only its owner can read and write", .0.display())]
    NotOurs(PathBuf),
    /// A line of it is not understood.
    #[error(
        "line {line} of the journal {} is not understood: move the file away only if no callback of its sessions is open",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
    },
    /// It is longer than a journal can be.
    #[error("the journal {} is longer than {FILE_MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// All it can hold is unanswered.
    #[error("the journal holds {ENTRIES} callbacks without an answer and takes no more")]
    Full,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    bytes: u64,
    table: Table,
}

type Key = (Box<str>, FileId);

#[derive(Debug, Default)]
struct Table {
    /// Whose queues were served with this journal.
    sessions: BTreeSet<Box<str>>,
    answered: HashMap<Key, bool>,
    order: VecDeque<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Its queue is served with this journal.
    Opened,
    Sent,
    Answered,
    /// The session is over, and its queue gone.
    Closed,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    event: Event,
    session: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Box<str>>,
}

impl Journal {
    /// A journal that is forgotten with the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Arc::new(Inner {
            path: PathBuf::new(),
            state: Mutex::default(),
        }))
    }

    /// Opens the journal at `path`, made with mode 0600 where it is missing. Blocks on the disk.
    ///
    /// A last line without its end, which a crash leaves behind, was never acted on and is cut off.
    ///
    /// # Errors
    ///
    /// [`JournalFault`]; nothing else is ever repaired.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, JournalFault> {
        let path = path.into();
        let mut file = lock(&path)?;
        let text = read(&mut file, &path)?;
        let table = Table::read(&text, &path)?;
        let mut state = State {
            file: None,
            bytes: 0,
            table,
        };
        state.compact(&path)?;
        Ok(Self(Arc::new(Inner {
            path,
            state: Mutex::new(state),
        })))
    }

    /// The queue of this session is served with this journal from now on. Says whether it was so before: if not, the
    /// journal does not know what an earlier host has sent. Blocks until that is on disk.
    ///
    /// # Errors
    ///
    /// [`JournalFault`] where it cannot be written down.
    pub fn opens(&self, session: &str) -> Result<bool, JournalFault> {
        let session = short(session);
        let file = {
            let mut state = self.state();
            if state.table.sessions.contains(&session) {
                return Ok(true);
            }
            state.append(&self.0.path, Event::Opened, &session, None)?;
            state.table.sessions.insert(session);
            state.file.clone()
        };
        if let Some(file) = file {
            file.sync_data().map_err(|source| io(&self.0.path, source))?;
        }
        Ok(false)
    }

    /// Writes down that a callback is about to be sent, and says what is known of it. Blocks until that is on disk.
    ///
    /// # Errors
    ///
    /// [`JournalFault`]: it is not written down, so it must not be sent.
    pub fn begin(&self, session: &str, id: &FileId) -> Result<Seen, JournalFault> {
        let key: Key = (short(session), id.clone());
        let file = {
            let mut state = self.state();
            match state.table.answered.get(&key) {
                Some(true) => return Ok(Seen::Answered),
                Some(false) => return Ok(Seen::Unanswered),
                None => {}
            }
            state.table.make_room()?;
            state.append(&self.0.path, Event::Sent, &key.0, Some(id))?;
            state.table.put(key, false);
            state.file.clone()
        };
        // Not under the lock: what others append meanwhile goes to disk with it.
        if let Some(file) = file {
            file.sync_data().map_err(|source| io(&self.0.path, source))?;
        }
        Ok(Seen::Never)
    }

    /// Writes down that the answer stands in the queue. Not waited for: a crash makes it unanswered, which is safe.
    ///
    /// # Errors
    ///
    /// [`JournalFault`] where it cannot be written down.
    pub fn answered(&self, session: &str, id: &FileId) -> Result<(), JournalFault> {
        let key: Key = (short(session), id.clone());
        let mut state = self.state();
        match state.table.answered.get_mut(&key) {
            Some(answered) if !*answered => *answered = true,
            Some(_) | None => return Ok(()),
        }
        state.append(&self.0.path, Event::Answered, &key.0, Some(id))
    }

    /// Forgets a session whose queue is gone.
    ///
    /// # Errors
    ///
    /// [`JournalFault`] where it cannot be written down.
    pub fn close(&self, session: &str) -> Result<(), JournalFault> {
        let session = short(session);
        let mut state = self.state();
        if state.table.close(&session) {
            state.append(&self.0.path, Event::Closed, &session, None)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(
        &mut self,
        path: &Path,
        event: Event,
        session: &str,
        id: Option<&FileId>,
    ) -> Result<(), JournalFault> {
        if self.bytes > COMPACT_BYTES {
            self.compact(path)?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        let line = line(event, session, id);
        let mut out: &File = file;
        if let Err(source) = out.write_all(&line) {
            // Half a line in the middle would make the file unreadable.
            if file.set_len(self.bytes).is_err() {
                self.file = None;
            }
            return Err(io(path, source));
        }
        self.bytes += u64::try_from(line.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Writes what still counts into a new file and puts it in the old one's place.
    fn compact(&mut self, path: &Path) -> Result<(), JournalFault> {
        let mut text = Vec::new();
        for session in &self.table.sessions {
            text.extend(line(Event::Opened, session, None));
        }
        for key in &self.table.order {
            text.extend(line(Event::Sent, &key.0, Some(&key.1)));
            if self.table.answered.get(key) == Some(&true) {
                text.extend(line(Event::Answered, &key.0, Some(&key.1)));
            }
        }
        let fault = |source| io(path, source);
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let fresh = PathBuf::from(name);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fault(error)),
            Ok(()) | Err(_) => {}
        }
        let file = options().create_new(true).open(&fresh).map_err(fault)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| fault(error.into()))?;
        (&file).write_all(&text).map_err(fault)?;
        file.sync_all().map_err(fault)?;
        std::fs::rename(&fresh, path).map_err(fault)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(fault)?;
        }
        self.bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.file = Some(Arc::new(file));
        Ok(())
    }
}

impl Table {
    fn read(text: &[u8], path: &Path) -> Result<Self, JournalFault> {
        let mut table = Self::default();
        for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if !line.ends_with(b"\n") {
                // The last one, torn.
                break;
            }
            let malformed = || JournalFault::Malformed {
                path: path.to_owned(),
                line: index + 1,
            };
            let line: Line = serde_json::from_slice(line).map_err(|_| malformed())?;
            if line.session.len() > SESSION_MAX_BYTES {
                return Err(malformed());
            }
            let id = match &line.id {
                Some(id) => Some(FileId::of_file(&format!("{id}.json")).ok_or_else(malformed)?),
                None => None,
            };
            match (line.event, id) {
                (Event::Sent, Some(id)) => {
                    table.make_room()?;
                    table.put((line.session, id), false);
                }
                (Event::Answered, Some(id)) => {
                    if let Some(answered) = table.answered.get_mut(&(line.session, id)) {
                        *answered = true;
                    }
                }
                (Event::Closed, None) => {
                    table.close(&line.session);
                }
                (Event::Opened, None) => {
                    table.sessions.insert(line.session);
                }
                (Event::Sent | Event::Answered, None) | (Event::Opened | Event::Closed, Some(_)) => {
                    return Err(malformed());
                }
            }
        }
        Ok(table)
    }

    fn put(&mut self, key: Key, answered: bool) {
        if self.answered.insert(key.clone(), answered).is_none() {
            self.order.push_back(key);
        }
    }

    fn make_room(&mut self) -> Result<(), JournalFault> {
        if self.order.len() < ENTRIES {
            return Ok(());
        }
        let oldest = self
            .order
            .iter()
            .position(|key| self.answered.get(key) == Some(&true))
            .ok_or(JournalFault::Full)?;
        if let Some(key) = self.order.remove(oldest) {
            self.answered.remove(&key);
        }
        Ok(())
    }

    fn close(&mut self, session: &str) -> bool {
        let before = self.order.len();
        self.order.retain(|key| &*key.0 != session);
        self.answered.retain(|key, _| &*key.0 != session);
        let known = self.sessions.remove(session);
        known || self.order.len() != before
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    options.read(true).append(true).mode(0o600).custom_flags(flags);
    options
}

/// Opens and locks the file that stands at `path` now, not one that was just replaced.
fn lock(path: &Path) -> Result<File, JournalFault> {
    for _ in 0..16 {
        let file = options()
            .create(true)
            .open(path)
            .map_err(|source| io(path, source))?;
        let metadata = file.metadata().map_err(|source| io(path, source))?;
        if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
            return Err(JournalFault::NotOurs(path.to_owned()));
        }
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(JournalFault::InUse(path.to_owned()));
        }
        let stands = std::fs::symlink_metadata(path).map_err(|source| io(path, source))?;
        if (stands.dev(), stands.ino()) == (metadata.dev(), metadata.ino()) {
            return Ok(file);
        }
    }
    Err(JournalFault::InUse(path.to_owned()))
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>, JournalFault> {
    let mut text = Vec::new();
    file.take(FILE_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|source| io(path, source))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_MAX_BYTES {
        return Err(JournalFault::TooLong(path.to_owned()));
    }
    Ok(text)
}

fn line(event: Event, session: &str, id: Option<&FileId>) -> Vec<u8> {
    let line = Line {
        event,
        session: session.into(),
        id: id.map(|id| id.as_str().into()),
    };
    // Text and fixed words can always be written.
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A session's name, cut to what the journal takes.
fn short(session: &str) -> Box<str> {
    let plain = session.chars().filter(char::is_ascii);
    plain.take(SESSION_MAX_BYTES).collect::<String>().into()
}

fn io(path: &Path, source: std::io::Error) -> JournalFault {
    JournalFault::Io {
        path: path.to_owned(),
        source,
    }
}
