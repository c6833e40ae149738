//! Several daemons on one PostgreSQL: each session is served by one of them, and by another one when that is gone.

use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::postgres::{self, Cluster};
use paperclip_bridge_tests::raw::Wire;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::Place;
use paperclip_bridge_tests::{Upstream, can_run};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

use crate::ssh_can_run;

const ME: &str = "/api/agents/me";
pub(super) const COMMENTS: &str = "/api/issues/PAP-1/comments";
/// How long is waited before the test says that it does not happen at all; a lease lasts 10 s.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// What may go wrong by chance is tried so often.
const ATTEMPTS: usize = 10;

pub(super) fn here() -> bool {
    can_run(postgres::here()) && ssh_can_run()
}

pub(super) async fn daemon(database: &str) -> Serving {
    Serving::builder()
        .env("PCBRIDGE_STORE__URL", database)
        .start()
        .await
}

async fn shown(daemon: &Serving, session: &Opened) -> Value {
    daemon
        .call("GET", &format!("/v1/sessions/{}", session.session), "")
        .await
        .json()
}

/// Whether this daemon serves it, by its own word: others tell of the owner.
pub(super) async fn serves(daemon: &Serving, session: &Opened) -> bool {
    let shown = shown(daemon, session).await;
    let elsewhere = shown["detail"]
        .as_str()
        .is_some_and(|detail| detail.contains("serves it"));
    shown["state"] == "ready" && !elsewhere
}

/// Waits until its agent is answered at the place that it knows; how long that took.
pub(super) async fn answers(session: &Opened) -> Duration {
    let begin = Instant::now();
    loop {
        if agent(session)
            .get(ME)
            .await
            .is_ok_and(|answer| answer.status == 200)
        {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < LIMIT, "nobody takes the session over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until one of them serves it; never do two.
pub(super) async fn one_serves(daemons: &[&Serving], session: &Opened) {
    let begin = Instant::now();
    loop {
        let mut count = 0;
        for daemon in daemons {
            count += usize::from(serves(daemon, session).await);
        }
        if count == 1 {
            return;
        }
        assert_eq!(count, 0, "a session has one owner");
        assert!(
            begin.elapsed() < LIMIT,
            "no daemon says that it serves the session"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_sessions_of_a_daemon_that_was_killed_are_served_by_another() {
    if !here() {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let place = Place::Ssh(Box::new(Sshd::start()));
    let first = daemon(&database).await;
    let (second, third) = (daemon(&database).await, daemon(&database).await);
    let mut sessions = Vec::new();
    for tunnel in ["ssh-reverse", "http2_v1"] {
        let session = first.session_at(&place, &upstream, &["--tunnel", tunnel]).await;
        assert_eq!(agent(&session).get(ME).await.unwrap().status, 200);
        one_serves(&[&first, &second, &third], &session).await;
        sessions.push(session);
    }

    first.running.signal("KILL");
    let begin = Instant::now();

    for session in &sessions {
        answers(session).await;
        println!("{}: served again after {:?}", session.tunnel, begin.elapsed());
        one_serves(&[&second, &third], session).await;
    }
}

#[tokio::test]
async fn a_daemon_that_was_stopped_beyond_its_lease_serves_nothing_when_it_goes_on() {
    if !here() {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let place = Place::Ssh(Box::new(Sshd::start()));
    let first = daemon(&database).await;
    let second = daemon(&database).await;
    let session = first
        .session_at(&place, &upstream, &["--tunnel", "ssh-reverse"])
        .await;
    let caller = agent(&session);
    let mut wire = Wire::connect(&session.url).await.unwrap();
    wire.send(&caller.head("GET", ME, &[], None)).await.unwrap();
    assert_eq!(wire.answer("GET").await.unwrap().status, 200);

    // What is on its way to it when it stops, reaches it after its time.
    first.running.signal("STOP");
    let late = [("content-type", "application/json"), ("idempotency-key", "late")];
    let mut request = caller.head("POST", COMMENTS, &late, Some(12));
    request.extend_from_slice(b"{\"body\":\"x\"}");
    wire.send(&request).await.unwrap();
    answers(&session).await;
    first.running.signal("CONT");

    let begin = Instant::now();
    while serves(&first, &session).await {
        assert!(
            begin.elapsed() < LIMIT,
            "it believes to the end that it owns the session"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = wire.answer("POST").await;
    assert!(
        told.is_err() || told.is_ok_and(|answer| answer.status == 503),
        "an answer of a daemon that does not own the session"
    );
    one_serves(&[&first, &second], &session).await;
    let fresh = [("content-type", "application/json"), ("idempotency-key", "fresh")];
    let answer = caller
        .call("POST", COMMENTS, &fresh, b"{\"body\":\"x\"}")
        .await
        .unwrap();
    assert!(answer.status < 300, "{}", answer.text());
    let keys: Vec<_> = upstream
        .seen()
        .iter()
        .filter_map(|seen| seen.header("idempotency-key").map(str::to_owned))
        .collect();
    assert_eq!(keys, ["fresh"]);
}

/// Until when the first daemon's claim on a session lasts; each renewal, which is also when it polls, makes that later.
async fn lease(database: &mut PgConnection, session: &Opened) -> i64 {
    sqlx::query_scalar("SELECT lease_until_us FROM sessions WHERE id = $1")
        .bind(&session.session)
        .fetch_one(database)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_revocation_through_another_daemon_is_heard_and_not_waited_for() {
    if !can_run(postgres::here()) {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let (first, second) = (daemon(&database).await, daemon(&database).await);
    let witness = first.session(&upstream, &[]).await;
    let mut rows = PgConnection::connect(&database).await.unwrap();

    // The owner polls with each renewal. One may fall between by chance, so there are several attempts.
    let mut heard = false;
    for _ in 0..ATTEMPTS {
        let session = first.session(&upstream, &[]).await;
        let before = lease(&mut rows, &witness).await;
        let target = format!("/v1/sessions/{}/revoke", session.session);
        assert_eq!(second.call("POST", &target, "").await.status, 200);
        let begin = Instant::now();
        while serves(&first, &session).await {
            assert!(begin.elapsed() < LIMIT, "its owner never hears of it");
        }
        let after = lease(&mut rows, &witness).await;
        let ended = first.until(&session.session, "ended").await;
        assert_eq!(ended["reason"], "revoked");
        if after == before {
            heard = true;
            break;
        }
    }

    assert!(heard, "each revocation was seen by a poll");
}

#[tokio::test]
async fn a_session_is_revoked_and_shown_through_a_daemon_that_does_not_own_it() {
    if !here() {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let (first, second) = (daemon(&database).await, daemon(&database).await);
    let session = first.session(&upstream, &[]).await;
    one_serves(&[&first, &second], &session).await;

    second.ask(&["sessions", "revoke", &session.session]).await;

    let begin = Instant::now();
    while agent(&session).get(ME).await.is_ok() {
        assert!(begin.elapsed() < LIMIT, "its owner never hears of it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = first.until(&session.session, "ended").await;
    assert_eq!(ended["reason"], "revoked");
}

#[tokio::test]
async fn any_daemon_tells_where_the_owner_of_a_session_is_found() {
    if !can_run(postgres::here()) {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let told = "tcp:bridge-1.example:4410";
    let first = Serving::builder()
        .env("PCBRIDGE_STORE__URL", &database)
        .env("PCBRIDGE_LISTENERS__CONTROL__ADVERTISE", told)
        .start()
        .await;
    let (second, third) = (daemon(&database).await, daemon(&database).await);
    let of_first = first.session(&upstream, &[]).await;
    let of_third = third.session(&upstream, &[]).await;

    let owner = shown(&second, &of_first).await["owner"].clone();
    assert_eq!(owner["address"], told);
    let detail = shown(&second, &of_first).await["detail"].clone();
    let name = owner["daemon"].as_str().unwrap();
    assert!(detail.as_str().unwrap().contains(name), "{detail}");
    for key in ["host", "version", "started_at", "seen_at"] {
        assert!(
            owner[key].as_str().is_some_and(|said| !said.is_empty()),
            "{owner}"
        );
    }
    // Without a word of the operator, it is where it listens.
    let listens = format!("unix:{}", third.socket().display());
    assert_eq!(shown(&second, &of_third).await["owner"]["address"], listens);
    assert_eq!(
        shown(&first, &of_first).await["owner"],
        Value::Null,
        "it is its own"
    );
    let page = second.run(&["sessions", "show", &of_first.session]).await;
    assert!(
        page.stdout
            .contains(&format!("owner         daemon {name} at {told} on ")),
        "{}",
        page.stdout
    );
    // Once it has ended, it is nobody's.
    first.ask(&["sessions", "revoke", &of_first.session]).await;
    first.until(&of_first.session, "ended").await;
    let begin = Instant::now();
    while shown(&second, &of_first).await["owner"] != Value::Null {
        assert!(begin.elapsed() < LIMIT, "its end is never written down");
    }
}
