//! What a session leaves on the daemon's own disk for a successor of this process.
//!
//! Here: [`StateFolder`], one session's at a time: a lock, the session's record (name, target, tunnel and the digest of
//! its token, never the token), and the place of the queue's journal. Not here: what a successor does with it
//! (`app.rs`), the journal itself (`tunnel::queue`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use tunnel::Listening;
use uuid::Uuid;

/// A longer record is none of ours.
const RECORD_MAX_BYTES: u64 = 64 * 1024;
const VERSION: u32 = 1;
const RECORD: &str = "session.json";

/// One session as it was written down: what it left on its target, and what its agent knows. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    pub(crate) version: u32,
    pub(crate) session: Uuid,
    /// In the operator's words, without a secret.
    pub(crate) target: String,
    pub(crate) tunnel: String,
    /// What the upstream and the agent know the run by.
    pub(crate) run_id: String,
    pub(crate) token_sha256: String,
    /// Where it listened on the target.
    #[serde(default)]
    pub(crate) port: Option<u16>,
    /// The same for a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unix_path: Option<PathBuf>,
    /// What its agent calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// What must be gone from the target before a successor listens there: the sshd process of an ssh-reverse. A gateway
    /// is recorded on the target itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<LeftProcess>,
    /// Which program listened there, where one of ours or a peer's did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<LeftGateway>,
    /// Where its queue lies on the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queue_directory: Option<String>,
    /// The lease that it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<LeftLease>,
}

/// A process on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeftProcess {
    pub(crate) pid: u32,
    /// Field 22 of its `/proc/PID/stat`.
    pub(crate) start: String,
}

/// Which program listened on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LeftGateway {
    /// Ours, which is given the token's digest.
    Own,
    /// A peer's script, which needs the token itself.
    Script,
}

/// A provider's hold on the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeftLease {
    /// The provider's key.
    pub(crate) provider: String,
    /// The provider's own name of it.
    pub(crate) id: String,
}

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Reading or writing failed.
    #[error("the state folder {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the state folder {} is in use by another process: end that, or give this one a folder of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// Others could read or change it.
    #[error("the state folder {} must be a folder that belongs to us and that nobody else can write", .0.display())]
    NotOurs(PathBuf),
    /// What stands there is not understood.
    #[error("{} is no record of a session: {why}; remove it to begin anew", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A folder that belongs to one session at a time, for as long as this is held.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    /// Unlocked when dropped, and by the system when the process is killed.
    _lock: File,
}

impl SessionRecord {
    pub(crate) fn new(
        session: Uuid,
        target: &str,
        tunnel: &str,
        run_id: &str,
        token_sha256: [u8; 32],
    ) -> Self {
        Self {
            version: VERSION,
            session,
            target: target.to_owned(),
            tunnel: tunnel.to_owned(),
            run_id: run_id.to_owned(),
            token_sha256: hex(token_sha256),
            port: None,
            unix_path: None,
            url: None,
            process: None,
            gateway: None,
            queue_directory: None,
            lease: None,
        }
    }

    /// The same, listening here for an agent that calls `url`.
    pub(crate) fn listening(self, listening: &Listening, url: &str) -> Self {
        let (port, unix_path) = match listening {
            Listening::Tcp { port } => (Some(*port), None),
            Listening::Unix { path } => (None, Some(path.clone())),
            Listening::Url { .. } => (None, None),
        };
        Self {
            port,
            unix_path,
            url: Some(url.to_owned()),
            ..self
        }
    }

    /// The digest of its token.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        unhex(&self.token_sha256)
    }
}

/// A digest as it is written down.
pub(crate) fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse of [`hex`].
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (place, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            value = value * 16 + char::from(*digit).to_digit(16)?;
        }
        *place = u8::try_from(value).ok()?;
    }
    Some(digest)
}

impl StateFolder {
    /// Makes the folder where there is none, and locks it.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing is changed where somebody else has it.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        own_folder(path)?;
        let lock_path = path.join("lock");
        let lock = options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| io_error(&lock_path, error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                StateError::InUse(path.to_owned())
            } else {
                io_error(&lock_path, error.into())
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where the queue writes down what it sends.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The session that was open when the last process with this folder ended, unless that ended it in order.
    pub(crate) fn predecessor(&self) -> Result<Option<SessionRecord>, StateError> {
        let path = self.record_path();
        let mut text = Vec::new();
        match options().read(true).open(&path) {
            Ok(file) => file
                .take(RECORD_MAX_BYTES + 1)
                .read_to_end(&mut text)
                .map_err(|error| io_error(&path, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, error)),
        };
        let malformed = |why: String| StateError::Malformed {
            path: path.clone(),
            why,
        };
        if text.len() as u64 > RECORD_MAX_BYTES {
            return Err(malformed(format!("it is longer than {RECORD_MAX_BYTES} bytes")));
        }
        let record: SessionRecord =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if record.version != VERSION {
            return Err(malformed(format!("it has version {}", record.version)));
        }
        if record.digest().is_none() {
            return Err(malformed("its digest is not 64 hexadecimal digits".to_owned()));
        }
        Ok(Some(record))
    }

    /// Writes the session down, whole or not at all.
    pub(crate) fn record(&self, record: &SessionRecord) -> Result<(), StateError> {
        let text = serde_json::to_vec(record).map_err(|error| io_error(&self.record_path(), error.into()))?;
        write_whole(&self.path, RECORD, &text)
    }

    /// The session has ended in order: nothing is left for a successor.
    pub(crate) fn forget(&self) -> Result<(), StateError> {
        let path = self.record_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn record_path(&self) -> PathBuf {
        self.path.join(RECORD)
    }
}

/// Makes a folder that only we can read, where there is none, with its parents.
///
/// # Errors
///
/// [`StateError::NotOurs`] where others could write into it.
pub(crate) fn own_folder(path: &Path) -> Result<(), StateError> {
    let fault = |source| io_error(path, source);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(fault)?;
    let seen = std::fs::metadata(path).map_err(fault)?;
    if seen.uid() != rustix::process::geteuid().as_raw() || seen.mode() & 0o022 != 0 {
        return Err(StateError::NotOurs(path.to_owned()));
    }
    Ok(())
}

/// Writes a file of `folder`, whole or not at all; it is on the disk when this returns.
///
/// # Errors
///
/// [`StateError::Io`]; what stood there before stands there still.
pub(crate) fn write_whole(folder: &Path, name: &str, text: &[u8]) -> Result<(), StateError> {
    let path = folder.join(name);
    let fault = |error| io_error(&path, error);
    let fresh = folder.join(format!("{name}.new"));
    let mut file = options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&fresh)
        .map_err(fault)?;
    file.write_all(text).map_err(fault)?;
    file.sync_all().map_err(fault)?;
    std::fs::rename(&fresh, &path).map_err(fault)?;
    sync_folder(folder)
}

/// What was made, renamed or removed in it is so on the disk when this returns.
///
/// # Errors
///
/// [`StateError::Io`].
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StateError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| io_error(folder, error))
}

/// Opens files of our own: for nobody else to read, and through no link.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    options.mode(0o600).custom_flags(flags);
    options
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn record() -> SessionRecord {
        SessionRecord::new(
            Uuid::now_v7(),
            "ssh://me@host:22",
            "queue_v1",
            "run-1",
            [0xab; 32],
        )
    }

    #[test]
    fn a_successor_reads_what_was_written_and_only_its_owner_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let written = record();

        let first = StateFolder::open(&path).unwrap();
        assert_eq!(first.predecessor().unwrap(), None);
        first.record(&written).unwrap();
        drop(first);
        let second = StateFolder::open(&path).unwrap();

        assert_eq!(second.predecessor().unwrap(), Some(written.clone()));
        assert_eq!(written.digest(), Some([0xab; 32]));
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(""), mode("session.json"), mode("lock")),
            (0o700, 0o600, 0o600)
        );
        second.forget().unwrap();
        assert_eq!(second.predecessor().unwrap(), None);
    }

    #[test]
    fn a_record_of_a_version_that_knew_less_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let text = format!(
            r#"{{"version":1,"session":"{}","target":"local","tunnel":"queue_v1","run_id":"r","token_sha256":"{}","port":4711}}"#,
            Uuid::nil(),
            "ab".repeat(32)
        );
        std::fs::write(folder.path().join("session.json"), text).unwrap();

        let read = state.predecessor().unwrap().unwrap();

        assert_eq!(
            (read.port, read.digest(), read.process, read.lease),
            (Some(4711), Some([0xab; 32]), None, None)
        );
    }

    #[test]
    fn two_sessions_never_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = StateFolder::open(folder.path()).unwrap();

        let second = StateFolder::open(folder.path());

        assert!(matches!(second, Err(StateError::InUse(_))), "{second:?}");
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();

        let opened = StateFolder::open(folder.path());

        assert!(matches!(opened, Err(StateError::NotOurs(_))), "{opened:?}");
    }

    #[test]
    fn a_record_that_is_not_understood_is_an_error_and_not_a_fresh_start() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let good = serde_json::to_value(record()).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            changed[key] = value;
            changed.to_string()
        };
        for text in [
            String::new(),
            "{".to_owned(),
            with("version", 2.into()),
            with("token_sha256", "ab".into()),
            with("token_sha256", "zz".repeat(32).into()),
            with("token_sha256", "+1".repeat(32).into()),
            with("surprise", 1.into()),
            format!("{good}{}x", " ".repeat(70_000)),
        ] {
            std::fs::write(folder.path().join("session.json"), &text).unwrap();

            let read = state.predecessor();

            assert!(matches!(read, Err(StateError::Malformed { .. })), "{read:?}");
        }
    }

    #[test]
    fn a_link_in_place_of_the_record_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("session.json")).unwrap();

        assert!(matches!(state.predecessor(), Err(StateError::Io { .. })));
    }
}
