//! What a configuration allows and limits, and what a session may add to it.

use std::sync::Arc;

use paperclip_bridge_tests::binary::BridgeCommand;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::sshd::{self, Sshd};
use paperclip_bridge_tests::upstream::Script;
use paperclip_bridge_tests::{Agent, Upstream, can_run, eventually, within};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::SOON;
use super::configured::{configured, session, with_upstream};

const ADHOC: &str = "[control]\nadhoc = true\n";

async fn asked(serving: &Serving, body: &Value) -> (u16, Value) {
    let told = serving
        .call("POST", "/v1/sessions?wait=ready", &body.to_string())
        .await;
    (told.status, told.json())
}

fn fields(told: &Value) -> Vec<&str> {
    let mistakes = told["mistakes"].as_array();
    mistakes
        .into_iter()
        .flatten()
        .filter_map(|mistake| mistake["field"].as_str())
        .collect()
}

async fn metrics(serving: &Serving) -> String {
    let ops = Agent {
        url: serving.ops.clone(),
        token: "none".to_owned(),
    };
    ops.get("/metrics").await.unwrap().text()
}

#[tokio::test]
async fn where_denials_are_only_reported_they_are_let_through_told_of_and_nothing_else_is_relaxed() {
    let upstream = Upstream::start().await;
    let more = "[policy]\nmode = \"report\"\npacks = []\nrules = '''\n\
        [[deny]]\nname = \"quiet\"\nmethod = \"GET\"\npath = \"/api/agents/me\"\n\
        [limits]\nmax_body = 16\n'''\n";
    let serving = configured(&with_upstream(&upstream, &format!("{ADHOC}{more}"))).await;
    let opened = session(&serving, &[]).await;
    let agent = agent(&opened);

    let denied = agent.get("/api/agents/me").await.unwrap();
    let unknown = agent.post("/api/nowhere", "{}").await.unwrap();
    let large = agent.post("/api/nowhere", &"x".repeat(17)).await.unwrap();
    let crooked = agent.get("/api//agents").await.unwrap();
    let astray = Agent {
        token: "pcb_wrong".to_owned(),
        ..agent.clone()
    };
    let astray = astray.get("/api/agents/me").await.unwrap();

    assert_eq!((denied.status, unknown.status), (200, 200), "{}", unknown.text());
    assert_eq!((large.status, crooked.status, astray.status), (413, 400, 401));
    assert_eq!(upstream.count(), 2);
    let status = serving.ask(&["status"]).await;
    assert_eq!((&status["reported"], &status["denied"]), (&json!(2), &json!(3)));
    assert!(
        metrics(&serving)
            .await
            .contains(r#"verdict="report",status="2xx""#)
    );
    let state = serving.folder.path().join("state");
    let audit = BridgeCommand::new(["audit", "query", "--verdict", "report", "--json", "--state-dir"])
        .args([state.to_str().unwrap()])
        .finish()
        .await;
    for said in [r#""rule":"quiet""#, "a deny rule matches", "no rule allows it"] {
        assert!(
            audit.stdout.contains(said),
            "{said}: {}{}",
            audit.stdout,
            audit.stderr
        );
    }
    let log = serving.running.stderr();
    assert!(log.contains(r#""verdict":"report""#), "{log}");
}

#[tokio::test]
async fn what_a_session_adds_stands_beside_the_configuration_whose_deny_rules_win() {
    let upstream = Upstream::start().await;
    let more = "[policy]\nrules = '''\n[[deny]]\nname = \"quiet\"\nmethod = \"GET\"\npath = \"/api/agents/me\"\n'''\n";
    let serving = configured(&with_upstream(&upstream, &format!("{ADHOC}{more}"))).await;
    let own = serving.folder.path().join("own.toml");
    let rules = "[constrain]\nissue = \"PAP-1\"\n[[allow]]\nmethod = \"GET\"\npath = \"/api/agents/me\"\n\
        [[allow]]\nmethod = \"GET\"\npath = \"/api/own\"\n";
    std::fs::write(&own, rules).unwrap();

    let opened = session(&serving, &["--policy", own.to_str().unwrap()]).await;

    let status = async |path: &str| agent(&opened).get(path).await.unwrap().status;
    assert_eq!(status("/api/agents/me").await, 403, "the configuration denies it");
    assert_eq!(status("/api/own").await, 200, "the session adds it");
    assert_eq!(status("/api/issues/PAP-1").await, 200);
    assert_eq!(status("/api/issues/PAP-2").await, 403, "the session narrows it");
    // A mistake in it is told at its field and line.
    std::fs::write(&own, "\n[constrain]\nisue = \"PAP-1\"\n").unwrap();
    let body = json!({ "target": "local", "policy": own.to_str().unwrap() });
    let (status, told) = asked(&serving, &body).await;
    assert_eq!((status, fields(&told)), (422, vec!["policy"]), "{told}");
    let detail = told["detail"].as_str().unwrap();
    assert!(
        detail.contains("own.toml:3") && detail.contains("`issue`"),
        "{told}"
    );
}

#[tokio::test]
async fn whoever_brings_nothing_may_choose_less_and_not_more_than_the_configuration_has() {
    let upstream = Upstream::start().await;
    let more = "[policy]\npacks = [\"paperclip-2026.707\"]\n[limits]\nmax_body = \"1KiB\"\n\
        [targets.here]\ntarget = \"local\"\n";
    let serving = configured(&with_upstream(&upstream, more)).await;
    let with = |field: &str, value: &str| {
        let mut body = json!({ "target": "here", "heartbeat": "off" });
        body[field] = json!(value);
        body
    };

    let (status, told) = asked(&serving, &with("pack", "paperclip-2026.916")).await;
    assert_eq!((status, fields(&told)), (422, vec!["pack"]), "{told}");
    let (status, told) = asked(&serving, &with("max_body", "2KiB")).await;
    assert_eq!((status, fields(&told)), (422, vec!["max_body"]), "{told}");
    let (status, told) = asked(&serving, &with("policy", "/etc/hostname")).await;
    assert_eq!(
        (status, told["code"].as_str()),
        (403, Some("adhoc_refused")),
        "{told}"
    );

    let (status, nothing) = asked(&serving, &with("pack", "none")).await;
    assert_eq!(status, 201, "{nothing}");
    let agent = Agent {
        url: nothing["url"].as_str().unwrap().to_owned(),
        token: nothing["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(agent.get("/api/agents/me").await.unwrap().status, 403);
    let (status, _) = asked(&serving, &with("max_body", "512B")).await;
    assert_eq!(status, 201);
}

#[tokio::test]
async fn an_upstream_of_the_configuration_takes_no_credential_of_a_session() {
    let upstream = Upstream::start().await;
    let more = "[targets.here]\ntarget = \"local\"\nupstream = \"main\"\n";
    let serving = configured(&with_upstream(&upstream, &format!("{ADHOC}{more}"))).await;

    for target in ["local", "here"] {
        let mut body = json!({ "target": target, "credential": "env:OTHER", "upstream_ca": "/etc/hostname" });
        if target == "local" {
            body["upstream"] = json!("main");
        }
        let (status, told) = asked(&serving, &body).await;
        assert_eq!(
            (status, fields(&told)),
            (422, vec!["credential", "upstream_ca"]),
            "{told}"
        );
        assert!(told["detail"].as_str().unwrap().contains("`main`"), "{told}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_session_on_a_named_target_uses_the_keys_that_the_operator_gave_it() {
    if !can_run(sshd::here()) {
        return;
    }
    let (upstream, server) = (Upstream::start().await, Sshd::start());
    let access = server.access();
    let more = format!(
        "[targets.box]\ntarget = \"{}\"\nupstream = \"main\"\ntunnel = \"ssh-reverse\"\nidentities = [\"{}\"]\nknown_hosts = \"{}\"\n",
        access.target,
        access.identity.display(),
        access.known_hosts.display()
    );
    let serving = configured(&with_upstream(&upstream, &more)).await;

    let opened = serving.ask(&["sessions", "new", "box"]).await;
    let by_url = serving.run(&["sessions", "new", &access.target]).await;
    let own_key = serving
        .run(&[
            "sessions",
            "new",
            "box",
            "--identity",
            access.identity.to_str().unwrap(),
        ])
        .await;

    assert_eq!(opened["tunnel"], "ssh-reverse");
    let agent = Agent {
        url: opened["url"].as_str().unwrap().to_owned(),
        token: opened["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(agent.get("/api/agents/me").await.unwrap().status, 200);
    let shown = serving
        .ask(&["sessions", "show", opened["session"].as_str().unwrap()])
        .await;
    assert_eq!(shown["target"], "box");
    // The place alone is not enough: the host key is known by the name.
    assert_ne!(by_url.code, Some(0), "{}", by_url.stdout);
    assert!(
        own_key.code != Some(0) && own_key.stderr.contains("identity"),
        "{}",
        own_key.stderr
    );
}

#[tokio::test]
async fn sizes_and_places_of_the_configuration_hold() {
    let upstream = Upstream::start().await;
    let gate = Arc::new(Semaphore::new(0));
    upstream.on("GET", "/api/issues/slow", Script::json(200, "{}").held(&gate));
    let more = "[limits]\nmax_body = \"1KiB\"\nmax_head = \"2KiB\"\n\
        [limits.concurrency]\nsession = 1\nprocess = 2\n\
        [limits.bytes]\nsession = \"1MiB\"\nprocess = \"1MiB\"\n";
    let serving = configured(&with_upstream(&upstream, &format!("{ADHOC}{more}"))).await;
    let sessions = [
        agent(&session(&serving, &[]).await),
        agent(&session(&serving, &[]).await),
        agent(&session(&serving, &[]).await),
    ];
    let [one, two, three] = &sessions;

    let limits = one.get("/_bridge/limits").await.unwrap().json();
    for (name, value) in [
        ("max_body_bytes", 1024),
        ("max_head_bytes", 2048),
        ("concurrent_callbacks", 1),
        ("session_body_bytes", 1024 * 1024),
    ] {
        assert_eq!(limits[name], value, "{name}");
    }
    let large = one
        .post("/api/issues/PAP-1/comments", &"x".repeat(1025))
        .await
        .unwrap();
    let padding = "x".repeat(2048);
    let head = one
        .call("GET", "/api/agents/me", &[("x-padding", &padding)], b"")
        .await
        .unwrap();
    assert_eq!((large.status, head.status), (413, 431));

    let slow: Vec<_> = [one, two]
        .map(|agent| {
            let agent = agent.clone();
            tokio::spawn(async move { agent.get("/api/issues/slow").await })
        })
        .into();
    eventually(SOON, "both are under way", || {
        (upstream.count() == 2).then_some(())
    })
    .await;
    let own = one.get("/api/agents/me").await.unwrap();
    let all = three.get("/api/agents/me").await.unwrap();
    gate.add_permits(2);

    assert_eq!((own.status, own.code().as_str()), (429, "rate_limited"));
    assert_eq!((all.status, all.code().as_str()), (503, "unavailable"));
    for answer in slow {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
    let freed = async { while three.get("/api/agents/me").await.unwrap().status != 200 {} };
    within(SOON, "their places are free", freed).await;
}
