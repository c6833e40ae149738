//! What the daemon keeps in the store, and its hold on it.
//!
//! Here: [`Holding`]: sessions are written down before they are opened, and what an earlier process or another daemon left
//! is taken on. In `renewing` their claims are kept, in `writing` their rows follow what becomes of them. Not here: what is
//! checked before each callback (`session/hold/`), how a session comes back (`returning.rs`), the rules of ownership
//! (`store/`).

mod renewing;
mod writing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Daemon;
use super::asked::Kept;
use super::entry::Entry;
use super::state::{Ending, SessionState};
use crate::session::hold::{self, BootTime, Hold, Tenure};
use crate::session::ledger;
use crate::store::{Claim, DaemonPlace, SessionRow, Store, StoreError};
use crate::telemetry::metrics::{Metrics, StoreNow};

/// Sessions that another daemon has lost are looked for so often.
const TAKING_OVER: Duration = Duration::from_secs(2);
/// At most so many at a time, so that others get their share.
const TAKEN_AT_ONCE: u32 = 64;

/// A session that a process had which is no more, or that another daemon lost; claimed by this one.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) kept: Kept,
    /// By which it is served from now on; `None` where nothing is kept in a store.
    pub(crate) hold: Option<Arc<Hold>>,
    /// It was to end, and what it left is to be cleared away.
    pub(crate) revoked: bool,
}

/// The store, and every session that is held in it.
#[derive(Debug)]
pub(crate) struct Holding {
    tenure: Arc<Tenure>,
    held: Mutex<BTreeMap<Uuid, Arc<Entry>>>,
    /// Ended sessions and settled outcomes are kept for so long.
    keep: Duration,
    metrics: Arc<Metrics>,
    /// Where this daemon is to be found, where that is told.
    place: Option<DaemonPlace>,
}

impl Holding {
    pub(super) fn new(
        store: Arc<dyn Store>,
        keep: Duration,
        metrics: Arc<Metrics>,
        place: Option<DaemonPlace>,
    ) -> Self {
        Self {
            tenure: Tenure::new(store),
            held: Mutex::default(),
            keep,
            metrics,
            place,
        }
    }

    /// Writes a new session down.
    ///
    /// # Errors
    ///
    /// The store's; there is no session then, unless the store has it and cannot say so: nobody knows its token.
    pub(super) async fn begin(&self, row: &SessionRow) -> Result<Arc<Hold>, StoreError> {
        let sent = BootTime::now();
        let store = &self.tenure.store;
        let claim = store.create(row, store.daemon(), self.tenure.lease()).await;
        let claim = claim.inspect_err(|error| self.tenure.fails(error))?;
        Ok(self.tenure.hold(claim, sent))
    }

    /// From now on its row follows it and its claim is renewed.
    pub(super) fn holds(&self, entry: &Arc<Entry>) {
        self.held().insert(entry.id(), Arc::clone(entry));
    }

    /// It will never be: as written down, it has ended.
    pub(super) async fn gives_up(&self, hold: &Hold, mut row: SessionRow, reason: &str) {
        SessionState::Ended.name().clone_into(&mut row.state);
        row.reason = Some(reason.to_owned());
        row.ended_at = Some(std::time::SystemTime::now());
        if let Err(error) = self.tenure.store.save(hold.claim(), &row).await {
            self.tenure.fails(&error);
            tracing::warn!(
                session = %row.id,
                error = &error as &dyn std::error::Error,
                "the end of a session could not be written down"
            );
        }
    }

    /// Takes back what earlier processes with this state folder left; what they had in flight is indeterminate from now on.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(super) async fn resume(&self) -> Result<Vec<Left>, StoreError> {
        self.announce().await?;
        let (store, sent) = (&self.tenure.store, BootTime::now());
        let left = store.resume(store.daemon(), self.tenure.lease()).await?;
        self.metrics.taken_on("earlier_process", left.len());
        self.left(left, sent, "daemon_restarted").await
    }

    async fn left(
        &self,
        left: Vec<(Claim, SessionRow)>,
        sent: BootTime,
        reason: &str,
    ) -> Result<Vec<Left>, StoreError> {
        let mut all = Vec::with_capacity(left.len());
        for (claim, row) in left {
            let open = self.tenure.store.mark_indeterminate(&claim, reason).await?;
            let hold = self.tenure.hold(claim, sent);
            tracing::info!(session = %row.id, fence = %claim.fence, open, "taken on from the store");
            match serde_json::from_value::<Kept>(row.request.clone()) {
                Ok(kept) => all.push(Left {
                    kept,
                    hold: Some(hold),
                    revoked: row.revoked,
                }),
                Err(error) => {
                    tracing::error!(
                        session = %row.id,
                        error = &error as &dyn std::error::Error,
                        "what is written down of a session is not understood, so it has ended"
                    );
                    self.gives_up(&hold, row, "record_unreadable").await;
                }
            }
        }
        Ok(all)
    }

    /// Says where this daemon is to be found, and that it lives.
    async fn announce(&self) -> Result<(), StoreError> {
        match &self.place {
            Some(place) => self.tenure.store.announce(place).await,
            None => Ok(()),
        }
    }

    /// For a scrape.
    pub(super) fn now(&self) -> StoreNow {
        StoreNow {
            broken: self.tenure.is_broken(),
            sessions: self.held().len(),
            outcomes_waiting: self.tenure.waiting(),
        }
    }

    /// Whether the store can be written, and why not.
    pub(crate) async fn fault(&self) -> Option<String> {
        if let Some(why) = self.tenure.fault() {
            return Some(why);
        }
        let error = self.tenure.store.ready().await.err()?;
        self.tenure.fails(&error);
        Some(crate::placing::with_causes(&error))
    }

    /// Takes what other daemons have lost, and what nobody has.
    async fn take_over(&self) -> Vec<Left> {
        if self.tenure.is_broken() {
            return Vec::new();
        }
        let (store, sent) = (&self.tenure.store, BootTime::now());
        let taken = async {
            let taken = store.take_over(store.daemon(), self.tenure.lease(), TAKEN_AT_ONCE);
            let taken = taken.await?;
            self.metrics.taken_on("another_daemon", taken.len());
            self.left(taken, sent, "owner_lost").await
        };
        taken.await.unwrap_or_else(|error| {
            self.tenure.fails(&error);
            Vec::new()
        })
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.held().values().cloned().collect()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, Arc<Entry>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Takes back what earlier processes with this state folder left, before anything is served.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        let Some(holding) = &self.holding else {
            return Ok(());
        };
        let left = holding.resume().await?;
        self.bring_back(left);
        Ok(())
    }

    /// Keeps the hold on every session, and their rows true, until `stop`; then writes what is left to be written.
    pub async fn hold(self: Arc<Self>, stop: CancellationToken) {
        let Some(holding) = &self.holding else {
            return;
        };
        tokio::join!(
            self.take_over(stop.clone()),
            holding.renew(stop.clone()),
            holding.listen(stop.clone()),
            holding.write(stop.clone()),
            holding.sweep(stop)
        );
        holding.flush().await;
    }

    /// Takes sessions over from daemons that have lost them, until `stop`.
    async fn take_over(self: &Arc<Self>, stop: CancellationToken) {
        let Some(holding) = self.holding.as_ref().filter(|holding| holding.tenure.is_shared()) else {
            return;
        };
        // Some may still be closing here, whose hold was lost.
        let mut taken = BTreeMap::new();
        loop {
            if !self.is_draining() && self.living() < self.settings.load().most_sessions {
                let fresh = holding.take_over().await.into_iter();
                taken.extend(fresh.map(|left| (left.kept.session, left)));
            }
            let closing = self.table().living.keys().copied().collect::<BTreeSet<_>>();
            let back = taken.extract_if(.., |id, _| !closing.contains(id));
            self.bring_back(back.map(|(_, left)| left).collect());
            if timeout(TAKING_OVER, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// What became of a callback, also of one that another process sent; with its session.
    ///
    /// # Errors
    ///
    /// It is not known here, and the store cannot be read.
    pub(crate) async fn outcome(
        &self,
        session: Option<Uuid>,
        id: &str,
    ) -> Result<Option<(Uuid, ledger::Entry)>, StoreError> {
        let known = self
            .sessions()
            .into_iter()
            .rev()
            .filter(|entry| session.is_none_or(|session| session == entry.id()))
            .find_map(|entry| Some((entry.id(), entry.ledger()?.look_up(id)?)));
        let (None, Some(holding)) = (&known, &self.holding) else {
            return Ok(known);
        };
        let store = &*holding.tenure.store;
        if let Some(session) = session {
            let found = hold::look_up(store, session, id).await?;
            return Ok(found.map(|entry| (session, entry)));
        }
        let Ok(request_id) = Uuid::parse_str(id) else {
            return Ok(None);
        };
        let found = store.entry(request_id).await?;
        Ok(found.map(|row| (row.session, ledger::Entry::from(row))))
    }

    /// Ends a session at once, also for whoever would bring it back.
    pub(crate) async fn revoke(&self, entry: &Entry) {
        entry.end(Ending::Revoked);
        let Some(holding) = &self.holding else { return };
        if entry.hold().is_some_and(|hold| !hold.is_lost())
            && let Err(error) = holding.tenure.store.revoke(entry.id()).await
        {
            // Its row says so as soon as it can be written.
            holding.tenure.fails(&error);
        }
    }

    /// What outlives this process, where something does.
    pub(super) fn store(&self) -> Option<&dyn Store> {
        self.holding.as_ref().map(|holding| &*holding.tenure.store)
    }
}
