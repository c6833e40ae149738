//! What else is kept: daemons, leases, owed clean-ups, heads of the audit.
//!
//! Here: the rows. What they say in `record` belongs to whoever writes them. The book of leases is a folder today
//! (`leases/book.rs`); these rows are for several daemons that share one. Read next: `error.rs`.

use std::time::SystemTime;

use uuid::Uuid;

/// Where a daemon is to be found, as it says itself. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonPlace {
    /// Where its control API is reached, as `--control` takes it.
    pub address: String,
    /// The name of its machine: a socket, and a loopback address, are found only there.
    pub host: String,
    /// Of the program.
    pub version: String,
    /// When its process began.
    pub started_at: SystemTime,
}

/// A daemon that has, or had, this store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonRow {
    /// Its name: that of its state folder.
    pub id: Uuid,
    /// `None` where it never said so.
    pub place: Option<DaemonPlace>,
    /// When it was last heard of, by the database's clock.
    pub seen_at: SystemTime,
}

/// A lease that is held or owed at a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseRow {
    /// Our name of it; one row for each.
    pub name: String,
    /// The provider's key.
    pub provider: String,
    /// What tells its ids from the same ids elsewhere.
    pub account: String,
    /// `acquiring`, `held` or `owed`.
    pub stage: String,
    /// The session that it serves.
    pub session: Option<Uuid>,
    /// The whole record, without a secret.
    pub record: serde_json::Value,
    /// When it was begun.
    pub since: SystemTime,
}

/// Something left on a target that is still to be cleared away.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanupRow {
    /// Our name of it; one row for each.
    pub name: String,
    /// The session that left it.
    pub session: Option<Uuid>,
    /// In the operator's words, without a secret.
    pub target: String,
    /// What is to be done, without a secret.
    pub record: serde_json::Value,
    /// When it was left.
    pub since: SystemTime,
    /// Attempts that failed.
    pub attempts: u32,
    /// Not tried before; `None` is at once.
    pub next: Option<SystemTime>,
}

/// The signed head of an audit segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHeadRow {
    /// The daemon that writes the segment.
    pub daemon: Uuid,
    /// The segment's name.
    pub segment: String,
    /// How many records the head covers.
    pub seq: u64,
    /// The SHA-256 of the last of them.
    pub sha256: [u8; 32],
    /// The signature over segment, count and digest.
    pub hmac: [u8; 32],
    /// When it was signed.
    pub at: SystemTime,
}
