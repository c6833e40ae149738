//! What only the inside can bring about: the end of the disk.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
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

    let (mut confirmed, mut full) = (0, Vec::new());
    while full.is_empty() {
        // One alone, then several that are committed together.
        let entries: Vec<_> = (0..8).map(|_| entry()).collect();
        let (one, several) = entries.split_first().unwrap();
        let mut done = vec![small.dispatch(&claim, one).await];
        done.extend(join_all(several.iter().map(|entry| small.dispatch(&claim, entry))).await);
        confirmed += done.iter().filter(|done| matches!(done, Ok(true))).count();
        full.extend(done.into_iter().filter_map(Result::err));
        assert!(confirmed < 10_000, "40 pages never fill");
    }

    assert!(
        full.iter().all(|error| matches!(error, StoreError::Full(_))),
        "{full:?}"
    );
    assert!(confirmed > 0);
    drop(small);
    // With room again, the same file is whole.
    let roomy = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write);
    let roomy = roomy.await.unwrap();
    let kept = roomy.recent_entries(claim.session, 10_000).await.unwrap();
    assert_eq!(kept.len(), confirmed);
    assert!(roomy.dispatch(&claim, &entry()).await.unwrap());
}

#[tokio::test]
async fn an_entry_that_is_there_already_does_not_undo_those_committed_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Fsync)
        .await
        .unwrap();
    let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
    let entries: Vec<_> = (0..20).map(|_| entry()).collect();
    assert!(store.dispatch(&claim, &entries[7]).await.unwrap());

    let done = join_all(entries.iter().map(|entry| store.dispatch(&claim, entry))).await;

    let written = done.iter().filter(|done| matches!(done, Ok(true))).count();
    assert!(done[7].is_err() && written == 19, "{done:?}");
    assert_eq!(store.recent_entries(claim.session, 50).await.unwrap().len(), 20);
}

#[tokio::test]
async fn an_entry_whose_caller_went_away_before_its_turn_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write)
        .await
        .unwrap();
    let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
    let (gone, kept) = (entry(), entry());
    // Until this is given back, nothing is committed.
    let held = store.writer.acquire().await.unwrap();
    // The first to wait has been taken from the queue; the second still stands in it.
    let first = entry();
    let mut first = store.dispatch(&claim, &first);
    let mut second = store.dispatch(&claim, &gone);
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(futures_util::poll!(&mut second).is_pending());

    drop(second);
    drop(held);

    assert!(first.await.unwrap());
    assert!(store.dispatch(&claim, &kept).await.unwrap());
    assert_eq!(store.entry(gone.request_id).await.unwrap(), None);
}

#[tokio::test]
async fn an_entry_that_is_there_already_is_no_fault_of_those_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write)
        .await
        .unwrap();
    let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
    let entries: Vec<_> = (0..8).map(|_| entry()).collect();
    let twice = entries.get(3).unwrap();
    assert!(store.dispatch(&claim, twice).await.unwrap());

    let answers = join_all(entries.iter().map(|entry| store.dispatch(&claim, entry))).await;

    let wrong: Vec<_> = answers
        .iter()
        .enumerate()
        .filter(|(_, answer)| answer.is_err())
        .map(|(number, _)| number)
        .collect();
    assert_eq!(wrong, [3], "{answers:?}");
    for entry in &entries {
        let found = store.entry(entry.request_id).await.unwrap();
        assert!(found.is_some(), "{}", entry.request_id);
    }
}

#[tokio::test]
async fn outcomes_of_many_callbacks_are_written_each_to_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write)
        .await
        .unwrap();
    let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
    let entries: Vec<_> = (0..100).map(|_| entry()).collect();
    join_all(entries.iter().map(|entry| store.dispatch(&claim, entry))).await;

    let settled = entries.iter().zip(200_u16..).map(|(entry, status)| {
        let (store, claim) = (&store, &claim);
        async move {
            let outcome = EntryOutcome::Answered { status };
            let (settled, delivered) = tokio::join!(
                store.settle(claim, entry.request_id, &outcome),
                store.delivered(claim, entry.request_id, true)
            );
            settled.unwrap() && delivered.unwrap()
        }
    });
    let settled = join_all(settled).await;

    assert_eq!(settled, [true; 100]);
    for (entry, status) in entries.iter().zip(200_u16..) {
        let found = store.entry(entry.request_id).await.unwrap().unwrap();
        assert_eq!(found.outcome, EntryOutcome::Answered { status });
        assert_eq!(found.delivered, Some(true));
    }
    // Nobody's: another fence, and one that is settled.
    let stranger = Claim {
        fence: crate::store::Fence(claim.fence.0 + 1),
        ..claim
    };
    let first = entries.first().unwrap().request_id;
    for claim in [&stranger, &claim] {
        assert!(!store.settle(claim, first, &EntryOutcome::NotSent).await.unwrap());
    }
}

#[tokio::test]
async fn the_log_is_moved_into_the_file_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Folder::lock(folder.path()).unwrap(), Durability::Write)
        .await
        .unwrap();
    let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
    let size = || std::fs::metadata(folder.path().join(FILE)).unwrap().len();
    let before = size();

    for _ in 0..30 {
        let entries: Vec<_> = (0..100).map(|_| entry()).collect();
        join_all(entries.iter().map(|entry| store.dispatch(&claim, entry))).await;
    }

    let limit = Duration::from_secs(30);
    let moved = async {
        while size() <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(limit, moved).await.is_ok(), "{}", size());
}
