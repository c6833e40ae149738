//! What a store on a server promises besides.

use bridge::secrets::Secret;
use bridge::store::{Heard, StoreError, StoreUrl};
use futures_util::StreamExt as _;
use paperclip_bridge_tests::postgres::{self, Cluster};
use paperclip_bridge_tests::{can_run, within};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::ground::{GUARD, LONG, NONE, entry, folder, opened, session};

fn url(text: &str) -> StoreUrl {
    StoreUrl::Postgres(Secret::new(text))
}

#[tokio::test]
async fn a_server_that_is_gone_is_said_to_be_unreachable_and_found_again() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let folder = folder();
    let store = opened(url(&cluster.database()), &folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    cluster.stop();

    for _ in 0..3 {
        let dispatched = store.dispatch(&claim, &entry(None)).await;
        assert!(
            matches!(dispatched, Err(StoreError::Unreachable(_))),
            "{dispatched:?}"
        );
    }
    let ready = store.ready().await;
    assert!(matches!(ready, Err(StoreError::Unreachable(_))), "{ready:?}");

    cluster.resume();
    assert!(store.dispatch(&claim, &entry(None)).await.unwrap());
}

#[tokio::test]
async fn after_a_loss_of_the_server_other_daemons_are_heard_again() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let folder = folder();
    let store = opened(url(&cluster.database()), &folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    let mut hearing = store.listen().unwrap();
    let mut hear = async || within(GUARD, "something is heard", hearing.next()).await.unwrap();
    assert_eq!(hear().await, Heard::Anew);

    cluster.stop();
    cluster.resume();

    // What was said meanwhile was missed, and this says so.
    assert_eq!(hear().await, Heard::Anew);
    assert!(store.revoke(claim.session).await.unwrap());
    assert_eq!(hear().await, Heard::Revoked(claim.session));
}

#[tokio::test]
async fn what_others_say_on_the_same_database_is_no_session() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap();
    let database = cluster.database();
    let folder = folder();
    let store = opened(url(&database), &folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    let mut hearing = store.listen().unwrap();
    let mut hear = async || within(GUARD, "something is heard", hearing.next()).await.unwrap();
    assert_eq!(hear().await, Heard::Anew);
    let mut other = PgConnection::connect(&database).await.unwrap();

    for said in ["", "revoke everything", "00000000-0000-0000-0000-00000000000g"] {
        sqlx::query("SELECT pg_notify('paperclip_bridge_revoked', $1)")
            .bind(said)
            .execute(&mut other)
            .await
            .unwrap();
    }
    assert!(store.revoke(claim.session).await.unwrap());

    assert_eq!(hear().await, Heard::Revoked(claim.session));
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap();
    let database = cluster.database();
    let folder = folder();
    drop(opened(url(&database), &folder).await.unwrap());
    let mut other = PgConnection::connect(&database).await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), TRUE, 'x', 0)")
        .execute(&mut other)
        .await
        .unwrap();

    let downgraded = opened(url(&database), &folder).await;

    assert!(
        matches!(downgraded, Err(StoreError::Newer { found: 99, .. })),
        "{downgraded:?}"
    );
}

#[tokio::test]
async fn a_session_that_another_has_locked_is_left_to_it() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap();
    let database = cluster.database();
    let folder = folder();
    let store = opened(url(&database), &folder).await.unwrap();
    let locked = store.create(&session(), store.daemon(), NONE).await.unwrap();
    let free = store.create(&session(), store.daemon(), NONE).await.unwrap();
    let mut other = PgConnection::connect(&database).await.unwrap();
    let mut holding = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE")
        .bind(locked.session.to_string())
        .execute(&mut *holding)
        .await
        .unwrap();

    let daemon = Uuid::now_v7();
    let taken = store.take_over(daemon, LONG, 10).await.unwrap();

    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].0.session, free.session);
    drop(holding);
    drop(other);
}

/// The insert holds the session's row until it is committed, so that a takeover waits for it and then finds it.
#[tokio::test]
async fn an_entry_waits_for_a_takeover_under_way_and_is_then_refused() {
    if !can_run(postgres::here()) {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap();
    let database = cluster.database();
    let folder = folder();
    let store = opened(url(&database), &folder).await.unwrap();
    let claim = store.create(&session(), store.daemon(), LONG).await.unwrap();
    let mut other = PgConnection::connect(&database).await.unwrap();
    let mut takeover = other.begin().await.unwrap();
    sqlx::query("UPDATE sessions SET fence = fence + 1, owner = 'another' WHERE id = $1")
        .bind(claim.session.to_string())
        .execute(&mut *takeover)
        .await
        .unwrap();

    let entry = entry(None);
    let mut dispatch = Box::pin(store.dispatch(&claim, &entry));
    let mut watching = PgConnection::connect(&database).await.unwrap();
    // The condition: the server says that it waits for the row.
    let waits = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO ledger%'
                 AND datname = current_database()",
            )
            .fetch_one(&mut watching)
            .await
            .unwrap();
            if waiting == 1 {
                return;
            }
        }
    };
    tokio::select! {
        early = &mut dispatch => panic!("it did not wait: {early:?}"),
        () = waits => {}
    }
    takeover.commit().await.unwrap();

    assert!(!dispatch.await.unwrap());
    assert_eq!(store.entry(entry.request_id).await.unwrap(), None);
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_being_repeated() {
    let folder = folder();

    let opened = opened(url("postgres://me:hidden@host:none/db"), &folder).await;

    let error = opened.unwrap_err();
    assert!(matches!(error, StoreError::Url(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hidden"));
}
