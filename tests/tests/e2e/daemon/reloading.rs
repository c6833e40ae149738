//! A daemon that reads its configuration again: for the next callback of every session, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Agent, Upstream, Wire, eventually, within};
use serde_json::{Value, json};

use super::SOON;
use super::configured::{configured, session, with_upstream, write};

const ADHOC: &str = "[control]\nadhoc = true\n";
/// Two routes, one of which some tests take away.
const BOTH: &str = "[policy]\npacks = []\nrules = '''\n\
    [[allow]]\nmethod = \"GET\"\npath = \"/api/agents/me\"\n\
    [[allow]]\nmethod = \"GET\"\npath = \"/api/issues/{issue}\"\n'''\n";
const ONE: &str =
    "[policy]\npacks = []\nrules = '''\n[[allow]]\nmethod = \"GET\"\npath = \"/api/issues/{issue}\"\n'''\n";

fn text(upstream: &Upstream, more: &str) -> String {
    with_upstream(upstream, &format!("{ADHOC}{more}"))
}

async fn reload(serving: &Serving, text: &str) -> Value {
    write(serving.folder.path(), text);
    serving.ask(&["reload"]).await
}

/// One caller that keeps its connection.
struct Standing {
    wire: Wire,
    agent: Agent,
}

impl Standing {
    async fn connect(opened: &Opened) -> Self {
        Self {
            wire: Wire::connect(&opened.url).await.unwrap(),
            agent: agent(opened),
        }
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        let head = self.agent.head("GET", path, &[], None);
        let answers = self.wire.exchange(&head, &["GET"], false).await;
        let answer = answers[0].as_ref().unwrap();
        let code = if answer.status == 200 {
            String::new()
        } else {
            answer.code()
        };
        (answer.status, code)
    }
}

#[tokio::test]
async fn a_rule_that_is_taken_away_denies_the_very_next_callback_on_a_connection_that_stands() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, BOTH)).await;
    let opened = session(&serving, &[]).await;
    let mut caller = Standing::connect(&opened).await;
    assert_eq!(caller.get("/api/agents/me").await.0, 200);

    let reloaded = reload(&serving, &text(&upstream, ONE)).await;

    assert_eq!(
        reloaded,
        json!({ "changed": ["policy.rules"], "needs_restart": [] })
    );
    assert_eq!(
        caller.get("/api/agents/me").await,
        (403, "route_not_allowed".to_owned())
    );
    assert_eq!(caller.get("/api/issues/PAP-1").await.0, 200);
    assert_eq!(upstream.count(), 2);
    // What is asked of the bridge itself tells the same.
    let routes = agent(&opened).get("/_bridge/routes").await.unwrap().json();
    assert_eq!(routes["routes"].as_array().unwrap().len(), 1);
    reload(&serving, &text(&upstream, BOTH)).await;
    assert_eq!(caller.get("/api/agents/me").await.0, 200);
}

#[tokio::test]
async fn a_file_with_mistakes_changes_nothing_and_each_is_told_at_its_line() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, BOTH)).await;
    let opened = session(&serving, &[]).await;
    let broken = text(&upstream, &ONE.replace("issues/{issue}", "issues//x")) + "[limits]\nmax_bdy = 1\n";
    write(serving.folder.path(), &broken);

    let refused = serving.run(&["reload"]).await;
    let told = serving.call("POST", "/v1/reload", "").await;

    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    for said in [
        "bridge.toml:11",
        "policy.rules",
        "bridge.toml:14",
        "max_bdy",
        "max_body",
    ] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    assert_eq!(
        (told.status, told.code().as_str()),
        (422, "configuration_refused")
    );
    assert_eq!(told.json()["mistakes"].as_array().unwrap().len(), 2);
    assert!(serving.running.stderr().contains("bridge.toml:14"));
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    // A rule file is read with it, and refused like it.
    let rules = serving.folder.path().join("rules.toml");
    std::fs::write(&rules, "\n[[alow]]\n").unwrap();
    let file = format!("[policy]\nfile = \"{}\"\n", rules.display());
    write(serving.folder.path(), &text(&upstream, &file));
    let refused = serving.run(&["reload"]).await;
    assert_eq!(refused.code, Some(3));
    assert!(refused.stderr.contains("rules.toml:2"), "{}", refused.stderr);
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
}

#[tokio::test]
async fn what_needs_a_restart_is_told_each_time_and_the_rest_is_in_force() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "")).await;
    let first = session(&serving, &["--agent-id", "a-1"]).await;
    let more = "[audit]\nbody_digest = \"all\"\n[limits]\nmax_body = \"1KiB\"\n[limits.rate.agent]\nall = \"1/h:1\"\n";

    let reloaded = reload(&serving, &text(&upstream, more)).await;
    let again = serving.ask(&["reload"]).await;

    assert_eq!(reloaded["needs_restart"], json!(["audit.body_digest"]));
    assert_eq!(
        reloaded["changed"],
        json!(["limits.max_body", "limits.rate.agent.all"])
    );
    assert_eq!(
        again,
        json!({ "changed": [], "needs_restart": ["audit.body_digest"] })
    );
    // Rates hold for sessions that live, sizes for those that are opened from now on.
    assert_eq!(agent(&first).get("/api/agents/me").await.unwrap().status, 200);
    assert_eq!(agent(&first).get("/api/agents/me").await.unwrap().status, 429);
    let second = session(&serving, &[]).await;
    let limits = agent(&second).get("/_bridge/limits").await.unwrap().json();
    assert_eq!(limits["max_body_bytes"], 1024);
}

#[tokio::test]
async fn a_hang_up_has_the_rule_file_read_again_and_ends_nothing() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.toml");
    let write_rules = |denied: &str| {
        let rule = format!("[[deny]]\nmethod = \"GET\"\npath = \"{denied}\"\n");
        std::fs::write(&rules, rule).unwrap();
    };
    write_rules("/api/nothing");
    let file = format!("[policy]\nfile = \"{}\"\n", rules.display());
    let mut serving = configured(&text(&upstream, &file)).await;
    let opened = session(&serving, &[]).await;
    let mut caller = Standing::connect(&opened).await;
    assert_eq!(caller.get("/api/agents/me").await.0, 200);
    write_rules("/api/agents/me");

    serving.running.signal("HUP");

    eventually(SOON, "the log tells of it", || {
        let log = serving.running.stderr();
        log.contains("was read again and is in force")
            .then_some(log.contains("policy.file"))
            .filter(|named| *named)
    })
    .await;
    assert_eq!(caller.get("/api/agents/me").await.0, 403);
    assert!(!serving.running.has_ended());
    write_rules("/api/nothing");
    assert_eq!(serving.ask(&["reload"]).await["changed"], json!(["policy.file"]));
    assert_eq!(caller.get("/api/agents/me").await.0, 200);
    let metrics = Agent {
        url: serving.ops.clone(),
        token: "none".to_owned(),
    };
    let metrics = metrics.get("/metrics").await.unwrap().text();
    assert!(metrics.contains(r#"reloads_total{result="ok"} 2"#), "{metrics}");
}

#[tokio::test]
async fn callbacks_go_on_while_the_configuration_is_read_again_and_again() {
    const CALLERS: usize = 4;
    const CALLBACKS: usize = 10_000;
    const RELOADS: usize = 20;
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, BOTH)).await;
    let done = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let opened = session(&serving, &[]).await;
        let mut caller = Standing::connect(&opened).await;
        let (done, over) = (Arc::clone(&done), Arc::clone(&over));
        callers.spawn(async move {
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) || done.load(Ordering::Relaxed) < CALLBACKS {
                let answer = caller.get("/api/issues/PAP-1").await;
                done.fetch_add(1, Ordering::Relaxed);
                if answer.0 != 200 {
                    failed.push(answer);
                }
            }
            failed
        });
    }
    let mut changing = Standing::connect(&session(&serving, &[]).await).await;

    for turn in 0..RELOADS {
        let (rules, status) = if turn % 2 == 0 { (ONE, 403) } else { (BOTH, 200) };
        write(serving.folder.path(), &text(&upstream, rules));
        let told = serving.call("POST", "/v1/reload", "").await;
        assert_eq!(told.status, 200, "{}", told.text());
        assert_eq!(changing.get("/api/agents/me").await.0, status, "turn {turn}");
        // The reloads lie between the callbacks, from the first to the last.
        let due = CALLBACKS * (turn + 1) / RELOADS;
        eventually(SOON, "callbacks go on", || {
            (done.load(Ordering::Relaxed) >= due).then_some(())
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);

    let failed = within(SOON, "the callers end", callers.join_all()).await.concat();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    assert!(done.load(Ordering::Relaxed) >= CALLBACKS);
}
