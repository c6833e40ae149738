//! The store on a PostgreSQL server, which several daemons share.
//!
//! Here: [`PostgresStore`]: the pool, which errors mean what, and the calls, each with its deadline. Leases run by the
//! server's clock; `clock_timestamp()`, because `now()` stands still in a transaction. Not here: SQL, which is in
//! `sessions.rs`, `ledger.rs` and `records.rs`; the ear for other daemons, in `listening.rs`.

mod sessions;
mod ledger;
mod records;
mod listening;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{Connection as _, PgPool, Postgres, Row as _};
use uuid::Uuid;

use super::columns::Columns;
use super::error::StoreError;
use super::figures::{Access, Step, StoreFigures};
use super::folder::Folder;
use super::schema::{self, Version};
use super::{
    AuditHeadRow, Claim, CleanupRow, DaemonPlace, DaemonRow, EntryOutcome, EntryRow, Hearing, LeaseRow,
    NewEntry, Reply, SessionFilter, SessionRow, Store, within,
};
use crate::secrets::Secret;

/// Less than what is left of a lease when its renewal is late.
const CALL: Duration = Duration::from_secs(3);
/// The same on the server's side, so that it does not go on with what nobody awaits.
const STATEMENT_MILLISECONDS: &str = "3000";
/// Waiting for a connection, also for a server that refuses them.
const ACQUIRE: Duration = Duration::from_secs(1);
/// Another daemon may be migrating.
const OPEN: Duration = Duration::from_secs(60);
/// A connection that rested longer is asked whether it lives before it is used.
const TRUSTED: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_mins(10);
const LIFETIME: Duration = Duration::from_mins(30);

const VERSIONS: &[Version] = &[
    (1, "first", include_str!("../migrations/postgres/0001_first.sql")),
    (
        2,
        "daemons",
        include_str!("../migrations/postgres/0002_daemons.sql"),
    ),
];

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// The store on a server.
#[derive(Debug)]
pub(super) struct PostgresStore {
    pool: PgPool,
    /// For the connection that listens.
    options: PgConnectOptions,
    folder: Folder,
    figures: StoreFigures,
}

impl PostgresStore {
    /// Connects and migrates. The folder gives the daemon its name.
    pub(super) async fn open(
        folder: Folder,
        url: &Secret,
        password: Option<&Secret>,
        connections: u32,
    ) -> Result<Self, StoreError> {
        // The error may repeat parts of the URL, and with them a password.
        let mut options: PgConnectOptions = url
            .expose()
            .parse()
            .map_err(|_| StoreError::Url("it is no URL of a PostgreSQL database".to_owned()))?;
        if let Some(password) = password {
            options = options.password(password.expose());
        }
        let options = options
            .application_name("paperclip-bridge")
            .options([("statement_timeout", STATEMENT_MILLISECONDS)]);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(IDLE)
            .max_lifetime(LIFETIME)
            .test_before_acquire(false)
            .before_acquire(|connection, rested| {
                Box::pin(async move { Ok(rested.idle_for < TRUSTED || connection.ping().await.is_ok()) })
            })
            .connect_lazy_with(options.clone());
        let store = Self {
            pool,
            options,
            folder,
            figures: StoreFigures::default(),
        };
        within(OPEN, "open", Box::pin(store.migrate())).await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(read_error)?;
        // Out of the pool: what goes wrong must not leave the migrator's lock with a connection that lives on.
        connection.close_on_drop();
        sqlx::query("SET statement_timeout = 0")
            .execute(&mut *connection)
            .await
            .map_err(read_error)?;
        schema::migrate(&mut *connection, VERSIONS, read_error).await
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
        let done = query.execute(&self.pool).await.map_err(read_error)?;
        Ok(done.rows_affected())
    }

    /// Carries out what writes at most one row; whether it did.
    async fn write_one(&self, query: Query<'_>) -> Result<bool, StoreError> {
        Ok(self.write(query).await? == 1)
    }

    /// Fetches rows with this pool.
    async fn fetch(pool: &PgPool, query: Query<'_>) -> Result<Vec<PgRow>, StoreError> {
        query.fetch_all(pool).await.map_err(read_error)
    }
}

impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }
    fn is_shared(&self) -> bool {
        true
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
        let told = format!(
            "the store is on a PostgreSQL server; use pg_dump ({} was not written)",
            file.display()
        );
        Box::pin(std::future::ready(Err(StoreError::Backup(told))))
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
        Some(listening::hear(self.options.clone()))
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

/// What PostgreSQL's codes mean, and the ways in which a connection fails.
fn read_error(error: sqlx::Error) -> StoreError {
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .map(std::borrow::Cow::into_owned);
    match code.as_deref() {
        Some("53100") => StoreError::Full(Arc::new(error)),
        Some("XX001" | "XX002") => StoreError::Damaged(error.to_string()),
        Some("57014") => StoreError::Deadline {
            call: "a statement on the server",
            limit: CALL,
        },
        Some("55P03") => StoreError::Busy(Arc::new(error)),
        // Connections (08), refused logins (28), no such database, too many clients, shutting down, a standby.
        Some("3D000" | "53300" | "57P01" | "57P02" | "57P03" | "25006") => {
            StoreError::Unreachable(Arc::new(error))
        }
        Some(code) if code.starts_with("08") || code.starts_with("28") => {
            StoreError::Unreachable(Arc::new(error))
        }
        Some(_) => StoreError::Database(Arc::new(error)),
        None if matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
        ) =>
        {
            StoreError::Unreachable(Arc::new(error))
        }
        None => StoreError::Database(Arc::new(error)),
    }
}

impl Columns for PgRow {
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
