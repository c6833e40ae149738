//! The ledger, in SQLite.

use std::time::Duration;

use serde::Serialize;
use sqlx::query;
use uuid::Uuid;

use super::SqliteStore;
use super::group::{Kind, Statements};
use crate::store::columns::{Reading, span};
use crate::store::{Claim, EntryOutcome, EntryRow, NewEntry, SWEEP_MOST, StoreError};

const TABLE: &str = "ledger";

macro_rules! statements {
    ($sql:literal) => {
        Statements {
            counting: $sql,
            naming: concat!($sql, " RETURNING request_id"),
        }
    };
}

/// Rows of a callback that is about to be sent. `CROSS JOIN`: the rows are looked up among the sessions, never the other
/// way round.
pub(super) const ENTER: Statements = statements!(
    "
    INSERT INTO ledger
        (request_id, session, idempotency_key, method, route, path, dispatched_us, fence, outcome)
    SELECT new.value ->> 'request_id', sessions.id, new.value ->> 'idempotency_key', new.value ->> 'method',
           new.value ->> 'route', new.value ->> 'path', (SELECT now_us FROM clock), sessions.fence, 'in_flight'
    FROM json_each($1) AS new CROSS JOIN sessions
    WHERE sessions.id = new.value ->> 'session' AND owner = new.value ->> 'owner' AND fence = new.value ->> 'fence'
      AND lease_until_us > (SELECT now_us FROM clock) AND NOT revoked AND ended_us IS NULL"
);

/// Outcomes, each under its own fence.
pub(super) const SETTLE: Statements = statements!(
    "
    UPDATE ledger
    SET outcome = new.outcome, status = new.status, reason = new.reason, settled_us = (SELECT now_us FROM clock)
    FROM (SELECT value ->> 'request_id' AS id, value ->> 'session' AS session, value ->> 'owner' AS owner,
                 value ->> 'fence' AS fence, value ->> 'outcome' AS outcome, value ->> 'status' AS status,
                 value ->> 'reason' AS reason
          FROM json_each($1)) AS new
    WHERE request_id = new.id AND ledger.session = new.session AND ledger.fence = new.fence
      AND ledger.outcome = 'in_flight'
      AND EXISTS (SELECT 1 FROM sessions
                  WHERE sessions.id = new.session AND sessions.owner = new.owner AND sessions.fence = new.fence)"
);

/// Whether the answers arrived.
pub(super) const DELIVER: Statements = statements!(
    "
    UPDATE ledger SET delivered = new.whole
    FROM (SELECT value ->> 'request_id' AS id, value ->> 'session' AS session, value ->> 'owner' AS owner,
                 value ->> 'fence' AS fence, value ->> 'whole' AS whole
          FROM json_each($1)) AS new
    WHERE request_id = new.id AND ledger.session = new.session AND ledger.fence = new.fence
      AND EXISTS (SELECT 1 FROM sessions
                  WHERE sessions.id = new.session AND sessions.owner = new.owner AND sessions.fence = new.fence)"
);

/// By whom and of what a row is written.
#[derive(Serialize)]
struct Under {
    request_id: String,
    session: String,
    owner: String,
    fence: i64,
}

impl Under {
    fn of(claim: &Claim, request_id: Uuid) -> Self {
        Self {
            request_id: request_id.to_string(),
            session: claim.session.to_string(),
            owner: claim.daemon.to_string(),
            fence: claim.fence.0,
        }
    }
}

#[derive(Serialize)]
struct Entered<'a> {
    #[serde(flatten)]
    under: Under,
    idempotency_key: Option<&'a str>,
    method: &'a str,
    route: &'a str,
    path: &'a str,
}

#[derive(Serialize)]
struct Settled<'a> {
    #[serde(flatten)]
    under: Under,
    outcome: &'a str,
    status: Option<u16>,
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Delivered {
    #[serde(flatten)]
    under: Under,
    /// As SQLite has it.
    whole: u8,
}

impl SqliteStore {
    pub(super) async fn insert_entry(&self, claim: &Claim, entry: &NewEntry) -> Result<bool, StoreError> {
        let under = Under::of(claim, entry.request_id);
        let id = under.request_id.clone();
        let row = Entered {
            under,
            idempotency_key: entry.idempotency_key.as_deref(),
            method: &entry.method,
            route: &entry.route,
            path: &entry.path,
        };
        self.group.write_one(Kind::Entry, id, &row).await
    }

    pub(super) async fn settle_entry(
        &self,
        claim: &Claim,
        request_id: Uuid,
        outcome: &EntryOutcome,
    ) -> Result<bool, StoreError> {
        let under = Under::of(claim, request_id);
        let id = under.request_id.clone();
        let row = Settled {
            under,
            outcome: outcome.name(),
            status: outcome.status(),
            reason: outcome.reason(),
        };
        self.group.write_one(Kind::Outcome, id, &row).await
    }

    pub(super) async fn mark_delivered(
        &self,
        claim: &Claim,
        request_id: Uuid,
        whole: bool,
    ) -> Result<bool, StoreError> {
        let under = Under::of(claim, request_id);
        let id = under.request_id.clone();
        let row = Delivered {
            under,
            whole: whole.into(),
        };
        self.group.write_one(Kind::Delivery, id, &row).await
    }

    pub(super) async fn mark_open(&self, claim: &Claim, reason: &str) -> Result<u64, StoreError> {
        let mark = query(
            "UPDATE ledger
             SET outcome = 'indeterminate', reason = $1, settled_us = (SELECT now_us FROM clock)
             WHERE session = $2 AND fence < $4 AND outcome = 'in_flight'
               AND EXISTS (SELECT 1 FROM sessions WHERE id = $2 AND owner = $3 AND fence = $4)",
        );
        let mark = mark
            .bind(reason)
            .bind(claim.session.to_string())
            .bind(claim.daemon.to_string())
            .bind(claim.fence.0);
        self.write(mark).await
    }

    pub(super) async fn find_entry(&self, request_id: Uuid) -> Result<Option<EntryRow>, StoreError> {
        let find = query("SELECT * FROM ledger WHERE request_id = $1").bind(request_id.to_string());
        let found = Reading::each(&Self::fetch(&self.readers, find).await?, TABLE, |row| row.entry())?;
        Ok(found.into_iter().next())
    }

    pub(super) async fn find_entry_by_key(
        &self,
        session: Uuid,
        key: &str,
    ) -> Result<Option<EntryRow>, StoreError> {
        let find = query(
            "SELECT * FROM ledger WHERE session = $1 AND idempotency_key = $2
             ORDER BY dispatched_us DESC, request_id DESC LIMIT 1",
        );
        let find = find.bind(session.to_string()).bind(key);
        let found = Reading::each(&Self::fetch(&self.readers, find).await?, TABLE, |row| row.entry())?;
        Ok(found.into_iter().next())
    }

    pub(super) async fn list_entries(&self, session: Uuid, most: u32) -> Result<Vec<EntryRow>, StoreError> {
        let list = query(
            "SELECT * FROM ledger WHERE session = $1 ORDER BY dispatched_us DESC, request_id DESC LIMIT $2",
        );
        let list = list.bind(session.to_string()).bind(i64::from(most));
        Reading::each(&Self::fetch(&self.readers, list).await?, TABLE, |row| row.entry())
    }

    pub(super) async fn delete_entries(&self, age: Duration) -> Result<u64, StoreError> {
        let delete = query(
            "DELETE FROM ledger WHERE request_id IN (
                SELECT request_id FROM ledger
                WHERE dispatched_us < (SELECT now_us FROM clock) - $1 AND outcome <> 'in_flight' LIMIT $2)",
        );
        let delete = delete.bind(span(age)).bind(SWEEP_MOST);
        self.write(delete).await
    }
}
