//! HTTP/1.1 as agents use it: kept connections, pipelines, chunks, expectations and answers without bodies.

use std::sync::Arc;
use std::time::Duration;

use paperclip_bridge_tests::{Script, Wire, World, eventually};
use tokio::sync::Semaphore;

const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_even_if_the_first_is_slow() {
    let world = World::local().open().await;
    let slow = Arc::new(Semaphore::new(0));
    world.upstream.on(
        "GET",
        "/api/agents/slow",
        Script::json(200, r#"{"n":1}"#).held(&slow),
    );
    world
        .upstream
        .on("GET", "/api/agents/fast", Script::json(200, r#"{"n":2}"#));
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    let mut bytes = agent.head("GET", "/api/agents/slow", &[], None);
    bytes.extend(agent.head("GET", "/api/agents/fast", &[], None));
    bytes.extend(agent.head("GET", "/api/secrets", &[], None));
    wire.send(&bytes).await.unwrap();
    eventually(Duration::from_secs(10), "the slow one is under way", || {
        (world.upstream.count() > 0).then_some(())
    })
    .await;
    slow.add_permits(1);
    let first = wire.answer("GET").await.unwrap();
    let second = wire.answer("GET").await.unwrap();
    let third = wire.answer("GET").await.unwrap();

    assert_eq!(
        (first.text().as_str(), second.text().as_str()),
        (r#"{"n":1}"#, r#"{"n":2}"#)
    );
    assert_eq!((third.status, third.code().as_str()), (403, "route_not_allowed"));
}

#[tokio::test]
async fn a_hundred_calls_go_over_one_connection() {
    let world = World::local().open().await;
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    for number in 0..100 {
        wire.send(&agent.head("GET", &format!("/api/agents/me?n={number}"), &[], None))
            .await
            .unwrap();
        assert_eq!(wire.answer("GET").await.unwrap().status, 200);
    }

    assert_eq!(world.upstream.count(), 100);
    world.assert_upstream_saw_only_what_it_may();
}

#[tokio::test]
async fn an_expectation_is_met_before_the_body_is_sent() {
    let world = World::local().open().await;
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    wire.send(&agent.head("POST", COMMENTS, &[JSON, ("expect", "100-continue")], Some(7)))
        .await
        .unwrap();
    let interim = wire.peek(25).await.unwrap();
    wire.send(br#"{"a":1}"#).await.unwrap();
    let answer = wire.answer("POST").await.unwrap();

    assert_eq!(interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!((answer.status, answer.interim), (200, vec![100]));
    assert_eq!(world.upstream.seen()[0].body, br#"{"a":1}"#);
}

#[tokio::test]
async fn a_denied_expectation_gets_its_denial_and_no_100() {
    let world = World::local().open().await;
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    wire.send(&agent.head(
        "POST",
        "/api/secrets",
        &[JSON, ("expect", "100-continue")],
        Some(7),
    ))
    .await
    .unwrap();
    let answer = wire.answer("POST").await.unwrap();

    assert_eq!((answer.status, answer.interim), (403, vec![]));
    assert_eq!(world.upstream.count(), 0);
}

#[tokio::test]
async fn a_chunked_body_arrives_whole_and_with_one_length() {
    let world = World::local().open().await;
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    let mut bytes = agent.head("POST", COMMENTS, &[JSON, ("transfer-encoding", "chunked")], None);
    for _ in 0..100 {
        bytes.extend_from_slice(b"a\r\n0123456789\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    wire.send(&bytes).await.unwrap();
    let answer = wire.answer("POST").await.unwrap();

    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = world.upstream.seen().remove(0);
    assert_eq!((seen.body, seen.whole), (b"0123456789".repeat(100), true));
}

#[tokio::test]
async fn a_chunked_answer_arrives_whole() {
    let world = World::local().open().await;
    let script = Script::chunked(200, "application/json", &[b"[1,", b"2,", b"3]"]);
    world.upstream.on("GET", "/api/agents/me", script.clone());
    world.upstream.on("POST", COMMENTS, script);

    let got = world.agent().get("/api/agents/me").await.unwrap();
    let posted = world.agent().post(COMMENTS, "{}").await.unwrap();

    assert_eq!((got.status, got.text().as_str()), (200, "[1,2,3]"));
    assert_eq!((posted.status, posted.text().as_str()), (200, "[1,2,3]"));
}

#[tokio::test]
async fn answers_without_a_body_have_none_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    std::fs::write(&file, "[[allow]]\nmethod = \"HEAD\"\npath = \"/api/agents/me\"\n").unwrap();
    let world = World::local()
        .args(["--policy", file.to_str().unwrap()])
        .open()
        .await;
    let head =
        Script::raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n");
    world.upstream.on("HEAD", "/api/agents/me", head);
    world.upstream.on(
        "GET",
        "/api/agents/same",
        Script::bodiless(304, &[("etag", "\"x\"")]),
    );
    world
        .upstream
        .on("DELETE", "/api/routine-triggers/t", Script::bodiless(204, &[]));
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    let mut answers = vec![];
    for (method, path) in [
        ("HEAD", "/api/agents/me"),
        ("GET", "/api/agents/same"),
        ("DELETE", "/api/routine-triggers/t"),
        ("GET", "/api/agents/me"),
    ] {
        wire.send(&agent.head(method, path, &[], None)).await.unwrap();
        answers.push(wire.answer(method).await.unwrap());
    }

    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 304, 204, 200]);
    assert_eq!(answers[1].header("etag"), Some("\"x\""));
    assert_eq!(answers[2].header("content-length"), None, "a 204 has no length");
    assert_eq!(answers[3].text(), r#"{"ok":true}"#);
}

#[tokio::test]
async fn ten_mebibytes_go_up_and_come_down_byte_for_byte() {
    let world = World::local().open().await;
    let big: Vec<u8> = (0..10 * 1024 * 1024_u32)
        .map(|number| b'a' + (number.wrapping_mul(31) % 26) as u8)
        .collect();
    let script = Script::answer(200, &[("content-type", "application/octet-stream")], &big);
    world.upstream.on("GET", "/api/attachments/1/content", script);

    let up = world.agent().call("POST", COMMENTS, &[JSON], &big).await.unwrap();
    let down = world.agent().get("/api/attachments/1/content").await.unwrap();

    assert_eq!((up.status, down.status), (200, 200), "{}", up.text());
    assert!(world.upstream.seen()[0].body == big, "the upload changed");
    assert!(down.body == big, "the download changed");
}

#[tokio::test]
async fn a_head_that_never_ends_is_408() {
    let world = World::local().open().await;
    let mut wire = Wire::connect(&world.agent().url).await.unwrap();

    wire.send(b"GET /api/agents/me HTTP/1.1\r\nHost: ").await.unwrap();
    let answer = wire.answer("GET").await.unwrap();

    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    assert!(wire.is_closed_within(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn events_arrive_while_the_stream_goes_on() {
    let world = World::local().open().await;
    let permits = Arc::new(Semaphore::new(0));
    world
        .upstream
        .on("GET", "/api/agents/me", Script::events(&permits, &["one", "two"]));
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    wire.send(&agent.head("GET", "/api/agents/me", &[("accept", "text/event-stream")], None))
        .await
        .unwrap();
    permits.add_permits(1);
    let first = read_until(&mut wire, "data: one").await;
    let early = first.contains("data: two");
    permits.add_permits(1);
    let second = read_until(&mut wire, "data: two").await;

    assert!(first.starts_with("HTTP/1.1 200") && !early, "{first}");
    assert!(second.contains("data: one"), "{second}");
}

/// Everything received once `text` is in it.
async fn read_until(wire: &mut Wire, text: &str) -> String {
    let mut count = 1;
    loop {
        let received = wire.peek(count).await.expect("the stream goes on");
        count = received.len() + 1;
        let received = String::from_utf8_lossy(&received).into_owned();
        if received.contains(text) {
            return received;
        }
    }
}
