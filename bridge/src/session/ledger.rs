//! The ledger: what became of each unsafe callback that was dispatched.
//!
//! Here: an in-memory table of one session, asked through `/_bridge/outcome/ID`. Not here: who writes to it
//! (`callback/forward.rs`), what outlives the process (`hold.rs`, `store/`). It is bounded; entries whose outcome is still open are never dropped to make room.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use http::Method;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::store::{EntryOutcome, EntryRow};

/// Entries kept per session.
pub const CAPACITY: usize = 10_000;
/// Entries that `/_bridge/outcomes` tells, the newest first.
pub const TOLD: usize = 50;

/// What became of a dispatched callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
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
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Its word in labels and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Answered { .. } => "answered",
            Self::NotSent => "not_sent",
            Self::Indeterminate { .. } => "indeterminate",
        }
    }
}

/// One line of the ledger, as an agent reads it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The callback.
    pub request_id: Uuid,
    /// Its method.
    #[serde(serialize_with = "method_text")]
    pub method: Method,
    /// The template of its route.
    pub route: Box<str>,
    /// Its canonical path, without the query.
    pub path: String,
    /// The caller's own `Idempotency-Key`, if it sent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<Box<str>>,
    /// When it was about to be dispatched; RFC 3339 in UTC.
    pub dispatched_at: Timestamp,
    /// When its outcome was known; absent while that is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Whether the upstream's answer reached the caller whole; absent while that is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<bool>,
}

fn method_text<S: serde::Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(method.as_str())
}

impl From<EntryRow> for Entry {
    fn from(row: EntryRow) -> Self {
        let time = |at| Timestamp::try_from(at).unwrap_or_default();
        Self {
            request_id: row.request_id,
            // What stands there was a method when it was written.
            method: Method::from_bytes(row.method.as_bytes()).unwrap_or_default(),
            route: row.route.into(),
            path: row.path,
            idempotency_key: row.idempotency_key.map(Into::into),
            dispatched_at: time(row.dispatched_at),
            settled_at: row.settled_at.map(time),
            outcome: match row.outcome {
                EntryOutcome::InFlight => Outcome::InFlight,
                EntryOutcome::Answered { status } => Outcome::Answered { status },
                EntryOutcome::NotSent => Outcome::NotSent,
                EntryOutcome::Indeterminate { reason } => Outcome::Indeterminate {
                    reason: reason.into(),
                },
            },
            delivered: row.delivered,
        }
    }
}

/// Dispatched unsafe callbacks of one session.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Uuid, Entry>,
    by_key: HashMap<Box<str>, Uuid>,
    order: VecDeque<Uuid>,
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down that a callback is about to be dispatched. `false`: no room, so it must not be.
    #[must_use]
    pub fn open(
        &self,
        request_id: Uuid,
        method: Method,
        route: &str,
        path: &str,
        idempotency_key: Option<&str>,
    ) -> bool {
        self.with(|table| {
            if table.order.len() >= CAPACITY && !table.make_room() {
                return false;
            }
            let key: Option<Box<str>> = idempotency_key.map(Into::into);
            if let Some(key) = &key {
                table.by_key.insert(key.clone(), request_id);
            }
            let entry = Entry {
                request_id,
                method,
                route: route.into(),
                path: path.to_owned(),
                idempotency_key: key,
                dispatched_at: Timestamp::now(),
                settled_at: None,
                outcome: Outcome::InFlight,
                delivered: None,
            };
            table.entries.insert(request_id, entry);
            table.order.push_back(request_id);
            true
        })
    }

    /// Writes down what became of it.
    pub fn settle(&self, request_id: Uuid, outcome: Outcome) {
        self.with(|table| {
            if let Some(entry) = table.entries.get_mut(&request_id) {
                entry.outcome = outcome;
                entry.settled_at = Some(Timestamp::now());
            }
        });
    }

    /// Writes down whether the answer reached the caller.
    pub fn delivered(&self, request_id: Uuid, whole: bool) {
        self.with(|table| {
            if let Some(entry) = table.entries.get_mut(&request_id) {
                entry.delivered = Some(whole);
            }
        });
    }

    /// Looks a callback up by its request id, or by `key:` and the caller's own Idempotency-Key.
    #[must_use]
    pub fn look_up(&self, id: &str) -> Option<Entry> {
        self.with(|table| {
            let id = match id.strip_prefix("key:") {
                Some(key) => *table.by_key.get(key)?,
                None => Uuid::parse_str(id).ok()?,
            };
            table.entries.get(&id).cloned()
        })
    }

    /// The newest entries, the newest first, [`TOLD`] at most.
    #[must_use]
    pub fn newest(&self) -> Vec<Entry> {
        self.with(|table| {
            let newest = table.order.iter().rev().take(TOLD);
            newest.filter_map(|id| table.entries.get(id).cloned()).collect()
        })
    }

    /// Callbacks whose outcome is still open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.with(|table| {
            table
                .entries
                .values()
                .filter(|entry| entry.outcome == Outcome::InFlight)
                .count()
        })
    }
}

impl Table {
    /// Drops the oldest entry that is settled.
    fn make_room(&mut self) -> bool {
        let settled = |id: &Uuid| {
            self.entries
                .get(id)
                .is_none_or(|entry| entry.outcome != Outcome::InFlight)
        };
        let Some(at) = self.order.iter().position(settled) else {
            return false;
        };
        if let Some(id) = self.order.remove(at)
            && let Some(Entry {
                idempotency_key: Some(key),
                ..
            }) = self.entries.remove(&id)
            && self.by_key.get(&key) == Some(&id)
        {
            self.by_key.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(ledger: &Ledger, key: Option<&str>) -> Uuid {
        let id = Uuid::now_v7();
        assert!(ledger.open(id, Method::POST, "/api/x", "/api/x", key));
        id
    }

    #[test]
    fn a_caller_that_lost_its_answer_finds_it_by_its_own_key() {
        let ledger = Ledger::default();
        let id = opened(&ledger, Some("k1"));

        ledger.settle(id, Outcome::Answered { status: 201 });

        let found = ledger.look_up("key:k1").unwrap();
        assert_eq!(
            (found.request_id, found.outcome),
            (id, Outcome::Answered { status: 201 })
        );
        assert!(ledger.look_up("key:k2").is_none() && ledger.look_up("nonsense").is_none());
    }

    #[test]
    fn a_full_ledger_forgets_what_is_settled_and_never_what_is_open() {
        let ledger = Ledger::default();
        let open = opened(&ledger, None);
        let settled = opened(&ledger, Some("old"));
        ledger.settle(settled, Outcome::NotSent);
        for _ in 2..CAPACITY {
            opened(&ledger, None);
        }

        let newest = opened(&ledger, None);

        assert!(ledger.look_up(&open.to_string()).is_some());
        assert!(ledger.look_up(&newest.to_string()).is_some());
        assert!(ledger.look_up(&settled.to_string()).is_none() && ledger.look_up("key:old").is_none());
        assert!(
            !ledger.open(Uuid::now_v7(), Method::POST, "/api/x", "/api/x", None),
            "all open: no room"
        );
    }

    #[test]
    fn the_newest_are_told_first_and_no_more_than_fifty() {
        let ledger = Ledger::default();
        let ids: Vec<Uuid> = (0..TOLD + 5).map(|_| opened(&ledger, Some("k"))).collect();

        let told: Vec<Uuid> = ledger.newest().iter().map(|entry| entry.request_id).collect();

        assert_eq!(told, ids.into_iter().rev().take(TOLD).collect::<Vec<_>>());
    }

    #[test]
    fn an_entry_tells_when_it_was_sent_and_when_that_was_settled() {
        let ledger = Ledger::default();
        let before = Timestamp::now();
        let id = opened(&ledger, None);
        assert_eq!(ledger.newest().first().unwrap().settled_at, None);

        ledger.settle(id, Outcome::Answered { status: 200 });

        let entry = ledger.look_up(&id.to_string()).unwrap();
        assert!(before <= entry.dispatched_at && entry.settled_at >= Some(entry.dispatched_at));
    }

    #[test]
    fn an_entry_reads_as_flat_json() {
        let ledger = Ledger::default();
        let id = opened(&ledger, None);
        ledger.settle(
            id,
            Outcome::Indeterminate {
                reason: "answer_lost".into(),
            },
        );

        let json = serde_json::to_value(ledger.look_up(&id.to_string()).unwrap()).unwrap();

        assert_eq!(json.get("outcome").unwrap(), "indeterminate");
        assert_eq!(json.get("reason").unwrap(), "answer_lost");
    }
}
