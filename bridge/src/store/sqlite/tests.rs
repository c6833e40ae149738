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
    let bounds = Bounds {
        pages: Some(40),
        ..Bounds::default()
    };
    let small = SqliteStore::open_within(locked, Durability::Write, bounds)
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
    let held = store.writer.lock().await;
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
async fn under_a_load_without_a_pause_the_log_begins_anew_again_and_again() {
    for durability in [Durability::Write, Durability::Fsync] {
        let folder = tempfile::tempdir().unwrap();
        let locked = Folder::lock(folder.path()).unwrap();
        let bounds = Bounds {
            log_rows: 200,
            ..Bounds::default()
        };
        let store = SqliteStore::open_within(locked, durability, bounds)
            .await
            .unwrap();
        let claim = store.create(&session(), store.daemon(), LEASE).await.unwrap();
        // A salt that changes with each new begin.
        let salt = || {
            let log = std::fs::read(folder.path().join(LOG)).unwrap();
            log.get(16..24).map(<[u8]>::to_vec)
        };
        let begins = Mutex::new(vec![salt()]);

        // Of two, one always waits.
        let entering = || async {
            while begins.lock().await.len() < 4 {
                let entries: Vec<_> = (0..20).map(|_| entry()).collect();
                let done = join_all(entries.iter().map(|entry| store.dispatch(&claim, entry))).await;
                assert!(done.iter().all(|done| matches!(done, Ok(true))), "{done:?}");
                let mut begins = begins.lock().await;
                if begins.last() != Some(&salt()) {
                    begins.push(salt());
                }
            }
        };
        let entering = join_all([entering(), entering()]);

        let limit = Duration::from_secs(60);
        assert!(
            tokio::time::timeout(limit, entering).await.is_ok(),
            "{durability:?}"
        );
        let (file, log) = (folder.path().join(FILE), folder.path().join(LOG));
        let [file, log] = [file, log].map(|path| std::fs::metadata(path).unwrap().len());
        assert!(file > 1_000_000 && log < 50_000_000, "{file} {log}");
    }
}
