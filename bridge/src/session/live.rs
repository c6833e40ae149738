//! What of a session may change under it: its rules, and what the sessions of one process have in common.
//!
//! Here: [`LiveRules`] and [`InForce`], read anew for each callback and swapped whole by a reload. Not here: who swaps them
//! (`daemon/reloading.rs`), rates, which change in their own table (`rates.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use policy::{Mode, Rules};

use super::budget::{Budget, Reservation};
use super::{CONCURRENCY, Minting, SESSION_BODY_BYTES};

/// Callbacks of the whole process at the same time, unless somebody says otherwise.
pub const PROCESS_CONCURRENCY: u32 = 4096;

/// The compiled policy of one or more sessions, as it is at the moment; clones are the same.
#[derive(Clone, Debug)]
pub struct LiveRules(Arc<ArcSwap<Ruled>>);

/// A compiled policy, and what becomes of what it denies.
#[derive(Clone, Debug)]
pub struct Ruled {
    /// What is allowed.
    pub rules: Rules,
    /// Whether denials are only reported.
    pub mode: Mode,
}

impl LiveRules {
    /// Rules that somebody may change later.
    #[must_use]
    pub fn new(ruled: Ruled) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(ruled)))
    }

    /// What holds now. Hold it for one decision only.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Ruled>> {
        self.0.load()
    }

    /// From the next decision on something else holds, in every session that shares this.
    pub fn swap(&self, ruled: Ruled) {
        self.0.store(Arc::new(ruled));
    }

    /// Whether sessions share it beside whoever asks.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Enforced, for as long as the session lives.
impl From<Rules> for LiveRules {
    fn from(rules: Rules) -> Self {
        let mode = Mode::Enforce;
        Self::new(Ruled { rules, mode })
    }
}

/// Enforced, for as long as the session lives.
impl From<Arc<Rules>> for LiveRules {
    fn from(rules: Arc<Rules>) -> Self {
        Self::from(Rules::clone(&rules))
    }
}

/// What holds for every session of a process at the moment.
#[derive(Debug)]
pub struct InForce {
    minting: ArcSwapOption<Minting>,
    /// Callbacks under way in all sessions, each one byte of it.
    callbacks: Arc<Budget>,
    session_callbacks: AtomicU32,
    session_body_bytes: AtomicU64,
}

impl Default for InForce {
    fn default() -> Self {
        Self {
            minting: ArcSwapOption::empty(),
            callbacks: Budget::new(PROCESS_CONCURRENCY.into()),
            session_callbacks: AtomicU32::new(u32::try_from(CONCURRENCY).unwrap_or(u32::MAX)),
            session_body_bytes: AtomicU64::new(SESSION_BODY_BYTES),
        }
    }
}

impl InForce {
    /// Which unsafe callbacks get an `Idempotency-Key` of ours from now on; `None`: none does.
    pub fn mints(&self, minting: Option<Minting>) {
        self.minting.store(minting.map(Arc::new));
    }

    /// Which do now.
    pub(crate) fn minting(&self) -> Guard<Option<Arc<Minting>>> {
        self.minting.load()
    }

    /// Places for callbacks: of the process from now on, of a session for those that are opened from now on.
    pub fn places(&self, process: u32, session: u32) {
        self.callbacks.resize(process.into());
        self.session_callbacks.store(session, Ordering::Relaxed);
    }

    /// A place of the process's for one callback; `None`: all are taken.
    pub(crate) fn place(&self) -> Option<Reservation> {
        Reservation::take(&self.callbacks, 1)
    }

    /// Bytes of bodies that a session which is opened from now on may hold.
    pub fn session_bytes(&self, bytes: u64) {
        self.session_body_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Places and bytes of a session that is opened now.
    pub(super) fn of_a_session(&self) -> (u32, u64) {
        (
            self.session_callbacks.load(Ordering::Relaxed),
            self.session_body_bytes.load(Ordering::Relaxed),
        )
    }
}
