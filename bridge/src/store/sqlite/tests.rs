//! What only the inside can bring about: the end of the disk.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::*;
use crate::store::Hold;

const LEASE: Duration = Duration::from_secs(600);

fn session() -> SessionRow {
    SessionRow {
        id: Uuid::now_v7(),
        state: "ready".to_owned(),
        reason: None,
        target: "local".to_owned(),
        request: serde_json::Value::Null,
        anywhere: false,
        tunnel: None,
        port: None,
        url: None,
        unix_path: None,
        token_sha256: [0; 32],
        run_id: "run".to_owned(),
        agent_id: None,
        company_id: None,
        issue_id: None,
        environment_id: None,
        upstream: "default".to_owned(),
        created_at: SystemTime::now(),
        ready_at: None,
        heartbeat_at: None,
        expires_at: None,
        ended_at: None,
        revoked: false,
        hold: Hold::default(),
    }
}

fn entry() -> NewEntry {
    NewEntry {
        request_id: Uuid::now_v7(),
        idempotency_key: None,
        method: "POST".to_owned(),
        route: "/api/x".to_owned(),
        path: format!("/api/{}", "x".repeat(1_000)),
    }
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_loses_nothing_that_was_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let locked = Folder::lock(folder.path()).unwrap();
    let small = SqliteStore::open_pages(locked, Durability::Write, Some(40))
        .await
        .unwrap();
    let claim = small.create(&session(), small.daemon(), LEASE).await.unwrap();

    let mut confirmed = Vec::new();
    let full = loop {
        let entry = entry();
        match small.dispatch(&claim, &entry).await {
            Ok(written) => assert!(written),
            Err(error) => break error,
        }
        confirmed.push(entry.request_id);
        assert!(confirmed.len() < 10_000, "40 pages never fill");
    };

    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    assert!(!confirmed.is_empty());
    drop(small);
    // With room again, the same file is whole.
    let roomy = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write);
    let roomy = roomy.await.unwrap();
    let kept = roomy.recent_entries(claim.session, 10_000).await.unwrap();
    assert_eq!(kept.len(), confirmed.len());
    assert!(roomy.dispatch(&claim, &entry()).await.unwrap());
}
