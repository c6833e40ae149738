//! Bytes of bodies held in memory, counted before they are read.
//!
//! Here: a counter with a bound, and a parent that is asked as well. Not here: what is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bound on bytes held at the same time.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    held: AtomicU64,
    parent: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of its own.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicU64::new(limit_bytes),
            held: AtomicU64::new(0),
            parent: None,
        })
    }

    /// A budget whose every byte also counts against `parent`.
    #[must_use]
    pub fn within(parent: Arc<Self>, limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicU64::new(limit_bytes),
            held: AtomicU64::new(0),
            parent: Some(parent),
        })
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// How much it is in all.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// From now on it is so much; what is held beyond that is given back in its time.
    pub fn resize(&self, limit_bytes: u64) {
        self.limit.store(limit_bytes, Ordering::Relaxed);
    }

    fn try_take(&self, bytes: u64) -> bool {
        let limit = self.limit();
        let taken = self
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok();
        if !taken {
            return false;
        }
        if self.parent.as_ref().is_none_or(|parent| parent.try_take(bytes)) {
            return true;
        }
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        false
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(parent) = &self.parent {
            parent.give_back(bytes);
        }
    }
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    /// Takes `bytes`, or nothing at all.
    #[must_use]
    pub fn take(budget: &Arc<Budget>, bytes: u64) -> Option<Self> {
        budget.try_take(bytes).then(|| Self {
            budget: Arc::clone(budget),
            bytes,
        })
    }

    /// Takes `more` on top; `false` leaves what was taken as it is.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let taken = self.budget.try_take(more);
        if taken {
            self.bytes += more;
        }
        taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_cannot_take_more_than_its_own_share() {
        let session = Budget::within(Budget::new(100), 60);
        let first = Reservation::take(&session, 60);

        assert!(first.is_some());
        assert!(Reservation::take(&session, 1).is_none());
        drop(first);
        assert!(Reservation::take(&session, 60).is_some());
    }

    #[test]
    fn sessions_together_cannot_take_more_than_the_process_has() {
        let process = Budget::new(100);
        let one = Budget::within(Arc::clone(&process), 60);
        let other = Budget::within(Arc::clone(&process), 60);
        let held = Reservation::take(&one, 60);

        assert!(held.is_some() && Reservation::take(&other, 41).is_none());
        assert_eq!((one.held(), other.held(), process.held()), (60, 0, 60));
    }

    #[test]
    fn growing_counts_and_is_given_back() {
        let budget = Budget::new(10);
        let mut held = Reservation::take(&budget, 0).unwrap();

        assert!(held.grow(10));
        assert!(!held.grow(1));
        drop(held);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_smaller_budget_takes_nothing_until_enough_is_given_back() {
        let budget = Budget::new(10);
        let held = Reservation::take(&budget, 8);
        budget.resize(4);

        assert!(held.is_some() && Reservation::take(&budget, 1).is_none());
        drop(held);
        assert!(Reservation::take(&budget, 4).is_some() && Reservation::take(&budget, 5).is_none());
    }

    #[test]
    fn an_absurd_length_is_refused_and_not_wrapped() {
        let budget = Budget::new(10);
        let _held = Reservation::take(&budget, 5).unwrap();

        assert!(Reservation::take(&budget, u64::MAX).is_none());
    }
}
