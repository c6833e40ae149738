//! Sessions that were still being opened when their daemon was killed: opened again where their token was shown already.

use std::time::Duration;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::clouds::{Cloud, KEY_VARIABLE};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::{CREDENTIAL_VARIABLE, Place};
use paperclip_bridge_tests::{Agent, Upstream, eventually, processes};
use serde_json::{Value, json};

use super::SOON;
use super::returning::{End, ended, is_back};
use crate::ssh_can_run;

const ME: &str = "/api/agents/me";

/// A host that takes connections and says nothing until it is told to.
struct Silent(Sshd);

impl Silent {
    fn start() -> Option<Self> {
        ssh_can_run().then(|| {
            let server = Sshd::start();
            processes::signal(server.pid().unwrap(), "STOP");
            Self(server)
        })
    }

    fn speaks(&self) {
        if let Some(pid) = self.0.pid() {
            processes::signal(pid, "CONT");
        }
    }

    fn place(&self) -> Place {
        Place::Other(self.0.access())
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.speaks();
    }
}

/// The words that make a session there; those of `wait` last.
fn words(place: &Place, upstream: &Upstream, wait: &str, more: &[&str]) -> Vec<String> {
    let mut words = vec!["sessions".to_owned(), "new".to_owned(), place.target()];
    words.extend(place.options());
    words.extend(["--upstream".to_owned(), upstream.url()]);
    words.extend(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")]);
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words.extend(["--wait".to_owned(), wait.to_owned()]);
    words
}

/// A session that will be starting for as long as its host says nothing; what was told of it at once.
async fn begun(serving: &Serving, silent: &Silent, upstream: &Upstream, more: &[&str]) -> Value {
    let words = words(&silent.place(), upstream, "nothing", more);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let told = serving.ask(&words).await;
    serving.until(told["session"].as_str().unwrap(), "starting").await;
    told
}

#[tokio::test]
async fn a_session_whose_token_was_shown_is_opened_again_and_the_token_holds() {
    for tunnel in ["ssh-reverse", "http2_v1", "queue_v1"] {
        let Some(silent) = Silent::start() else { return };
        let (upstream, serving) = (Upstream::start().await, Serving::start().await);
        let told = begun(
            &serving,
            &silent,
            &upstream,
            &["--tunnel", tunnel, "--run-id", "r-1"],
        )
        .await;
        let (session, token) = (told["session"].as_str().unwrap(), told["token"].as_str().unwrap());

        let serving = ended(serving, End::Killed).await.start().await;

        let shown = serving.until(session, "starting").await;
        assert_eq!(shown["reason"], "restarted", "{tunnel}: {shown}");
        let early = serving.run(&["sessions", "env", session]).await;
        assert_ne!(early.code, Some(0));
        assert!(early.stderr.contains("once it is ready"), "{}", early.stderr);
        silent.speaks();
        serving.until(session, "ready").await;
        let env = serving.ask(&["sessions", "env", session]).await["env"].clone();
        assert_eq!(env["PAPERCLIP_RUN_ID"], "r-1");
        let opened = Opened {
            session: session.to_owned(),
            url: env["PAPERCLIP_API_URL"].as_str().unwrap().to_owned(),
            token: token.to_owned(),
            tunnel: tunnel.to_owned(),
            ladder: vec![],
            env: std::collections::BTreeMap::new(),
        };
        assert_eq!(agent(&opened).get(ME).await.unwrap().status, 200, "{tunnel}");
        // From now on it is one like any other.
        let serving = ended(serving, End::Killed).await.start().await;
        is_back(&serving, &opened).await;
        serving.ask(&["sessions", "revoke", session]).await;
        serving.until(session, "ended").await;
    }
}

#[tokio::test]
async fn a_session_whose_token_nobody_was_told_ends_and_says_what_to_do() {
    let Some(silent) = Silent::start() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let waiting = words(&silent.place(), &upstream, "ready", &[]);
    let maker = paperclip_bridge_tests::binary::BridgeCommand::new(waiting)
        .args(serving.control())
        .start();
    let session = async {
        loop {
            let listed = serving.call("GET", "/v1/sessions", "").await.json();
            if let Some(session) = listed["sessions"][0]["session"].as_str() {
                return session.to_owned();
            }
        }
    };
    let session = tokio::time::timeout(SOON, session).await.unwrap();

    let serving = ended(serving, End::Killed).await.start().await;

    assert_ne!(maker.finish().await.code, Some(0));
    let shown = serving.until(&session, "ended").await;
    assert_eq!(shown["reason"], "restarted");
    let detail = shown["detail"].as_str().unwrap();
    assert!(detail.contains("make a new one"), "{detail}");
    let env = serving.run(&["sessions", "env", &session]).await;
    assert!(env.stderr.contains("make a new one"), "{}", env.stderr);
}

#[tokio::test]
async fn a_session_whose_gateway_needs_the_token_itself_ends_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("gateway.mjs");
    std::fs::write(&script, "process.exit(7)").unwrap();
    let gateway = format!("node:{}", script.display());
    for tunnel in ["http2_v1", "queue_v1"] {
        let Some(silent) = Silent::start() else { return };
        let (upstream, serving) = (Upstream::start().await, Serving::start().await);
        let more = ["--tunnel", tunnel, "--gateway", &gateway];
        let told = begun(&serving, &silent, &upstream, &more).await;

        let serving = ended(serving, End::Killed).await.start().await;

        let shown = serving.until(told["session"].as_str().unwrap(), "ended").await;
        assert_eq!(shown["reason"], "restarted", "{tunnel}: {shown}");
        assert!(shown["detail"].as_str().unwrap().contains("script"), "{shown}");
    }
}

#[tokio::test]
async fn what_cannot_be_opened_again_ends_with_its_reason_and_what_was_revoked_stays_so() {
    let Some(silent) = Silent::start() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let fails = begun(&serving, &silent, &upstream, &["--no-upstream-check"]).await;
    let revoked = begun(&serving, &silent, &upstream, &[]).await;
    serving
        .ask(&["sessions", "revoke", revoked["session"].as_str().unwrap()])
        .await;
    let serving = ended(serving, End::Killed).await;
    let mut silent = silent;
    silent.speaks();
    silent.0.stop();

    let serving = serving.start().await;

    let shown = serving.until(fails["session"].as_str().unwrap(), "ended").await;
    assert_eq!(shown["reason"], "target_unreachable", "{shown}");
    let listed = serving.ask(&["sessions", "ls"]).await;
    let ids: Vec<_> = listed["sessions"].as_array().unwrap().iter().collect();
    assert!(ids.iter().all(|one| one["state"] == "ended"), "{listed}");
    silent.0.start_again();
}

#[tokio::test]
async fn a_sandbox_of_a_session_that_is_not_opened_again_is_given_back() {
    let cloud = Cloud::e2b().await;
    let Cloud::E2b(fake) = &cloud else { unreachable!() };
    // Killed long before it is open.
    fake.switches().latency(Duration::from_millis(300));
    let upstream = Upstream::start().await;
    let serving = Serving::builder().env(KEY_VARIABLE, cloud.key()).start().await;
    let provider: serde_json::Map<String, Value> = cloud
        .fields()
        .iter()
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let asked = json!({
        "target": "e2b:",
        "upstream": upstream.url(),
        "credential": format!("env:{CREDENTIAL_VARIABLE}"),
        "provider": provider,
    });
    let made = serving.call("POST", "/v1/sessions", &asked.to_string()).await;
    assert_eq!((made.status, &made.json()["token"]), (201, &Value::Null));
    let session = made.json()["session"].as_str().unwrap().to_owned();
    eventually(SOON, "the sandbox is made", || {
        (cloud.sandboxes().len() == 1).then_some(())
    })
    .await;

    let serving = ended(serving, End::Killed)
        .await
        .env(KEY_VARIABLE, cloud.key())
        .start()
        .await;

    let shown = serving.until(&session, "ended").await;
    assert_eq!(shown["reason"], "restarted", "{shown}");
    eventually(SOON, "the sandbox is given back", || {
        cloud.sandboxes().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_on_a_unix_socket_answers_at_the_path_that_was_chosen() {
    let Some(silent) = Silent::start() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let home = silent.0.made_user().map(|user| user.home().join("agent.sock"));
    let Some(path) = home else { return };
    let socket = path.display().to_string();
    let told = begun(&serving, &silent, &upstream, &["--unix-socket", &socket]).await;

    let serving = ended(serving, End::Killed).await.start().await;

    silent.speaks();
    serving.until(told["session"].as_str().unwrap(), "ready").await;
    let agent = Agent {
        url: format!("unix:{socket}"),
        token: told["token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
}
