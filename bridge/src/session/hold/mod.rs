//! The daemon's hold on a session that is kept in the store: whoever has lost it serves nothing.
//!
//! Here: [`Hold`], asked by each callback and written through by each unsafe one; in `tenure` what all holds of one daemon
//! share. Times are those of `CLOCK_BOOTTIME`, which runs on while the machine is suspended. Not here: who renews it
//! (`daemon/holding/`), the rules of ownership (`store/`). Read next: `callback/forward.rs`.

mod tenure;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use tenure::Unsettled;
pub(crate) use tenure::{LEASE, Tenure};

use super::ledger::{Entry, Outcome, TOLD};
use crate::store::{Claim, EntryOutcome, NewEntry, SessionRow, Store, StoreError};

/// A moment of `CLOCK_BOOTTIME`, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(u64);

impl BootTime {
    /// Never comes.
    const NEVER: Self = Self(u64::MAX);

    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
        Self(
            seconds
                .saturating_mul(1_000_000)
                .saturating_add(nanoseconds / 1_000),
        )
    }

    fn after(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// How long until then; nothing once it is over.
    pub(crate) fn left(self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(Self::now().0))
    }
}

/// Why a callback of a kept session is not served. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotServed {
    /// This daemon does not, or not certainly, own the session any more; or it is to end.
    NotOwner,
    /// It cannot be written down that it is sent.
    Unwritten,
}

/// One session's hold.
pub struct Hold {
    tenure: Arc<Tenure>,
    claim: Claim,
    /// A [`BootTime`].
    until: AtomicU64,
    lost: AtomicBool,
    /// Its row does not say what is so.
    changed: AtomicBool,
}

impl Hold {
    /// By which the store knows it.
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Its number among those of all owners of the session, as it is told on the target.
    pub(crate) fn fence(&self) -> Option<u64> {
        u64::try_from(self.claim.fence.0).ok()
    }

    /// Until when something may be served under it.
    pub(crate) fn until(&self) -> BootTime {
        BootTime(self.until.load(Ordering::Acquire))
    }

    /// Whether something may be served under it now.
    pub(crate) fn check(&self) -> Result<(), NotServed> {
        if !self.is_lost() && BootTime::now() < self.until() {
            return Ok(());
        }
        self.tenure.look.notify_one();
        Err(NotServed::NotOwner)
    }

    /// It was renewed, which was asked for at `sent`.
    pub(crate) fn renewed(&self, sent: BootTime) {
        let until = self.tenure.deadline(sent).0;
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    /// It is gone for good; `false` where that is known.
    pub(crate) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::AcqRel)
    }

    /// Its deadline is over.
    #[cfg(test)]
    pub(crate) fn expire(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Whether it is gone for good.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The row is to be written anew.
    pub(crate) fn changes(&self) {
        self.changed.store(true, Ordering::Release);
        self.tenure.changed.notify_one();
    }

    /// Whether the row is to be written anew; the next who asks hears no, unless there was another change.
    pub(crate) fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Writes its row down; `false` where it is another daemon's by now.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn save(&self, row: &SessionRow) -> Result<bool, StoreError> {
        let saved = self.tenure.store.save(&self.claim, row).await;
        saved.inspect_err(|error| self.tenure.fails(error))
    }

    /// Writes down that it is to end, so that nobody goes on with it.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn revoke(&self) -> Result<bool, StoreError> {
        let revoked = self.tenure.store.revoke(self.claim.session).await;
        revoked.inspect_err(|error| self.tenure.fails(error))
    }

    /// Writes down that an unsafe callback is about to be sent, and whether it may be.
    ///
    /// # Errors
    ///
    /// It must not be sent.
    pub(crate) async fn enter(&self, entry: &NewEntry) -> Result<(), NotServed> {
        self.check()?;
        if self.tenure.is_broken() {
            return Err(NotServed::Unwritten);
        }
        match self.tenure.store.dispatch(&self.claim, entry).await {
            // That may have taken its time.
            Ok(true) => self.check().inspect_err(|_| self.not_sent(entry.request_id)),
            Ok(false) => {
                self.tenure.look.notify_one();
                Err(NotServed::NotOwner)
            }
            Err(error) => {
                self.tenure.fails(&error);
                // It may have been written all the same.
                self.not_sent(entry.request_id);
                Err(NotServed::Unwritten)
            }
        }
    }

    fn not_sent(&self, request_id: Uuid) {
        self.tenure.waits(Unsettled {
            claim: self.claim,
            request_id,
            outcome: EntryOutcome::NotSent,
        });
    }

    /// Writes down what became of it; later, where that cannot be now.
    pub(crate) async fn settle(&self, request_id: Uuid, outcome: Outcome) {
        let outcome = EntryOutcome::from(outcome);
        let later = |outcome| {
            self.tenure.waits(Unsettled {
                claim: self.claim,
                request_id,
                outcome,
            });
        };
        if self.tenure.is_broken() {
            return later(outcome);
        }
        match self.tenure.store.settle(&self.claim, request_id, &outcome).await {
            Ok(true) => {}
            // The next owner has said that it is not known, and that stands.
            Ok(false) => tracing::debug!(%request_id, "an outcome came after the session had changed hands"),
            Err(error) => {
                self.tenure.fails(&error);
                later(outcome);
            }
        }
    }

    /// Writes down whether the answer reached the caller, if that can be.
    pub(crate) async fn delivered(&self, request_id: Uuid, whole: bool) {
        if self.tenure.is_broken() {
            return;
        }
        if let Err(error) = self.tenure.store.delivered(&self.claim, request_id, whole).await {
            self.tenure.fails(&error);
        }
    }

    /// What became of a callback of this session, whoever sent it: its request id, or `key:` and the Idempotency-Key.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub(crate) async fn look_up(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        look_up(&*self.tenure.store, self.claim.session, id).await
    }

    /// The newest callbacks of this session, the newest first.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub(crate) async fn newest(&self) -> Result<Vec<Entry>, StoreError> {
        let most = u32::try_from(TOLD).unwrap_or(u32::MAX);
        let rows = self.tenure.store.recent_entries(self.claim.session, most).await?;
        Ok(rows.into_iter().map(Entry::from).collect())
    }
}

/// What became of a callback of a session: its request id, or `key:` and the Idempotency-Key.
///
/// # Errors
///
/// The store cannot be read.
pub(crate) async fn look_up(store: &dyn Store, session: Uuid, id: &str) -> Result<Option<Entry>, StoreError> {
    let row = match id.strip_prefix("key:") {
        Some(key) => store.entry_by_key(session, key).await?,
        None => match Uuid::parse_str(id) {
            Ok(id) => store.entry(id).await?.filter(|row| row.session == session),
            Err(_) => None,
        },
    };
    Ok(row.map(Entry::from))
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("claim", &self.claim)
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
