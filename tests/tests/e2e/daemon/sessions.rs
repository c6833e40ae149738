//! Sessions of a daemon: made, used, looked at, and given another token.

use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::world::{CREDENTIAL, RUN_ID, assert_headers};
use paperclip_bridge_tests::{Upstream, eventually};

use super::SOON;

#[tokio::test]
async fn an_agent_calls_through_a_session_of_a_daemon_and_its_operator_sees_it_without_its_token() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);

    let ids = [
        "--run-id",
        RUN_ID,
        "--agent-id",
        "a-1",
        "--issue-id",
        "i-1",
        "--company-id",
        "c-1",
    ];
    let opened = serving.session(&upstream, &ids).await;
    let answer = agent(&opened).get("/api/agents/me").await.unwrap();

    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_headers(&upstream.seen());
    let listed = serving.ask(&["sessions", "ls"]).await;
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
    let shown = serving.ask(&["sessions", "show", &opened.session]).await;
    assert_eq!(listed["sessions"][0], shown);
    for (name, value) in [
        ("state", "ready"),
        ("run_id", RUN_ID),
        ("agent_id", "a-1"),
        ("issue_id", "i-1"),
        ("company_id", "c-1"),
        ("target", "local"),
        ("tunnel", "local"),
        ("url", opened.url.as_str()),
    ] {
        assert_eq!(shown[name], value, "{name}");
    }
    let environment = serving.run(&["sessions", "env", &opened.session]).await;
    assert!(
        environment
            .stdout
            .contains(&format!("PAPERCLIP_API_URL='{}'", opened.url))
    );
    assert!(!environment.stdout.contains("PAPERCLIP_API_KEY"));
    let status = serving.ask(&["status"]).await;
    assert_eq!(
        (&status["callbacks"], &status["sessions"]["ready"]),
        (&1.into(), &1.into())
    );
    let log = serving.running.stderr();
    for said in [
        log.as_str(),
        &listed.to_string(),
        &environment.stdout,
        &status.to_string(),
    ] {
        assert!(
            !said.contains(&opened.token) && !said.contains(CREDENTIAL),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_session_that_nobody_waits_for_is_made_with_its_token_and_is_ready_in_time() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let body = format!(
        r#"{{"target":"local","upstream":"{}","credential":"env:TEST_CREDENTIAL","heartbeat":"off"}}"#,
        upstream.url()
    );

    let made = serving.call("POST", "/v1/sessions", &body).await;

    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    let session = made["session"].as_str().unwrap();
    let shown = serving.until(session, "ready").await;
    let agent = paperclip_bridge_tests::Agent {
        url: shown["url"].as_str().unwrap().to_owned(),
        token: made["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(agent.get("/api/agents/me").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_rotated_token_voids_the_one_before_also_on_a_connection_that_stands() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let before = agent(&opened);
    let mut wire = paperclip_bridge_tests::Wire::connect(&opened.url).await.unwrap();
    let head = before.head("GET", "/api/agents/me", &[], None);
    let first = wire.exchange(&head, &["GET"], false).await;
    assert_eq!(first[0].as_ref().unwrap().status, 200);

    let rotated = serving.ask(&["sessions", "rotate", &opened.session]).await;

    let again = wire.exchange(&head, &["GET"], false).await;
    assert_eq!(again[0].as_ref().unwrap().status, 401);
    let after = paperclip_bridge_tests::Agent {
        token: rotated["token"].as_str().unwrap().to_owned(),
        ..before
    };
    assert_eq!(after.get("/api/agents/me").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_token_on_the_channel_of_another_session_is_denied_counted_and_told_of() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let (one, other) = (
        serving.session(&upstream, &[]).await,
        serving.session(&upstream, &[]).await,
    );
    let tail = paperclip_bridge_tests::binary::BridgeCommand::new(["tail", "--json", "--denied"])
        .args(serving.control())
        .start();
    // Only what happens once it listens is told.
    let astray = paperclip_bridge_tests::Agent {
        url: one.url.clone(),
        token: other.token.clone(),
    };

    let told = eventually(SOON, "the event is told", || {
        let told = tail.stdout();
        let told = told.lines().find(|line| line.contains("wrong_channel"));
        match told {
            Some(line) => Some(line.to_owned()),
            None => {
                let astray = astray.clone();
                let asked = tokio::task::spawn(async move { astray.get("/api/agents/me").await });
                drop(asked);
                None
            }
        }
    })
    .await;

    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (told["session"].as_str(), told["owner"].as_str()),
        (Some(one.session.as_str()), Some(other.session.as_str()))
    );
    assert_eq!(astray.get("/api/agents/me").await.unwrap().status, 401);
    assert!(serving.ask(&["status"]).await["wrong_channel"].as_u64() > Some(0));
    // A token that is nobody's is no such thing.
    let before = serving.ask(&["status"]).await["wrong_channel"].clone();
    let nobody = paperclip_bridge_tests::Agent {
        token: "pcb_nobody".to_owned(),
        ..astray
    };
    assert_eq!(nobody.get("/api/agents/me").await.unwrap().status, 401);
    assert_eq!(serving.ask(&["status"]).await["wrong_channel"], before);
    let state = serving.folder.path().join("state");
    let told = paperclip_bridge_tests::binary::BridgeCommand::new([
        "audit",
        "query",
        "--session",
        &one.session,
        "--state-dir",
        state.to_str().unwrap(),
    ])
    .finish()
    .await;
    let owner = format!("owner={}", other.session);
    assert!(
        told.stdout
            .lines()
            .any(|line| line.contains("wrong_channel") && line.contains(&owner)),
        "{}",
        told.stdout
    );
    for token in [&one.token, &other.token] {
        assert!(!told.stdout.contains(token.as_str()));
    }
}

#[tokio::test]
async fn two_sessions_share_nothing_but_the_daemon() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let one = serving.session(&upstream, &["--run-id", "run-one"]).await;
    let other = serving.session(&upstream, &["--run-id", "run-other"]).await;

    for opened in [&one, &other] {
        assert_eq!(agent(opened).get("/api/agents/me").await.unwrap().status, 200);
    }
    serving.run(&["sessions", "revoke", &one.session]).await;

    let runs: Vec<_> = upstream
        .seen()
        .iter()
        .map(|seen| seen.header("x-paperclip-run-id").unwrap().to_owned())
        .collect();
    assert_eq!(runs, ["run-one", "run-other"]);
    assert!(agent(&one).get("/api/agents/me").await.is_err());
    assert_eq!(agent(&other).get("/api/agents/me").await.unwrap().status, 200);
}
