//! What an audit is asked to be, and how it fails.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::key::AuditKey;

/// What an audit is asked to be.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// The folder of the segments; made where there is none.
    pub folder: PathBuf,
    /// What signs heads; `None` is the key in the folder, made where there is none.
    pub key: Option<AuditKey>,
    /// What a record survives once its callback is dispatched.
    pub durability: Durability,
    /// What a callback is answered whose record cannot be written.
    pub on_failure: OnFailure,
    /// Which bodies' digests stand in the outcome's record.
    pub body_digest: BodyDigest,
    /// The longest body that is digested.
    pub body_digest_bytes: u64,
    /// A segment of so many bytes is followed by the next.
    pub segment_bytes: u64,
    /// So is one that was begun so long ago.
    pub segment_age: Duration,
    /// Segments that ended longer ago than this are removed; `None` keeps them.
    pub keep_age: Option<Duration>,
    /// The oldest segments are removed while all together have more bytes; `None` keeps them.
    pub keep_bytes: Option<u64>,
}

impl AuditSettings {
    /// The defaults, in `audit` below a daemon's state folder: `write`, refuse, digests of unsafe callbacks' bodies,
    /// segments of 64 MiB or a day, everything kept.
    #[must_use]
    pub fn in_state_folder(state: &Path) -> Self {
        Self {
            folder: state.join("audit"),
            key: None,
            durability: Durability::default(),
            on_failure: OnFailure::default(),
            body_digest: BodyDigest::default(),
            body_digest_bytes: 64 * 1024,
            segment_bytes: 64 * 1024 * 1024,
            segment_age: Duration::from_hours(24),
            keep_age: None,
            keep_bytes: None,
        }
    }
}

/// What a record survives once its callback is dispatched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A killed daemon; a power cut may lose the last 200 ms.
    #[default]
    Write,
    /// A power cut, where the callback is unsafe.
    Fsync,
    /// A power cut.
    FsyncAll,
}

/// What becomes of a callback whose record cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It is refused, and nothing is sent.
    #[default]
    Refuse,
    /// It is let through and counted.
    Allow,
}

/// Which bodies' digests stand in the outcome's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyDigest {
    /// None.
    Off,
    /// Those of unsafe callbacks.
    #[default]
    Unsafe,
    /// All.
    All,
}

/// Why an audit cannot be used, or a record not be written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Reading or writing failed.
    #[error("the audit: {}: {what}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        what: String,
    },
    /// The folder cannot be used.
    #[error("the audit: {0}")]
    Folder(String),
    /// Another process writes there.
    #[error("the audit in {} is in use by another process: end that, or give this one a folder of its own", .0.display())]
    InUse(PathBuf),
    /// There is no key, or it is none.
    #[error("{0}")]
    Key(String),
    /// What is there is not what was written.
    #[error(
        "the audit in {} is not as it was written: {what}; look with `paperclip-bridge audit verify`, keep the folder as evidence, and move it away to begin anew",
        folder.display()
    )]
    Tampered {
        /// The folder.
        folder: PathBuf,
        /// What was found.
        what: String,
    },
    /// The disk does not take it.
    #[error("the audit cannot be written: {0}")]
    Failed(String),
    /// The disk did not confirm in time.
    #[error("the disk did not confirm the audit within {} s", .0.as_secs())]
    Late(Duration),
    /// The audit has been closed.
    #[error("the audit is closed")]
    Closed,
}

impl AuditError {
    #[expect(clippy::needless_pass_by_value, reason = "fits `map_err`")]
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            what: error.to_string(),
        }
    }
}
