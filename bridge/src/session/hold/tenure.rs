//! What all holds of one daemon share: the store, whether it answers, and what it has still to be told.
//!
//! Here: [`Tenure`]. A store that failed once is asked for nothing that an agent waits for until it is seen to work. Not here:
//! who looks whether it works (`daemon/holding/`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;

use super::{BootTime, Hold};
use crate::store::{Claim, EntryOutcome, Store, StoreError};

/// What an owner's lease lasts for, by the store's clock.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// An owner serves nothing so long after the renewal was sent; less than the lease by what clocks and answers need.
const DEADLINE: Duration = Duration::from_secs(8);
/// The lease in a store that one daemon has for itself: the folder's lock says who owns it, and no clock.
const LEASE_ALONE: Duration = Duration::from_hours(24);
/// Outcomes that wait until the store can be written again.
pub(super) const WAITING: usize = 10_000;

/// An outcome that is known and not yet written.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) claim: Claim,
    pub(super) request_id: Uuid,
    pub(super) outcome: EntryOutcome,
}

/// What all holds of one daemon share.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) store: Arc<dyn Store>,
    /// Several daemons have the store, so that a clock decides who owns what.
    shared: bool,
    /// The store did not do what it was asked; unsafe callbacks are refused at once until it is seen to work.
    broken: AtomicBool,
    why: Mutex<Option<String>>,
    unsettled: Mutex<VecDeque<Unsettled>>,
    /// Rung where somebody has reason to think that a hold is gone, or the store.
    pub(crate) look: Notify,
    /// Rung where a row has changed, or an outcome waits.
    pub(crate) changed: Notify,
}

impl Tenure {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            shared: store.is_shared(),
            store,
            broken: AtomicBool::new(false),
            why: Mutex::default(),
            unsettled: Mutex::default(),
            look: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// Whether other daemons have the store as well.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// What a claim is asked for and renewed for.
    pub(crate) fn lease(&self) -> Duration {
        if self.shared { LEASE } else { LEASE_ALONE }
    }

    /// When nothing is served any more under a claim that was asked for then.
    pub(super) fn deadline(&self, sent: BootTime) -> BootTime {
        if self.shared {
            sent.after(DEADLINE)
        } else {
            BootTime::NEVER
        }
    }

    /// A claim that was asked for at `sent` was given.
    pub(crate) fn hold(self: &Arc<Self>, claim: Claim, sent: BootTime) -> Arc<Hold> {
        Arc::new(Hold {
            claim,
            until: AtomicU64::new(self.deadline(sent).0),
            lost: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            tenure: Arc::clone(self),
        })
    }

    /// The store did not do what it was asked; told once.
    pub(crate) fn fails(&self, error: &StoreError) {
        let why = crate::placing::with_causes(error);
        if !self.broken.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = why,
                "the store cannot be used; unsafe callbacks are refused until it can"
            );
            self.look.notify_one();
        }
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// The store works.
    pub(crate) fn works(&self) {
        if self.broken.swap(false, Ordering::Relaxed) {
            tracing::info!("the store can be used again");
            *self.why.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.changed.notify_one();
        }
    }

    /// Whether it is known not to work.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Why it does not work, as long as it does not.
    pub(crate) fn fault(&self) -> Option<String> {
        if !self.is_broken() {
            return None;
        }
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn waits(&self, unsettled: Unsettled) {
        let mut all = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= WAITING {
            tracing::warn!(
                request_id = %unsettled.request_id,
                "too many outcomes wait for the store; this one will be told as indeterminate"
            );
            return;
        }
        all.push_back(unsettled);
        drop(all);
        self.changed.notify_one();
    }

    /// How many outcomes wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Writes what could not be written when it became known, until something fails again.
    pub(crate) async fn settle_waiting(&self) {
        loop {
            let next = {
                let mut all = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
                all.pop_front()
            };
            let Some(next) = next else { return };
            let settled = self.store.settle(&next.claim, next.request_id, &next.outcome);
            if let Err(error) = settled.await {
                self.fails(&error);
                let mut all = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
                all.push_front(next);
                return;
            }
        }
    }
}
