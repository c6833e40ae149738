//! The write-ahead log, looked after beside those who write.
//!
//! Here: [`Log`]: what was written is made durable soon afterwards, where nobody waited for that; what stands in the log
//! is moved into the file, and the log begins anew. SQLite would do the last two within the commit of whoever makes the
//! log long enough, and that one would wait for the disk several times. Not here: what is written.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::{Row as _, SqlitePool};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{Writer, read_error};
use crate::store::StoreError;

/// What nobody waited for is on the disk so much later; as with the audit.
const SYNC: Duration = Duration::from_millis(200);
/// Rows after which the log is moved into the file. A page that many rows have changed is moved once, so that seldom is
/// cheap; the log gets some 80 MiB long by then.
pub(super) const ROWS: usize = 8_000;
/// What writers are held up for is at most about so many pages of 4 KiB...
const FEW: i64 = 256;
/// ... unless even so many passes beside them have left more.
const PASSES: usize = 4;

/// What was written since somebody looked.
#[derive(Debug)]
pub(super) struct Log {
    /// Since the log was moved.
    rows: AtomicUsize,
    /// After which it is moved.
    most_rows: usize,
    written: Notify,
}

/// Where the log is.
#[derive(Debug)]
pub(super) struct Place {
    /// The log itself.
    pub(super) file: PathBuf,
    /// Whether commits leave it to us to make it durable.
    pub(super) syncs: bool,
    /// The one connection that writes; whoever has it holds up the others.
    pub(super) writer: Writer,
    /// A connection of our own.
    pub(super) own: SqlitePool,
}

impl Log {
    /// One that is moved after so many rows.
    pub(super) fn of(most_rows: usize) -> Self {
        Self {
            rows: AtomicUsize::new(0),
            most_rows,
            written: Notify::new(),
        }
    }

    /// So many rows were written.
    pub(super) fn wrote(&self, rows: usize) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.written.notify_one();
    }

    /// Starts the task that looks after it; it ends with what is returned.
    pub(super) fn look_after(self: &Arc<Self>, place: Place) -> AbortOnDropHandle<()> {
        let this = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                this.written.notified().await;
                tokio::time::sleep(SYNC).await;
                if this.rows.load(Ordering::Relaxed) >= this.most_rows {
                    this.rows.store(0, Ordering::Relaxed);
                    if let Err(error) = place.begin_anew().await {
                        // The log grows on, and the next ones try it again.
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "the store's log could not be moved into its file"
                        );
                    }
                }
                if place.syncs {
                    place.sync().await;
                }
            }
        }))
    }
}

impl Place {
    /// Moves all of the log into the file. Whoever writes next writes at its begin, unless somebody reads just then.
    async fn begin_anew(&self) -> Result<(), StoreError> {
        let mut before = 0;
        for _ in 0..PASSES {
            let moved = self.pass().await?;
            if moved - before <= FEW {
                break;
            }
            before = moved;
        }
        let held = self.writer.lock().await;
        self.pass().await?;
        drop(held);
        Ok(())
    }

    /// Moves what stands in the log now, beside those who write; pages moved since the log began.
    async fn pass(&self) -> Result<i64, StoreError> {
        let done = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .fetch_one(&self.own)
            .await
            .map_err(read_error)?;
        // https://www.sqlite.org/pragma.html#pragma_wal_checkpoint: busy, pages in the log, pages moved.
        done.try_get(2).map_err(read_error)
    }

    /// SQLite holds no lock on the log's file, so that opening and closing it beside SQLite takes none away.
    async fn sync(&self) {
        let file = self.file.clone();
        let synced = tokio::task::spawn_blocking(move || File::open(file)?.sync_data()).await;
        if let Ok(Err(error)) = synced {
            tracing::error!(%error, file = %self.file.display(), "the disk fails to keep the store's log");
        }
    }
}
