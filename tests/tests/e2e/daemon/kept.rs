//! What outlives the daemon: what became of each write, and what is known of a session.

use std::time::Duration;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::raw::{Agent, Answer, Broken};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::upstream::Script;
use paperclip_bridge_tests::{Upstream, eventually};
use serde_json::Value;

use super::SOON;

const COMMENTS: &str = "/api/issues/PAP-1/comments";
const STALLED: &str = "/api/issues/PAP-2/comments";

async fn write(agent: &Agent, path: &str, key: &str) -> Result<Answer, Broken> {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    agent.call("POST", path, &headers, b"{\"body\":\"x\"}").await
}

/// Kills the daemon and starts another on the same folder.
async fn killed(serving: Serving) -> Serving {
    let Serving { running, folder, .. } = serving;
    running.signal("KILL");
    running.finish().await;
    Serving::in_folder(folder).start().await
}

async fn outcome(serving: &Serving, session: &Opened, key: &str) -> Value {
    serving
        .ask(&["outcome", &format!("key:{key}"), "--session", &session.session])
        .await
}

#[tokio::test]
async fn a_killed_daemons_successor_tells_what_became_of_each_write() {
    let upstream = Upstream::start().await;
    upstream.on("POST", STALLED, Script::stall_before_answer());
    let serving = Serving::start().await;
    let session = serving.session(&upstream, &[]).await;
    let caller = agent(&session);
    let answered = write(&caller, COMMENTS, "answered").await.unwrap();
    let stalled = tokio::spawn(async move { write(&caller, STALLED, "stalled").await });
    eventually(SOON, "the write has reached the upstream", || {
        (upstream.count() == 2).then_some(())
    })
    .await;
    let before = outcome(&serving, &session, "answered").await;
    // Its outcome is written beside the answer's way, not on it.
    settled(&serving, &session, "answered").await;

    let serving = killed(serving).await;

    assert!(
        stalled.await.unwrap().is_err(),
        "its caller's connection is closed"
    );
    let (known, open) = (
        outcome(&serving, &session, "answered").await,
        outcome(&serving, &session, "stalled").await,
    );
    assert_eq!(
        (&known["outcome"], &known["status"]),
        (&Value::from("answered"), &Value::from(answered.status))
    );
    assert_eq!(before["request_id"], known["request_id"]);
    assert_eq!(
        (&open["outcome"], &open["reason"], &open["path"]),
        (
            &Value::from("indeterminate"),
            &Value::from("daemon_restarted"),
            &Value::from(STALLED)
        )
    );
    assert_eq!(upstream.count(), 2, "nothing was sent again");
}

/// Waits until the outcome stands in the store: a copy of it says so.
async fn settled(serving: &Serving, session: &Opened, key: &str) {
    let limit = std::time::Instant::now() + SOON;
    loop {
        let copy = serving
            .folder
            .path()
            .join(format!("copy-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&copy).unwrap();
        let state = serving.folder.path().join("state");
        bridge::store::backup(&state, &copy.join("store.db"))
            .await
            .unwrap();
        let settings = bridge::store::StoreSettings::new(bridge::store::StoreUrl::Sqlite, copy);
        let store = bridge::store::open(settings).await.unwrap();
        let row = store
            .entry_by_key(session.session.parse().unwrap(), key)
            .await
            .unwrap()
            .expect("it was entered before it was sent");
        if row.settled_at.is_some() {
            return;
        }
        assert!(std::time::Instant::now() < limit, "the outcome is never written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_known_of_a_revoked_session_outlives_the_daemon() {
    let upstream = Upstream::start().await;
    let serving = Serving::start().await;
    let session = serving.session(&upstream, &["--agent-id", "a-1"]).await;
    serving.ask(&["sessions", "revoke", &session.session]).await;
    serving.until(&session.session, "ended").await;

    let serving = killed(serving).await;

    let shown = serving.ask(&["sessions", "show", &session.session]).await;
    assert_eq!(
        (&shown["agent_id"], &shown["target"]),
        (&Value::from("a-1"), &Value::from("local"))
    );
    assert!(agent(&session).get("/api/agents/me").await.is_err());
}

#[tokio::test]
async fn readiness_tells_of_the_store() {
    let serving = Serving::start().await;

    let answer = Agent {
        url: serving.ops.clone(),
        token: "none".to_owned(),
    }
    .get("/readyz")
    .await
    .unwrap();

    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["checks"]["store"], "ok");
}
