//! What a callback leaves behind in figures, and the limits that sessions share.

use uuid::Uuid;

use super::*;
use crate::session::Minting;
use crate::session::rates::{RateTable, Scope, SessionRates};
use crate::telemetry::metrics::Metrics;

fn shared(rates: &Arc<RateTable>, metrics: &Arc<Metrics>) -> Shared {
    let ids = [Some("agent-1"), None, Some("acme")];
    Shared {
        metrics: Some(Arc::clone(metrics)),
        rates: Some(SessionRates::new(Arc::clone(rates), Uuid::now_v7(), ids)),
        ..Shared::default()
    }
}

async fn two_sessions_of_one_agent(limit: (Scope, &str)) -> ([World; 2], Arc<Metrics>) {
    let rates = RateTable::new([(limit.0, None, RateLimit::parse(limit.1).unwrap())]);
    let metrics = Arc::new(Metrics::default());
    let one = |shared| {
        let shape = Shape {
            shared,
            ..Shape::default()
        };
        world(shape, ok)
    };
    let worlds = [
        one(shared(&rates, &metrics)).await,
        one(shared(&rates, &metrics)).await,
    ];
    (worlds, metrics)
}

#[tokio::test]
async fn a_limit_of_an_agent_holds_over_its_sessions_and_is_told_with_a_time() {
    let ([first, second], _) = two_sessions_of_one_agent((Scope::Agent, "1/h:2")).await;
    assert!(
        first
            .ask("GET /api/agents/me", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        second
            .ask("GET /api/agents/me", "")
            .await
            .starts_with("HTTP/1.1 200")
    );

    let third = first.ask("GET /api/agents/me", "").await;

    assert_eq!(code(&third), refused(429, "rate_limited"));
    assert!(third.contains("this agent's sessions"), "{third}");
    let wait = third
        .lines()
        .find_map(|line| line.strip_prefix("retry-after: "))
        .unwrap();
    assert!(wait.parse::<u64>().unwrap() > 1000, "{wait}");
    assert_eq!(first.seen().len() + second.seen().len(), 2);
}

#[tokio::test]
async fn an_agent_is_told_the_limits_that_its_calls_are_held_to() {
    let ([world, _], _) = two_sessions_of_one_agent((Scope::Agent, "20/s:40")).await;

    let told = json(&world.ask("GET /_bridge/limits", "").await);

    assert_eq!(
        told["rates"],
        serde_json::json!([{ "scope": "agent", "class": "all", "rate": "20/s:40" }])
    );
}

#[tokio::test]
async fn comments_on_one_issue_are_stopped_whoever_writes_them() {
    let ([first, second], _) = two_sessions_of_one_agent((Scope::Comments, "1/h:2")).await;
    first.post("/api/issues/PAP-1/comments", "{}").await;
    second.post("/api/issues/PAP-1/comments", "{}").await;

    let third = first.post("/api/issues/PAP-1/comments", "{}").await;
    let elsewhere = first.post("/api/issues/PAP-2/comments", "{}").await;

    assert_eq!(code(&third), refused(429, "rate_limited"));
    assert!(elsewhere.starts_with("HTTP/1.1 200"), "{elsewhere}");
}

#[tokio::test]
async fn every_callback_is_counted_once_with_its_verdict_and_its_outcome() {
    let ([world, _], metrics) = two_sessions_of_one_agent((Scope::Agent, "1000/s")).await;

    world.ask("GET /api/agents/me", "").await;
    world.post("/api/issues/PAP-1/comments", "{}").await;
    world.ask("GET /api/secrets", "").await;
    world.ask("GET /_bridge/whoami", "").await;

    let text = metrics.text();
    for line in [
        r#"paperclip_bridge_callbacks_total{tunnel="local",class="read",verdict="allow",status="2xx"} 1"#,
        r#"paperclip_bridge_callbacks_total{tunnel="local",class="write",verdict="allow",status="2xx"} 1"#,
        r#"paperclip_bridge_callbacks_total{tunnel="local",class="read",verdict="deny",status="4xx"} 1"#,
        r#"paperclip_bridge_callbacks_total{tunnel="local",class="read",verdict="own",status="2xx"} 1"#,
        r#"paperclip_bridge_outcomes_total{outcome="answered"} 1"#,
        r#"paperclip_bridge_refusals_total{code="route_not_allowed"} 1"#,
        r#"paperclip_bridge_callback_seconds_count{tunnel="local"} 4"#,
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
}

#[tokio::test]
async fn a_write_without_a_key_gets_one_where_the_upstream_honours_it_and_the_ledger_knows_it() {
    let minting = Minting {
        except: vec!["/api/issues/{issue}".to_owned()],
    };
    let shape = Shape::default();
    shape.shared.in_force.mints(Some(minting));
    let world = world(shape, ok).await;
    let own = "Content-Type: application/json\r\nIdempotency-Key: mine\r\nContent-Length: 2\r\n";

    let answer = world.post("/api/issues/1/comments", "{}").await;
    world
        .raw((world.head("POST /api/issues/1/comments", own) + "{}").as_bytes())
        .await;
    world
        .raw(
            (world.head(
                "PATCH /api/issues/1",
                "Content-Type: application/json\r\nContent-Length: 2\r\n",
            ) + "{}")
                .as_bytes(),
        )
        .await;
    world.ask("GET /api/agents/me", "").await;

    let keys: Vec<Option<String>> = world
        .seen()
        .iter()
        .map(|request| {
            let line = request
                .lines()
                .find_map(|line| line.strip_prefix("idempotency-key: "));
            line.map(str::to_owned)
        })
        .collect();
    let minted = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-paperclip-bridge-request-id: "))
        .unwrap();
    assert_eq!(
        keys,
        [Some(minted.to_owned()), Some("mine".to_owned()), None, None]
    );
    let entry = json(&world.ask(&format!("GET /_bridge/outcome/key:{minted}"), "").await);
    assert_eq!(entry["outcome"], "answered");
}
