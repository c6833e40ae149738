//! What the daemon keeps in the store, and its hold on it.
//!
//! Here: [`Holding`]: sessions are written down before they are opened, their rows follow what becomes of them, their claims are renewed
//! by one call for all of them, and what an earlier process left is taken back at the start. Not here: what is checked
//! before each callback (`session/hold.rs`), how a session comes back (`returning.rs`), the rules of ownership (`store/`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Daemon;
use super::asked::Kept;
use super::entry::Entry;
use super::state::{Ending, SessionState};
use crate::session::hold::{self, BootTime, Hold, LEASE, Tenure};
use crate::session::ledger;
use crate::store::{Claim, SessionRow, Store, StoreError};

/// Claims on a store that several daemons have are renewed so often.
const RENEWING: Duration = Duration::from_secs(3);
/// The same where nobody else can take them.
const RENEWING_ALONE: Duration = Duration::from_hours(1);
/// A store that does not work is tried again so often.
const RETRYING: Duration = Duration::from_secs(1);
/// Sessions that another daemon has lost are looked for so often.
const TAKING_OVER: Duration = Duration::from_secs(2);
/// At most so many at a time, so that others get their share.
const TAKEN_AT_ONCE: u32 = 64;
/// A renewal gets at least so long, also where the deadline of a hold is over already.
const LEAST: Duration = Duration::from_secs(1);
/// What is too old is removed so often.
const SWEEPING: Duration = Duration::from_secs(60);
/// At its end the daemon writes what is left to be written, for so long.
const FLUSHING: Duration = Duration::from_secs(5);

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
}

impl Holding {
    pub(super) fn new(store: Arc<dyn Store>, keep: Duration) -> Self {
        Self {
            tenure: Tenure::new(store),
            held: Mutex::default(),
            keep,
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
        let (store, sent) = (&self.tenure.store, BootTime::now());
        let left = store.resume(store.daemon(), self.tenure.lease()).await?;
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

    /// Whether the store can be written, and why not.
    pub(crate) async fn fault(&self) -> Option<String> {
        if let Some(why) = self.tenure.fault() {
            return Some(why);
        }
        let error = self.tenure.store.ready().await.err()?;
        self.tenure.fails(&error);
        Some(crate::placing::with_causes(&error))
    }

    /// Renews every claim until `stop`; one that is gone ends its session here.
    async fn renew(&self, stop: CancellationToken) {
        let every = if self.tenure.is_shared() {
            RENEWING
        } else {
            RENEWING_ALONE
        };
        let mut due = Instant::now() + every;
        loop {
            let next = if self.tenure.is_broken() {
                due.min(Instant::now() + RETRYING)
            } else {
                due
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.tenure.look.notified() => {
                    // Rung by every callback that is refused.
                    tokio::time::sleep_until(due.min(Instant::now() + RETRYING / 10)).await;
                }
                () = tokio::time::sleep_until(next) => {}
            }
            due = Instant::now() + every;
            self.renew_once().await;
        }
    }

    async fn renew_once(&self) {
        let held = self.entries();
        let holds: Vec<_> = held
            .iter()
            .filter_map(|entry| entry.hold().filter(|hold| !hold.is_lost()))
            .collect();
        let claims: Vec<_> = holds.iter().map(|hold| *hold.claim()).collect();
        let left = holds.iter().map(|hold| hold.until().left()).min();
        let limit = left.unwrap_or(LEASE).clamp(LEAST, LEASE);
        let (store, sent) = (&self.tenure.store, BootTime::now());
        let renewed = timeout(limit, async {
            if claims.is_empty() {
                store.ready().await.map(|()| Vec::new())
            } else {
                store.renew(&claims, self.tenure.lease()).await
            }
        });
        match renewed.await {
            Ok(Ok(ours)) => {
                self.tenure.works();
                let ours: BTreeSet<_> = ours.into_iter().collect();
                for hold in &holds {
                    if ours.contains(&hold.claim().session) {
                        hold.renewed(sent);
                    } else {
                        self.loses(hold);
                    }
                }
                self.end_revoked().await;
            }
            Ok(Err(error)) => self.tenure.fails(&error),
            Err(_) => self.tenure.fails(&StoreError::Deadline { call: "renew", limit }),
        }
        // Nobody could say that they are ours.
        for hold in holds.iter().filter(|hold| hold.until().left().is_zero()) {
            self.loses(hold);
        }
    }

    /// Sessions that were to end by the word of another daemon.
    async fn end_revoked(&self) {
        if !self.tenure.is_shared() {
            return;
        }
        match self.tenure.store.revoked(self.tenure.store.daemon()).await {
            Ok(revoked) => {
                let held = self.held();
                let entries = revoked.iter().filter_map(|id| held.get(id));
                entries.for_each(|entry| entry.end(Ending::Revoked));
            }
            Err(error) => self.tenure.fails(&error),
        }
    }

    /// It is another daemon's, or may be. Its row is not ours to write any more.
    fn loses(&self, hold: &Hold) {
        let session = hold.claim().session;
        let entry = self.held().remove(&session);
        if hold.lose() {
            tracing::warn!(%session, fence = %hold.claim().fence, "the hold on a session is lost; its tunnels are closed here");
        }
        if let Some(entry) = entry {
            entry.end(Ending::TakenOver);
        }
    }

    /// Writes rows that have changed, and outcomes that could not be written before, until `stop`.
    async fn write(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.tenure.changed.notified() => {}
            }
            self.write_once().await;
        }
    }

    async fn write_once(&self) {
        if self.tenure.is_broken() {
            // Rung again once it works.
            return;
        }
        self.tenure.settle_waiting().await;
        for entry in self.entries() {
            let Some(hold) = entry.hold().filter(|hold| !hold.is_lost()) else {
                self.forget(entry.id());
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
                self.forget(entry.id());
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

    /// Takes what other daemons have lost, and what nobody has.
    async fn take_over(&self) -> Vec<Left> {
        if self.tenure.is_broken() {
            return Vec::new();
        }
        let (store, sent) = (&self.tenure.store, BootTime::now());
        let taken = async {
            let taken = store.take_over(store.daemon(), self.tenure.lease(), TAKEN_AT_ONCE);
            self.left(taken.await?, sent, "owner_lost").await
        };
        taken.await.unwrap_or_else(|error| {
            self.tenure.fails(&error);
            Vec::new()
        })
    }

    /// At the end: what has not been written yet is, where that can be.
    pub(super) async fn flush(&self) {
        if timeout(FLUSHING, self.write_once()).await.is_err() {
            tracing::warn!("not everything could be written to the store before the daemon ended");
        }
    }

    async fn sweep(&self, stop: CancellationToken) {
        while timeout(SWEEPING, stop.cancelled()).await.is_err() {
            let store = &self.tenure.store;
            let swept = async {
                store.sweep_sessions(self.keep).await?;
                store.sweep_entries(self.keep).await?;
                store.sweep_nonces().await
            };
            if let Err(error) = swept.await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what is too old could not be removed from the store"
                );
            }
        }
    }

    fn forget(&self, id: Uuid) {
        self.held().remove(&id);
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
