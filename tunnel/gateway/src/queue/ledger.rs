//! The bytes that bodies may hold in this process, counted before they are held.
//!
//! Here: the count, its ceiling, and shares of it that return by themselves. Not here: who takes how much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The count of one process.
#[derive(Debug)]
pub(super) struct Ledger {
    held: AtomicU64,
    ceiling: u64,
}

/// The ceiling is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Ledger {
    pub(super) fn with_ceiling(ceiling: u64) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicU64::new(0),
            ceiling,
        })
    }

    /// A share that holds nothing yet.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share {
            ledger: Arc::clone(self),
            held: 0,
        }
    }
}

/// What one request holds; returned when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    ledger: Arc<Ledger>,
    held: u64,
}

impl Share {
    /// Takes `bytes` more.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let more = |held: u64| {
            held.checked_add(bytes)
                .filter(|held| *held <= self.ledger.ceiling)
        };
        self.ledger
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| NoRoom)?;
        self.held = self.held.saturating_add(bytes);
        Ok(())
    }

    /// Returns all of it.
    pub(super) fn release(&mut self) {
        self.ledger.held.fetch_sub(self.held, Ordering::Relaxed);
        self.held = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_returns_what_it_took_and_nothing_passes_the_ceiling() {
        let ledger = Ledger::with_ceiling(10);
        let (mut first, mut second) = (ledger.share(), ledger.share());

        assert_eq!(
            (first.take(6), second.take(5), second.take(4)),
            (Ok(()), Err(NoRoom), Ok(()))
        );
        assert_eq!(first.take(u64::MAX), Err(NoRoom));
        first.release();
        assert_eq!((second.take(6), first.take(1)), (Ok(()), Err(NoRoom)));
        drop(second);
        assert_eq!(first.take(10), Ok(()));
    }
}
