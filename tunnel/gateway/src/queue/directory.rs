//! The queue directory: every file operation of the gateway, and nothing that waits.
//!
//! Here: writing a request, withdrawing it, opening its response, the readiness document, the host's sign of life.
//! No link is ever followed inside the directory, and only regular files are read, of a size that was looked at first.
//! Not here: when any of it happens (`ours.rs`, `peer.rs`), and the end of the directory (`life.rs`).

use std::ffi::CStr;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::settings::Role;

const REQUESTS: &str = "requests";
const RESPONSES: &str = "responses";
const READY: &str = "ready.json";
const ALIVE: &str = "host.alive";

/// How many entries of one folder are looked at; whoever leaves more there sees a full queue.
const MAX_ENTRIES: usize = 100_000;

/// The queue directory, held open.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) root: OwnedFd,
    pub(super) path: PathBuf,
    role: Role,
}

/// A request that could not be put into the queue.
#[derive(Debug)]
pub(super) enum PutFault {
    /// It was not written: the host has not seen it.
    Unwritten(io::Error),
    /// It was written, but its renaming failed; `withdrawn` says whether it is known to be gone.
    Unnamed { error: io::Error, withdrawn: bool },
}

impl fmt::Display for PutFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unwritten(error) | Self::Unnamed { error, .. }) = self;
        write!(out, "cannot put a request into the queue: {error}")
    }
}

/// What a directory entry is, and when it was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    file: (i128, i128),
    changed: (i128, i128),
}

impl Directory {
    /// Opens the directory, with its folders, making what is missing.
    ///
    /// In our own role they are the user's own and private, or made so; a link in the place of one is refused.
    pub(super) fn open(path: &Path, role: Role) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(folder_mode(role))
            .create(path)?;
        let follow = match role {
            Role::Ours => OFlags::NOFOLLOW,
            Role::Peer => OFlags::empty(),
        };
        let root = rustix::fs::open(path, FOLDER | follow, Mode::empty())?;
        let directory = Self {
            root,
            path: path.to_owned(),
            role,
        };
        directory.make_private(&directory.root)?;
        for name in [REQUESTS, RESPONSES, "logs"] {
            match rustix::fs::mkdirat(&directory.root, name, Mode::from_raw_mode(folder_mode(role))) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            directory.make_private(&directory.folder(name)?)?;
        }
        Ok(directory)
    }

    fn make_private(&self, folder: impl AsFd) -> io::Result<()> {
        if self.role == Role::Peer {
            return Ok(());
        }
        if rustix::fs::fstat(&folder)?.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "belongs to another user",
            ));
        }
        Ok(rustix::fs::fchmod(folder, Mode::RWXU)?)
    }

    fn folder(&self, name: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.root, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
    }

    /// How many requests wait, counted up to `limit`.
    pub(super) fn waiting_requests(&self, limit: usize) -> io::Result<usize> {
        let mut count = 0;
        each_request(&self.folder(REQUESTS)?, |_, _| {
            count += 1;
            count < limit
        })?;
        Ok(count)
    }

    /// Removes requests that were last changed before `then`; their callers have gone.
    pub(super) fn sweep_requests(&self, then: SystemTime) -> io::Result<()> {
        let folder = self.folder(REQUESTS)?;
        each_request(&folder, |name, stat| {
            let seconds = u64::try_from(stat.st_mtime).unwrap_or_default();
            let changed = Duration::new(seconds, u32::try_from(stat.st_mtime_nsec).unwrap_or_default());
            if SystemTime::UNIX_EPOCH
                .checked_add(changed)
                .is_some_and(|changed| changed < then)
            {
                // Whoever was faster has removed it, which is as well.
                let _gone = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
            }
            true
        })
    }

    /// Puts a request into the queue: written whole under another name, then renamed.
    pub(super) fn put_request(&self, id: &str, bytes: &[u8]) -> Result<(), PutFault> {
        let folder = self
            .folder(REQUESTS)
            .map_err(|error| PutFault::Unwritten(error.into()))?;
        let (staged, name) = (format!("{id}.json.tmp"), format!("{id}.json"));
        if let Err(error) = self.write_new(&folder, &staged, bytes) {
            let _gone = rustix::fs::unlinkat(&folder, &staged, AtFlags::empty());
            return Err(PutFault::Unwritten(error));
        }
        rustix::fs::renameat(&folder, &staged, &folder, &name).map_err(|error| PutFault::Unnamed {
            withdrawn: rustix::fs::unlinkat(&folder, &staged, AtFlags::empty()).is_ok(),
            error: error.into(),
        })
    }

    fn write_new(&self, folder: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = match self.role {
            Role::Ours => 0o600,
            Role::Peer => 0o666,
        };
        let file = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(mode))?;
        File::from(file).write_all(bytes)
    }

    /// Takes a request back; false when it is no longer in the queue, so that the host may have it.
    pub(super) fn withdraw_request(&self, id: &str) -> bool {
        self.remove(REQUESTS, id)
    }

    /// Removes a response; false when there is none.
    pub(super) fn remove_response(&self, id: &str) -> bool {
        self.remove(RESPONSES, id)
    }

    fn remove(&self, folder: &str, id: &str) -> bool {
        self.folder(folder)
            .and_then(|folder| rustix::fs::unlinkat(folder, format!("{id}.json"), AtFlags::empty()))
            .is_ok()
    }

    /// Opens the response to a request, if it is there; it is removed when what is returned is dropped.
    pub(super) fn response(self: &Arc<Self>, id: &str) -> io::Result<Option<OpenResponse>> {
        let folder = self.folder(RESPONSES)?;
        // NONBLOCK: a pipe in its place must not hold the gateway up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&folder, format!("{id}.json"), flags, Mode::empty()) {
            Ok(file) => OpenResponse::new(Arc::clone(self), id, file).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => {
                self.remove_response(id);
                Err(error.into())
            }
        }
    }

    /// Writes the readiness document and returns what it is known by.
    pub(super) fn write_ready(&self, text: &str) -> io::Result<Option<Mark>> {
        let staged = format!("{READY}.tmp");
        // One that an earlier gateway did not come to rename.
        let _gone = rustix::fs::unlinkat(&self.root, &staged, AtFlags::empty());
        self.write_new(&self.root, &staged, text.as_bytes())?;
        rustix::fs::renameat(&self.root, &staged, &self.root, READY)?;
        Ok(self.ready())
    }

    /// What the readiness document is known by, if there is one.
    pub(super) fn ready(&self) -> Option<Mark> {
        self.mark(READY)
    }

    /// What the file is known by that the host touches as long as it lives.
    pub(super) fn host_alive(&self) -> Option<Mark> {
        self.mark(ALIVE)
    }

    /// Whether the directory was removed by somebody else.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.root).is_ok_and(|stat| stat.st_nlink == 0)
    }

    fn mark(&self, name: &str) -> Option<Mark> {
        rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|stat| mark(&stat))
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn folder_mode(role: Role) -> u32 {
    match role {
        Role::Ours => 0o700,
        Role::Peer => 0o777,
    }
}

/// What an entry is known by: the file and when it was changed.
pub(super) fn mark(stat: &Stat) -> Mark {
    Mark {
        file: (stat.st_dev.into(), stat.st_ino.into()),
        changed: (stat.st_mtime.into(), stat.st_mtime_nsec.into()),
    }
}

impl Mark {
    /// Whether both are the same file, changed or not.
    pub(super) fn is_same_file(self, other: Self) -> bool {
        self.file == other.file
    }
}

/// Shows the regular files of `folder` whose names end in `.json`, until `more` says that it is enough.
fn each_request(folder: &OwnedFd, mut more: impl FnMut(&CStr, &Stat) -> bool) -> io::Result<()> {
    for entry in Dir::read_from(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().ends_with(b".json") {
            continue;
        }
        // One that has gone in the meantime does not count.
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && !more(name, &stat) {
            break;
        }
    }
    Ok(())
}

/// A response that was opened: a regular file, removed when this is dropped.
#[derive(Debug)]
pub(super) struct OpenResponse {
    directory: Arc<Directory>,
    id: String,
    file: File,
    /// Its size when it was opened.
    pub(super) size: u64,
}

impl OpenResponse {
    fn new(directory: Arc<Directory>, id: &str, file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let mut opened = Self {
            directory,
            id: id.to_owned(),
            file,
            size: 0,
        };
        let metadata = opened.file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        opened.size = metadata.len();
        Ok(opened)
    }

    /// All of it; none when its size is no longer what it was.
    pub(super) fn read(mut self) -> io::Result<Option<Vec<u8>>> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(size.saturating_add(1));
        (&mut self.file)
            .take(self.size.saturating_add(1))
            .read_to_end(&mut bytes)?;
        Ok((bytes.len() == size).then_some(bytes))
    }
}

impl Drop for OpenResponse {
    fn drop(&mut self) {
        self.directory.remove_response(&self.id);
    }
}
