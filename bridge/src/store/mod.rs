//! What the daemon remembers over its own restart, and what several daemons agree on.
//!
//! Here: [`Store`], the one trait; [`open`], which makes one; the deadline that every call has. What is kept is said by
//! `session.rs`, `ledger.rs` and `records.rs`; how, by `sqlite/` (a file in the state folder, the default) and
//! `postgres/` (several daemons on one database), each with SQL of its own. One conformance suite runs on both
//! (`tests/tests/store/`). Not here: what a daemon does with a session that it took over. Read next: `session.rs`.

mod session;
mod ledger;
mod records;
mod error;
mod folder;
mod settings;
mod figures;
mod columns;
mod schema;
mod sqlite;
mod postgres;
#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use uuid::Uuid;

pub use error::StoreError;
pub use figures::StoreFigures;
pub use folder::Folder;
pub use ledger::{EntryOutcome, EntryRow, NewEntry};
pub use records::{AuditHeadRow, CleanupRow, DaemonPlace, DaemonRow, LeaseRow};
pub use session::{Claim, Fence, Hold, SessionFilter, SessionRow};
pub use settings::{Durability, StoreSettings, StoreUrl};

use postgres::PostgresStore;
use sqlite::SqliteStore;

/// What a call of the store comes to.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What other daemons say, for as long as it is held; it never ends by itself.
pub type Hearing = BoxStream<'static, Heard>;

/// What other daemons say. Only a hint, which anybody may have given who can connect to the database: the store says what
/// is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From now on everything is heard; what was said before may have been missed.
    Anew,
    /// This session is to end; whoever has it asks for what was [`revoked`](Store::revoked).
    Revoked(Uuid),
}

/// Sessions, their owners, the ledger and what else must outlive a process.
///
/// Every call ends within a deadline of its own. An error of a call that writes says nothing of whether it was written:
/// the caller does what is safe either way (after an error of [`dispatch`](Self::dispatch), nothing is sent).
/// Cancel safe in the same sense. Times of ownership (leases, the dispatch of an entry, the end of a nonce) are the
/// database's; all others are what the caller wrote.
pub trait Store: fmt::Debug + Send + Sync {
    /// Which database this is: `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;

    /// Whether several daemons may have it, so that who owns a session is a matter of its clock.
    fn is_shared(&self) -> bool;

    /// This daemon's own name in the database: that of its state folder, the same after a restart.
    fn daemon(&self) -> Uuid;

    /// How often it was asked and what came of it; the same ones each time.
    fn figures(&self) -> StoreFigures;

    /// Whether it can be written now; for `/readyz`.
    fn ready(&self) -> Reply<'_, ()>;

    /// Writes a copy of the whole store into a new file, while it is in use.
    fn backup<'a>(&'a self, file: &'a Path) -> Reply<'a, ()>;

    // --- daemons ---

    /// Says where this daemon is to be found, in place of what it said before, and that it lives.
    fn announce<'a>(&'a self, place: &'a DaemonPlace) -> Reply<'a, ()>;

    /// All daemons, the one that was heard of last first.
    fn daemons(&self) -> Reply<'_, Vec<DaemonRow>>;

    /// Removes daemons that were heard of longer ago than `age` and own no session; how many.
    fn sweep_daemons(&self, age: Duration) -> Reply<'_, u64>;

    // --- sessions ---

    /// Writes a new session down, owned by `daemon` for `lease`, with the first fence.
    ///
    /// [`StoreError::Exists`] for an id that is there.
    fn create<'a>(&'a self, session: &'a SessionRow, daemon: Uuid, lease: Duration) -> Reply<'a, Claim>;

    /// Writes what changed of a session; `false`, and nothing written, where the claim does not hold any more.
    ///
    /// All of the row is written but its id, when it was created, `revoked` and `hold`.
    fn save<'a>(&'a self, claim: &'a Claim, session: &'a SessionRow) -> Reply<'a, bool>;

    /// One session.
    fn session(&self, id: Uuid) -> Reply<'_, Option<SessionRow>>;

    /// The sessions that the filter lets through, newest first.
    fn sessions(&self, filter: SessionFilter) -> Reply<'_, Vec<SessionRow>>;

    /// Says that a session is to end, whoever owns it; `false` where there is none, or it has ended.
    ///
    /// From then on no unsafe callback of it is entered in the ledger.
    fn revoke(&self, id: Uuid) -> Reply<'_, bool>;

    /// Hears at once of each [`revoke`](Self::revoke), on a connection of its own that comes back by itself; `None` where
    /// there is nothing to listen to, because no other daemon has the store.
    ///
    /// Whoever listens asks for [`revoked`](Self::revoked) now and then all the same.
    fn listen(&self) -> Option<Hearing>;

    /// The sessions of `daemon` that were revoked and have not ended.
    fn revoked(&self, daemon: Uuid) -> Reply<'_, Vec<Uuid>>;

    /// Removes sessions that ended longer ago than `age`, with their ledger; how many.
    fn sweep_sessions(&self, age: Duration) -> Reply<'_, u64>;

    // --- who owns a session ---

    /// Takes this session where nobody has it, its lease ran out, or `daemon` itself had it; adds 1 to its fence.
    ///
    /// `None` where another daemon has it, or it has ended.
    fn claim(&self, id: Uuid, daemon: Uuid, lease: Duration) -> Reply<'_, Option<Claim>>;

    /// Takes back all sessions that `daemon` had: it alone has its folder, so its predecessor lives no more.
    ///
    /// Called once, before it serves anything. Adds 1 to each fence.
    fn resume(&self, daemon: Uuid, lease: Duration) -> Reply<'_, Vec<(Claim, SessionRow)>>;

    /// Takes at most `most` sessions that nobody has or whose lease ran out, and that any daemon can serve.
    ///
    /// Adds 1 to each fence. What another daemon takes at the same moment is left to it.
    fn take_over(&self, daemon: Uuid, lease: Duration, most: u32) -> Reply<'_, Vec<(Claim, SessionRow)>>;

    /// Makes these claims last for `lease` from now; the sessions for which they still held.
    ///
    /// One that ran out and that nobody took may be renewed: a new owner would have changed its fence.
    fn renew<'a>(&'a self, claims: &'a [Claim], lease: Duration) -> Reply<'a, Vec<Uuid>>;

    /// Gives a session up, so that another daemon can take it at once.
    fn release<'a>(&'a self, claim: &'a Claim) -> Reply<'a, bool>;

    // --- the ledger ---

    /// Enters an unsafe callback just before its dispatch: `true` if one row was committed.
    ///
    /// Conditional on the claim's owner, fence and lease, and on the session being neither revoked nor ended. On
    /// anything but `Ok(true)` the callback must not be sent.
    fn dispatch<'a>(&'a self, claim: &'a Claim, entry: &'a NewEntry) -> Reply<'a, bool>;

    /// Writes what became of it; `false` unless the claim still holds and the entry was made under its fence.
    ///
    /// The lease may have run out meanwhile, as long as nobody else has taken the session.
    fn settle<'a>(&'a self, claim: &'a Claim, request_id: Uuid, outcome: &'a EntryOutcome)
    -> Reply<'a, bool>;

    /// Writes whether the answer reached the caller whole; `false` as for [`settle`](Self::settle).
    fn delivered<'a>(&'a self, claim: &'a Claim, request_id: Uuid, whole: bool) -> Reply<'a, bool>;

    /// Marks as indeterminate what earlier owners of the session left in flight; how many.
    ///
    /// Called by a new owner before it serves the session.
    fn mark_indeterminate<'a>(&'a self, claim: &'a Claim, reason: &'a str) -> Reply<'a, u64>;

    /// One entry, by the request id of an answer.
    fn entry(&self, request_id: Uuid) -> Reply<'_, Option<EntryRow>>;

    /// The newest entry of a session with this Idempotency-Key.
    fn entry_by_key<'a>(&'a self, session: Uuid, key: &'a str) -> Reply<'a, Option<EntryRow>>;

    /// The newest entries of a session, newest first, at most `most` of them.
    fn recent_entries(&self, session: Uuid, most: u32) -> Reply<'_, Vec<EntryRow>>;

    /// Removes entries that were dispatched longer ago than `age` and are not in flight; how many, at most 5,000.
    fn sweep_entries(&self, age: Duration) -> Reply<'_, u64>;

    // --- leases and owed clean-ups ---

    /// Writes a lease down, in place of one of the same name.
    fn put_lease<'a>(&'a self, lease: &'a LeaseRow) -> Reply<'a, ()>;

    /// All leases, oldest first.
    fn leases(&self) -> Reply<'_, Vec<LeaseRow>>;

    /// Removes one; `false` where there was none.
    fn delete_lease<'a>(&'a self, name: &'a str) -> Reply<'a, bool>;

    /// Writes down what is still to be cleared away, in place of one of the same name.
    fn put_cleanup<'a>(&'a self, cleanup: &'a CleanupRow) -> Reply<'a, ()>;

    /// All owed clean-ups, oldest first.
    fn cleanups(&self) -> Reply<'_, Vec<CleanupRow>>;

    /// Removes one; `false` where there was none.
    fn delete_cleanup<'a>(&'a self, name: &'a str) -> Reply<'a, bool>;

    // --- nonces, audit heads ---

    /// Notes that this key's nonce was used: `true` for the first who says so, `false` for everyone after.
    ///
    /// Kept for `keep`: at least as long as a request with it would be taken for fresh.
    fn spend_nonce<'a>(&'a self, key_id: &'a str, nonce: &'a str, keep: Duration) -> Reply<'a, bool>;

    /// Removes nonces whose time is over; how many, at most 5,000.
    fn sweep_nonces(&self) -> Reply<'_, u64>;

    /// Writes the newest signed head of a segment; `false` where that segment has a newer one.
    fn put_audit_head<'a>(&'a self, head: &'a AuditHeadRow) -> Reply<'a, bool>;

    /// The heads that a daemon wrote, newest first, at most `most` of them.
    fn audit_heads(&self, daemon: Uuid, most: u32) -> Reply<'_, Vec<AuditHeadRow>>;
}

/// A sweep removes at most so many rows at a call, so that it holds nobody up for long.
const SWEEP_MOST: i64 = 5_000;

/// Opens the store of these settings, makes it where there is none, and brings its schema up to date.
///
/// The state folder is locked for as long as the store lives.
///
/// # Errors
///
/// [`StoreError`], with what to do.
pub async fn open(settings: StoreSettings) -> Result<Arc<dyn Store>, StoreError> {
    let folder = Folder::lock(&settings.folder)?;
    Ok(match settings.url {
        StoreUrl::Sqlite => Arc::new(SqliteStore::open(folder, settings.durability).await?),
        StoreUrl::Postgres(url) => Arc::new(
            PostgresStore::open(folder, &url, settings.password.as_ref(), settings.connections).await?,
        ),
    })
}

/// Copies the SQLite store of this state folder into a new file, whether or not a daemon has it open.
///
/// # Errors
///
/// [`StoreError`], with what to do; no file is then left.
pub async fn backup(folder: &Path, file: &Path) -> Result<(), StoreError> {
    sqlite::backup_folder(folder, file).await
}

/// Puts a deadline on a call.
async fn within<T>(
    limit: Duration,
    call: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Deadline { call, limit }),
    }
}
