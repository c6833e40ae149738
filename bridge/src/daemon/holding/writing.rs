//! What the store is told of sessions, and what it may forget.
//!
//! Here: rows that have changed, outcomes that waited, the last of both at the daemon's end, and the removal of what is too
//! old. Not here: when a row changes (`entry.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Holding;
use crate::daemon::entry::Entry;
use crate::daemon::state::SessionState;
use crate::session::hold::Hold;

/// What is too old is removed so often.
const SWEEPING: Duration = Duration::from_secs(60);
/// A daemon that was not heard of for so long is not coming back.
const GONE: Duration = Duration::from_hours(7 * 24);
/// At its end the daemon writes what is left to be written, for so long.
const FLUSHING: Duration = Duration::from_secs(5);

impl Holding {
    /// Writes rows that have changed, and outcomes that could not be written before, until `stop`.
    pub(super) async fn write(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.tenure.changed.notified() => {}
            }
            self.write_once().await;
        }
    }

    pub(super) async fn write_once(&self) {
        if self.tenure.is_broken() {
            // Rung again once it works.
            return;
        }
        self.tenure.settle_waiting().await;
        for entry in self.entries() {
            let Some(hold) = entry.hold().filter(|hold| !hold.is_lost()) else {
                self.forget(&entry);
                continue;
            };
            if !hold.take_change() {
                continue;
            }
            let over = entry.state() == SessionState::Ended;
            let row = entry.row();
            match self.tenure.store.save(hold.claim(), &row).await {
                Ok(true) => {}
                Ok(false) => {
                    self.tenure.look.notify_one();
                    continue;
                }
                Err(error) => {
                    hold.changes();
                    self.tenure.fails(&error);
                    return;
                }
            }
            if over {
                if self.tenure.is_shared() && row.anywhere && row.ended_at.is_none() {
                    self.releases(hold).await;
                }
                self.forget(&entry);
            }
        }
    }

    /// Left in order: another daemon need not wait for the lease to run out.
    async fn releases(&self, hold: &Hold) {
        hold.lose();
        if let Err(error) = self.tenure.store.release(hold.claim()).await {
            self.tenure.fails(&error);
        }
    }

    /// At the end: what has not been written yet is, where that can be.
    pub(in crate::daemon) async fn flush(&self) {
        if timeout(FLUSHING, self.write_once()).await.is_err() {
            tracing::warn!("not everything could be written to the store before the daemon ended");
        }
    }

    pub(super) async fn sweep(&self, stop: CancellationToken) {
        while timeout(SWEEPING, stop.cancelled()).await.is_err() {
            let store = &self.tenure.store;
            let swept = async {
                store.sweep_sessions(self.keep).await?;
                store.sweep_entries(self.keep).await?;
                store.sweep_nonces().await?;
                store.sweep_daemons(GONE).await
            };
            if let Err(error) = swept.await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what is too old could not be removed from the store"
                );
            }
        }
    }

    /// This very entry: the same session may be ours again meanwhile, with another one.
    fn forget(&self, entry: &Arc<Entry>) {
        let mut held = self.held();
        if held.get(&entry.id()).is_some_and(|now| Arc::ptr_eq(now, entry)) {
            held.remove(&entry.id());
        }
    }
}
