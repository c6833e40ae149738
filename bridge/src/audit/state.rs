//! One record after another, and the turn to a new segment.
//!
//! Here: [`Inner`], what the writer and its thread share, and [`State`], what its lock guards. Not here: who calls for a
//! record (`writer.rs`), what waits for the disk (`sealer.rs`).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::folder::segment_path;
use super::key::AuditKey;
use super::line::{Hash, LINE_MAX_BYTES, Line, push_hex};
use super::lines::{Ended, OPENED};
use super::retention;
use super::settings::{AuditError, AuditSettings, OnFailure};
use crate::session::state::options;

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
    pub(super) records: AtomicU64,
    pub(super) unwritten: AtomicU64,
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
    /// A head is being written.
    pub(super) signing: bool,
    /// The thread waits for something to do.
    pub(super) idle: bool,
    pub(super) closing: bool,
    line: String,
}

impl Inner {
    pub(super) fn new(settings: AuditSettings, key: AuditKey, state: State) -> Self {
        Self {
            settings,
            key,
            state: Mutex::new(state),
            wake: Condvar::new(),
            progress: watch::Sender::default(),
            records: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(
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
    pub(super) fn begin_segment(
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
    /// In a new segment, which is still empty, behind the record `seq`.
    pub(super) fn new(
        (file, segment): (Arc<File>, u64),
        (seq, hash): (u64, Hash),
        sealed: u64,
        unsynced: Vec<Arc<File>>,
    ) -> Self {
        Self {
            file,
            segment,
            began: Instant::now(),
            bytes: 0,
            records: 0,
            seq,
            hash,
            unsynced,
            synced: sealed,
            sealed,
            wanted: 0,
            doomed: Vec::new(),
            doomed_through: 0,
            failed: None,
            broken: None,
            signing: false,
            idle: false,
            closing: false,
            line: String::with_capacity(1024),
        }
    }

    /// Somebody waits for the disk.
    pub(super) fn is_waited_for(&self) -> bool {
        self.wanted > self.synced
    }

    /// There is something that no head covers, and none is on its way.
    pub(super) fn has_to_sign(&self) -> bool {
        !self.signing && (self.seq != self.sealed || !self.doomed.is_empty())
    }

    pub(super) fn fault(&self) -> Option<&str> {
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

pub(super) fn new_segment(settings: &AuditSettings, number: u64) -> Result<Arc<File>, AuditError> {
    let path = segment_path(&settings.folder, number);
    options()
        .append(true)
        .create_new(true)
        .open(&path)
        .map(Arc::new)
        .map_err(|error| AuditError::io(&path, error))
}
