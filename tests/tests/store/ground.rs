//! A store to test, as two daemons see it, and what is put into it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bridge::secrets::Secret;
use bridge::store::{
    self, Claim, DaemonPlace, EntryRow, Hold, NewEntry, SessionRow, Store, StoreError, StoreSettings,
    StoreUrl,
};
use paperclip_bridge_tests::postgres::Cluster;
use paperclip_bridge_tests::within;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

/// No test waits for the end of it.
pub(crate) const LONG: Duration = Duration::from_secs(600);
/// Over as soon as it is written.
pub(crate) const NONE: Duration = Duration::ZERO;
pub(crate) const GUARD: Duration = Duration::from_secs(60);

/// A store as two daemons see it: with PostgreSQL each by its own pool, with SQLite both by the one that there is.
pub(crate) struct Ground {
    pub(crate) a: Arc<dyn Store>,
    pub(crate) b: Arc<dyn Store>,
    /// Names of the two daemons.
    pub(crate) ours: Uuid,
    pub(crate) theirs: Uuid,
    _folders: [TempDir; 2],
    _cluster: Option<Arc<Cluster>>,
}

impl Ground {
    pub(crate) async fn sqlite() -> Self {
        let folders = [folder(), folder()];
        let a = opened(StoreUrl::Sqlite, &folders[0]).await.unwrap();
        Self {
            ours: a.daemon(),
            theirs: Uuid::now_v7(),
            b: Arc::clone(&a),
            a,
            _folders: folders,
            _cluster: None,
        }
    }

    pub(crate) async fn postgres() -> Self {
        let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap();
        let url = cluster.database();
        let folders = [folder(), folder()];
        let url = || StoreUrl::Postgres(Secret::new(url.clone()));
        let (a, b) = tokio::join!(opened(url(), &folders[0]), opened(url(), &folders[1]));
        let (a, b) = (a.unwrap(), b.unwrap());
        Self {
            ours: a.daemon(),
            theirs: b.daemon(),
            a,
            b,
            _folders: folders,
            _cluster: Some(cluster),
        }
    }

    /// A session that the first daemon owns for long.
    pub(crate) async fn owned(&self) -> Claim {
        self.owned_for(LONG).await
    }

    pub(crate) async fn owned_for(&self, lease: Duration) -> Claim {
        self.a.create(&session(), self.ours, lease).await.unwrap()
    }

    /// The same session in the hands of the second daemon, as after the death of the first.
    pub(crate) async fn taken_from(&self, claim: &Claim) -> Claim {
        assert_eq!(self.a.renew(&[*claim], NONE).await.unwrap(), [claim.session]);
        let taken = self.b.take_over(self.theirs, LONG, 100).await.unwrap();
        let taken = taken
            .into_iter()
            .find(|(taken, _)| taken.session == claim.session);
        taken.expect("its lease has run out").0
    }

    pub(crate) async fn dispatched(&self, claim: &Claim, key: Option<&str>) -> Uuid {
        let entry = entry(key);
        assert!(self.a.dispatch(claim, &entry).await.unwrap());
        entry.request_id
    }

    pub(crate) async fn entry(&self, request_id: Uuid) -> EntryRow {
        self.b.entry(request_id).await.unwrap().expect("it is there")
    }
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) async fn opened(url: StoreUrl, folder: &TempDir) -> Result<Arc<dyn Store>, StoreError> {
    let settings = StoreSettings::new(url, folder.path().to_owned());
    within(GUARD, "the store opens", store::open(settings)).await
}

/// Where a daemon says that it is found.
pub(crate) fn place(address: &str) -> DaemonPlace {
    DaemonPlace {
        address: address.to_owned(),
        host: "bridge-1".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: at(1_700_000_000_000_001),
    }
}

/// Microseconds are what is kept of a time.
pub(crate) fn at(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

pub(crate) fn session() -> SessionRow {
    SessionRow {
        id: Uuid::now_v7(),
        state: "ready".to_owned(),
        reason: None,
        target: "ssh://me@host".to_owned(),
        request: json!({"target": "ssh://me@host", "credential": "file:/run/key", "limits": {"rate": null}}),
        anywhere: true,
        tunnel: Some("ssh-reverse".to_owned()),
        port: Some(65_535),
        url: Some("http://127.0.0.1:65535".to_owned()),
        unix_path: None,
        token_sha256: [0xfe; 32],
        run_id: "run-\u{e9}'\"-1".to_owned(),
        agent_id: Some("agent".to_owned()),
        company_id: None,
        issue_id: Some(String::new()),
        environment_id: None,
        upstream: "default".to_owned(),
        created_at: at(1_700_000_000_000_001),
        ready_at: Some(at(1_700_000_000_000_002)),
        heartbeat_at: None,
        expires_at: Some(at(1_900_000_000_000_003)),
        ended_at: None,
        revoked: false,
        hold: Hold::default(),
    }
}

pub(crate) fn entry(key: Option<&str>) -> NewEntry {
    NewEntry {
        request_id: Uuid::now_v7(),
        idempotency_key: key.map(str::to_owned),
        method: "POST".to_owned(),
        route: "/api/issues/{id}/comments".to_owned(),
        path: "/api/issues/7/comments".to_owned(),
    }
}
