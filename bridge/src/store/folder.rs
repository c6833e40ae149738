//! The daemon's state folder: one daemon at a time has it.
//!
//! Here: [`Folder`], its lock and the daemon's own name, which stays the same over restarts. Not here: what else lies
//! in the folder. Read next: `sqlite/`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::error::StoreError;
use crate::session::state::{options, own_folder, write_whole};

const LOCK: &str = "state.lock";
const DAEMON: &str = "daemon.id";
/// A name has 36 characters.
const NAME_MAX_BYTES: u64 = 64;

/// A state folder that this daemon alone has, for as long as this is held.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    daemon: Uuid,
    /// Unlocked when dropped, and by the system when the process is killed.
    _lock: File,
}

impl Folder {
    /// Makes the folder where there is none, and locks it.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] where another daemon has it; [`StoreError::Folder`] where it cannot be used or others
    /// can write into it.
    pub fn lock(path: &Path) -> Result<Self, StoreError> {
        own_folder(path).map_err(|error| StoreError::Folder(error.to_string()))?;
        let lock = options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(|error| fault(&path.join(LOCK), &error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                StoreError::InUse(path.to_owned())
            } else {
                fault(&path.join(LOCK), &error.into())
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            daemon: daemon_of(path)?,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The daemon's own name, made with the folder.
    #[must_use]
    pub fn daemon(&self) -> Uuid {
        self.daemon
    }
}

/// With the lock: reads the daemon's name, or makes one.
fn daemon_of(folder: &Path) -> Result<Uuid, StoreError> {
    let path = folder.join(DAEMON);
    let mut text = String::new();
    match options().read(true).open(&path) {
        Ok(file) => file
            .take(NAME_MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| fault(&path, &error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let daemon = Uuid::now_v7();
            write_whole(folder, DAEMON, daemon.to_string().as_bytes())
                .map_err(|error| StoreError::Folder(error.to_string()))?;
            return Ok(daemon);
        }
        Err(error) => return Err(fault(&path, &error)),
    };
    Uuid::try_parse(text.trim()).map_err(|error| {
        StoreError::Folder(format!(
            "{} does not hold the daemon's name ({error}): restore it, or remove it to begin with a new name",
            path.display()
        ))
    })
}

fn fault(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Folder(format!("the state folder {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_never_share_a_folder_and_the_next_one_has_the_same_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = Folder::lock(folder.path()).unwrap();
        let daemon = first.daemon();

        let second = Folder::lock(folder.path());
        assert!(matches!(second, Err(StoreError::InUse(_))), "{second:?}");
        drop(first);

        assert_eq!(Folder::lock(folder.path()).unwrap().daemon(), daemon);
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DAEMON), "me").unwrap();

        let locked = Folder::lock(folder.path());

        assert!(matches!(locked, Err(StoreError::Folder(_))), "{locked:?}");
        assert_eq!(std::fs::read_to_string(folder.path().join(DAEMON)).unwrap(), "me");
    }
}
