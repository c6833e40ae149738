//! How rows are read, whichever database they come from.
//!
//! Here: [`Columns`], what a row of either database gives, and the rows of the store made from it. Times are
//! microseconds since 1970 in both. Not here: any SQL.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::error::StoreError;
use super::ledger::{EntryOutcome, EntryRow};
use super::records::{AuditHeadRow, CleanupRow, DaemonPlace, DaemonRow, LeaseRow};
use super::session::{Claim, Fence, Hold, SessionRow};

/// A row of either database, its columns by name.
pub(super) trait Columns {
    fn text(&self, name: &'static str) -> Result<Option<String>, sqlx::Error>;
    fn int(&self, name: &'static str) -> Result<Option<i64>, sqlx::Error>;
    fn flag(&self, name: &'static str) -> Result<Option<bool>, sqlx::Error>;
    fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, sqlx::Error>;
}

/// A row with the name of its table, for what is said of one that cannot be read.
pub(super) struct Reading<'a> {
    row: &'a dyn Columns,
    table: &'static str,
}

impl Reading<'_> {
    /// Reads every row of this table.
    pub(super) fn each<R: Columns, T>(
        rows: &[R],
        table: &'static str,
        read: impl Fn(&Reading<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        rows.iter().map(|row| read(&Reading { row, table })).collect()
    }

    fn fault(&self, name: &str, why: impl std::fmt::Display) -> StoreError {
        StoreError::Row {
            table: self.table,
            why: format!("{name}: {why}"),
        }
    }

    fn there<T>(&self, name: &'static str, value: Option<T>) -> Result<T, StoreError> {
        value.ok_or_else(|| self.fault(name, "it is absent"))
    }

    fn may_text(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.row.text(name).map_err(|error| self.fault(name, error))
    }

    fn text(&self, name: &'static str) -> Result<String, StoreError> {
        self.there(name, self.may_text(name)?)
    }

    fn may_int(&self, name: &'static str) -> Result<Option<i64>, StoreError> {
        self.row.int(name).map_err(|error| self.fault(name, error))
    }

    fn int(&self, name: &'static str) -> Result<i64, StoreError> {
        self.there(name, self.may_int(name)?)
    }

    fn may_small<T: TryFrom<i64>>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let small =
            |value| T::try_from(value).map_err(|_| self.fault(name, format!("{value} is out of range")));
        self.may_int(name)?.map(small).transpose()
    }

    fn may_flag(&self, name: &'static str) -> Result<Option<bool>, StoreError> {
        self.row.flag(name).map_err(|error| self.fault(name, error))
    }

    fn flag(&self, name: &'static str) -> Result<bool, StoreError> {
        self.there(name, self.may_flag(name)?)
    }

    fn digest(&self, name: &'static str) -> Result<[u8; 32], StoreError> {
        let bytes = self.row.bytes(name).map_err(|error| self.fault(name, error))?;
        let bytes = self.there(name, bytes)?;
        let length = bytes.len();
        <[u8; 32]>::try_from(bytes).map_err(|_| self.fault(name, format!("it has {length} bytes and not 32")))
    }

    fn may_id(&self, name: &'static str) -> Result<Option<Uuid>, StoreError> {
        let id = |text: String| Uuid::try_parse(&text).map_err(|error| self.fault(name, error));
        self.may_text(name)?.map(id).transpose()
    }

    /// An identifier.
    pub(super) fn id(&self, name: &'static str) -> Result<Uuid, StoreError> {
        self.there(name, self.may_id(name)?)
    }

    fn may_time(&self, name: &'static str) -> Result<Option<SystemTime>, StoreError> {
        Ok(self.may_int(name)?.map(time))
    }

    fn time(&self, name: &'static str) -> Result<SystemTime, StoreError> {
        Ok(time(self.int(name)?))
    }

    fn json(&self, name: &'static str) -> Result<serde_json::Value, StoreError> {
        serde_json::from_str(&self.text(name)?).map_err(|error| self.fault(name, error))
    }

    /// The claim that the session's row stands for.
    pub(super) fn claim(&self, daemon: Uuid) -> Result<Claim, StoreError> {
        Ok(Claim {
            session: self.id("id")?,
            daemon,
            fence: Fence(self.int("fence")?),
        })
    }

    pub(super) fn session(&self) -> Result<SessionRow, StoreError> {
        Ok(SessionRow {
            id: self.id("id")?,
            state: self.text("state")?,
            reason: self.may_text("reason")?,
            target: self.text("target")?,
            request: self.json("request")?,
            anywhere: self.flag("anywhere")?,
            tunnel: self.may_text("tunnel")?,
            port: self.may_small("port")?,
            url: self.may_text("url")?,
            unix_path: self.may_text("unix_path")?,
            token_sha256: self.digest("token_sha256")?,
            run_id: self.text("run_id")?,
            agent_id: self.may_text("agent_id")?,
            company_id: self.may_text("company_id")?,
            issue_id: self.may_text("issue_id")?,
            environment_id: self.may_text("environment_id")?,
            upstream: self.text("upstream")?,
            created_at: self.time("created_us")?,
            ready_at: self.may_time("ready_us")?,
            heartbeat_at: self.may_time("heartbeat_us")?,
            expires_at: self.may_time("expires_us")?,
            ended_at: self.may_time("ended_us")?,
            revoked: self.flag("revoked")?,
            hold: Hold {
                owner: self.may_id("owner")?,
                fence: Fence(self.int("fence")?),
                lease_until: self.may_time("lease_until_us")?,
            },
        })
    }

    pub(super) fn entry(&self) -> Result<EntryRow, StoreError> {
        let name = self.text("outcome")?;
        let outcome = EntryOutcome::from_columns(&name, self.may_small("status")?, self.may_text("reason")?);
        Ok(EntryRow {
            request_id: self.id("request_id")?,
            session: self.id("session")?,
            idempotency_key: self.may_text("idempotency_key")?,
            method: self.text("method")?,
            route: self.text("route")?,
            path: self.text("path")?,
            dispatched_at: self.time("dispatched_us")?,
            fence: Fence(self.int("fence")?),
            outcome: self.there("outcome", outcome)?,
            delivered: self.may_flag("delivered")?,
            settled_at: self.may_time("settled_us")?,
        })
    }

    pub(super) fn daemon(&self) -> Result<DaemonRow, StoreError> {
        let place = match self.may_text("address")? {
            Some(address) => Some(DaemonPlace {
                address,
                host: self.text("host")?,
                version: self.text("version")?,
                started_at: self.time("started_us")?,
            }),
            None => None,
        };
        Ok(DaemonRow {
            id: self.id("id")?,
            place,
            seen_at: self.time("seen_us")?,
        })
    }

    pub(super) fn lease(&self) -> Result<LeaseRow, StoreError> {
        Ok(LeaseRow {
            name: self.text("name")?,
            provider: self.text("provider")?,
            account: self.text("account")?,
            stage: self.text("stage")?,
            session: self.may_id("session")?,
            record: self.json("record")?,
            since: self.time("since_us")?,
        })
    }

    pub(super) fn cleanup(&self) -> Result<CleanupRow, StoreError> {
        Ok(CleanupRow {
            name: self.text("name")?,
            session: self.may_id("session")?,
            target: self.text("target")?,
            record: self.json("record")?,
            since: self.time("since_us")?,
            attempts: self.there("attempts", self.may_small("attempts")?)?,
            next: self.may_time("next_us")?,
        })
    }

    pub(super) fn audit_head(&self) -> Result<AuditHeadRow, StoreError> {
        Ok(AuditHeadRow {
            daemon: self.id("daemon")?,
            segment: self.text("segment")?,
            seq: self.there("seq", self.may_small("seq")?)?,
            sha256: self.digest("sha256")?,
            hmac: self.digest("hmac")?,
            at: self.time("at_us")?,
        })
    }
}

/// As it is written: microseconds since 1970.
pub(super) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => span(since),
        Err(before) => -span(before.duration()),
    }
}

/// A span of time in microseconds.
pub(super) fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn time(micros: i64) -> SystemTime {
    let span = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        UNIX_EPOCH.checked_sub(span)
    } else {
        UNIX_EPOCH.checked_add(span)
    };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_was_written_also_before_1970() {
        for written in [0, 1, -1, 1_800_000_000_123_456, i64::MAX, -i64::MAX] {
            assert_eq!(micros(time(written)), written);
        }
    }
}
