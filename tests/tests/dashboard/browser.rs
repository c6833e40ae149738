//! The page in a real browser, gone through as an operator does (`tests/dashboard/drive.mjs`).

use std::time::Duration;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::sshd::{self, Sshd};
use paperclip_bridge_tests::user::{self, TestUser};
use paperclip_bridge_tests::{Script, Upstream, browser, can_run};
use serde_json::{Value, json};

/// What happens at once, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);

const POLICY: &str = "[[deny]]\nname = \"quiet\"\nmethod = \"POST\"\npath = \"/api/issues/{issue}/comments\"\n\
                      reason = \"comments are made by people\"\n";

#[test]
fn the_browsers_packages_are_installed_as_pinned() {
    if !can_run(browser::installed().map(drop)) {
        return;
    }
    let installed = browser::installed().expect("it was asked for before");
    let pinned = std::fs::read(browser::scripts().join("package.json")).unwrap();
    let pinned: Value = serde_json::from_slice(&pinned).unwrap();

    for (name, version) in pinned["dependencies"].as_object().unwrap() {
        let manifest = std::fs::read(installed.join("node_modules").join(name).join("package.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(&manifest["version"], version, "{name}");
    }
}

#[tokio::test]
async fn an_operator_goes_through_the_dashboard_in_a_browser() {
    if !can_run(browser::installed().map(drop)) || !can_run(sshd::here()) {
        return;
    }
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    upstream.on(
        "GET",
        "/api/issues/PAP-3",
        Script::json(404, r#"{"error":"no such issue"}"#),
    );
    let policy = serving.folder.path().join("rules.toml");
    std::fs::write(&policy, POLICY).unwrap();
    let policy = policy.to_str().unwrap();
    let session = async |run: &str, more: &[&str]| {
        let mut words = vec!["--run-id", run];
        words.extend(more);
        serving.session(&upstream, &words).await
    };
    let busy = session(
        "run-7d1f",
        &[
            "--policy",
            policy,
            "--agent-id",
            "agent-ada",
            "--issue-id",
            "PAP-1",
            "--rate",
            "600/m:200",
        ],
    )
    .await;
    let silent = session("run-still-waiting", &["--agent-id", "agent-grace"]).await;
    let doomed = session("run-42c0", &["--issue-id", "PAP-2", "--ttl", "4h"]).await;
    let server = Sshd::builder().line("AllowTcpForwarding no").start();
    let other = user::can_be_made().is_ok().then(TestUser::make);
    let laddered = over_ssh(&serving, &upstream, &server).await;
    let login = serving.ask(&["dashboard"]).await;

    let printed = browser::drive(json!({
        "base": serving.ops,
        "login": login["url"],
        "other_logins": other.is_some(),
        "agents": {
            "busy": told("run-7d1f", &busy),
            "silent": told("run-still-waiting", &silent),
            "doomed": told("run-42c0", &doomed),
            "laddered": told("run-9be3", &laddered),
        },
    }))
    .await;

    print!("{printed}");
    assert!(
        printed.lines().filter(|line| line.starts_with("ok ")).count() >= 14,
        "{printed}"
    );
}

/// A session whose best tunnel is not to be had.
async fn over_ssh(serving: &Serving, upstream: &Upstream, server: &Sshd) -> Opened {
    let (access, url) = (server.access(), upstream.url());
    let credential = format!("env:{}", paperclip_bridge_tests::world::CREDENTIAL_VARIABLE);
    let options = access.options();
    let mut words = vec![
        "sessions",
        "new",
        &access.target,
        "--wait",
        "ready",
        "--run-id",
        "run-9be3",
    ];
    words.extend(["--upstream", &url, "--credential", &credential]);
    words.extend(options.iter().map(String::as_str));
    serde_json::from_value(serving.ask(&words).await).expect("it is the line of `open --json`")
}

fn told(run: &str, opened: &Opened) -> Value {
    json!({ "run": run, "session": opened.session, "url": opened.url, "token": opened.token })
}
