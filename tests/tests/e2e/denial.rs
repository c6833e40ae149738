//! What is refused is refused with a reason, and the bridge's own paths never reach the upstream.

use paperclip_bridge_tests::{Answer, Wire, World};

/// The fields that every error of the bridge has.
fn assert_error(answer: &Answer, status: u16, code: &str, retryable: bool) {
    let json = answer.json();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{}",
        answer.text()
    );
    assert_eq!(json["decided_by"], "bridge", "{json}");
    assert_eq!(json["retryable"], retryable, "{json}");
    assert!(
        json["error"].as_str().is_some_and(|text| !text.is_empty()),
        "{json}"
    );
    assert_eq!(
        json["request_id"].as_str(),
        answer.header("x-paperclip-bridge-request-id"),
        "{json}"
    );
}

#[tokio::test]
async fn a_denied_route_is_403_with_the_reason_and_the_nearest_allowed_one() {
    let world = World::local().open().await;

    let answer = world.agent().get("/agents/me").await.unwrap();

    assert_error(&answer, 403, "route_not_allowed", false);
    let json = answer.json();
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .starts_with("Route not allowed: GET /agents/me"),
        "{json}"
    );
    assert!(
        json["hint"]
            .as_str()
            .unwrap_or_default()
            .contains("/api/agents/me"),
        "{json}"
    );
    assert_eq!(world.upstream.count(), 0);
}

#[tokio::test]
async fn a_policy_files_denial_beats_the_pack_and_tells_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    let rules = "[[deny]]\nname = \"quiet\"\nmethod = \"POST\"\npath = \"/api/issues/{issue}/comments\"\n\
                 reason = \"comments are made by people\"\n";
    std::fs::write(&file, rules).unwrap();
    let world = World::local()
        .args(["--policy", file.to_str().unwrap()])
        .open()
        .await;

    let denied = world
        .agent()
        .post("/api/issues/PAP-1/comments", "{}")
        .await
        .unwrap();
    let allowed = world.agent().get("/api/issues/PAP-1/comments").await.unwrap();

    assert_error(&denied, 403, "route_not_allowed", false);
    assert!(
        denied.text().contains("comments are made by people"),
        "{}",
        denied.text()
    );
    assert_eq!((allowed.status, world.upstream.count()), (200, 1));
}

#[tokio::test]
async fn a_session_takes_no_token_but_its_own() {
    let first = World::local().open().await;
    let second = World::local().open().await;
    let mut stranger = first.agent();
    stranger.url = second.agent().url;

    let answer = stranger.get("/api/agents/me").await.unwrap();

    assert_error(&answer, 401, "invalid_token", false);
    assert_eq!((first.upstream.count(), second.upstream.count()), (0, 0));
}

#[tokio::test]
async fn the_bridges_own_paths_answer_without_the_upstream() {
    let world = World::local().open().await;

    for path in [
        "/_bridge/whoami",
        "/_bridge/routes",
        "/_bridge/limits",
        "/_bridge/health",
    ] {
        let answer = world.agent().get(path).await.unwrap();

        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.json().is_object(), "{path}: {}", answer.text());
    }
    let unknown = world
        .agent()
        .get("/_bridge/outcome/nobody-sent-this")
        .await
        .unwrap();
    assert_error(&unknown, 404, "outcome_unknown", false);
    assert_eq!(world.upstream.count(), 0);
}

#[tokio::test]
async fn beyond_the_rate_calls_are_429_with_a_time_to_come_back() {
    let world = World::local().args(["--rate", "1/m:2"]).open().await;

    let mut answers = vec![];
    for _ in 0..3 {
        answers.push(world.agent().get("/api/agents/me").await.unwrap());
    }

    assert_eq!((answers[0].status, answers[1].status), (200, 200));
    assert_error(&answers[2], 429, "rate_limited", true);
    let wait: u64 = answers[2]
        .header("retry-after")
        .expect("it says when")
        .parse()
        .expect("in seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(world.upstream.count(), 2);
}

#[tokio::test]
async fn a_body_over_the_operators_own_limit_is_413_with_the_limit() {
    let world = World::local().args(["--max-body", "1KiB"]).open().await;

    let answer = world
        .agent()
        .post("/api/issues/PAP-1/comments", &format!("\"{}\"", "x".repeat(1024)))
        .await;

    let answer = answer.unwrap();
    assert_error(&answer, 413, "body_too_large", false);
    assert!(answer.text().contains("1024"), "{}", answer.text());
    assert_eq!(world.upstream.count(), 0);
}

/// Many clients read nothing before they have sent everything; one that is cut off meanwhile sees no answer at all.
#[tokio::test]
async fn a_caller_that_sends_everything_before_it_reads_still_sees_its_413() {
    let world = World::local().args(["--max-body", "1KiB"]).open().await;
    let agent = world.agent();
    let mut wire = Wire::connect(&agent.url).await.unwrap();

    let headers = [("content-type", "application/json")];
    let mut bytes = agent.head(
        "POST",
        "/api/issues/PAP-1/comments",
        &headers,
        Some(16 * 1024 * 1024),
    );
    bytes.resize(bytes.len() + 16 * 1024 * 1024, b' ');
    wire.send(&bytes).await.expect("the whole body is taken");
    let answer = wire.answer("POST").await.unwrap();

    assert_error(&answer, 413, "body_too_large", false);
    assert_eq!(world.upstream.count(), 0);
}
