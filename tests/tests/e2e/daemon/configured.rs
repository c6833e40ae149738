//! A daemon with a configuration file: what a session names, what limits it, what is written down of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use paperclip_bridge_tests::binary::{BridgeCommand, Opened};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::world::{CREDENTIAL_VARIABLE, RUN_ID, assert_headers};
use paperclip_bridge_tests::{Agent, Answer, Upstream};

/// Starts one on this configuration.
pub(super) async fn configured(text: &str) -> Serving {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), text);
    Serving::in_folder(folder)
        .args(["--config".to_owned(), file])
        .start()
        .await
}

/// Writes the configuration file of a folder, and says where.
pub(super) fn write(folder: &Path, text: &str) -> String {
    let file = folder.join("bridge.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file.to_str().unwrap().to_owned()
}

/// One upstream of the name `main`, and what else is said.
pub(super) fn with_upstream(upstream: &Upstream, more: &str) -> String {
    let url = upstream.url();
    format!("[upstreams.main]\nurl = \"{url}\"\ncredential = \"env:{CREDENTIAL_VARIABLE}\"\n{more}")
}

/// A session that brings nothing of its own.
pub(super) async fn session(serving: &Serving, ids: &[&str]) -> Opened {
    let words = [&["sessions", "new", "local"], ids].concat();
    serde_json::from_value(serving.ask(&words).await).unwrap()
}

#[tokio::test]
async fn a_session_names_an_upstream_of_the_configuration_and_brings_nothing() {
    let upstream = Upstream::start().await;
    let serving = configured(&with_upstream(&upstream, "[control]\nadhoc = true\n")).await;

    let by_name = session(&serving, &["--run-id", RUN_ID, "--upstream", "main"]).await;
    let by_itself = session(&serving, &["--run-id", RUN_ID]).await;

    for opened in [by_name, by_itself] {
        assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    }
    assert_headers(&upstream.seen());
}

#[tokio::test]
async fn with_a_configuration_a_request_brings_no_upstream_credential_or_target_of_its_own() {
    let upstream = Upstream::start().await;
    let serving = configured(&with_upstream(&upstream, "")).await;

    let ended = serving
        .run(&["sessions", "new", "local", "--upstream", "http://127.0.0.1:1"])
        .await;

    assert_ne!(ended.code, Some(0));
    assert!(
        ended.stderr.contains("upstream") && ended.stderr.contains("target"),
        "{}",
        ended.stderr
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_limit_of_the_configuration_holds_over_the_sessions_of_an_agent_and_is_in_the_audit() {
    let upstream = Upstream::start().await;
    let more = "[control]\nadhoc = true\n[limits.rate.agent]\nall = \"1/h:2\"\n";
    let serving = configured(&with_upstream(&upstream, more)).await;
    let first = session(&serving, &["--agent-id", "a-1"]).await;
    let second = session(&serving, &["--agent-id", "a-1"]).await;
    let other = session(&serving, &["--agent-id", "a-2"]).await;

    let mut statuses = Vec::new();
    for opened in [&first, &second, &second, &other] {
        statuses.push(agent(opened).get("/api/agents/me").await.unwrap().status);
    }

    assert_eq!(statuses, [200, 200, 429, 200]);
    let state = serving.folder.path().join("state");
    let state = state.to_str().unwrap().to_owned();
    let verified = BridgeCommand::new(["audit", "verify", "--state-dir", &state])
        .finish()
        .await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    let told = BridgeCommand::new(["audit", "query", "--state-dir", &state])
        .finish()
        .await;
    assert_eq!(
        told.stdout.matches("GET /api/agents/me session=").count(),
        4,
        "{}",
        told.stdout
    );
    assert!(told.stdout.contains("rate_limited") && told.stdout.contains("agent=a-2"));
}

#[tokio::test]
async fn without_metrics_nothing_is_counted_and_a_scrape_is_told_why() {
    let upstream = Upstream::start().await;
    let serving = Serving::builder()
        .env("PCBRIDGE_TELEMETRY__METRICS", "false")
        .start()
        .await;
    let opened = serving.session(&upstream, &[]).await;

    let answer = agent(&opened).get("/api/agents/me").await.unwrap();
    let scraped = scrape(&serving).await;

    assert_eq!(answer.status, 200);
    assert_eq!((scraped.status, scraped.code().as_str()), (404, "metrics_off"));
    assert!(scraped.text().contains("telemetry.metrics"), "{}", scraped.text());
}

/// What the ops listener answers at `/metrics`.
pub(super) async fn scrape(serving: &Serving) -> Answer {
    let scraper = Agent {
        url: serving.ops.clone(),
        token: "none".to_owned(),
    };
    scraper.get("/metrics").await.unwrap()
}

#[tokio::test]
async fn a_configuration_with_a_mistake_is_refused_at_its_line() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = with_upstream(&upstream, "[polcy]\nmode = \"report\"\n");
    let file = write(folder.path(), &text);

    let unknown = BridgeCommand::new(["serve", "--config", &file, "--ops", "127.0.0.1:0"])
        .finish()
        .await;

    assert_eq!(unknown.code, Some(3), "{}", unknown.stderr);
    for said in ["polcy", "policy", "bridge.toml:4"] {
        assert!(unknown.stderr.contains(said), "{said}: {}", unknown.stderr);
    }
}
