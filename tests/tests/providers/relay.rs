//! The push relay: callbacks from a Worker in its own runtime, over one socket, to a session of the daemon's.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use paperclip_bridge_tests::relayed::{Relayed, config, provider, scope};
use paperclip_bridge_tests::upstream::{Script, Upstream};
use paperclip_bridge_tests::workerd::{Settings, Workerd, installed};
use paperclip_bridge_tests::{Broken, Wire, can_run, eventually, within};
use runners::provider::{Lease, Provider};
use serde_json::json;
use tokio::sync::Semaphore;
use tunnel::{Status, TunnelEnd};

const LIMIT: Duration = Duration::from_secs(30);
const ME: &str = "/api/agents/me";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const BIG: usize = 10 * 1024 * 1024;

/// A Worker with a lease, and the API behind the daemon.
struct Ground {
    worker: Workerd,
    provider: Arc<dyn Provider>,
    lease: Lease,
    upstream: Upstream,
}

impl Ground {
    async fn start() -> Option<Self> {
        if !can_run(installed().map(drop)) {
            return None;
        }
        let worker = Workerd::start(&Settings::default());
        let provider = provider(config(&worker, json!({})));
        let lease = provider.acquire(&scope()).await.expect("a sandbox is leased");
        let upstream = Upstream::start().await;
        Some(Self {
            worker,
            provider,
            lease,
            upstream,
        })
    }

    async fn relayed(&self) -> Relayed {
        Relayed::open(&self.provider, &self.lease, &self.upstream.url()).await
    }
}

#[tokio::test]
async fn a_callback_reaches_the_api_and_its_answer_comes_back() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    ground
        .upstream
        .on("GET", ME, Script::json(200, r#"{"id":"agent-1"}"#));
    let relayed = ground.relayed().await;

    let answer = relayed.agent.get(ME).await.unwrap();

    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, r#"{"id":"agent-1"}"#)
    );
    assert!(answer.header("x-paperclip-bridge-request-id").is_some());
    let seen = ground.upstream.seen();
    assert_eq!(seen.len(), 1);
    // The real credential, and nothing of what the agent showed.
    let shown = seen[0].header("authorization").unwrap();
    assert!(!relayed.agent.token.contains(shown.trim_start_matches("Bearer ")));
    assert!(matches!(relayed.close().await, TunnelEnd::Stopped));
}

#[tokio::test]
async fn a_command_in_the_sandbox_calls_back_with_a_url_and_a_bearer_alone() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    ground
        .upstream
        .on("GET", ME, Script::json(200, r#"{"id":"agent-1"}"#));
    let relayed = ground.relayed().await;
    let runner = ground.provider.runner(&ground.lease).unwrap();
    let script =
        format!("curl -sS -H \"Authorization: Bearer $PAPERCLIP_API_KEY\" \"$PAPERCLIP_API_URL{ME}\"");
    let mut execution = runners::Execution::new("sh", ["-c", &script]);
    let token = runners::SecretText::new(&relayed.agent.token);
    execution.secret_env.insert("PAPERCLIP_API_KEY".into(), token);
    execution
        .env
        .insert("PAPERCLIP_API_URL".into(), relayed.agent.url.clone());

    let result = runner.execute(execution).await.unwrap();

    let told = (
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr),
    );
    assert_eq!(told, (r#"{"id":"agent-1"}"#.into(), "".into()));
}

#[tokio::test]
async fn what_is_refused_is_refused_by_the_one_whose_business_it_is() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    let relayed = ground.relayed().await;

    let denied = relayed.agent.get("/api/secrets").await.unwrap();
    let mut stranger = relayed.agent.clone();
    stranger.token = stranger.token.rsplit_once('.').unwrap().1.to_owned();
    let strange = stranger.get(ME).await.unwrap();
    let mut other = relayed.agent.clone();
    other.token = format!("{}x", other.token);
    let wrong = other.get(ME).await.unwrap();

    assert_eq!(
        (denied.status, denied.code().as_str()),
        (403, "route_not_allowed")
    );
    // The Worker lets no stranger through to the daemon; the session's own token is the daemon's to check.
    assert_eq!((strange.status, strange.code().as_str()), (401, "invalid_token"));
    assert_eq!((wrong.status, wrong.code().as_str()), (401, "invalid_token"));
    assert!(strange.json().get("hint").is_none() || strange.status == 401);
    assert_eq!(ground.upstream.count(), 0);
}

#[tokio::test]
async fn sixty_four_at_once_are_all_answered_and_not_mixed() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    for number in 0..64 {
        let body = format!(r#"{{"number":{number}}}"#);
        ground.upstream.on(
            "GET",
            &format!("/api/issues/PAP-{number}"),
            Script::json(200, &body),
        );
    }
    let relayed = ground.relayed().await;

    let answers = join_all((0..64).map(|number| {
        let agent = relayed.agent.clone();
        async move { agent.get(&format!("/api/issues/PAP-{number}")).await }
    }))
    .await;

    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status, answer.json()["number"].as_u64()),
            (200, Some(number as u64))
        );
    }
}

#[tokio::test]
async fn ten_mebibytes_pass_both_ways() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    let big: Vec<u8> = (0..BIG).map(|at| (at % 251) as u8).collect();
    let types = [("content-type", "application/octet-stream")];
    ground.upstream.on("GET", ME, Script::answer(200, &types, &big));
    ground.upstream.on("POST", COMMENTS, Script::json(201, "{}"));
    let relayed = ground.relayed().await;

    let down = relayed.agent.get(ME).await.unwrap();
    let text = format!("\"{}\"", "x".repeat(BIG - 2));
    let up = relayed.agent.post(COMMENTS, &text).await.unwrap();

    assert_eq!(down.status, 200);
    assert!(down.body == big, "{} bytes", down.body.len());
    assert_eq!(up.status, 201, "{}", up.text());
    let seen = ground.upstream.seen();
    assert!(seen[1].whole && seen[1].body == text.as_bytes());
}

#[tokio::test]
async fn a_slow_reader_keeps_nobody_else_waiting() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    let types = [("content-type", "application/octet-stream")];
    ground
        .upstream
        .on("GET", COMMENTS, Script::answer(200, &types, &vec![7; BIG]));
    ground.upstream.on("GET", ME, Script::json(200, "{}"));
    let relayed = ground.relayed().await;
    let mut slow = Wire::connect(&relayed.agent.url).await.unwrap();
    slow.send(&relayed.agent.head("GET", COMMENTS, &[], None))
        .await
        .unwrap();
    slow.peek(1).await.unwrap();

    for _ in 0..20 {
        let answer = within(LIMIT, "an answer beside a slow reader", relayed.agent.get(ME)).await;
        assert_eq!(answer.unwrap().status, 200);
    }

    let late = slow.answer("GET").await.unwrap();
    assert_eq!((late.status, late.body.len()), (200, BIG));
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_each_caller_an_honest_outcome_and_its_successor_serves_on() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    let held = Arc::new(Semaphore::new(0));
    ground.upstream.on("GET", ME, Script::json(200, "{}").held(&held));
    ground
        .upstream
        .on("POST", COMMENTS, Script::json(201, "{}").held(&held));
    let relayed = ground.relayed().await;
    let token = policy::token::Token::from_random([9; 24]);
    let agent = relayed.agent.clone();
    let safe = tokio::spawn({
        let agent = agent.clone();
        async move { agent.get(ME).await }
    });
    let unsafe_ = tokio::spawn({
        let agent = agent.clone();
        async move { agent.post(COMMENTS, "{}").await }
    });
    eventually(LIMIT, "both are at the API", || {
        (ground.upstream.count() == 2).then_some(())
    })
    .await;

    // As by SIGKILL: the socket is gone, and nothing was said.
    drop(relayed);

    let safe = within(LIMIT, "an outcome", safe).await.unwrap().unwrap();
    let lost = within(LIMIT, "an outcome", unsafe_).await.unwrap().unwrap();
    let told = |answer: &paperclip_bridge_tests::Answer| {
        (answer.status, answer.code(), answer.json()["retryable"].as_bool())
    };
    assert_eq!(told(&safe), (502, "relay_lost".to_owned(), Some(true)));
    assert_eq!(told(&lost), (502, "relay_lost".to_owned(), Some(false)));
    let offline = agent.get(ME).await.unwrap();
    assert_eq!((offline.status, offline.code().as_str()), (503, "relay_offline"));
    assert_eq!(offline.header("retry-after"), Some("2"));

    held.add_permits(100);
    let route = ground.provider.relay(&ground.lease).unwrap();
    let successor = Relayed::with_token(route, &ground.upstream.url(), &token).await;
    assert_eq!(successor.agent.get(ME).await.unwrap().status, 200);
    // Nothing of what was lost was sent again.
    let posts = ground
        .upstream
        .seen()
        .iter()
        .filter(|seen| seen.method == "POST")
        .count();
    assert_eq!(posts, 1);
}

#[tokio::test]
async fn an_answer_that_is_cut_in_the_middle_never_looks_whole() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    let types = [("content-type", "application/octet-stream")];
    ground
        .upstream
        .on("GET", ME, Script::answer(200, &types, &vec![7; BIG]));
    let relayed = ground.relayed().await;
    let mut reader = Wire::connect(&relayed.agent.url).await.unwrap();
    reader
        .send(&relayed.agent.head("GET", ME, &[], None))
        .await
        .unwrap();
    reader.peek(1).await.unwrap();

    drop(relayed);

    let answer = within(LIMIT, "an end", reader.answer("GET")).await;
    assert!(
        matches!(answer, Err(Broken::Cut(_) | Broken::Closed)),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_second_daemon_takes_the_relay_over_and_the_first_leaves_it_to_it() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    ground.upstream.on("GET", ME, Script::json(200, "{}"));
    let mut first = ground.relayed().await;

    let second = ground.relayed().await;

    let end = first.ended().await;
    assert!(
        matches!(
            end,
            TunnelEnd::Refused {
                reason: "relay_superseded",
                ..
            }
        ),
        "{end:?}"
    );
    assert_eq!(second.agent.get(ME).await.unwrap().status, 200);
    assert_eq!(first.agent.get(ME).await.unwrap().code(), "invalid_token");
}

#[tokio::test]
async fn a_worker_that_was_killed_is_connected_again() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    ground.upstream.on("GET", ME, Script::json(200, "{}"));
    let mut relayed = ground.relayed().await;

    ground.worker.kill();
    let lost = |status: &Status| matches!(status, Status::Reconnecting { .. });
    within(LIMIT, "the loss is noticed", relayed.status.wait_for(lost))
        .await
        .unwrap();
    ground.worker.restart();

    relayed.ready().await;
    assert_eq!(relayed.agent.get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_repeated_request_is_not_sent_to_the_api_again() {
    let Some(ground) = Ground::start().await else {
        return;
    };
    ground.upstream.on("POST", COMMENTS, Script::json(201, "{}"));
    let relayed = ground.relayed().await;
    let headers = [("content-type", "application/json"), ("x-request-id", "q-1")];

    let first = relayed
        .agent
        .call("POST", COMMENTS, &headers, b"{}")
        .await
        .unwrap();
    let again = relayed
        .agent
        .call("POST", COMMENTS, &headers, b"{}")
        .await
        .unwrap();

    assert_eq!(first.status, 201);
    assert_eq!(
        (again.status, again.code().as_str()),
        (409, "outcome_indeterminate")
    );
    let request_id = first.header("x-paperclip-bridge-request-id").unwrap();
    assert_eq!(again.header("x-paperclip-bridge-request-id"), Some(request_id));
    assert_eq!(ground.upstream.count(), 1);
}
