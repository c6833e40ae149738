//! Writing: one record after another, in line.
//!
//! Here: [`Audit`]: open, append, commit, close; and the turn to a new segment. A record is one `write` under a lock, so
//! that it stands in the file before whoever wrote it goes on. Not here: what waits for the disk (`sealer.rs`), what an
//! earlier process left (`resume.rs`), what is removed (`retention.rs`).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::folder::{segment_path, segments};
use super::head::{HEAD, Head};
use super::key::AuditKey;
use super::line::{Hash, LINE_MAX_BYTES, Line, push_hex};
use super::lines::{Ended, OPENED};
use super::settings::{AuditError, AuditSettings, Durability, OnFailure};
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

/// What the writer and its thread share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) settings: AuditSettings,
    pub(super) key: AuditKey,
    state: Mutex<State>,
    /// Wakes the thread.
    pub(super) wake: Condvar,
    /// How far the disk has confirmed.
    pub(super) progress: watch::Sender<Progress>,
    records: AtomicU64,
    unwritten: AtomicU64,
}

/// How far the disk has confirmed.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) synced: u64,
    pub(super) failed: Option<String>,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) file: Arc<File>,
    pub(super) segment: u64,
    began: Instant,
    bytes: u64,
    /// Whole records of this segment.
    records: u64,
    pub(super) seq: u64,
    pub(super) hash: Hash,
    /// Earlier segments that the disk has not confirmed.
    pub(super) unsynced: Vec<Arc<File>>,
    /// The disk has confirmed the records up to here.
    pub(super) synced: u64,
    /// The head has signed the records up to here.
    pub(super) sealed: u64,
    /// Somebody waits for the records up to here.
    pub(super) wanted: u64,
    /// Removed by retention as soon as the record of it is sealed.
    pub(super) doomed: Vec<PathBuf>,
    pub(super) doomed_through: u64,
    /// Why nothing is written until a head is again.
    pub(super) failed: Option<String>,
    /// Why nothing is written any more.
    pub(super) broken: Option<String>,
    /// The thread waits for something to do.
    pub(super) idle: bool,
    pub(super) closing: bool,
    line: String,
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
    /// Opens the audit in a folder and begins a new segment; makes both where there are none.
    ///
    /// Reads the segment that the head names, so it takes about 10 ms a MiB of it, at most once a start.
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
        let state = State {
            file,
            segment: number,
            began: Instant::now(),
            bytes: 0,
            records: 0,
            seq: left.seq,
            hash: left.hash,
            unsynced: unsynced(
                &settings,
                numbers.iter().filter(|number| **number >= head.segment),
            )?,
            synced: head.seq,
            sealed: head.seq,
            wanted: 0,
            doomed: Vec::new(),
            doomed_through: 0,
            failed: None,
            broken: None,
            idle: false,
            closing: false,
            line: String::with_capacity(1024),
        };
        let inner = Arc::new(Inner {
            settings,
            key,
            state: Mutex::new(state),
            wake: Condvar::new(),
            progress: watch::Sender::default(),
            records: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        });
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

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(
        &self,
        state: &mut State,
        kind: &str,
        fill: impl FnOnce(&mut Line<'_>),
    ) -> Result<u64, AuditError> {
        if state.closing {
            return Err(AuditError::Closed);
        }
        if let Some(why) = state.fault() {
            return Err(AuditError::Failed(why.to_owned()));
        }
        let full = state.bytes >= self.settings.segment_bytes;
        if full || state.began.elapsed() >= self.settings.segment_age {
            self.rotate(state)?;
        }
        self.write(state, kind, None, fill)
    }

    /// Writes one record, with a signature where `sign` names its purpose.
    pub(super) fn write(
        &self,
        state: &mut State,
        kind: &str,
        sign: Option<&str>,
        fill: impl FnOnce(&mut Line<'_>),
    ) -> Result<u64, AuditError> {
        let seq = state.seq + 1;
        let mut line = std::mem::take(&mut state.line);
        line.clear();
        begin(&mut line, seq, &state.hash, kind);
        fill(&mut Line(&mut line));
        if let Some(purpose) = sign {
            let mac = self.key.tag(purpose, line.as_bytes());
            Line(&mut line).hash("mac", &mac);
        }
        line.push('}');
        let hash: Hash = Sha256::digest(line.as_bytes()).into();
        line.push('\n');
        let written = if line.len() > LINE_MAX_BYTES {
            Err(AuditError::Failed(format!(
                "a record of {} bytes is too long",
                line.len()
            )))
        } else {
            state.put(line.as_bytes())
        };
        state.line = line;
        written?;
        state.seq = seq;
        state.hash = hash;
        state.records += 1;
        self.records.fetch_add(1, Ordering::Relaxed);
        if state.idle {
            self.wake.notify_one();
        }
        Ok(seq)
    }

    /// Goes on in a new segment. Where that fails, the next record tries again.
    fn rotate(&self, state: &mut State) -> Result<(), AuditError> {
        let after = [Ended {
            segment: state.segment,
            records: state.records,
            torn_bytes: 0,
            torn_sha256: None,
        }];
        let number = state.segment + 1;
        let file = new_segment(&self.settings, number)?;
        let old = std::mem::replace(&mut state.file, file);
        let (bytes, records) = (state.bytes, state.records);
        (state.segment, state.bytes, state.records) = (number, 0, 0);
        if let Err(error) = self.begin_segment(state, &after, None) {
            state.file = old;
            (state.segment, state.bytes, state.records) = (number - 1, bytes, records);
            // It is empty: what could not be written has been taken back.
            let path = segment_path(&self.settings.folder, number);
            std::fs::remove_file(&path).map_err(|error| AuditError::io(&path, error))?;
            return Err(error);
        }
        state.began = Instant::now();
        state.unsynced.push(old);
        retention::pass(self, state);
        Ok(())
    }

    /// Writes a segment's first record.
    fn begin_segment(
        &self,
        state: &mut State,
        after: &[Ended],
        sealed: Option<u64>,
    ) -> Result<(), AuditError> {
        let after = serde_json::to_string(after).unwrap_or_default();
        let segment = state.segment;
        self.write(state, OPENED, Some(OPENED), |line| {
            line.number("segment", segment);
            line.json("after", &after);
            if let Some(seq) = sealed {
                line.number("sealed_seq", seq);
            }
            line.number("format", 1);
            line.text("version", env!("CARGO_PKG_VERSION"));
        })?;
        Ok(())
    }

    /// Whether a callback whose record cannot be written is let through.
    pub(super) fn lets_through(&self) -> bool {
        self.settings.on_failure == OnFailure::Allow
    }
}

impl State {
    fn fault(&self) -> Option<&str> {
        self.broken.as_deref().or(self.failed.as_deref())
    }

    /// All of it or, as far as we can, nothing.
    fn put(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        let mut left = bytes;
        let fault = loop {
            match (&*self.file).write(left) {
                Ok(0) => break io::Error::from(io::ErrorKind::WriteZero),
                Ok(length) => {
                    left = left.get(length..).unwrap_or_default();
                    if left.is_empty() {
                        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        if left.len() < bytes.len()
            && let Err(error) = self.file.set_len(self.bytes)
        {
            self.broken = Some(format!(
                "half a record stands in segment {}: {error}",
                self.segment
            ));
        }
        Err(AuditError::Failed(fault.to_string()))
    }
}

/// The members that every record has.
fn begin(line: &mut String, seq: u64, prev: &Hash, kind: &str) {
    use std::fmt::Write as _;
    // A `String` takes every write.
    let _ = write!(line, "{{\"seq\":{seq},\"prev\":\"");
    push_hex(line, prev);
    let _ = write!(
        line,
        "\",\"at\":\"{:.6}\",\"type\":\"{kind}\"",
        jiff::Timestamp::now()
    );
}

fn new_segment(settings: &AuditSettings, number: u64) -> Result<Arc<File>, AuditError> {
    let path = segment_path(&settings.folder, number);
    options()
        .append(true)
        .create_new(true)
        .open(&path)
        .map(Arc::new)
        .map_err(|error| AuditError::io(&path, error))
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

#[expect(clippy::needless_pass_by_value, reason = "fits `map_err`")]
fn folder_fault(error: StateError) -> AuditError {
    match error {
        StateError::InUse(path) => AuditError::InUse(path),
        error @ (StateError::Io { .. } | StateError::NotOurs(_) | StateError::Malformed { .. }) => {
            AuditError::Folder(error.to_string())
        }
    }
}
