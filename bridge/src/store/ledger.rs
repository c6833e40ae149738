//! What is kept of each unsafe callback that was dispatched.
//!
//! Here: [`NewEntry`], written before the dispatch, and [`EntryRow`], as it is read afterwards. Not here: when either
//! happens (`callback/forward.rs`). Read next: `records.rs`.

use std::time::SystemTime;

use uuid::Uuid;

use super::session::Fence;
use crate::session::ledger::Outcome;

/// An unsafe callback that is about to be dispatched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The callback.
    pub request_id: Uuid,
    /// The caller's Idempotency-Key, or the one that was minted.
    pub idempotency_key: Option<String>,
    /// Its method.
    pub method: String,
    /// The template of its route.
    pub route: String,
    /// Its canonical path, without the query.
    pub path: String,
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The callback.
    pub request_id: Uuid,
    /// Its session.
    pub session: Uuid,
    /// The caller's Idempotency-Key, or the one that was minted.
    pub idempotency_key: Option<String>,
    /// Its method.
    pub method: String,
    /// The template of its route.
    pub route: String,
    /// Its canonical path, without the query.
    pub path: String,
    /// When it was entered, by the database's clock.
    pub dispatched_at: SystemTime,
    /// The fence of the owner that dispatched it.
    pub fence: Fence,
    /// What became of it.
    pub outcome: EntryOutcome,
    /// Whether the upstream's answer reached the caller whole; absent while that is open.
    pub delivered: Option<bool>,
    /// When its outcome was written, by the database's clock.
    pub settled_at: Option<SystemTime>,
}

/// What became of a dispatched callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryOutcome {
    /// Dispatched; no answer yet.
    InFlight,
    /// The upstream answered with this status.
    Answered {
        /// The upstream's status code.
        status: u16,
    },
    /// The connection failed before anything was sent.
    NotSent,
    /// It was sent, and what became of it is not known.
    Indeterminate {
        /// A stable reason.
        reason: String,
    },
}

impl From<Outcome> for EntryOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::InFlight => Self::InFlight,
            Outcome::Answered { status } => Self::Answered { status },
            Outcome::NotSent => Self::NotSent,
            Outcome::Indeterminate { reason } => Self::Indeterminate {
                reason: reason.into_owned(),
            },
        }
    }
}

impl EntryOutcome {
    /// As it is written and shown.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Answered { .. } => "answered",
            Self::NotSent => "not_sent",
            Self::Indeterminate { .. } => "indeterminate",
        }
    }

    /// The upstream's status code, if it answered.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Answered { status } => Some(*status),
            Self::InFlight | Self::NotSent | Self::Indeterminate { .. } => None,
        }
    }

    /// Why it is not known, if it is not.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Indeterminate { reason } => Some(reason),
            Self::InFlight | Self::NotSent | Self::Answered { .. } => None,
        }
    }

    /// The outcome that is written with these three; `None` where they make none.
    pub(super) fn from_columns(name: &str, status: Option<u16>, reason: Option<String>) -> Option<Self> {
        Some(match name {
            "in_flight" => Self::InFlight,
            "answered" => Self::Answered { status: status? },
            "not_sent" => Self::NotSent,
            "indeterminate" => Self::Indeterminate { reason: reason? },
            _ => return None,
        })
    }
}
