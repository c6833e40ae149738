//! What is written down of one lease.
//!
//! Here: the record, its stages, and when what is owed is tried again. The configuration stands in it as the operator
//! gave it, with references in place of secrets. Not here: the files (`book.rs`).

use std::time::{Duration, SystemTime};

use runners::provider::{Lease, LeaseScope};
use serde::{Deserialize, Serialize};

use crate::app::ProviderConfig;

/// A record of another version is not understood.
pub(super) const VERSION: u32 = 1;
/// The first wait before what is owed is tried again.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Of a provider's words, so much is kept.
const ERROR_CHARACTERS: usize = 400;

/// One lease as it was written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseRecord {
    pub(super) version: u32,
    /// The provider's key.
    pub(crate) provider: String,
    /// What tells its ids from the same ids elsewhere.
    pub(crate) account: String,
    /// As the operator gave it.
    pub(crate) config: ProviderConfig,
    /// The run and the issue that it is for, and no other.
    pub(crate) scope: LeaseScope,
    pub(crate) stage: Stage,
    /// The sandbox was made for this record. One that an operator named is borrowed: nothing of ours ever ends it.
    pub(crate) made: bool,
    /// When the record was begun.
    pub(crate) since: SystemTime,
    /// What the provider gave; absent while that is not known.
    pub(crate) lease: Option<Lease>,
    /// What became of the attempts to give it back.
    pub(crate) debt: Debt,
}

/// How far a lease has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The provider is asked for it; it may or may not have made one.
    Acquiring,
    /// It is ours. Nobody has tried to give it back.
    Held,
    /// It is to be given back, and the provider has not confirmed that.
    Owed,
}

impl Stage {
    /// As it is written and shown.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Acquiring => "acquiring",
            Self::Held => "held",
            Self::Owed => "owed",
        }
    }
}

/// What became of the attempts to give a lease back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Debt {
    /// Attempts that the provider did not confirm.
    pub(crate) attempts: u32,
    /// Not tried before; `None` is at once.
    pub(crate) next: Option<SystemTime>,
    /// Why the last one was not confirmed.
    pub(crate) last_error: Option<String>,
}

impl Debt {
    /// One more attempt was not confirmed; the next one follows after a wait that doubles from 5 s to 10 min.
    ///
    /// - `random`: any value; it spreads the waits of several processes between half and the whole.
    pub(crate) fn failed(&mut self, why: &str, now: SystemTime, random: u32) {
        let doubled = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.attempts.min(16)));
        let wait = doubled.min(LONGEST_WAIT);
        let share = wait.saturating_mul(random >> 16) / (1 << 16);
        self.attempts = self.attempts.saturating_add(1);
        self.next = now.checked_add(wait / 2 + share / 2);
        self.last_error = Some(why.chars().take(ERROR_CHARACTERS).collect());
    }

    /// Whether its time has come.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back must not put an attempt off for longer than any wait is.
        self.next.is_none_or(|next| {
            next.duration_since(now)
                .map_or(true, |left| left.is_zero() || left > LONGEST_WAIT)
        })
    }
}

impl LeaseRecord {
    pub(crate) fn new(
        provider: &str,
        account: String,
        config: ProviderConfig,
        scope: LeaseScope,
        now: SystemTime,
    ) -> Self {
        Self {
            version: VERSION,
            provider: provider.to_owned(),
            account,
            config,
            scope,
            stage: Stage::Acquiring,
            made: true,
            since: now,
            lease: None,
            debt: Debt::default(),
        }
    }

    /// The provider's own name of it, where that is known.
    pub(crate) fn id(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| lease.id.as_str())
    }

    /// The provider has ended it by itself.
    pub(crate) fn expired(&self, now: SystemTime) -> bool {
        self.lease
            .as_ref()
            .and_then(|lease| lease.expires_at)
            .is_some_and(|end| end <= now)
    }

    /// The provider was told that it is in use, so that it lives as long again as at the beginning.
    pub(crate) fn kept_alive(&mut self, now: SystemTime) {
        let since = self.since;
        if let Some(end) = self.lease.as_mut().and_then(|lease| lease.expires_at.as_mut()) {
            // What a clock that jumps makes of it can only be later, and so only costs a needless attempt.
            let lifetime = end.duration_since(since).unwrap_or_default();
            self.since = now;
            *end = now.checked_add(lifetime).map_or(*end, |later| later.max(*end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn the_waits_double_from_five_seconds_to_ten_minutes() {
        let mut debt = Debt::default();
        let waits: Vec<u128> = (0..9)
            .map(|_| {
                debt.failed("no", NOW, u32::MAX);
                debt.next.unwrap().duration_since(NOW).unwrap().as_millis()
            })
            .map(|ms| ms.div_ceil(1000))
            .collect();

        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        let mut early = Debt::default();
        early.failed("no", NOW, 0);
        assert_eq!(early.next, Some(NOW + Duration::from_millis(2500)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_put_an_attempt_off_for_ever() {
        let mut debt = Debt::default();
        debt.failed("no", NOW + Duration::from_secs(1_000_000), 0);

        assert!(debt.is_due(NOW));
        assert!(!debt.is_due(NOW + Duration::from_secs(1_000_000)));
        assert!(debt.is_due(NOW + Duration::from_secs(1_000_003)));
    }

    #[test]
    fn a_lease_that_was_kept_alive_lives_as_long_again() {
        let mut record = LeaseRecord::new(
            "p",
            String::new(),
            ProviderConfig::default(),
            LeaseScope::default(),
            NOW,
        );
        record.lease = Some(Lease {
            id: "a".into(),
            metadata: serde_json::Map::new(),
            remote_cwd: None,
            expires_at: Some(NOW + Duration::from_secs(60)),
            resumed: false,
        });

        record.kept_alive(NOW + Duration::from_secs(50));
        record.kept_alive(NOW + Duration::from_secs(100));

        assert!(!record.expired(NOW + Duration::from_secs(159)));
        assert!(record.expired(NOW + Duration::from_secs(160)));
    }
}
