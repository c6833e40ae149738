//! Sessions and their owners, in SQLite.

use std::time::Duration;

use sqlx::query;
use uuid::Uuid;

use super::{Query, SqliteStore, read_error};
use crate::store::columns::{Reading, micros, span};
use crate::store::{Claim, Fence, SessionFilter, SessionRow, StoreError};

const TABLE: &str = "sessions";

impl SqliteStore {
    pub(super) async fn insert_session(
        &self,
        session: &SessionRow,
        daemon: Uuid,
        lease: Duration,
    ) -> Result<Claim, StoreError> {
        let fence = Fence(1);
        let insert = query(
            "INSERT INTO sessions
                (state, reason, target, request, anywhere, tunnel, port, url, unix_path, token_sha256, run_id,
                 agent_id, company_id, issue_id, environment_id, upstream, ready_us, heartbeat_us, expires_us,
                 ended_us, id, created_us, owner, fence, lease_until_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                     $21, $22, $23, $24, (SELECT now_us FROM clock) + $25)",
        );
        let insert = with_content(insert, session)
            .bind(session.id.to_string())
            .bind(micros(session.created_at))
            .bind(daemon.to_string())
            .bind(fence.0)
            .bind(span(lease));
        let done = insert.execute(&mut *self.writer.lock().await).await;
        done.map_err(|error| match error.as_database_error() {
            Some(cause) if cause.is_unique_violation() => StoreError::Exists(session.id),
            _ => read_error(error),
        })?;
        Ok(Claim {
            session: session.id,
            daemon,
            fence,
        })
    }

    pub(super) async fn update_session(
        &self,
        claim: &Claim,
        session: &SessionRow,
    ) -> Result<bool, StoreError> {
        let update = query(
            "UPDATE sessions SET
                state = $1, reason = $2, target = $3, request = $4, anywhere = $5, tunnel = $6, port = $7, url = $8,
                unix_path = $9, token_sha256 = $10, run_id = $11, agent_id = $12, company_id = $13, issue_id = $14,
                environment_id = $15, upstream = $16, ready_us = $17, heartbeat_us = $18, expires_us = $19,
                ended_us = $20
             WHERE id = $21 AND owner = $22 AND fence = $23",
        );
        let update = with_content(update, session);
        self.write_one(with_claim(update, claim)).await
    }

    pub(super) async fn find_session(&self, id: Uuid) -> Result<Option<SessionRow>, StoreError> {
        let find = query("SELECT * FROM sessions WHERE id = $1").bind(id.to_string());
        let found = Reading::each(&Self::fetch(&self.readers, find).await?, TABLE, |row| {
            row.session()
        })?;
        Ok(found.into_iter().next())
    }

    pub(super) async fn list_sessions(&self, filter: SessionFilter) -> Result<Vec<SessionRow>, StoreError> {
        let list = query(
            "SELECT * FROM sessions
             WHERE ($1 IS NULL OR owner = $1) AND ($2 OR ended_us IS NULL)
             ORDER BY created_us DESC, id DESC LIMIT $3",
        );
        let list = list
            .bind(filter.owner.map(|owner| owner.to_string()))
            .bind(filter.ended)
            .bind(i64::from(filter.most));
        Reading::each(&Self::fetch(&self.readers, list).await?, TABLE, |row| {
            row.session()
        })
    }

    pub(super) async fn revoke_session(&self, id: Uuid) -> Result<bool, StoreError> {
        let revoke = query("UPDATE sessions SET revoked = 1 WHERE id = $1 AND ended_us IS NULL");
        self.write_one(revoke.bind(id.to_string())).await
    }

    pub(super) async fn list_revoked(&self, daemon: Uuid) -> Result<Vec<Uuid>, StoreError> {
        let list = query("SELECT id FROM sessions WHERE owner = $1 AND revoked AND ended_us IS NULL");
        let list = list.bind(daemon.to_string());
        Reading::each(&Self::fetch(&self.readers, list).await?, TABLE, |row| {
            row.id("id")
        })
    }

    pub(super) async fn delete_sessions(&self, age: Duration) -> Result<u64, StoreError> {
        // The ledger goes with them, by a trigger.
        let delete = query("DELETE FROM sessions WHERE ended_us < (SELECT now_us FROM clock) - $1");
        self.write(delete.bind(span(age))).await
    }

    pub(super) async fn claim_session(
        &self,
        id: Uuid,
        daemon: Uuid,
        lease: Duration,
    ) -> Result<Option<Claim>, StoreError> {
        let claim = query(
            "UPDATE sessions
             SET owner = $1, fence = fence + 1, lease_until_us = (SELECT now_us FROM clock) + $2
             WHERE id = $3 AND ended_us IS NULL
               AND (owner IS NULL OR owner = $1 OR lease_until_us <= (SELECT now_us FROM clock))
             RETURNING id, fence",
        );
        let claim = claim
            .bind(daemon.to_string())
            .bind(span(lease))
            .bind(id.to_string());
        let taken = Reading::each(&self.fetch_writing(claim).await?, TABLE, |row| row.claim(daemon))?;
        Ok(taken.into_iter().next())
    }

    pub(super) async fn resume_sessions(
        &self,
        daemon: Uuid,
        lease: Duration,
    ) -> Result<Vec<(Claim, SessionRow)>, StoreError> {
        let resume = query(
            "UPDATE sessions
             SET fence = fence + 1, lease_until_us = (SELECT now_us FROM clock) + $2
             WHERE owner = $1 AND ended_us IS NULL
             RETURNING *",
        );
        let resume = resume.bind(daemon.to_string()).bind(span(lease));
        Reading::each(&self.fetch_writing(resume).await?, TABLE, |row| {
            Ok((row.claim(daemon)?, row.session()?))
        })
    }

    pub(super) async fn take_sessions(
        &self,
        daemon: Uuid,
        lease: Duration,
        most: u32,
    ) -> Result<Vec<(Claim, SessionRow)>, StoreError> {
        let take = query(
            "UPDATE sessions
             SET owner = $1, fence = fence + 1, lease_until_us = (SELECT now_us FROM clock) + $2
             WHERE id IN (
                SELECT id FROM sessions
                WHERE ended_us IS NULL AND (anywhere OR owner = $1)
                  AND (owner IS NULL OR lease_until_us <= (SELECT now_us FROM clock))
                ORDER BY lease_until_us LIMIT $3)
             RETURNING *",
        );
        let take = take
            .bind(daemon.to_string())
            .bind(span(lease))
            .bind(i64::from(most));
        Reading::each(&self.fetch_writing(take).await?, TABLE, |row| {
            Ok((row.claim(daemon)?, row.session()?))
        })
    }

    pub(super) async fn renew_claims(
        &self,
        claims: &[Claim],
        lease: Duration,
    ) -> Result<Vec<Uuid>, StoreError> {
        let renew = query(
            "UPDATE sessions SET lease_until_us = (SELECT now_us FROM clock) + $1
             WHERE ended_us IS NULL AND (id, owner, fence) IN (
                SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each($2))
             RETURNING id",
        );
        let claims: Vec<_> = claims
            .iter()
            .map(|claim| (claim.session, claim.daemon, claim.fence.0))
            .collect();
        let claims = serde_json::to_string(&claims).unwrap_or_default();
        let renew = renew.bind(span(lease)).bind(claims);
        Reading::each(&self.fetch_writing(renew).await?, TABLE, |row| row.id("id"))
    }

    pub(super) async fn release_session(&self, claim: &Claim) -> Result<bool, StoreError> {
        let release = query(
            "UPDATE sessions SET owner = NULL, lease_until_us = NULL WHERE id = $1 AND owner = $2 AND fence = $3",
        );
        self.write_one(with_claim(release, claim)).await
    }
}

/// Binds what an owner may change, in the order of `insert_session` and `update_session`.
fn with_content<'q>(query: Query<'q>, session: &'q SessionRow) -> Query<'q> {
    query
        .bind(&session.state)
        .bind(&session.reason)
        .bind(&session.target)
        .bind(session.request.to_string())
        .bind(session.anywhere)
        .bind(&session.tunnel)
        .bind(session.port.map(i64::from))
        .bind(&session.url)
        .bind(&session.unix_path)
        .bind(session.token_sha256.to_vec())
        .bind(&session.run_id)
        .bind(&session.agent_id)
        .bind(&session.company_id)
        .bind(&session.issue_id)
        .bind(&session.environment_id)
        .bind(&session.upstream)
        .bind(session.ready_at.map(micros))
        .bind(session.heartbeat_at.map(micros))
        .bind(session.expires_at.map(micros))
        .bind(session.ended_at.map(micros))
}

/// Binds session, owner and fence.
fn with_claim<'q>(query: Query<'q>, claim: &Claim) -> Query<'q> {
    query
        .bind(claim.session.to_string())
        .bind(claim.daemon.to_string())
        .bind(claim.fence.0)
}
