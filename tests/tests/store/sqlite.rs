//! What a store in a file promises besides.

use std::os::unix::fs::PermissionsExt as _;

use bridge::store::{self, EntryOutcome, StoreError, StoreUrl};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::ground::{LONG, entry, folder, opened, session};

async fn open(folder: &TempDir) -> Result<std::sync::Arc<dyn store::Store>, StoreError> {
    opened(StoreUrl::Sqlite, folder).await
}

/// As another program that opens the file.
async fn other_program(folder: &TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.path().join("store.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

#[tokio::test]
async fn two_daemons_never_share_a_folder() {
    let folder = folder();
    let first = open(&folder).await.unwrap();

    let second = open(&folder).await;

    assert!(matches!(second, Err(StoreError::InUse(_))), "{second:?}");
    let daemon = first.daemon();
    drop(first);
    assert_eq!(open(&folder).await.unwrap().daemon(), daemon);
}

#[tokio::test]
async fn a_store_outlives_its_daemon() {
    let folder = folder();
    let row = session();
    let first = open(&folder).await.unwrap();
    let claim = first.create(&row, first.daemon(), LONG).await.unwrap();
    let written = entry(None);
    assert!(first.dispatch(&claim, &written).await.unwrap());
    drop(first);

    let second = open(&folder).await.unwrap();
    let resumed = second.resume(second.daemon(), LONG).await.unwrap();

    assert_eq!(resumed.len(), 1);
    assert_eq!(
        (resumed[0].1.id, resumed[0].1.run_id.as_str()),
        (row.id, row.run_id.as_str())
    );
    assert_eq!(
        second
            .mark_indeterminate(&resumed[0].0, "daemon_restarted")
            .await
            .unwrap(),
        1
    );
    let read = second.entry(written.request_id).await.unwrap().unwrap();
    assert!(
        matches!(read.outcome, EntryOutcome::Indeterminate { .. }),
        "{read:?}"
    );
}

#[tokio::test]
async fn nobody_else_can_read_the_files() {
    let folder = folder();
    let store = open(&folder).await.unwrap();
    store.create(&session(), store.daemon(), LONG).await.unwrap();

    let files = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().path());
    let modes: Vec<_> = files
        .map(|file| {
            (
                file.clone(),
                std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
            )
        })
        .collect();

    assert!(modes.len() >= 4, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let folder = folder();
    drop(open(&folder).await.unwrap());
    let mut other = other_program(&folder).await;
    let count = "SELECT count(*) FROM _sqlx_migrations";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&mut other).await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (99, 'later', 0, TRUE, x'00', 0)")
        .execute(&mut other)
        .await
        .unwrap();

    let downgraded = open(&folder).await;

    let Err(StoreError::Newer { found: 99, .. }) = &downgraded else {
        panic!("{downgraded:?}")
    };
    assert!(downgraded.unwrap_err().to_string().contains("restore a backup"));
    let after: i64 = sqlx::query_scalar(count).fetch_one(&mut other).await.unwrap();
    assert_eq!(after, before + 1);
}

#[tokio::test]
async fn a_backup_is_made_while_the_store_is_written_and_can_be_opened() {
    let folder = folder();
    let store = open(&folder).await.unwrap();
    let row = session();
    let claim = store.create(&row, store.daemon(), LONG).await.unwrap();
    let before = entry(None);
    assert!(store.dispatch(&claim, &before).await.unwrap());
    let restored = crate::ground::folder();
    let file = restored.path().join("store.db");

    let writing = async {
        for _ in 0..200 {
            assert!(store.dispatch(&claim, &entry(None)).await.unwrap());
        }
    };
    let (made, ()) = tokio::join!(store.backup(&file), writing);
    made.unwrap();

    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let names: Vec<_> = std::fs::read_dir(restored.path())
        .unwrap()
        .map(|name| name.unwrap().file_name())
        .collect();
    assert_eq!(names, ["store.db"]);
    let copy = open(&restored).await.unwrap();
    assert_eq!(copy.session(row.id).await.unwrap().unwrap().run_id, row.run_id);
    assert!(copy.entry(before.request_id).await.unwrap().is_some());
    let again = store.backup(&file).await;
    assert!(matches!(again, Err(StoreError::Backup(_))), "{again:?}");
}

#[tokio::test]
async fn a_backup_without_a_daemon_leaves_no_file_where_there_is_no_store() {
    let folder = folder();
    let file = folder.path().join("copy.db");

    let none = store::backup(folder.path(), &file).await;
    assert!(matches!(none, Err(StoreError::Backup(_))), "{none:?}");
    assert!(!file.exists());

    drop(open(&folder).await.unwrap());
    store::backup(folder.path(), &file).await.unwrap();
    assert!(file.exists());
}

#[tokio::test]
async fn a_file_that_is_no_store_is_said_to_be_damaged_and_not_replaced() {
    let folder = folder();
    let file = folder.path().join("store.db");
    let text = "no database ".repeat(1_000);
    std::fs::write(&file, &text).unwrap();

    let opened = open(&folder).await;

    assert!(matches!(opened, Err(StoreError::Damaged(_))), "{opened:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn a_page_that_was_overwritten_is_found_when_the_store_is_opened() {
    let folder = folder();
    let store = open(&folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    for _ in 0..200 {
        assert!(store.dispatch(&claim, &entry(Some("k"))).await.unwrap());
    }
    drop(store);
    let copy = crate::ground::folder();
    let file = copy.path().join("store.db");
    store::backup(folder.path(), &file).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4096 * 3..end - 4096].fill(0xa5);
    std::fs::write(&file, bytes).unwrap();

    let opened = open(&copy).await;

    assert!(matches!(opened, Err(StoreError::Damaged(_))), "{opened:?}");
}

#[tokio::test]
async fn another_program_that_locks_the_file_makes_a_call_fail_and_not_hang() {
    let folder = folder();
    let store = open(&folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    let mut other = other_program(&folder).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();

    let dispatched = store.dispatch(&claim, &entry(None)).await;
    assert!(matches!(dispatched, Err(StoreError::Busy(_))), "{dispatched:?}");

    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert!(store.dispatch(&claim, &entry(None)).await.unwrap());
}
