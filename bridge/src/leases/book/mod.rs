//! Where leases are written down: a folder each, below `leases/` of the state folder.
//!
//! Here: [`LeaseBook`], which several processes may use at once; in `entry` one lease in the hands of one of them.
//! A process that has an entry holds a lock that the system takes away with it, so that others see who lives. Whatever
//! changes which entries there are is done under one lock of the whole book. Not here: what the records say
//! (`record.rs`), any provider.

mod entry;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;
use uuid::Uuid;

use entry::name_of;

pub(crate) use entry::Entry;

use crate::leases::record::{LeaseRecord, VERSION};
use crate::session::state::{StateError, io_error, options, own_folder, sync_folder};

/// Others hold the book's lock for milliseconds.
const BOOK_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A longer record is none of ours.
const RECORD_MAX_BYTES: u64 = 1024 * 1024;
const RECORD: &str = "lease.json";
const HELD: &str = "held";

/// Why a lease could not be written down or taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BookError {
    /// The folder or a file in it cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Somebody else was first.
    #[error(
        "the lease {id} of {provider} is taken by another session on this machine{}; wait for its end, or take another",
        .run.as_ref().map(|run| format!(" (run {run})")).unwrap_or_default()
    )]
    Taken {
        /// The provider's key.
        provider: String,
        /// The provider's own name of the lease.
        id: String,
        /// The run that has it, where that is known.
        run: Option<String>,
    },
    /// The lock was not to be had.
    #[error("{} has been locked by another process for {} s; end that process", .0.display(), BOOK_PATIENCE.as_secs())]
    Busy(PathBuf),
}

/// All leases of one state folder.
#[derive(Clone, Debug)]
pub(crate) struct LeaseBook {
    folder: PathBuf,
}

/// One line of the book.
#[derive(Debug)]
pub(crate) struct Line {
    /// The entry's name, by which it can be taken.
    pub(crate) name: String,
    /// A process that lives has it.
    pub(crate) in_use: bool,
    /// What stands there, or why that cannot be read.
    pub(crate) record: Result<LeaseRecord, String>,
}

impl LeaseBook {
    /// The book of this state folder; makes it where there is none.
    ///
    /// # Errors
    ///
    /// [`BookError::State`] for a folder that cannot be used or that others can write.
    pub(crate) fn open(state: &Path) -> Result<Self, BookError> {
        own_folder(state)?;
        let folder = state.join("leases");
        own_folder(&folder)?;
        sync_folder(state)?;
        Ok(Self { folder })
    }

    /// The book of this state folder, if one was ever opened there.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub(crate) fn existing(state: &Path) -> Result<Option<Self>, BookError> {
        let there = state.join("leases").try_exists();
        if there.map_err(|error| io_error(state, error))? {
            return Self::open(state).map(Some);
        }
        Ok(None)
    }

    /// Where it is.
    pub(in crate::leases) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a lease down that the provider has not given yet.
    ///
    /// # Errors
    ///
    /// [`BookError`]; nothing may then be asked of the provider.
    pub(crate) async fn begin(&self, record: LeaseRecord) -> Result<Entry, BookError> {
        let _book = self.lock().await?;
        self.insert(format!("{}-new-{}", record.provider, Uuid::now_v7()), record)
    }

    /// Writes a lease down that is known by its id; where a process that lives no more has left one, that is found.
    ///
    /// # Errors
    ///
    /// [`BookError::Taken`] where another session has it.
    pub(crate) async fn claim(&self, record: LeaseRecord, id: &str) -> Result<(Entry, Found), BookError> {
        let _book = self.lock().await?;
        let name = name_of(&record, id);
        match self.grasp(&name)? {
            Grasp::Nothing => Ok((self.insert(name, record)?, Found::Nothing)),
            Grasp::InUse => Err(self.taken(&name, &record.provider, id)),
            Grasp::Ours(held) => match self.read(&name)? {
                Ok(record) => Ok((self.entry(name, record, held), Found::Left)),
                Err(why) => Err(BookError::State(self.malformed(&name, why))),
            },
        }
    }

    /// Everything in the book.
    ///
    /// # Errors
    ///
    /// [`BookError`].
    pub(crate) async fn lines(&self) -> Result<Vec<Line>, BookError> {
        let _book = self.lock().await?;
        let mut lines = Vec::new();
        for name in self.names()? {
            let in_use = match self.grasp(&name)? {
                Grasp::Nothing => continue,
                Grasp::InUse => true,
                Grasp::Ours(_) => false,
            };
            let record = self.read(&name)?;
            lines.push(Line { name, in_use, record });
        }
        Ok(lines)
    }

    /// Takes over what a process left that lives no more; `None` where somebody has it or it is gone.
    ///
    /// # Errors
    ///
    /// [`BookError`], also for a record that cannot be read.
    pub(crate) async fn take(&self, name: &str) -> Result<Option<Entry>, BookError> {
        let _book = self.lock().await?;
        let Grasp::Ours(held) = self.grasp(name)? else {
            return Ok(None);
        };
        match self.read(name)? {
            Ok(record) => Ok(Some(self.entry(name.to_owned(), record, held))),
            Err(why) => Err(BookError::State(self.malformed(name, why))),
        }
    }

    /// Removes what stands under this name, whatever it is, unless somebody has it: the operator says so.
    ///
    /// # Errors
    ///
    /// [`BookError`].
    pub(crate) async fn forget(&self, name: &str) -> Result<bool, BookError> {
        let _book = self.lock().await?;
        // Only what is listed: a name is no path.
        if !self.names()?.iter().any(|known| known == name) {
            return Ok(false);
        }
        match self.grasp(name)? {
            Grasp::Ours(_held) => self.remove(name).map(|()| true),
            Grasp::Nothing | Grasp::InUse => Ok(false),
        }
    }

    /// The ids of all leases that stand in the book for the same account as this one.
    pub(in crate::leases) async fn known_ids(&self, beside: &LeaseRecord) -> Result<Vec<String>, BookError> {
        let lines = self.lines().await?;
        Ok(lines
            .into_iter()
            .filter_map(|line| line.record.ok())
            .filter(|record| record.provider == beside.provider && record.account == beside.account)
            .filter_map(|record| record.lease.map(|lease| lease.id))
            .collect())
    }

    fn entry(&self, name: String, record: LeaseRecord, held: File) -> Entry {
        Entry {
            book: self.clone(),
            name,
            record,
            held,
        }
    }

    /// With the book's lock. A folder that is there holds nothing: what a killed process began is no record.
    fn insert(&self, name: String, record: LeaseRecord) -> Result<Entry, BookError> {
        let folder = self.folder.join(&name);
        own_folder(&folder)?;
        let held = lock_file(&folder.join(HELD))?;
        flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| io_error(&folder, error.into()))?;
        let mut entry = self.entry(name, record, held);
        entry.write()?;
        sync_folder(&self.folder)?;
        Ok(entry)
    }

    /// With the book's lock: removes what is half there, locks what nobody has.
    fn grasp(&self, name: &str) -> Result<Grasp, BookError> {
        let folder = self.folder.join(name);
        let fault = |error| io_error(&folder, error);
        if !folder.try_exists().map_err(fault)? {
            return Ok(Grasp::Nothing);
        }
        let held = lock_file(&folder.join(HELD))?;
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Grasp::InUse),
            Err(error) => return Err(fault(error.into()).into()),
        }
        if folder.join(RECORD).try_exists().map_err(fault)? {
            return Ok(Grasp::Ours(held));
        }
        // Killed between the folder and the record, so before anything was asked of the provider.
        self.remove(name)?;
        Ok(Grasp::Nothing)
    }

    fn names(&self) -> Result<Vec<String>, BookError> {
        let fault = |error| io_error(&self.folder, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(fault)? {
            let entry = entry.map_err(fault)?;
            if entry.file_type().map_err(fault)?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The outer error is ours, the inner one the record's.
    fn read(&self, name: &str) -> Result<Result<LeaseRecord, String>, BookError> {
        let path = self.folder.join(name).join(RECORD);
        let fault = |error| io_error(&path, error);
        let mut text = Vec::new();
        match options().read(true).open(&path) {
            Ok(file) => file
                .take(RECORD_MAX_BYTES + 1)
                .read_to_end(&mut text)
                .map_err(fault)?,
            Err(error) => return Err(fault(error).into()),
        };
        if text.len() as u64 > RECORD_MAX_BYTES {
            return Ok(Err(format!("it is longer than {RECORD_MAX_BYTES} bytes")));
        }
        Ok(serde_json::from_slice::<LeaseRecord>(&text)
            .map_err(|error| error.to_string())
            .and_then(|record| match record.version {
                VERSION => Ok(record),
                other => Err(format!("it has version {other}")),
            }))
    }

    fn malformed(&self, name: &str, why: String) -> StateError {
        StateError::Malformed {
            path: self.folder.join(name).join(RECORD),
            why,
        }
    }

    fn taken(&self, name: &str, provider: &str, id: &str) -> BookError {
        let record = self.read(name).ok().and_then(Result::ok);
        BookError::Taken {
            provider: provider.to_owned(),
            id: id.to_owned(),
            run: record.map(|record| record.scope.run_id),
        }
    }

    fn remove(&self, name: &str) -> Result<(), BookError> {
        let folder = self.folder.join(name);
        std::fs::remove_dir_all(&folder).map_err(|error| io_error(&folder, error))?;
        Ok(sync_folder(&self.folder)?)
    }

    async fn lock(&self) -> Result<File, BookError> {
        let path = self.folder.join("lock");
        let lock = lock_file(&path)?;
        let end = Instant::now() + BOOK_PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(BookError::Busy(path)),
                Err(error) => return Err(io_error(&path, error.into()).into()),
            }
        }
    }
}

/// Whether a claimed lease was in the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is new there.
    Nothing,
    /// A process that lives no more has left it.
    Left,
}

enum Grasp {
    Nothing,
    InUse,
    Ours(File),
}

fn lock_file(path: &Path) -> Result<File, BookError> {
    let opened = options().write(true).create(true).truncate(false).open(path);
    Ok(opened.map_err(|error| io_error(path, error))?)
}
