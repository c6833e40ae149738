//! A queue directory on this machine, reached without any shell.
//!
//! Here: [`Directory`]. Every file is opened relative to its folder and never through a link; only regular files
//! count. Not here: who started the gateway. Read next: `channel.rs`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::channel::{ChannelFault, FOUND_QUEUE, ORDER_QUEUE, OpenQueue, Order, QueueChannel, TICK};
use super::listing::{FileId, Found};

/// How often the directory is looked at.
const CHECK: Duration = Duration::from_millis(50);
/// Requests claimed at one look.
const CLAIMS: usize = 64;
/// Names read at one look; a directory fuller than this is a hostile one.
const NAMES: usize = 4096;
const PRIVATE: Mode = Mode::RWXU;

/// Reaches a queue directory of this machine.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    limit_bytes: usize,
}

impl Directory {
    /// For the queue at `path`, with requests of at most `limit_bytes`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, limit_bytes: usize) -> Self {
        Self {
            path: path.into(),
            limit_bytes,
        }
    }
}

impl QueueChannel for Directory {
    fn open(&self) -> BoxFuture<'_, Result<OpenQueue, ChannelFault>> {
        Box::pin(async {
            let (path, limit_bytes) = (self.path.clone(), self.limit_bytes);
            let folders = blocking(move || Folders::open(&path, limit_bytes))
                .await
                .map_err(|source| fault("cannot use the queue directory", source))?;
            let folders = Arc::new(folders);
            let (found_in, found) = mpsc::channel(FOUND_QUEUE);
            let (orders, orders_out) = mpsc::channel(ORDER_QUEUE);
            let mut tasks = JoinSet::new();
            tasks.spawn(listen(
                folders.clone(),
                found_in.clone(),
                orders.clone().downgrade(),
            ));
            tasks.spawn(obey(folders, orders_out, found_in));
            let clock = SystemTime::now().duration_since(UNIX_EPOCH);
            Ok(OpenQueue {
                found,
                orders,
                clock: clock.ok().map(|since| since.as_secs()),
                tasks,
            })
        })
    }
}

type FoundSender = mpsc::Sender<Result<Found, ChannelFault>>;

async fn listen(folders: Arc<Folders>, to: FoundSender, open: mpsc::WeakSender<Order>) {
    let mut recall = true;
    // The last look ends with the last order.
    while open.upgrade().is_some() {
        let folders = folders.clone();
        let found = blocking(move || if recall { folders.recall() } else { folders.take() }).await;
        recall = false;
        match found {
            Ok(found) if found.is_empty() => sleep(CHECK).await,
            Ok(found) => {
                for item in found {
                    if to.send(Ok(item)).await.is_err() {
                        return;
                    }
                }
            }
            Err(source) => {
                let _ = to
                    .send(Err(fault("cannot read the queue directory", source)))
                    .await;
                return;
            }
        }
    }
}

async fn obey(folders: Arc<Folders>, mut orders: mpsc::Receiver<Order>, to: FoundSender) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let folders = folders.clone();
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                let reply = blocking(move || Ok(folders.follow(&order))).await;
                if let Ok(Some(item)) = reply
                    && to.send(Ok(item)).await.is_err()
                {
                    return;
                }
            }
            _ = tick.tick() => {
                if let Err(error) = blocking(move || folders.alive()).await {
                    tracing::debug!(%error, "the gateway could not be told that its host lives");
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn fault(action: &str, source: io::Error) -> ChannelFault {
    ChannelFault::Directory {
        action: action.to_owned(),
        source,
    }
}

/// The open folders of a queue. Held open, so that a folder replaced meanwhile is not followed.
#[derive(Debug)]
struct Folders {
    root: OwnedFd,
    requests: OwnedFd,
    responses: OwnedFd,
    claimed: OwnedFd,
    limit_bytes: usize,
    #[expect(dead_code, reason = "holds the lock that keeps other hosts out")]
    lock: OwnedFd,
}

impl Folders {
    fn open(path: &Path, limit_bytes: usize) -> io::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let root = openat(rustix::fs::CWD, path, folder_flags(), Mode::empty())?;
        let lock = openat(
            &root,
            "host.lock",
            OFlags::CREATE | OFlags::RDWR | file_flags(),
            Mode::RUSR | Mode::WUSR,
        )?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another host serves this queue"))?;
        let folder = |name: &str| -> io::Result<OwnedFd> {
            match mkdirat(&root, name, PRIVATE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(openat(&root, name, folder_flags(), Mode::empty())?)
        };
        Ok(Self {
            requests: folder("requests")?,
            responses: folder("responses")?,
            claimed: folder("claimed")?,
            root,
            limit_bytes,
            lock,
        })
    }

    /// What lies there from before.
    fn recall(&self) -> io::Result<Vec<Found>> {
        let claimed = entries(&self.claimed)?;
        let mut found: Vec<Found> = claimed.into_iter().filter_map(|id| self.show(id)).collect();
        found.extend(
            entries(&self.responses)?
                .into_iter()
                .map(|id| Found::Response { id }),
        );
        found.extend(self.take()?);
        Ok(found)
    }

    /// Claims what waits, oldest first, and reads it.
    fn take(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for id in entries(&self.requests)?.into_iter().take(CLAIMS) {
            let name = file_name(&id);
            match renameat_with(
                &self.requests,
                &name,
                &self.claimed,
                &name,
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => found.extend(self.show(id)),
                // The same name again while the first is served: the first one's answer is the answer.
                Err(Errno::EXIST) => drop(unlinkat(&self.requests, &name, AtFlags::empty())),
                // Its gateway took it back.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    fn show(&self, id: FileId) -> Option<Found> {
        match read(&self.claimed, &file_name(&id), self.limit_bytes) {
            Ok(Some(bytes)) => Some(Found::Request { id, bytes }),
            Ok(None) => Some(Found::TooLong { id }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(Found::Unreadable { id }),
        }
    }

    fn follow(&self, order: &Order) -> Option<Found> {
        match order {
            Order::Write { id, answer } => Some(match self.write(id, answer) {
                Ok(true) => Found::Written { id: id.clone() },
                Ok(false) => Found::Gone { id: id.clone() },
                Err(error) => {
                    tracing::debug!(%error, "an answer could not be written into the queue");
                    Found::NotWritten { id: id.clone() }
                }
            }),
            Order::Forget { ids } => {
                for id in ids {
                    for folder in [&self.claimed, &self.responses] {
                        // Gone already, most of the time.
                        let _ = unlinkat(folder, file_name(id), AtFlags::empty());
                    }
                }
                None
            }
        }
    }

    /// Puts an answer at its place; `false` where its request is gone.
    fn write(&self, id: &FileId, answer: &Bytes) -> io::Result<bool> {
        let name = file_name(id);
        if !is_regular(&self.claimed, &name) {
            return Ok(false);
        }
        if statat(&self.responses, &name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            replace(&self.responses, &name, answer)?;
        }
        unlinkat(&self.claimed, &name, AtFlags::empty())?;
        Ok(true)
    }

    fn alive(&self) -> io::Result<()> {
        replace(&self.root, "host.alive", b"\n")
    }
}

/// Writes a file beside its place and moves it there.
fn replace(folder: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = format!("{name}.tmp");
    let _ = unlinkat(folder, &part, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | file_flags();
    let mut file = File::from(openat(folder, &part, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file
        .write_all(bytes)
        .and_then(|()| Ok(renameat(folder, &part, folder, name)?));
    if written.is_err() {
        let _ = unlinkat(folder, &part, AtFlags::empty());
    }
    written
}

/// The queue's entries in a folder, oldest first: regular files with a proper name.
fn entries(folder: &OwnedFd) -> io::Result<Vec<FileId>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)?.take(NAMES) {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().ok().and_then(FileId::of_file) else {
            continue;
        };
        let Ok(stat) = statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            found.push(((stat.st_mtime, stat.st_mtime_nsec), id));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

/// The whole of a regular file; `None` where it is longer than `limit_bytes`.
fn read(folder: &OwnedFd, name: &str, limit_bytes: usize) -> io::Result<Option<Bytes>> {
    let file = openat(folder, name, OFlags::RDONLY | file_flags(), Mode::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("no regular file"));
    }
    let Ok(size) = usize::try_from(stat.st_size) else {
        return Ok(None);
    };
    if size > limit_bytes {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(size);
    let most = u64::try_from(size).unwrap_or(u64::MAX).saturating_add(1);
    File::from(file).take(most).read_to_end(&mut bytes)?;
    if bytes.len() != size {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(Some(bytes.into()))
}

fn is_regular(folder: &OwnedFd, name: &str) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn file_name(id: &FileId) -> String {
    format!("{}.json", id.as_str())
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Without `NONBLOCK` the opening of a fifo would wait.
fn file_flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK
}
