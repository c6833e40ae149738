//! What stands in the write-ahead log is moved into the file, beside those who write.
//!
//! SQLite would do that within the commit of whoever makes the log long enough, and that one would wait for the disk
//! several times. Here a connection of its own does it. Not here: what is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::{Row as _, SqlitePool};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::read_error;
use crate::store::StoreError;

/// Rows after which it is worth it; a row changes a few pages.
const ROWS: usize = 1_000;
/// Pages of the log, of 4 KiB, after which writers wait until all of it is in the file, so that it begins anew: under a
/// load without a pause it would grow for ever.
const MOST_PAGES: i64 = 16_384;

/// Counts what is written.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    rows: AtomicUsize,
    due: Notify,
}

impl Checkpoints {
    /// So many rows were written.
    pub(super) fn wrote(&self, rows: usize) {
        if self.rows.fetch_add(rows, Ordering::Relaxed) + rows >= ROWS {
            self.due.notify_one();
        }
    }

    /// Starts the task that does it; it ends with what is returned.
    pub(super) fn start(self: &Arc<Self>, connection: SqlitePool) -> AbortOnDropHandle<()> {
        let this = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                this.due.notified().await;
                this.rows.store(0, Ordering::Relaxed);
                if let Err(error) = checkpoint(&connection).await {
                    // The log grows on, and the next ones try it again.
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the store's log could not be moved into its file"
                    );
                }
            }
        }))
    }
}

async fn checkpoint(connection: &SqlitePool) -> Result<(), StoreError> {
    let done = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
        .fetch_one(connection)
        .await
        .map_err(read_error)?;
    // https://www.sqlite.org/pragma.html#pragma_wal_checkpoint: busy, pages in the log, pages moved.
    let pages: i64 = done.try_get(1).map_err(read_error)?;
    if pages > MOST_PAGES {
        sqlx::query("PRAGMA wal_checkpoint(RESTART)")
            .fetch_one(connection)
            .await
            .map_err(read_error)?;
    }
    Ok(())
}
