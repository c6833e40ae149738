//! The log: one event a callback with fixed fields, and never a secret or a query.

use std::collections::BTreeSet;

use paperclip_bridge_tests::World;
use paperclip_bridge_tests::world::CREDENTIAL;
use serde_json::Value;

/// The events of this name, as JSON.
fn events(log: &str, message: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    lines
        .filter(|event: &Value| event["message"] == message)
        .collect()
}

#[tokio::test]
async fn every_callback_is_one_event_with_the_same_fields() {
    let world = World::local().open().await;
    let agent = world.agent();
    agent.get("/api/agents/me?q=secretive").await.unwrap();
    agent.get("/api/secrets?q=secretive").await.unwrap();
    agent
        .post("/api/issues/PAP-1/comments", r#"{"body":"secretive"}"#)
        .await
        .unwrap();
    agent.get("/_bridge/whoami").await.unwrap();
    let stranger = paperclip_bridge_tests::Agent {
        token: "pcb_secretive".to_owned(),
        ..agent.clone()
    };
    stranger.get("/api/agents/me").await.unwrap();

    let ended = world.bridge.close().await;

    let events = events(&ended.stderr, "callback");
    let statuses: Vec<u64> = events
        .iter()
        .filter_map(|event| event["status"].as_u64())
        .collect();
    assert_eq!(statuses, [200, 403, 200, 200, 401], "{}", ended.stderr);
    let fields: Vec<BTreeSet<&String>> = events
        .iter()
        .map(|event| event.as_object().expect("an event is an object").keys().collect())
        .collect();
    for set in &fields {
        assert_eq!(set, &fields[0], "{}", ended.stderr);
    }
    for secret in ["secretive", CREDENTIAL, agent.token.as_str()] {
        assert!(
            !ended.stderr.contains(secret),
            "{secret} is in the log:\n{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn a_verdict_is_written_before_its_callback_reaches_the_upstream() {
    let world = World::local().open().await;
    let slow = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    world.upstream.on(
        "GET",
        "/api/agents/me",
        paperclip_bridge_tests::Script::json(200, "{}").held(&slow),
    );
    let agent = world.agent();
    let call = tokio::spawn(async move { agent.get("/api/agents/me").await });
    let limit = std::time::Duration::from_secs(10);

    // The answer is held back: what is in the log now was written without it.
    paperclip_bridge_tests::eventually(
        limit,
        "the verdict is in the log and the call at the upstream",
        || {
            let log = world.bridge.running.stderr();
            (world.upstream.count() == 1 && log.contains("callback allowed")).then_some(())
        },
    )
    .await;
    assert!(!call.is_finished());
    slow.add_permits(1);

    assert_eq!(call.await.unwrap().map(|answer| answer.status), Ok(200));
}
