//! The claims on sessions, renewed for as long as the daemon lives.
//!
//! Here: one call of the store for all of them, what follows where it says no, or nothing, and the ear for sessions that
//! are to end by the word of another daemon. Not here: what is checked before each callback (`session/hold/`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Holding;
use crate::daemon::entry::Entry;
use crate::daemon::state::Ending;
use crate::session::hold::{BootTime, Hold, LEASE};
use crate::store::{Heard, StoreError};

/// Claims on a store that several daemons have are renewed so often.
const RENEWING: Duration = Duration::from_secs(3);
/// The same where nobody else can take them.
const RENEWING_ALONE: Duration = Duration::from_hours(1);
/// A store that does not work is tried again so often.
const RETRYING: Duration = Duration::from_secs(1);
/// A renewal gets at least so long, also where the deadline of a hold is over already.
const LEAST: Duration = Duration::from_secs(1);

impl Holding {
    /// Renews every claim until `stop`; one that is gone ends its session here.
    pub(super) async fn renew(&self, stop: CancellationToken) {
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

    pub(super) async fn renew_once(&self) {
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
                        self.loses(hold, "taken");
                    }
                }
                self.end_revoked().await;
                if let Err(error) = self.announce().await {
                    // Nothing depends on it, and the next renewal says it again.
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "where this daemon is found was not told"
                    );
                }
            }
            Ok(Err(error)) => self.tenure.fails(&error),
            Err(_) => self.tenure.fails(&StoreError::Deadline { call: "renew", limit }),
        }
        // Nobody could say that they are ours.
        for hold in holds.iter().filter(|hold| hold.until().left().is_zero()) {
            self.loses(hold, "late");
        }
    }

    /// Hears of sessions that are to end by the word of another daemon, until `stop`. Where nothing is heard, the next
    /// renewal finds them.
    pub(super) async fn listen(&self, stop: CancellationToken) {
        let Some(mut heard) = self.tenure.store.listen() else {
            return;
        };
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return,
                first = heard.next() => first,
            };
            let Some(first) = first else { return };
            let mut ours = self.concerns(first);
            // What was said at the same moment is looked for once.
            while let Some(Some(more)) = heard.next().now_or_never() {
                ours |= self.concerns(more);
            }
            if ours {
                self.end_revoked().await;
            }
        }
    }

    fn concerns(&self, heard: Heard) -> bool {
        match heard {
            Heard::Anew => true,
            Heard::Revoked(session) => self.held().contains_key(&session),
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
    fn loses(&self, hold: &Hold, reason: &'static str) {
        let session = hold.claim().session;
        let entry = {
            let mut held = self.held();
            // It may be ours again meanwhile, by another hold.
            let by_this = |entry: &Arc<Entry>| entry.hold().is_some_and(|now| now.claim() == hold.claim());
            let ours = held.get(&session).is_some_and(by_this);
            if ours { held.remove(&session) } else { None }
        };
        // One that has ended is nobody's, and no loss.
        if entry
            .as_ref()
            .is_some_and(|entry| entry.standing().is_over_for_good())
        {
            hold.lose();
            return;
        }
        if hold.lose() {
            self.metrics.hold_lost(reason);
            tracing::warn!(%session, fence = %hold.claim().fence, "the hold on a session is lost; its tunnels are closed here");
        }
        if let Some(entry) = entry {
            entry.end(Ending::TakenOver);
        }
    }
}
