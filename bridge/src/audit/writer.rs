//! The audit as others see it.
//!
//! Here: [`Audit`]: open, append, commit, close. A record is one `write` under a lock, so that it stands in the file before
//! whoever wrote it goes on. Not here: the writing itself (`state.rs`), what waits for the disk (`sealer.rs`), what an
//! earlier process left (`resume.rs`), what is removed (`retention.rs`).

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::folder::{segment_path, segments};
use super::head::{HEAD, Head};
use super::key::AuditKey;
use super::line::{Hash, Line};
use super::settings::{AuditError, AuditSettings, Durability};
use super::state::{Inner, State, new_segment};
use super::{resume, retention, sealer};
use crate::session::state::{StateError, StateFolder, options, write_whole};

/// The disk gets so long to confirm what a callback waits for.
const COMMIT: Duration = Duration::from_secs(10);

/// An audit that is being written. Dropped, it is closed as by [`Self::close`].
#[derive(Debug)]
pub struct Audit {
    inner: Arc<Inner>,
    sealer: Mutex<Option<JoinHandle<()>>>,
    /// Nobody else writes here.
    _lock: StateFolder,
}

/// What an audit has done since it was opened; for metrics and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Records written.
    pub records: u64,
    /// Records that could not be written.
    pub unwritten: u64,
    /// The newest segment.
    pub segment: u64,
    /// The newest record.
    pub seq: u64,
    /// The newest record that a head has signed.
    pub sealed: u64,
}

impl Audit {
    /// Where it is written.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.inner.settings.folder
    }

    /// Opens the audit in a folder and begins a new segment; makes both where there are none.
    ///
    /// Reads the segment that the head names, once a start: it takes the longer, the larger that is.
    ///
    /// # Errors
    ///
    /// [`AuditError`]: among them [`AuditError::Tampered`] where the newest segment is not what the head signed.
    pub fn open(settings: AuditSettings) -> Result<Arc<Self>, AuditError> {
        let lock = StateFolder::open(&settings.folder).map_err(folder_fault)?;
        let folder = settings.folder.clone();
        let numbers = segments(&folder)?;
        let text = Head::read(&folder)?;
        if text.is_none() && !numbers.is_empty() {
            return Err(AuditError::Tampered {
                folder,
                what: "there are segments, and no head".into(),
            });
        }
        let key = match &settings.key {
            Some(key) => key.clone(),
            None if text.is_some() => AuditKey::in_folder(&folder)?,
            None => AuditKey::in_folder_or_new(&folder)?,
        };
        let head = match text {
            Some(text) => Head::parse(&text)
                .filter(|head| head.signed_by(&key))
                .ok_or_else(|| AuditError::Tampered {
                    folder: folder.clone(),
                    what: "the head is not signed with this key".into(),
                })?,
            None => {
                let head = Head::sign(&key, 0, 0, &Hash::default());
                write_head(&settings, &head)?;
                head
            }
        };
        let left = resume::find(&folder, &key, &head, &numbers)?;
        let number = left.segment + 1;
        let file = new_segment(&settings, number)?;
        let earlier = numbers.iter().filter(|number| **number >= head.segment);
        let unsynced = unsynced(&settings, earlier)?;
        let state = State::new((file, number), (left.seq, left.hash), head.seq, unsynced);
        let inner = Arc::new(Inner::new(settings, key, state));
        {
            let mut state = inner.lock();
            inner.begin_segment(&mut state, &left.after, Some(head.seq))?;
            retention::pass(&inner, &mut state);
        }
        let shared = Arc::clone(&inner);
        let sealer = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || sealer::run(&shared))
            .map_err(|error| AuditError::Failed(format!("no thread: {error}")))?;
        Ok(Arc::new(Self {
            inner,
            sealer: Mutex::new(Some(sealer)),
            _lock: lock,
        }))
    }

    /// Writes a record of this kind and says its number. It stands in the file when this returns.
    ///
    /// `kind` and the keys that `fill` uses are plain words; values may be anything.
    ///
    /// # Errors
    ///
    /// [`AuditError`]; the record is not written then, and counted.
    pub fn append(&self, kind: &str, fill: impl FnOnce(&mut Line<'_>)) -> Result<u64, AuditError> {
        let mut state = self.inner.lock();
        let written = self.inner.append(&mut state, kind, fill);
        drop(state);
        if written.is_err() {
            self.inner.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Waits until what `durability` promises of the record `seq` is true; returns at once at
    /// [`Durability::Write`]. Those who wait at the same time wait for one confirmation of the disk.
    ///
    /// # Errors
    ///
    /// [`AuditError`]: the disk failed, or took more than ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn commit(&self, seq: u64, safe: bool) -> Result<(), AuditError> {
        match self.inner.settings.durability {
            Durability::Write => return Ok(()),
            Durability::Fsync if safe => return Ok(()),
            Durability::Fsync | Durability::FsyncAll => {}
        }
        let mut progress = self.inner.progress.subscribe();
        {
            let mut state = self.inner.lock();
            if state.synced >= seq {
                return Ok(());
            }
            if let Some(why) = state.fault() {
                return Err(AuditError::Failed(why.to_owned()));
            }
            state.wanted = state.wanted.max(seq);
            self.inner.wake.notify_one();
        }
        let confirmed = progress.wait_for(|progress| progress.synced >= seq || progress.failed.is_some());
        match tokio::time::timeout(COMMIT, confirmed).await {
            Ok(Ok(progress)) if progress.synced >= seq => Ok(()),
            Ok(Ok(progress)) => Err(AuditError::Failed(progress.failed.clone().unwrap_or_default())),
            Ok(Err(_)) => Err(AuditError::Closed),
            Err(_) => Err(AuditError::Late(COMMIT)),
        }
    }

    /// What it was asked to be.
    #[must_use]
    pub fn settings(&self) -> &AuditSettings {
        &self.inner.settings
    }

    /// The newest record, signed now: an anchor to keep elsewhere. It may not be on the disk yet.
    #[must_use]
    pub fn head(&self) -> Head {
        let state = self.inner.lock();
        Head::sign(&self.inner.key, state.segment, state.seq, &state.hash)
    }

    /// Whether records can be written, as far as it is known; for readiness.
    ///
    /// # Errors
    ///
    /// [`AuditError::Failed`] with the reason.
    pub fn health(&self) -> Result<(), AuditError> {
        match self.inner.lock().fault() {
            Some(why) => Err(AuditError::Failed(why.to_owned())),
            None => Ok(()),
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> AuditCounts {
        let state = self.inner.lock();
        AuditCounts {
            records: self.inner.records.load(Ordering::Relaxed),
            unwritten: self.inner.unwritten.load(Ordering::Relaxed),
            segment: state.segment,
            seq: state.seq,
            sealed: state.sealed,
        }
    }

    /// Signs all that was written and ends; nothing can be written afterwards. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`AuditError::Failed`] where the last records could not be signed.
    pub fn close(&self) -> Result<(), AuditError> {
        self.inner.lock().closing = true;
        self.inner.wake.notify_one();
        let sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sealer) = sealer {
            sealer
                .join()
                .map_err(|_| AuditError::Failed("its thread failed".into()))?;
        }
        let state = self.inner.lock();
        match state.fault() {
            Some(why) if state.sealed < state.seq => Err(AuditError::Failed(why.to_owned())),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the audit did not end in order"
            );
        }
    }
}

/// What an earlier process has written may not be on the disk.
fn unsynced<'a>(
    settings: &AuditSettings,
    numbers: impl Iterator<Item = &'a u64>,
) -> Result<Vec<Arc<File>>, AuditError> {
    numbers
        .map(|number| {
            let path = segment_path(&settings.folder, *number);
            options()
                .read(true)
                .open(&path)
                .map(Arc::new)
                .map_err(|error| AuditError::io(&path, error))
        })
        .collect()
}

pub(super) fn write_head(settings: &AuditSettings, head: &Head) -> Result<(), AuditError> {
    write_whole(&settings.folder, HEAD, head.line().as_bytes()).map_err(folder_fault)
}

fn folder_fault(error: StateError) -> AuditError {
    match error {
        StateError::InUse(path) => AuditError::InUse(path),
        error @ (StateError::Io { .. } | StateError::NotOurs(_) | StateError::Malformed { .. }) => {
            AuditError::Folder(error.to_string())
        }
    }
}
