//! The store in a file of the state folder.
//!
//! Here: [`SqliteStore`]: how the file is opened, which errors mean what, and the calls, each with its deadline. One
//! connection writes and two read (WAL): writers wait for each other, readers for nobody. The folder's lock makes this
//! process the only owner of every session; the rules of ownership are those of PostgreSQL all the same. Not here:
//! SQL, which is in `sessions.rs`, `ledger.rs` and `records.rs`; how the ledger is committed, in `group.rs`; the write-ahead log, in `log.rs`; copies, in
//! `backup.rs`.

mod sessions;
mod ledger;
mod records;
mod group;
mod log;
mod backup;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Row as _, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::columns::Columns;
use super::error::StoreError;
use super::figures::{Access, Step, StoreFigures};
use super::folder::Folder;
use super::schema::{self, Version};
use super::settings::Durability;
use super::{
    AuditHeadRow, Claim, CleanupRow, DaemonPlace, DaemonRow, EntryOutcome, EntryRow, Hearing, LeaseRow,
    NewEntry, Reply, SessionFilter, SessionRow, Store, within,
};
use crate::session::state::options;

pub(super) use backup::backup_folder;
use group::Group;
use log::{Log, Place};

const FILE: &str = "store.db";
const LOG: &str = "store.db-wal";
/// Also the bound of waiting for the one connection that writes.
const CALL: Duration = Duration::from_secs(5);
/// Of another program that has the file locked, such as a shell of SQLite's.
const BUSY: Duration = Duration::from_secs(2);
/// Looking through a large file takes its time.
const OPEN: Duration = Duration::from_secs(120);
const READERS: u32 = 2;
/// Pages that a connection remembers, in KiB: SQLite's own 2,000 for each are much beside everything else here.
const WRITER_CACHE: &str = "-512";
const READER_CACHE: &str = "-128";
/// What the log keeps of the disk once it begins anew, in bytes: all that it usually gets to. Bytes that are already its
/// own are written with less work for the file system than new ones.
const LOG_KEEPS: &str = "100663296";

const VERSIONS: &[Version] = &[
    (1, "first", include_str!("../migrations/sqlite/0001_first.sql")),
    (
        2,
        "daemons",
        include_str!("../migrations/sqlite/0002_daemons.sql"),
    ),
];

/// The one connection that writes. Whoever has the lock has the turn; no pool, which would ask the connection after each
/// turn whether it still lives.
type Writer = Arc<Mutex<SqliteConnection>>;
type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// How large the files get.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Of the file: to a test, the end of the disk.
    pages: Option<u32>,
    /// Rows after which the log is moved into the file.
    log_rows: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            pages: None,
            log_rows: log::ROWS,
        }
    }
}

/// The store in a file.
#[derive(Debug)]
pub(super) struct SqliteStore {
    /// Of the ledger, which is written for every unsafe callback.
    group: Group,
    writer: Writer,
    readers: SqlitePool,
    log: Arc<Log>,
    _looking_after: AbortOnDropHandle<()>,
    folder: Folder,
    figures: StoreFigures,
}

impl SqliteStore {
    /// Opens the file in this folder, makes it where there is none, looks whether it is whole, and migrates it.
    pub(super) async fn open(folder: Folder, durability: Durability) -> Result<Self, StoreError> {
        let opening = Self::open_within(folder, durability, Bounds::default());
        within(OPEN, "open", Box::pin(opening)).await
    }

    /// As [`Self::open`], within other bounds.
    async fn open_within(folder: Folder, durability: Durability, bounds: Bounds) -> Result<Self, StoreError> {
        let file = folder.path().join(FILE);
        // For nobody else to read from its first byte, and through no link.
        options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(|error| StoreError::Folder(format!("{}: {error}", file.display())))?;
        let synchronous = match durability {
            Durability::Write => SqliteSynchronous::Normal,
            Durability::Fsync => SqliteSynchronous::Full,
        };
        let mut writing = at(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .pragma("cache_size", WRITER_CACHE)
            .pragma("journal_size_limit", LOG_KEEPS)
            .pragma("wal_autocheckpoint", "0");
        if let Some(most) = bounds.pages {
            writing = writing.pragma("max_page_count", most.to_string());
        }
        let checkpointing = pool(1).connect_lazy_with(writing.clone().pragma("cache_size", READER_CACHE));
        let writer = writing.connect().await.map_err(read_error)?;
        let writer = Arc::new(Mutex::new(writer));
        let reading = at(&file).read_only(true).pragma("cache_size", READER_CACHE);
        let readers = pool(READERS).connect_lazy_with(reading);
        let log = Arc::new(Log::of(bounds.log_rows));
        let waits = durability == Durability::Fsync;
        let place = Place {
            file: folder.path().join(LOG),
            syncs: !waits,
            writer: Arc::clone(&writer),
            own: checkpointing,
        };
        let store = Self {
            group: Group::start(Arc::clone(&writer), waits, Arc::clone(&log)),
            _looking_after: log.look_after(place),
            log,
            writer,
            readers,
            folder,
            figures: StoreFigures::default(),
        };
        store.look_through().await?;
        schema::migrate(&mut *store.writer.lock().await, VERSIONS, read_error).await?;
        Ok(store)
    }

    async fn look_through(&self) -> Result<(), StoreError> {
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut *self.writer.lock().await)
            .await
            .map_err(read_error)?;
        if found == "ok" {
            return Ok(());
        }
        Err(StoreError::Damaged(found))
    }

    /// A call that changes nothing.
    fn reads<'a, T: Send + 'a>(
        &'a self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> Reply<'a, T> {
        Box::pin(self.figures.counting(Access::Read, within(CALL, call, work)))
    }

    /// A call that may change something.
    fn writes<'a, T: Send + 'a>(
        &'a self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> Reply<'a, T> {
        Box::pin(self.figures.counting(Access::Write, within(CALL, call, work)))
    }

    /// Carries out what writes; how many rows it changed.
    async fn write(&self, query: Query<'_>) -> Result<u64, StoreError> {
        let done = query
            .execute(&mut *self.writer.lock().await)
            .await
            .map_err(read_error)?;
        self.log.wrote(1);
        Ok(done.rows_affected())
    }

    /// Carries out what writes and says what it wrote.
    async fn fetch_writing(&self, query: Query<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        let done = query
            .fetch_all(&mut *self.writer.lock().await)
            .await
            .map_err(read_error)?;
        self.log.wrote(done.len());
        Ok(done)
    }

    /// Carries out what writes at most one row; whether it did.
    async fn write_one(&self, query: Query<'_>) -> Result<bool, StoreError> {
        Ok(self.write(query).await? == 1)
    }

    /// Fetches rows with this pool.
    async fn fetch(pool: &SqlitePool, query: Query<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(pool).await.map_err(read_error)
    }
}

impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }
    fn is_shared(&self) -> bool {
        false
    }
    fn daemon(&self) -> Uuid {
        self.folder.daemon()
    }
    fn figures(&self) -> StoreFigures {
        self.figures.clone()
    }
    fn ready(&self) -> Reply<'_, ()> {
        self.writes("ready", self.beat())
    }
    fn backup<'a>(&'a self, file: &'a Path) -> Reply<'a, ()> {
        Box::pin(within(backup::LIMIT, "backup", self.copy_to(file)))
    }

    fn announce<'a>(&'a self, place: &'a DaemonPlace) -> Reply<'a, ()> {
        self.writes("announce", self.write_daemon(place))
    }
    fn daemons(&self) -> Reply<'_, Vec<DaemonRow>> {
        self.reads("daemons", self.list_daemons())
    }
    fn sweep_daemons(&self, age: Duration) -> Reply<'_, u64> {
        self.writes("sweep_daemons", self.delete_daemons(age))
    }

    fn create<'a>(&'a self, session: &'a SessionRow, daemon: Uuid, lease: Duration) -> Reply<'a, Claim> {
        self.writes("create", self.insert_session(session, daemon, lease))
    }
    fn save<'a>(&'a self, claim: &'a Claim, session: &'a SessionRow) -> Reply<'a, bool> {
        self.writes("save", self.update_session(claim, session))
    }
    fn session(&self, id: Uuid) -> Reply<'_, Option<SessionRow>> {
        self.reads("session", self.find_session(id))
    }
    fn sessions(&self, filter: SessionFilter) -> Reply<'_, Vec<SessionRow>> {
        self.reads("sessions", self.list_sessions(filter))
    }
    fn revoke(&self, id: Uuid) -> Reply<'_, bool> {
        self.writes("revoke", self.revoke_session(id))
    }
    fn listen(&self) -> Option<Hearing> {
        None
    }
    fn revoked(&self, daemon: Uuid) -> Reply<'_, Vec<Uuid>> {
        self.reads("revoked", self.list_revoked(daemon))
    }
    fn sweep_sessions(&self, age: Duration) -> Reply<'_, u64> {
        self.writes("sweep_sessions", self.delete_sessions(age))
    }

    fn claim(&self, id: Uuid, daemon: Uuid, lease: Duration) -> Reply<'_, Option<Claim>> {
        self.writes("claim", self.claim_session(id, daemon, lease))
    }
    fn resume(&self, daemon: Uuid, lease: Duration) -> Reply<'_, Vec<(Claim, SessionRow)>> {
        self.writes("resume", self.resume_sessions(daemon, lease))
    }
    fn take_over(&self, daemon: Uuid, lease: Duration, most: u32) -> Reply<'_, Vec<(Claim, SessionRow)>> {
        self.writes("take_over", self.take_sessions(daemon, lease, most))
    }
    fn renew<'a>(&'a self, claims: &'a [Claim], lease: Duration) -> Reply<'a, Vec<Uuid>> {
        self.writes("renew", self.renew_claims(claims, lease))
    }
    fn release<'a>(&'a self, claim: &'a Claim) -> Reply<'a, bool> {
        self.writes("release", self.release_session(claim))
    }

    fn dispatch<'a>(&'a self, claim: &'a Claim, entry: &'a NewEntry) -> Reply<'a, bool> {
        let entered = self.insert_entry(claim, entry);
        let entered = self.writes("dispatch", entered);
        Box::pin(self.figures.measuring(Step::Dispatch, entered))
    }
    fn settle<'a>(
        &'a self,
        claim: &'a Claim,
        request_id: Uuid,
        outcome: &'a EntryOutcome,
    ) -> Reply<'a, bool> {
        let settled = self.settle_entry(claim, request_id, outcome);
        let settled = self.writes("settle", settled);
        Box::pin(self.figures.measuring(Step::Settle, settled))
    }
    fn delivered<'a>(&'a self, claim: &'a Claim, request_id: Uuid, whole: bool) -> Reply<'a, bool> {
        self.writes("delivered", self.mark_delivered(claim, request_id, whole))
    }
    fn mark_indeterminate<'a>(&'a self, claim: &'a Claim, reason: &'a str) -> Reply<'a, u64> {
        self.writes("mark_indeterminate", self.mark_open(claim, reason))
    }
    fn entry(&self, request_id: Uuid) -> Reply<'_, Option<EntryRow>> {
        self.reads("entry", self.find_entry(request_id))
    }
    fn entry_by_key<'a>(&'a self, session: Uuid, key: &'a str) -> Reply<'a, Option<EntryRow>> {
        self.reads("entry_by_key", self.find_entry_by_key(session, key))
    }
    fn recent_entries(&self, session: Uuid, most: u32) -> Reply<'_, Vec<EntryRow>> {
        self.reads("recent_entries", self.list_entries(session, most))
    }
    fn sweep_entries(&self, age: Duration) -> Reply<'_, u64> {
        self.writes("sweep_entries", self.delete_entries(age))
    }

    fn put_lease<'a>(&'a self, lease: &'a LeaseRow) -> Reply<'a, ()> {
        self.writes("put_lease", self.write_lease(lease))
    }
    fn leases(&self) -> Reply<'_, Vec<LeaseRow>> {
        self.reads("leases", self.list_leases())
    }
    fn delete_lease<'a>(&'a self, name: &'a str) -> Reply<'a, bool> {
        self.writes("delete_lease", self.remove_lease(name))
    }
    fn put_cleanup<'a>(&'a self, cleanup: &'a CleanupRow) -> Reply<'a, ()> {
        self.writes("put_cleanup", self.write_cleanup(cleanup))
    }
    fn cleanups(&self) -> Reply<'_, Vec<CleanupRow>> {
        self.reads("cleanups", self.list_cleanups())
    }
    fn delete_cleanup<'a>(&'a self, name: &'a str) -> Reply<'a, bool> {
        self.writes("delete_cleanup", self.remove_cleanup(name))
    }

    fn spend_nonce<'a>(&'a self, key_id: &'a str, nonce: &'a str, keep: Duration) -> Reply<'a, bool> {
        self.writes("spend_nonce", self.insert_nonce(key_id, nonce, keep))
    }
    fn sweep_nonces(&self) -> Reply<'_, u64> {
        self.writes("sweep_nonces", self.delete_nonces())
    }
    fn put_audit_head<'a>(&'a self, head: &'a AuditHeadRow) -> Reply<'a, bool> {
        self.writes("put_audit_head", self.write_audit_head(head))
    }
    fn audit_heads(&self, daemon: Uuid, most: u32) -> Reply<'_, Vec<AuditHeadRow>> {
        self.reads("audit_heads", self.list_audit_heads(daemon, most))
    }
}

fn at(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(PathBuf::from(file))
        .busy_timeout(BUSY)
}

fn pool(most: u32) -> SqlitePoolOptions {
    // A connection to a file does not go stale, so nothing wakes up to look after it.
    SqlitePoolOptions::new()
        .max_connections(most)
        .acquire_timeout(CALL)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// What SQLite's result codes mean; the low byte of an extended code is its kind.
fn read_error(error: sqlx::Error) -> StoreError {
    // https://www.sqlite.org/rescode.html
    const IOERR_SHMSIZE: i32 = 4874;
    let code = error
        .as_database_error()
        .and_then(|error| error.code()?.parse::<i32>().ok());
    match (code, code.map(|code| code & 0xff)) {
        (Some(IOERR_SHMSIZE), _) | (_, Some(13)) => StoreError::Full(Arc::new(error)),
        (_, Some(5 | 6)) => StoreError::Busy(Arc::new(error)),
        (_, Some(11 | 26)) => StoreError::Damaged(error.to_string()),
        _ if matches!(error, sqlx::Error::PoolTimedOut) => StoreError::Busy(Arc::new(error)),
        _ => StoreError::Database(Arc::new(error)),
    }
}

impl Columns for SqliteRow {
    fn text(&self, name: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(name)
    }
    fn int(&self, name: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(name)
    }
    fn flag(&self, name: &'static str) -> Result<Option<bool>, sqlx::Error> {
        self.try_get(name)
    }
    fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, sqlx::Error> {
        self.try_get(name)
    }
}
