//! Daemons, leases, owed clean-ups, nonces and audit heads, in PostgreSQL.

use std::time::Duration;

use sqlx::query;
use uuid::Uuid;

use super::PostgresStore;
use crate::store::columns::{Reading, micros, span};
use crate::store::{AuditHeadRow, CleanupRow, DaemonPlace, DaemonRow, LeaseRow, SWEEP_MOST, StoreError};

impl PostgresStore {
    pub(super) async fn beat(&self) -> Result<(), StoreError> {
        let beat = query(
            "INSERT INTO daemons (id, seen_us) VALUES ($1, now_us())
             ON CONFLICT (id) DO UPDATE SET seen_us = excluded.seen_us",
        );
        let beat = beat.bind(self.folder.daemon().to_string());
        self.write(beat).await.map(drop)
    }

    pub(super) async fn write_daemon(&self, place: &DaemonPlace) -> Result<(), StoreError> {
        let put = query(
            "INSERT INTO daemons (id, address, host, version, started_us, seen_us)
             VALUES ($1, $2, $3, $4, $5, now_us())
             ON CONFLICT (id) DO UPDATE SET address = excluded.address, host = excluded.host,
                version = excluded.version, started_us = excluded.started_us, seen_us = excluded.seen_us",
        );
        let put = put
            .bind(self.folder.daemon().to_string())
            .bind(&place.address)
            .bind(&place.host)
            .bind(&place.version)
            .bind(micros(place.started_at));
        self.write(put).await.map(drop)
    }

    pub(super) async fn list_daemons(&self) -> Result<Vec<DaemonRow>, StoreError> {
        let list = query("SELECT * FROM daemons ORDER BY seen_us DESC, id");
        Reading::each(&Self::fetch(&self.pool, list).await?, "daemons", |row| {
            row.daemon()
        })
    }

    pub(super) async fn delete_daemons(&self, age: Duration) -> Result<u64, StoreError> {
        let delete = query(
            "DELETE FROM daemons WHERE seen_us < (SELECT now_us()) - $1
               AND NOT EXISTS (SELECT 1 FROM sessions WHERE owner = daemons.id AND ended_us IS NULL)",
        );
        self.write(delete.bind(span(age))).await
    }

    pub(super) async fn write_lease(&self, lease: &LeaseRow) -> Result<(), StoreError> {
        let put = query(
            "INSERT INTO leases (name, provider, account, stage, session, record, since_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (name) DO UPDATE SET provider = excluded.provider, account = excluded.account,
                stage = excluded.stage, session = excluded.session, record = excluded.record,
                since_us = excluded.since_us",
        );
        let put = put
            .bind(&lease.name)
            .bind(&lease.provider)
            .bind(&lease.account)
            .bind(&lease.stage)
            .bind(lease.session.map(|session| session.to_string()))
            .bind(lease.record.to_string())
            .bind(micros(lease.since));
        self.write(put).await.map(drop)
    }

    pub(super) async fn list_leases(&self) -> Result<Vec<LeaseRow>, StoreError> {
        let list = query("SELECT * FROM leases ORDER BY since_us, name");
        Reading::each(&Self::fetch(&self.pool, list).await?, "leases", |row| row.lease())
    }

    pub(super) async fn remove_lease(&self, name: &str) -> Result<bool, StoreError> {
        self.write_one(query("DELETE FROM leases WHERE name = $1").bind(name))
            .await
    }

    pub(super) async fn write_cleanup(&self, cleanup: &CleanupRow) -> Result<(), StoreError> {
        let put = query(
            "INSERT INTO cleanups (name, session, target, record, since_us, attempts, next_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (name) DO UPDATE SET session = excluded.session, target = excluded.target,
                record = excluded.record, since_us = excluded.since_us, attempts = excluded.attempts,
                next_us = excluded.next_us",
        );
        let put = put
            .bind(&cleanup.name)
            .bind(cleanup.session.map(|session| session.to_string()))
            .bind(&cleanup.target)
            .bind(cleanup.record.to_string())
            .bind(micros(cleanup.since))
            .bind(i64::from(cleanup.attempts))
            .bind(cleanup.next.map(micros));
        self.write(put).await.map(drop)
    }

    pub(super) async fn list_cleanups(&self) -> Result<Vec<CleanupRow>, StoreError> {
        let list = query("SELECT * FROM cleanups ORDER BY since_us, name");
        Reading::each(&Self::fetch(&self.pool, list).await?, "cleanups", |row| {
            row.cleanup()
        })
    }

    pub(super) async fn remove_cleanup(&self, name: &str) -> Result<bool, StoreError> {
        self.write_one(query("DELETE FROM cleanups WHERE name = $1").bind(name))
            .await
    }

    pub(super) async fn insert_nonce(
        &self,
        key_id: &str,
        nonce: &str,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let insert = query(
            "INSERT INTO nonces (key_id, nonce, until_us) VALUES ($1, $2, now_us() + $3)
             ON CONFLICT DO NOTHING",
        );
        self.write_one(insert.bind(key_id).bind(nonce).bind(span(keep)))
            .await
    }

    pub(super) async fn delete_nonces(&self) -> Result<u64, StoreError> {
        let delete = query(
            "DELETE FROM nonces WHERE (key_id, nonce) IN (
                SELECT key_id, nonce FROM nonces WHERE until_us <= (SELECT now_us()) LIMIT $1)",
        );
        self.write(delete.bind(SWEEP_MOST)).await
    }

    pub(super) async fn write_audit_head(&self, head: &AuditHeadRow) -> Result<bool, StoreError> {
        let put = query(
            "INSERT INTO audit_heads (daemon, segment, seq, sha256, hmac, at_us) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (daemon, segment) DO UPDATE SET seq = excluded.seq, sha256 = excluded.sha256,
                hmac = excluded.hmac, at_us = excluded.at_us
             WHERE excluded.seq > audit_heads.seq",
        );
        let put = put
            .bind(head.daemon.to_string())
            .bind(&head.segment)
            .bind(i64::try_from(head.seq).unwrap_or(i64::MAX))
            .bind(head.sha256.to_vec())
            .bind(head.hmac.to_vec())
            .bind(micros(head.at));
        self.write_one(put).await
    }

    pub(super) async fn list_audit_heads(
        &self,
        daemon: Uuid,
        most: u32,
    ) -> Result<Vec<AuditHeadRow>, StoreError> {
        let list =
            query("SELECT * FROM audit_heads WHERE daemon = $1 ORDER BY at_us DESC, segment DESC LIMIT $2");
        let list = list.bind(daemon.to_string()).bind(i64::from(most));
        Reading::each(&Self::fetch(&self.pool, list).await?, "audit heads", |row| {
            row.audit_head()
        })
    }
}
