//! Used nonces of `envelope verify`, in memory or in a folder that several processes share.
//!
//! Here: [`NonceStore`]. In the folder, `envelope-nonces` has a line for each use, `TIME KEY NONCE`, and only ever grows at
//! its end, under the lock of `envelope-nonces.lock`; past a size it is replaced by a shorter one without what no longer
//! counts. Whatever goes wrong refuses the request. Not here: what counts (`policy::envelope::SeenNonces`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::envelope::{KeyId, Nonce, NonceStoreDown, Nonces, SeenNonces, Use};
use rustix::fs::{FlockOperation, OFlags, flock};
use tracing::warn;

/// Another process holds the lock for a few lines of a file.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(2);
/// From here on what no longer counts is left out; below it, clocks may be set back by any amount.
const SHORTEN_AT_BYTES: u64 = 4 * 1024 * 1024;
/// More than this is not kept: the store is full, and refuses.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The same, of a store in memory.
const SHORTEN_AT: usize = 100_000;
const MAX_NONCES: usize = 1_000_000;

/// Used nonces.
#[derive(Debug)]
pub(super) struct NonceStore {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
enum Kept {
    Memory { seen: SeenNonces, shorten_at: usize },
    Folder { path: PathBuf, open: Option<Folder> },
}

/// The folder's file, as far as it was read.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    lock: File,
    file: File,
    /// Tells the file from one that took its place.
    inode: u64,
    read_bytes: u64,
    shorten_at: u64,
    seen: SeenNonces,
}

impl NonceStore {
    /// Opens nothing yet: a folder that cannot be used refuses requests, as it would later.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        let kept = match folder {
            None => Kept::Memory {
                seen: SeenNonces::default(),
                shorten_at: SHORTEN_AT,
            },
            Some(path) => Kept::Folder { path, open: None },
        };
        Self {
            kept: Mutex::new(kept),
        }
    }
}

impl Nonces for NonceStore {
    fn note(&self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> Result<Use, NonceStoreDown> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *kept {
            Kept::Memory { seen, shorten_at } => note_in_memory(seen, shorten_at, key_id, nonce, now_unix),
            Kept::Folder { path, open } => {
                // Taken out, so that after an error everything is read anew.
                let folder = open.take().map_or_else(|| Folder::open(path), Ok);
                let noted = folder.and_then(|mut folder| {
                    let noted = folder.note(key_id, nonce, now_unix)?;
                    Ok((folder, noted))
                });
                match noted {
                    Ok((folder, noted)) => {
                        *open = Some(folder);
                        Ok(noted)
                    }
                    Err(error) => {
                        warn!(folder = %path.display(), %error, "used nonces cannot be kept; requests are refused");
                        Err(NonceStoreDown)
                    }
                }
            }
        }
    }
}

fn note_in_memory(
    seen: &mut SeenNonces,
    shorten_at: &mut usize,
    key_id: &KeyId,
    nonce: Nonce,
    now_unix: u64,
) -> Result<Use, NonceStoreDown> {
    if seen.len() >= *shorten_at {
        seen.forget_old(now_unix);
        *shorten_at = SHORTEN_AT.max(seen.len() * 2);
    }
    if seen.len() >= MAX_NONCES {
        return Err(NonceStoreDown);
    }
    Ok(seen.note(key_id, nonce, now_unix))
}

impl Folder {
    fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let found = std::fs::metadata(folder)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(io::Error::other(
                "it must be a folder that belongs to us and that nobody else can write",
            ));
        }
        let lock = options().open(folder.join("envelope-nonces.lock"))?;
        let path = folder.join("envelope-nonces");
        let file = options().open(&path)?;
        Ok(Self {
            inode: file.metadata()?.ino(),
            path,
            lock,
            file,
            read_bytes: 0,
            shorten_at: SHORTEN_AT_BYTES,
            seen: SeenNonces::default(),
        })
    }

    fn note(&mut self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> io::Result<Use> {
        lock(&self.lock)?;
        let noted = self.note_locked(key_id, nonce, now_unix);
        flock(&self.lock, FlockOperation::Unlock)?;
        noted
    }

    fn note_locked(&mut self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> io::Result<Use> {
        self.catch_up()?;
        if self.read_bytes > self.shorten_at {
            self.shorten(now_unix)?;
        }
        if self.read_bytes > MAX_BYTES {
            return Err(io::Error::other("there are too many at this time"));
        }
        if self.seen.note(key_id, nonce, now_unix) == Use::Again {
            return Ok(Use::Again);
        }
        let line = line(key_id, nonce, now_unix);
        self.file.seek(SeekFrom::Start(self.read_bytes))?;
        self.file.write_all(line.as_bytes())?;
        self.read_bytes += length(&line);
        Ok(Use::First)
    }

    /// Reads what other processes wrote.
    fn catch_up(&mut self) -> io::Result<()> {
        let current = std::fs::symlink_metadata(&self.path)?;
        if current.ino() != self.inode || current.len() < self.read_bytes {
            self.file = options().open(&self.path)?;
            self.inode = self.file.metadata()?.ino();
            self.read_bytes = 0;
            self.seen = SeenNonces::default();
        }
        if current.len() == self.read_bytes {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut reader = BufReader::new(&self.file);
        let mut line = String::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(256).read_line(&mut line)?;
            let Some(whole) = line.strip_suffix('\n') else {
                if read >= 256 {
                    return Err(malformed());
                }
                break;
            };
            let (time, key_id, nonce) = parse(whole).ok_or_else(malformed)?;
            self.seen.restore(key_id, nonce, time);
            self.read_bytes += length(&line);
        }
        // What a killed writer left of a line: its request was not let through.
        self.file.set_len(self.read_bytes)
    }

    /// Replaces the file by one without what no longer counts; others see that it is another file.
    fn shorten(&mut self, now_unix: u64) -> io::Result<()> {
        self.seen.forget_old(now_unix);
        let text: String = self
            .seen
            .iter()
            .map(|(key_id, nonce, noted)| line(key_id, nonce, noted))
            .collect();
        let fresh_path = self.path.with_extension("new");
        let mut fresh = options().open(&fresh_path)?;
        fresh.set_len(0)?;
        fresh.write_all(text.as_bytes())?;
        fresh.sync_all()?;
        std::fs::rename(&fresh_path, &self.path)?;
        self.inode = fresh.metadata()?.ino();
        self.file = fresh;
        self.read_bytes = length(&text);
        self.shorten_at = SHORTEN_AT_BYTES.max(self.read_bytes.saturating_mul(2));
        Ok(())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn lock(file: &File) -> io::Result<()> {
    let end = Instant::now() + LOCK_DEADLINE;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn line(key_id: &KeyId, nonce: Nonce, time: u64) -> String {
    format!("{time} {key_id} {nonce}\n")
}

fn parse(line: &str) -> Option<(u64, KeyId, Nonce)> {
    let mut words = line.split(' ');
    let (time, key_id, nonce) = (words.next()?, words.next()?, words.next()?);
    let read = (time.parse().ok()?, KeyId::parse(key_id)?, Nonce::parse(nonce)?);
    words.next().is_none().then_some(read)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "`envelope-nonces` is not as we write it; move it away to begin anew",
    )
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600;

    fn nonce(number: u64) -> Nonce {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Nonce::from_bytes(bytes)
    }

    fn store(folder: &Path) -> NonceStore {
        NonceStore::new(Some(folder.to_owned()))
    }

    fn note(store: &NonceStore, number: u64, now: u64) -> Result<Use, NonceStoreDown> {
        store.note(&KeyId::parse("k1").unwrap(), nonce(number), now)
    }

    fn file(folder: &Path) -> PathBuf {
        folder.join("envelope-nonces")
    }

    #[test]
    fn of_two_stores_in_one_folder_exactly_one_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (store(folder.path()), store(folder.path()));

        assert_eq!(note(&one, 1, NOW), Ok(Use::First));
        assert_eq!(note(&other, 1, NOW), Ok(Use::Again));
        assert_eq!(note(&other, 2, NOW), Ok(Use::First));
        assert_eq!(note(&one, 2, NOW), Ok(Use::Again));
        assert_eq!(note(&store(folder.path()), 2, NOW + 660), Ok(Use::Again));
        assert_eq!(note(&store(folder.path()), 2, NOW + 661), Ok(Use::First));
    }

    #[test]
    fn of_many_at_once_exactly_one_is_first() {
        let folder = tempfile::tempdir().unwrap();
        for (round, shared) in [(1, true), (2, false)] {
            let one = store(folder.path());
            let firsts: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..16)
                    .map(|_| {
                        scope.spawn(|| {
                            let own = store(folder.path());
                            let store = if shared { &one } else { &own };
                            usize::from(note(store, round, NOW) == Ok(Use::First))
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });

            assert_eq!(firsts, 1, "shared: {shared}");
        }
    }

    #[test]
    fn what_a_killed_writer_left_of_a_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(note(&store(folder.path()), 1, NOW), Ok(Use::First));
        let mut torn = std::fs::read_to_string(file(folder.path())).unwrap();
        torn.push_str("1767225600 k1 AAAA");
        std::fs::write(file(folder.path()), torn).unwrap();

        assert_eq!(note(&store(folder.path()), 2, NOW), Ok(Use::First));

        let again = store(folder.path());
        assert_eq!([note(&again, 1, NOW), note(&again, 2, NOW)], [Ok(Use::Again); 2]);
    }

    #[test]
    fn a_store_that_cannot_be_used_refuses() {
        let folder = tempfile::tempdir().unwrap();
        for garbage in [
            "x\n",
            "1 k1 x\n",
            "-1 k1 AAAAAAAAAAAAAAAAAAAAAA\n",
            &"x".repeat(300),
        ] {
            std::fs::write(file(folder.path()), garbage).unwrap();
            assert_eq!(
                note(&store(folder.path()), 1, NOW),
                Err(NonceStoreDown),
                "{garbage:?}"
            );
        }
        std::fs::write(file(folder.path()), "").unwrap();
        assert_eq!(note(&store(folder.path()), 1, NOW), Ok(Use::First));
        assert_eq!(note(&store(&file(folder.path())), 1, NOW), Err(NonceStoreDown));
        assert_eq!(note(&store(Path::new("/proc/none")), 1, NOW), Err(NonceStoreDown));
    }

    #[test]
    fn a_link_in_place_of_the_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), file(folder.path())).unwrap();

        assert_eq!(note(&store(folder.path()), 1, NOW), Err(NonceStoreDown));
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn a_shortened_file_keeps_what_counts_and_others_notice() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (store(folder.path()), store(folder.path()));
        assert_eq!(note(&other, 0, NOW), Ok(Use::First));
        let mut text = String::new();
        let k1 = KeyId::parse("k1").unwrap();
        for number in 1..=120_000 {
            text += &line(&k1, nonce(number), NOW - 2_000);
        }
        text += &line(&k1, nonce(120_001), NOW);
        std::fs::write(file(folder.path()), text).unwrap();

        assert_eq!(note(&one, 120_002, NOW), Ok(Use::First));

        let kept = std::fs::read_to_string(file(folder.path())).unwrap();
        assert_eq!(kept.lines().count(), 2);
        for number in [120_001, 120_002] {
            assert_eq!(note(&other, number, NOW), Ok(Use::Again));
        }
    }
}
