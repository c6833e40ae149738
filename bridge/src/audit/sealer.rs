//! The audit's threads: one makes the disk confirm records, one signs the head.
//!
//! Here: [`run`]. The head follows the first record that it does not cover after 100 ms and the time the disk takes; it
//! never goes ahead of what the disk has confirmed. Who waits for a record is served at once, also while a head is being
//! written. Threads and no tasks: they wait for the disk, and the audit belongs to no runtime. With nothing to do they do
//! not wake up.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::head::Head;
use super::state::{Inner, State};
use super::writer::write_head;
use crate::session::state::sync_folder;

/// Records that come within this are signed by one head.
const GATHER: Duration = Duration::from_millis(100);
/// Confirmations of the disk begin so far from each other at least, so that under a load more of those who wait share one.
const APART: Duration = Duration::from_millis(5);
/// After a head that could not be written.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) fn run(inner: &Inner) {
    std::thread::scope(|scope| {
        let (heads, to_sign) = mpsc::channel();
        // A head takes the disk two journal commits, and who waits for a record shall not wait for those.
        let signer = std::thread::Builder::new().name("audit-head".into());
        let signer = signer.spawn_scoped(scope, move || {
            for due in to_sign {
                sign(inner, due);
            }
        });
        match signer {
            Ok(_) => confirm_all(inner, &heads),
            Err(error) => inner.lock().broken = Some(format!("no thread: {error}")),
        }
    });
}

/// Makes the disk confirm records, and has them signed, until the audit is closed.
fn confirm_all(inner: &Inner, heads: &mpsc::Sender<Due>) {
    let mut state = inner.lock();
    let mut folder_of = 0;
    let mut due = None;
    let mut last_try = false;
    let mut next = Instant::now();
    loop {
        while !state.is_waited_for() && !state.has_to_sign() {
            if state.closing && !state.signing {
                return;
            }
            // Whoever signs wakes us; until then a new record is no reason to.
            state.idle = !state.signing;
            state = inner.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        if last_try && !state.signing {
            return;
        }
        let pause = if state.failed.is_some() { AGAIN } else { GATHER };
        let sign_at = *due.get_or_insert_with(|| Instant::now() + pause);
        state = gather(inner, state, sign_at);
        if let Some(early) = next.checked_duration_since(Instant::now()) {
            drop(state);
            std::thread::sleep(early);
            state = inner.lock();
        }
        next = Instant::now() + APART;
        let confirmed;
        (state, confirmed) = sync(inner, state, &mut folder_of);
        // What a disk has failed to write is lost to it: only a new start begins anew.
        let Some(target) = confirmed else { return };
        if state.signing || !state.closing && Instant::now() < sign_at {
            continue;
        }
        let doomed = if target.seq >= state.doomed_through {
            std::mem::take(&mut state.doomed)
        } else {
            Vec::new()
        };
        last_try = state.closing;
        due = None;
        state.signing = heads.send(Due { target, doomed }).is_ok();
    }
}

/// A head that is to be written, and the segments that go once it is.
struct Due {
    target: Confirmed,
    doomed: Vec<PathBuf>,
}

fn sign(inner: &Inner, Due { target, doomed }: Due) {
    let head = Head::sign(&inner.key, target.segment, target.seq, &target.hash);
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
    let mut state = inner.lock();
    state.signing = false;
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
        }
    }
    drop(state);
    inner.wake.notify_one();
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
        .wait_timeout_while(state, left, |state| !state.closing && !state.is_waited_for())
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
