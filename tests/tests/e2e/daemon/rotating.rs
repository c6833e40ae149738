//! Another token for a session whose gateway checks it on the target, while that runs.
//!
//! Here: `http2_v1` and `queue_v1`. Not here: tunnels whose daemon alone checks the token (`sessions.rs`), and commands on the
//! target that end otherwise than they say (`tunnel/src/launch/tests/token.rs`).

use std::path::PathBuf;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::clouds::{Cloud, KEY_VARIABLE};
use paperclip_bridge_tests::peer::{Release, installed, their_script};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::world::{CREDENTIAL_VARIABLE, Place};
use paperclip_bridge_tests::{Agent, Upstream, can_run, processes};
use tokio::task::JoinSet;

use super::returning::{BOTH, End, ended, is_back, server, session, ssh};
use crate::queue::{readable, server_with_node};
use crate::ssh_can_run;

const ME: &str = "/api/agents/me";
const BY_GATEWAY: [&str; 2] = ["http2_v1", "queue_v1"];

/// The same session with the token that it is given now.
async fn rotated(serving: &Serving, opened: &Opened) -> Opened {
    let rotated = serving.ask(&["sessions", "rotate", &opened.session]).await;
    Opened {
        token: rotated["token"].as_str().unwrap().to_owned(),
        ..opened.clone()
    }
}

async fn status(opened: &Opened) -> u16 {
    agent(opened).get(ME).await.unwrap().status
}

/// Where the line stands that says which token the gateway of a queue holds.
fn token_file(opened: &Opened) -> PathBuf {
    PathBuf::from(&opened.env["PAPERCLIP_BRIDGE_QUEUE_DIR"]).join("token")
}

#[tokio::test]
async fn a_gateway_takes_another_token_at_once_and_again() {
    let Some(place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    for tunnel in BY_GATEWAY {
        let first = session(&serving, &upstream, &place, &["--tunnel", tunnel]).await;
        let mut wire = paperclip_bridge_tests::Wire::connect(&first.url).await.unwrap();
        let head = agent(&first).head("GET", ME, &[], None);
        let answer = wire.exchange(&head, &["GET"], false).await;
        assert_eq!(answer[0].as_ref().unwrap().status, 200, "{tunnel}");

        let second = rotated(&serving, &first).await;
        assert_eq!(
            (status(&first).await, status(&second).await),
            (401, 200),
            "{tunnel}"
        );
        let answer = wire.exchange(&head, &["GET"], false).await;
        assert_eq!(answer[0].as_ref().unwrap().status, 401, "{tunnel}");
        let third = rotated(&serving, &second).await;

        assert_eq!(
            (status(&second).await, status(&third).await),
            (401, 200),
            "{tunnel}"
        );
        let shown = serving.ask(&["sessions", "show", &first.session]).await;
        assert_eq!(
            (&shown["state"], &shown["url"]),
            (&"ready".into(), &first.url.as_str().into())
        );
        serving.ask(&["sessions", "revoke", &first.session]).await;
        serving.until(&first.session, "ended").await;
        assert!(agent(&third).get(ME).await.is_err());
    }
}

#[tokio::test]
async fn a_token_that_was_rotated_holds_after_a_restart_and_can_be_rotated_again() {
    let Some(place) = ssh() else { return };
    let upstream = Upstream::start().await;
    for end in BOTH {
        for tunnel in BY_GATEWAY {
            let serving = Serving::start().await;
            let first = session(&serving, &upstream, &place, &["--tunnel", tunnel]).await;
            let second = rotated(&serving, &first).await;

            let serving = ended(serving, end).await.start().await;
            is_back(&serving, &second).await;
            assert_eq!(status(&first).await, 401, "{tunnel} {end:?}");
            let third = rotated(&serving, &second).await;
            assert_eq!(
                (status(&second).await, status(&third).await),
                (401, 200),
                "{tunnel} {end:?}"
            );
            let serving = ended(serving, end).await.start().await;

            is_back(&serving, &third).await;
            assert_eq!(
                (status(&first).await, status(&second).await),
                (401, 401),
                "{tunnel} {end:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_queues_gateway_stays_with_the_token_that_it_took_and_goes_with_another() {
    let Some(place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let first = session(&serving, &upstream, &place, &["--tunnel", "queue_v1"]).await;
    let file = token_file(&first);
    let word = |text: String| text.split(' ').next().unwrap().to_owned();
    let start = word(std::fs::read_to_string(&file).unwrap());
    let second = rotated(&serving, &first).await;

    let serving = ended(serving, End::Killed).await.start().await;
    is_back(&serving, &second).await;
    assert_eq!(word(std::fs::read_to_string(&file).unwrap()), start);

    // As a daemon leaves it that was killed after the gateway had taken a token that nobody was told.
    let builder = ended(serving, End::Killed).await;
    std::fs::write(&file, format!("{start} {}\n", "7".repeat(64))).unwrap();
    let serving = builder.start().await;

    is_back(&serving, &second).await;
    assert_ne!(word(std::fs::read_to_string(&file).unwrap()), start);
    assert_eq!(status(&rotated(&serving, &second).await).await, 200);
}

#[tokio::test]
async fn a_token_that_the_gateway_was_not_heard_to_take_is_put_right_by_the_next() {
    let Some(place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let first = session(&serving, &upstream, &place, &["--tunnel", "queue_v1"]).await;
    let file = token_file(&first);
    let text = std::fs::read_to_string(&file).unwrap();
    let (start, _) = text.split_once(' ').unwrap();

    std::fs::write(&file, format!("{start} {}\n", "7".repeat(64))).unwrap();
    assert_eq!(status(&first).await, 401);
    let second = rotated(&serving, &first).await;

    assert_eq!((status(&first).await, status(&second).await), (401, 200));
    std::fs::remove_file(&file).unwrap();
    let answer = serving
        .call("POST", &format!("/v1/sessions/{}/rotate", first.session), "")
        .await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (409, &"token_kept_by_gateway".into())
    );
    assert_eq!(status(&second).await, 200);
}

#[tokio::test]
async fn a_session_whose_target_says_nothing_can_be_ended_while_it_is_rotated() {
    let Some(place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &place, &["--tunnel", "http2_v1"]).await;
    let frozen = server(&place).freeze_sessions();
    let path = format!("/v1/sessions/{}/rotate", opened.session);
    // One is carried out, four wait: the one that is refused tells that the others are there.
    let mut rotating = JoinSet::new();
    for _ in 0..6 {
        let (caller, path) = (serving.caller(), path.clone());
        rotating.spawn(async move { caller.call("POST", &path, &[], b"").await });
    }
    let refused = rotating.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(refused.json()["code"], "session_not_open");

    let shown = serving.ask(&["sessions", "revoke", &opened.session]).await;

    assert_ne!(shown["state"], "ready");
    assert_eq!(shown["reason"], "revoked");
    while let Some(answer) = rotating.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status, 409);
    }
    serving.until(&opened.session, "ended").await;
    for pid in frozen {
        processes::signal(pid, "KILL");
    }
}

#[tokio::test]
async fn a_session_in_a_sandbox_that_nobody_waited_for_gets_its_token_by_rotating() {
    for (tunnel, duplex) in [("http2_v1", true), ("queue_v1", false)] {
        let cloud = Cloud::e2b().await;
        if !duplex {
            cloud.take_duplex_away();
        }
        let upstream = Upstream::start().await;
        let serving = Serving::builder().env(KEY_VARIABLE, cloud.key()).start().await;
        let (target, url) = (format!("{}:", cloud.name()), upstream.url());
        let credential = format!("env:{CREDENTIAL_VARIABLE}");
        let fields = cloud.fields();
        let mut words = vec!["sessions", "new", &target, "--wait", "nothing"];
        words.extend(["--upstream", &url, "--credential", &credential]);
        words.extend(fields.iter().flat_map(|field| ["--provider", field.as_str()]));

        let told = serving.ask(&words).await;
        assert!(told["token"].is_null(), "{told}");
        let id = told["session"].as_str().unwrap();
        let shown = serving.until(id, "ready").await;
        assert_eq!(shown["tunnel"], tunnel);
        let rotated = serving.ask(&["sessions", "rotate", id]).await;

        let agent = Agent {
            url: shown["url"].as_str().unwrap().to_owned(),
            token: rotated["token"].as_str().unwrap().to_owned(),
        };
        assert_eq!(agent.get(ME).await.unwrap().status, 200, "{tunnel}");
        serving.ask(&["sessions", "revoke", id]).await;
        serving.until(id, "ended").await;
    }
}

#[tokio::test]
async fn a_peers_script_keeps_its_token_and_the_session_goes_on() {
    if !(ssh_can_run() && can_run(installed().map(drop)) && can_run(readable(installed().unwrap()))) {
        return;
    }
    let installed = installed().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = their_script(installed, Release::R916, folder.path());
    let gateway = format!("node:{}", script.display());
    let place = Place::Ssh(Box::new(server_with_node(installed, "")));
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    for tunnel in BY_GATEWAY {
        let more = ["--tunnel", tunnel, "--gateway", &gateway];
        let opened = session(&serving, &upstream, &place, &more).await;

        let answer = serving
            .call("POST", &format!("/v1/sessions/{}/rotate", opened.session), "")
            .await;

        let problem = answer.json();
        assert_eq!(
            (answer.status, &problem["code"]),
            (409, &"token_kept_by_gateway".into()),
            "{tunnel}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("is a script") && detail.contains(tunnel),
            "{detail}"
        );
        assert_eq!(status(&opened).await, 200, "{tunnel}");
    }
}
