//! The ledger, in PostgreSQL.

use std::time::Duration;

use sqlx::query;
use uuid::Uuid;

use super::PostgresStore;
use crate::store::columns::{Reading, span};
use crate::store::{Claim, EntryOutcome, EntryRow, NewEntry, SWEEP_MOST, StoreError};

const TABLE: &str = "ledger";

impl PostgresStore {
    pub(super) async fn insert_entry(&self, claim: &Claim, entry: &NewEntry) -> Result<bool, StoreError> {
        // The row lock: without it, a takeover could come between the look at the fence and the commit, mark what was
        // in flight, and miss this entry.
        let insert = query(
            "INSERT INTO ledger
                (request_id, session, idempotency_key, method, route, path, dispatched_us, fence, outcome)
             SELECT $1, id, $2, $3, $4, $5, now_us(), fence, 'in_flight'
             FROM sessions
             WHERE id = $6 AND owner = $7 AND fence = $8 AND lease_until_us > now_us()
               AND NOT revoked AND ended_us IS NULL
             FOR SHARE",
        );
        let insert = insert
            .bind(entry.request_id.to_string())
            .bind(&entry.idempotency_key)
            .bind(&entry.method)
            .bind(&entry.route)
            .bind(&entry.path)
            .bind(claim.session.to_string())
            .bind(claim.daemon.to_string())
            .bind(claim.fence.0);
        self.write_one(insert).await
    }

    pub(super) async fn settle_entry(
        &self,
        claim: &Claim,
        request_id: Uuid,
        outcome: &EntryOutcome,
    ) -> Result<bool, StoreError> {
        let settle = query(
            "UPDATE ledger
             SET outcome = $1, status = $2, reason = $3, settled_us = now_us()
             WHERE request_id = $4 AND session = $5 AND fence = $7 AND outcome = 'in_flight'
               AND EXISTS (SELECT 1 FROM sessions WHERE id = $5 AND owner = $6 AND fence = $7)",
        );
        let settle = settle
            .bind(outcome.name())
            .bind(outcome.status().map(i64::from))
            .bind(outcome.reason())
            .bind(request_id.to_string())
            .bind(claim.session.to_string())
            .bind(claim.daemon.to_string())
            .bind(claim.fence.0);
        self.write_one(settle).await
    }

    pub(super) async fn mark_delivered(
        &self,
        claim: &Claim,
        request_id: Uuid,
        whole: bool,
    ) -> Result<bool, StoreError> {
        let mark = query(
            "UPDATE ledger SET delivered = $1
             WHERE request_id = $2 AND session = $3 AND fence = $5
               AND EXISTS (SELECT 1 FROM sessions WHERE id = $3 AND owner = $4 AND fence = $5)",
        );
        let mark = mark
            .bind(whole)
            .bind(request_id.to_string())
            .bind(claim.session.to_string())
            .bind(claim.daemon.to_string())
            .bind(claim.fence.0);
        self.write_one(mark).await
    }

    pub(super) async fn mark_open(&self, claim: &Claim, reason: &str) -> Result<u64, StoreError> {
        let mark = query(
            "UPDATE ledger
             SET outcome = 'indeterminate', reason = $1, settled_us = now_us()
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
        let found = Reading::each(&Self::fetch(&self.pool, find).await?, TABLE, |row| row.entry())?;
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
        let found = Reading::each(&Self::fetch(&self.pool, find).await?, TABLE, |row| row.entry())?;
        Ok(found.into_iter().next())
    }

    pub(super) async fn list_entries(&self, session: Uuid, most: u32) -> Result<Vec<EntryRow>, StoreError> {
        let list = query(
            "SELECT * FROM ledger WHERE session = $1 ORDER BY dispatched_us DESC, request_id DESC LIMIT $2",
        );
        let list = list.bind(session.to_string()).bind(i64::from(most));
        Reading::each(&Self::fetch(&self.pool, list).await?, TABLE, |row| row.entry())
    }

    pub(super) async fn delete_entries(&self, age: Duration) -> Result<u64, StoreError> {
        let delete = query(
            "DELETE FROM ledger WHERE request_id IN (
                SELECT request_id FROM ledger
                WHERE dispatched_us < (SELECT now_us()) - $1 AND outcome <> 'in_flight' LIMIT $2)",
        );
        let delete = delete.bind(span(age)).bind(SWEEP_MOST);
        self.write(delete).await
    }
}
