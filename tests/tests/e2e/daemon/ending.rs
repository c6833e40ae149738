//! How sessions of a daemon end, and how the daemon does.

use std::sync::Arc;

use paperclip_bridge_tests::binary::{BridgeCommand, Opened};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Agent, Script, Upstream, Wire, eventually, within};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::SOON;

const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");

/// An unsafe callback with this key that the upstream has and does not answer yet.
pub(super) async fn in_flight(upstream: &Upstream, opened: &Opened, key: &str) -> (Wire, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    upstream.on_next(
        1,
        "POST",
        COMMENTS,
        Script::json(201, r#"{"made":true}"#).held(&permits),
    );
    let mut wire = Wire::connect(&opened.url).await.unwrap();
    let mut bytes = agent(opened).head("POST", COMMENTS, &[JSON, ("idempotency-key", key)], Some(2));
    bytes.extend_from_slice(b"{}");
    wire.send(&bytes).await.unwrap();
    eventually(SOON, "the upstream has it", || {
        upstream
            .seen()
            .iter()
            .any(|seen| seen.whole && seen.header("idempotency-key") == Some(key))
            .then_some(())
    })
    .await;
    (wire, permits)
}

#[tokio::test]
async fn a_revoked_session_cuts_its_callers_and_still_learns_what_became_of_their_writes() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let (mut busy, permits) = in_flight(&upstream, &opened, "k-1").await;
    let mut idle = Wire::connect(&opened.url).await.unwrap();
    let head = agent(&opened).head("GET", "/api/agents/me", &[], None);
    assert_eq!(
        idle.exchange(&head, &["GET"], false).await[0]
            .as_ref()
            .unwrap()
            .status,
        200
    );

    let shown = serving.ask(&["sessions", "revoke", &opened.session]).await;

    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&"draining".into(), &"revoked".into())
    );
    assert_eq!(shown["open_outcomes"], 1);
    assert!(busy.is_closed_within(SOON).await && idle.is_closed_within(SOON).await);
    assert!(agent(&opened).get("/api/agents/me").await.is_err());
    let words = ["outcome", "key:k-1", "--session", &opened.session];
    assert_eq!(serving.ask(&words).await["outcome"], "in_flight");
    permits.add_permits(1);
    serving.until(&opened.session, "ended").await;
    let told = serving.ask(&words).await;
    assert_eq!(
        (&told["outcome"], &told["status"]),
        (&"answered".into(), &201.into())
    );
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_session_whose_owner_falls_silent_is_ended_and_one_that_is_heard_of_is_not() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let silent = serving.session(&upstream, &["--heartbeat", "200ms"]).await;
    let heard = serving.session(&upstream, &["--heartbeat", "2s"]).await;

    let beaten = async {
        loop {
            let target = format!("/v1/sessions/{}/heartbeat", heard.session);
            assert_eq!(serving.call("POST", &target, "").await.status, 200);
            let target = format!("/v1/sessions/{}", silent.session);
            let shown = serving.call("GET", &target, "").await.json();
            if shown["state"] == "ended" {
                return shown;
            }
        }
    };
    let shown = within(SOON, "the silent one ends", beaten).await;

    assert_eq!(shown["reason"], "heartbeat_missed");
    assert!(agent(&silent).get("/api/agents/me").await.is_err());
    assert_eq!(agent(&heard).get("/api/agents/me").await.unwrap().status, 200);
    let target = format!("/v1/sessions/{}/heartbeat", silent.session);
    let late = serving.call("POST", &target, "").await;
    assert_eq!((late.status, late.code().as_str()), (409, "session_not_open"));
}

#[tokio::test]
async fn a_session_ends_when_its_time_is_over() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);

    let opened = serving.session(&upstream, &["--ttl", "300ms"]).await;

    assert_eq!(serving.until(&opened.session, "ended").await["reason"], "expired");
}

#[tokio::test]
async fn a_session_whose_maker_stops_waiting_is_ended() {
    let serving = Serving::start().await;
    // Takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = mute.local_addr().unwrap().port();
    let body = format!(
        r#"{{"target":"ssh://a@127.0.0.1:{port}","credential":"env:TEST_CREDENTIAL","no_upstream_check":true}}"#
    );
    let caller = serving.caller();
    let mut wire = Wire::connect(&caller.url).await.unwrap();
    let mut bytes = caller.head("POST", "/v1/sessions?wait=ready", &[JSON], Some(body.len()));
    bytes.extend_from_slice(body.as_bytes());
    wire.send(&bytes).await.unwrap();
    // Held: a target that hangs up would end the session, too.
    let _held = within(SOON, "the target is connected to", mute.accept())
        .await
        .unwrap();

    drop(wire);

    let listed = serving.call("GET", "/v1/sessions", "").await.json();
    let session = listed["sessions"][0]["session"].as_str().unwrap().to_owned();
    assert_eq!(serving.until(&session, "ended").await["reason"], "owner_gone");
}

#[tokio::test]
async fn a_session_that_is_being_opened_can_be_revoked() {
    let serving = Serving::start().await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = mute.local_addr().unwrap().port();
    let body = format!(
        r#"{{"target":"ssh://a@127.0.0.1:{port}","credential":"env:TEST_CREDENTIAL","no_upstream_check":true}}"#
    );
    let made = serving.call("POST", "/v1/sessions", &body).await.json();
    let session = made["session"].as_str().unwrap();
    let early = serving
        .call("POST", &format!("/v1/sessions/{session}/rotate"), "")
        .await;
    assert_eq!((early.status, early.code().as_str()), (409, "session_not_open"));

    let shown = serving.ask(&["sessions", "revoke", session]).await;

    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&"ended".into(), &"revoked".into())
    );
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_is_told_to_whoever_asked() {
    let serving = Serving::start().await;

    let ended = serving
        .run(&[
            "sessions",
            "new",
            "ssh://a@127.0.0.1:1",
            "--credential",
            "env:TEST_CREDENTIAL",
            "--no-upstream-check",
            "--wait",
            "ready",
        ])
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let listed = serving.ask(&["sessions", "ls"]).await;
    assert_eq!(listed["sessions"][0]["state"], "ended");
    assert_eq!(listed["sessions"][0]["reason"], "target_unreachable");
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_lets_callbacks_end_and_leaves_nothing_behind() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let (mut busy, permits) = in_flight(&upstream, &opened, "k-1").await;

    serving.running.signal("TERM");

    serving.until(&opened.session, "draining").await;
    let ops = Agent {
        url: serving.ops.clone(),
        token: String::new(),
    };
    let ready = ops.get("/readyz").await.unwrap();
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &false.into()));
    assert_eq!(ops.get("/healthz").await.unwrap().status, 200);
    let refused = serving
        .call("POST", "/v1/sessions", r#"{"target":"local"}"#)
        .await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "draining"));
    permits.add_permits(1);
    assert_eq!(busy.answer("POST").await.unwrap().status, 201);
    let (url, socket) = (opened.url.clone(), serving.socket());
    let ended = serving.running.finish().await;
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    assert!(Wire::connect(&url).await.is_err());
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_drain_that_is_waited_for_answers_when_every_session_is_closed() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;

    let drained = serving.ask(&["drain", "--wait"]).await;

    assert_eq!(drained["left"], 0);
    assert!(Wire::connect(&opened.url).await.is_err());
    assert_eq!(serving.running.finish().await.code, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_although_a_callback_is_under_way() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let (mut busy, _permits) = in_flight(&upstream, &opened, "k-1").await;
    serving.running.signal("TERM");
    serving.until(&opened.session, "draining").await;

    serving.running.signal("TERM");

    let Serving { running, folder, .. } = serving;
    let ended = running.finish().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(busy.is_closed_within(SOON).await);
    let state = folder.path().join("state");
    let verified = BridgeCommand::new(["audit", "verify", "--json", "--state-dir"])
        .args([state.to_str().unwrap()])
        .finish()
        .await;
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["warnings"], serde_json::json!([]), "{report}");
    assert_eq!(report["sealed_seq"], report["last_seq"], "{report}");
}

#[tokio::test]
async fn a_socket_is_taken_over_from_a_daemon_that_was_killed_and_from_no_other() {
    let serving = Serving::start().await;
    let [option, address] = serving.control();
    let second = BridgeCommand::new(["serve", "--ops", "127.0.0.1:0"])
        .args([option, address])
        .finish()
        .await;
    assert_eq!(second.code, Some(3));
    assert!(
        second.stderr.contains("another daemon listens"),
        "{}",
        second.stderr
    );

    serving.running.signal("KILL");
    let Serving { running, folder, .. } = serving;
    running.finish().await;

    let next = Serving::in_folder(folder).start().await;
    assert_eq!(next.ask(&["status"]).await["draining"], false);
}
