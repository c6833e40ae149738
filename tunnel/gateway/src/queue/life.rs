//! How long the gateway stays, and how it leaves.
//!
//! Here: the end of a detached gateway of ours when its host has gone for good, the removal of its directory, and the
//! removal of answers that came too late. As peer it stays until it is told to end. Not here: signals (`mod.rs`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::Queue;
use super::directory::{Directory, Mark, mark};
use crate::settings::Role;

/// How many late answers are looked for at a time.
const MAX_ABANDONED: usize = 1024;
/// How long a late answer is looked for, beyond the response deadline.
const LATE: Duration = Duration::from_secs(60);
/// Between two looks, at most.
const LOOK: Duration = Duration::from_secs(2);
/// How deep and how much is removed at the end; the gateway and its host leave far less.
const MAX_DEPTH: usize = 8;
const MAX_REMOVED: usize = 100_000;

/// Requests whose callers no longer wait, and whose answers are removed when they come.
#[derive(Debug, Default)]
pub(super) struct Abandoned(Mutex<VecDeque<(String, Instant)>>);

impl Abandoned {
    /// Remembers one more; the oldest is forgotten when there are too many.
    pub(super) fn add(&self, id: &str) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() == MAX_ABANDONED {
            ids.pop_front();
        }
        ids.push_back((id.to_owned(), Instant::now()));
    }

    fn sweep(&self, directory: &Directory, keep: Duration) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|(id, since)| !directory.remove_response(id) && since.elapsed() < keep);
    }
}

/// Returns when the gateway should end: its host has gone, its directory has, or another gateway took it over.
pub(super) async fn until_end(queue: &Queue) {
    let linger = queue.settings.linger;
    let every = (linger / 8).clamp(Duration::from_millis(50), LOOK);
    let mut seen = queue.directory.host_alive();
    let mut alive = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        queue
            .abandoned
            .sweep(&queue.directory, queue.settings.response_timeout + LATE);
        if queue.settings.role == Role::Peer {
            continue;
        }
        // A change is a sign of life by this side's clock; the two clocks are never compared.
        let now = queue.directory.host_alive();
        if now.is_some() && now != seen {
            (seen, alive) = (now, Instant::now());
        }
        if queue.directory.is_removed() || is_taken_over(queue) || alive.elapsed() >= linger {
            return;
        }
    }
}

fn is_taken_over(queue: &Queue) -> bool {
    let ready = queue.directory.ready();
    ready.is_some() && ready != queue.ready
}

/// Removes the directory, unless another gateway uses it by now.
pub(super) fn remove(queue: &Queue) -> io::Result<()> {
    if queue.directory.is_removed() || is_taken_over(queue) {
        return Ok(());
    }
    let directory = &queue.directory;
    let mut room = MAX_REMOVED;
    clear(&directory.root, MAX_DEPTH, &mut room)?;
    let (Some(parent), Some(name)) = (directory.path.parent(), directory.path.file_name()) else {
        return Ok(());
    };
    let parent = if parent.as_os_str().is_empty() {
        ".".as_ref()
    } else {
        parent
    };
    let parent = rustix::fs::open(parent, FOLDER, Mode::empty())?;
    let here: Mark = mark(&rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
    // Only what is still the directory that was opened.
    if here.is_same_file(mark(&rustix::fs::fstat(&directory.root)?)) {
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Removes what is in a folder, entering no links.
fn clear(folder: &OwnedFd, depth: usize, room: &mut usize) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *room = room
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("too many entries"))?;
        entries.push(name);
    }
    for name in entries {
        match rustix::fs::unlinkat(folder, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) if depth > 0 => {
                let inner = rustix::fs::openat(folder, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
                clear(&inner, depth - 1, room)?;
                rustix::fs::unlinkat(folder, &name, AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
