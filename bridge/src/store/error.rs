//! Why the store did not do what it was asked.
//!
//! Here: [`StoreError`], with what an operator does about each. Not here: which codes of a database mean what
//! (`sqlite/`, `postgres/`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

/// Why the store did not do what it was asked. Callers that were committed together share the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL names no database that is known here.
    #[error(
        "the store's URL cannot be used: {0}; leave it out for a file in the state folder, or give postgres://USER@HOST/DATABASE"
    )]
    Url(String),
    /// The state folder cannot be used.
    #[error("{0}")]
    Folder(String),
    /// Another daemon has the state folder.
    #[error("the state folder {} is in use by another daemon: end that, or give this one a folder of its own (--state-dir)", .0.display())]
    InUse(PathBuf),
    /// The store was written by a newer version.
    #[error(
        "the store has schema version {found}, and this program knows {known}: start the version that wrote it, \
         or restore a backup from before the upgrade"
    )]
    Newer {
        /// The version in the store.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// The schema is not what its version says.
    #[error(
        "the store's schema is not the one of its version ({0}): restore a backup, or begin with an empty store"
    )]
    Schema(String),
    /// No room is left.
    #[error("the store's disk is full: make room where it lies; nothing is lost that was confirmed")]
    Full(#[source] Arc<sqlx::Error>),
    /// What stands there is damaged.
    #[error(
        "the store is damaged ({0}): stop the daemon, keep a copy for the search of the cause, and restore a backup"
    )]
    Damaged(String),
    /// Something else holds it locked.
    #[error("the store is locked by another program; end what has it open")]
    Busy(#[source] Arc<sqlx::Error>),
    /// The call took too long.
    #[error("the store did not answer within {limit:?} ({call})")]
    Deadline {
        /// Which call.
        call: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// There is no connection to the server.
    #[error("the store's server cannot be reached: see that it runs and that the URL is right")]
    Unreachable(#[source] Arc<sqlx::Error>),
    /// A session of this id is there already.
    #[error("a session {0} is in the store already")]
    Exists(Uuid),
    /// A row does not say what it must.
    #[error("the store's {table} hold a row that cannot be read: {why}")]
    Row {
        /// Where.
        table: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A copy could not be made.
    #[error("no backup was made: {0}")]
    Backup(String),
    /// The store has been closed.
    #[error("the store is closed: the daemon is ending")]
    Closed,
    /// Anything else that the database says.
    #[error("the store refused")]
    Database(#[source] Arc<sqlx::Error>),
}
