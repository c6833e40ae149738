//! The audit's one thread: makes the disk confirm records, and signs the head.
//!
//! Here: [`run`]. The head follows the first record that it does not cover after 100 ms and the time the disk takes; it
//! never goes ahead of what the disk has confirmed. Who waits for a record is served at once. A thread and no task: it
//! waits for the disk, and the audit belongs to no runtime. With nothing to do it does not wake up.

use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::head::Head;
use super::state::{Inner, State};
use super::writer::write_head;
use crate::session::state::sync_folder;

/// Records that come within this are signed by one head.
const GATHER: Duration = Duration::from_millis(100);
/// After a head that could not be written.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) fn run(inner: &Inner) {
    let mut state = inner.lock();
    let mut folder_of = 0;
    loop {
        while !state.closing && state.seq == state.sealed && state.doomed.is_empty() {
            state.idle = true;
            state = inner.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        if state.seq == state.sealed && state.doomed.is_empty() {
            return;
        }
        let due = Instant::now() + GATHER;
        let mut confirmed;
        loop {
            state = gather(inner, state, due);
            (state, confirmed) = sync(inner, state, &mut folder_of);
            if confirmed.is_none() || state.closing || Instant::now() >= due {
                break;
            }
        }
        let Some(target) = confirmed else {
            // What a disk has failed to write is lost to it: only a new start begins anew.
            return;
        };
        let closing = state.closing;
        let head = Head::sign(&inner.key, target.segment, target.seq, &target.hash);
        let doomed = if target.seq >= state.doomed_through {
            std::mem::take(&mut state.doomed)
        } else {
            Vec::new()
        };
        drop(state);
        let written = write_head(&inner.settings, &head);
        if written.is_ok() {
            for path in &doomed {
                if let Err(error) = std::fs::remove_file(path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "a segment of the audit could not be removed");
                }
            }
        }
        state = inner.lock();
        match written {
            Ok(()) => {
                state.sealed = target.seq;
                if state.failed.take().is_some() {
                    tracing::info!("the audit can be written again");
                    inner.progress.send_modify(|progress| progress.failed = None);
                }
            }
            Err(error) => {
                state.doomed.extend(doomed);
                if state.failed.is_none() {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the audit's head cannot be written"
                    );
                }
                let why = error.to_string();
                inner
                    .progress
                    .send_modify(|progress| progress.failed = Some(why.clone()));
                state.failed = Some(why);
                if closing {
                    return;
                }
                state = inner
                    .wake
                    .wait_timeout_while(state, AGAIN, |state| !state.closing)
                    .map_or_else(|error| error.into_inner().0, |(state, _)| state);
            }
        }
    }
}

/// What the disk has confirmed.
struct Confirmed {
    segment: u64,
    seq: u64,
    hash: super::line::Hash,
}

/// Waits until `due`, unless somebody waits for the disk or the audit ends.
fn gather<'a>(inner: &'a Inner, state: MutexGuard<'a, State>, due: Instant) -> MutexGuard<'a, State> {
    let left = due.saturating_duration_since(Instant::now());
    inner
        .wake
        .wait_timeout_while(state, left, |state| {
            !state.closing && state.wanted <= state.synced
        })
        .map_or_else(|error| error.into_inner().0, |(state, _)| state)
}

/// Makes the disk confirm all that is written now.
fn sync<'a>(
    inner: &'a Inner,
    mut state: MutexGuard<'a, State>,
    folder_of: &mut u64,
) -> (MutexGuard<'a, State>, Option<Confirmed>) {
    let target = Confirmed {
        segment: state.segment,
        seq: state.seq,
        hash: state.hash,
    };
    let mut files: Vec<Arc<File>> = std::mem::take(&mut state.unsynced);
    files.push(Arc::clone(&state.file));
    drop(state);
    let synced = files
        .iter()
        .try_for_each(|file| file.sync_data())
        .map_err(|error| error.to_string())
        .and_then(|()| {
            if *folder_of == target.segment {
                return Ok(());
            }
            sync_folder(&inner.settings.folder).map_err(|error| error.to_string())
        });
    let mut state = inner.lock();
    let confirmed = match synced {
        Ok(()) => {
            *folder_of = target.segment;
            state.synced = target.seq;
            inner
                .progress
                .send_modify(|progress| progress.synced = target.seq);
            Some(target)
        }
        Err(why) => {
            tracing::error!(why, "the disk fails to keep the audit");
            inner
                .progress
                .send_modify(|progress| progress.failed = Some(why.clone()));
            state.broken = Some(why);
            None
        }
    };
    (state, confirmed)
}
