//! Unsafe calls are dispatched at most once, and their fate is told honestly.

use std::collections::HashMap;
use std::time::Duration;

use paperclip_bridge_tests::upstream::Step;
use paperclip_bridge_tests::{Answer, Script, Upstream, World, eventually};

const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");

/// How often the upstream saw each idempotency key.
pub(crate) fn sightings(upstream: &Upstream) -> HashMap<String, usize> {
    let mut sightings = HashMap::new();
    for seen in upstream.seen() {
        if let Some(key) = seen.header("idempotency-key") {
            *sightings.entry(key.to_owned()).or_default() += 1;
        }
    }
    sightings
}

fn assert_indeterminate(answer: &Answer, what: &str) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (409, "outcome_indeterminate"),
        "{what}: {}",
        answer.text()
    );
    assert_eq!(
        answer.header("x-paperclip-bridge-outcome"),
        Some("indeterminate"),
        "{what}"
    );
    assert_eq!(answer.json()["retryable"], false, "{what}");
}

#[tokio::test]
async fn an_unsafe_call_whose_answer_is_lost_is_409_and_the_ledger_says_so() {
    let world = World::local().open().await;
    let scripts = [
        ("closes", Script::close_without_answer()),
        ("resets", Script::steps([Step::ReadBody, Step::Reset])),
        ("garbage", Script::raw("NONSENSE\r\n\r\n").then(Step::Close)),
        ("cut", Script::json(201, r#"{"made":true}"#).cut_after(70)),
        (
            "huge",
            Script::raw(
                "HTTP/1.1 201 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999\r\n\r\n",
            ),
        ),
        (
            "cut-chunks",
            Script::chunked(201, "application/json", &[b"{\"a\":1}"]).cut_after(95),
        ),
    ];
    for (name, script) in scripts {
        world.upstream.on_next(1, "POST", COMMENTS, script);

        let headers = [JSON, ("idempotency-key", name)];
        let answer = world
            .agent()
            .call("POST", COMMENTS, &headers, b"{}")
            .await
            .unwrap();

        assert_indeterminate(&answer, name);
        let id = answer
            .header("x-paperclip-bridge-request-id")
            .expect("it has an id")
            .to_owned();
        for asked in [id, format!("key:{name}")] {
            let told = world
                .agent()
                .get(&format!("/_bridge/outcome/{asked}"))
                .await
                .unwrap();
            assert_eq!(
                (told.status, &told.json()["outcome"]),
                (200, &"indeterminate".into()),
                "{name}: {}",
                told.text()
            );
        }
    }
    assert!(sightings(&world.upstream).values().all(|count| *count == 1));
    assert_eq!(world.upstream.count(), 6);
}

#[tokio::test]
async fn an_answered_call_is_in_the_ledger_with_its_status() {
    let world = World::local().open().await;
    world.upstream.on("POST", COMMENTS, Script::json(201, "{}"));

    let headers = [JSON, ("idempotency-key", "k 1")];
    let answer = world
        .agent()
        .call("POST", COMMENTS, &headers, b"{}")
        .await
        .unwrap();
    let told = world.agent().get("/_bridge/outcome/key:k%201").await.unwrap();

    assert_eq!(answer.status, 201);
    assert_eq!(
        (told.status, &told.json()["outcome"], &told.json()["status"]),
        (200, &"answered".into(), &201.into())
    );
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_answer_can_ask_for_it_afterwards() {
    let world = World::local().open().await;
    let slow = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    world
        .upstream
        .on("POST", COMMENTS, Script::json(201, "{}").held(&slow));
    let agent = world.agent();

    let mut wire = paperclip_bridge_tests::Wire::connect(&agent.url).await.unwrap();
    let mut bytes = agent.head("POST", COMMENTS, &[JSON, ("idempotency-key", "left")], Some(2));
    bytes.extend_from_slice(b"{}");
    wire.send(&bytes).await.unwrap();
    eventually(Duration::from_secs(10), "the call is under way", || {
        (world.upstream.count() == 1).then_some(())
    })
    .await;
    drop(wire);
    slow.add_permits(1);

    let told = outcome_once_settled(&world, "key:left").await;
    assert_eq!(
        (&told["outcome"], &told["status"]),
        (&"answered".into(), &201.into()),
        "{told}"
    );
    assert_eq!(world.upstream.count(), 1);
}

#[tokio::test]
async fn an_upstream_that_closes_after_each_answer_unannounced_sees_no_call_twice() {
    let world = World::local().open().await;
    world
        .upstream
        .on("POST", COMMENTS, Script::json(201, "{}").then(Step::Close));
    let mut made = 0;

    for number in 0..300 {
        let key = format!("k{number}");
        let headers = [JSON, ("idempotency-key", key.as_str())];
        let answer = world
            .agent()
            .call("POST", COMMENTS, &headers, b"{}")
            .await
            .unwrap();

        match answer.status {
            201 => made += 1,
            409 => assert_indeterminate(&answer, &key),
            other => panic!("{key}: {other} {}", answer.text()),
        }
    }

    let sightings = sightings(&world.upstream);
    assert!(sightings.values().all(|count| *count == 1), "{sightings:?}");
    assert!(made <= sightings.len());
    // A closed connection that is found closed before anything is sent is replaced, so nearly all get through.
    assert!(made >= 270, "{made} of 300");
}

/// The ledger's line once it is no longer in flight.
pub(crate) async fn outcome_once_settled(world: &World, asked: &str) -> serde_json::Value {
    let started = std::time::Instant::now();
    loop {
        let told = world
            .agent()
            .get(&format!("/_bridge/outcome/{asked}"))
            .await
            .unwrap();
        let json = told.json();
        if json["outcome"] != "in_flight" {
            return json;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{asked} is in flight for ever"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
