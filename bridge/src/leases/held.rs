//! A lease as its session sees it.
//!
//! Here: [`HeldLease`], whose drop asks for the lease's end, and [`Loss`]. Not here: the task that owns the lease
//! (`keeper.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runners::provider::{Lease, RelayRoute};
use runners::{CommandManagedRuntimeRunner, Shell};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

/// What a session's end waits for at most: the patience, and the call that was begun within it.
const GIVING_BACK: Duration = Duration::from_secs(25);
/// A call to the provider that is under way may take so long to be given up.
const LEAVING: Duration = Duration::from_secs(5);

/// A lease that a session uses. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct HeldLease {
    /// What the provider said of it.
    pub(crate) lease: Lease,
    /// The shell that its metadata ask for.
    pub(crate) shell: Shell,
    /// Runs commands in its sandbox.
    pub(crate) runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// The way that a Worker's relay offers, if it has one.
    pub(crate) relay: Option<RelayRoute>,
    /// Where a session on it is written down.
    pub(crate) session_folder: PathBuf,
    /// What its runner has met, before anybody else knows.
    pub(super) heard: watch::Receiver<Option<String>>,
    pub(super) fate: watch::Receiver<Fate>,
    pub(super) give_back: DropGuard,
    /// Where it is set when its end is asked for, it stays in the book, to be gone on with.
    pub(super) left: Arc<AtomicBool>,
}

/// What has become of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Held,
    Lost(String),
    Ended(Result<(), String>),
}

/// Waits for the end of a lease that may outlive its session.
#[derive(Clone, Debug)]
pub(crate) struct Loss(watch::Receiver<Fate>);

impl Loss {
    /// Returns when the lease is lost, with the provider's words; never where it ends in order. Cancel safe.
    pub(crate) async fn wait(mut self) -> String {
        loop {
            if let Fate::Lost(why) = &*self.0.borrow_and_update() {
                return why.clone();
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl HeldLease {
    /// Told when the lease is lost.
    pub(crate) fn loss(&self) -> Loss {
        Loss(self.fate.clone())
    }

    /// Holds the reason once one of its commands has met the loss of the lease.
    pub(crate) fn loss_heard(&self) -> watch::Receiver<Option<String>> {
        self.heard.clone()
    }

    /// Whether it is known to be lost.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(&*self.fate.borrow(), Fate::Lost(_)) || self.heard.borrow().is_some()
    }

    /// What stands on it is open: from now on the end of that is its own.
    pub(crate) fn is_used(&self) {
        self.left.store(false, Ordering::Release);
    }

    /// Leaves it in the book as it is, for a successor of this process that goes on with it.
    pub(crate) async fn leave(self) {
        let Self {
            mut fate,
            give_back,
            left,
            ..
        } = self;
        left.store(true, Ordering::Release);
        drop(give_back);
        let ended = fate.wait_for(|fate| matches!(fate, Fate::Ended(_)));
        if tokio::time::timeout(LEAVING, ended).await.is_err() {
            tracing::warn!("a lease was still in use when it was left to a successor");
        }
    }

    /// Gives it back, and waits until the provider has confirmed that or it stands in the book as owed.
    ///
    /// # Errors
    ///
    /// One line saying what is owed.
    pub(crate) async fn give_back(self) -> Result<(), String> {
        let Self {
            mut fate, give_back, ..
        } = self;
        drop(give_back);
        let ended = fate.wait_for(|fate| matches!(fate, Fate::Ended(_)));
        match tokio::time::timeout(GIVING_BACK, ended).await {
            Ok(Ok(fate)) => match &*fate {
                Fate::Ended(outcome) => outcome.clone(),
                Fate::Held | Fate::Lost(_) => Ok(()),
            },
            Ok(Err(_)) => {
                Err("giving the lease back failed; it is owed and stands in `leases ls`".to_owned())
            }
            Err(_) => Err(
                "the provider has not answered to the lease's release; it is owed and stands in `leases ls`"
                    .to_owned(),
            ),
        }
    }
}
