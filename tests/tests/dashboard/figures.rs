//! The figures that are shown are those of what happened.

use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::upstream::Step;
use paperclip_bridge_tests::{Script, Upstream};

use super::{ask, logged_in, nobody};

#[tokio::test]
async fn calls_denied_throttled_and_indeterminate_are_counted_for_the_daemon_and_the_session() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &["--rate", "1/h:3"]).await;
    let quiet = serving.session(&upstream, &[]).await;
    let caller = agent(&opened);
    upstream.on(
        "POST",
        "/api/issues/PAP-1/comments",
        Script::steps([Step::ReadBody, Step::Reset]),
    );
    let (cookie, _) = logged_in(&serving).await;
    let cookie = [("cookie", cookie.as_str())];

    assert_eq!(caller.get("/api/agents/me").await.unwrap().status, 200);
    assert_eq!(nobody(&caller).get("/api/agents/me").await.unwrap().status, 401);
    assert_eq!(caller.get("/agents/me").await.unwrap().status, 403);
    let json = [("content-type", "application/json")];
    let lost = caller
        .call("POST", "/api/issues/PAP-1/comments", &json, b"{}")
        .await
        .unwrap();
    assert_eq!(lost.status, 409, "{}", lost.text());
    assert_eq!(caller.get("/api/agents/me").await.unwrap().status, 200);
    assert_eq!(caller.get("/api/agents/me").await.unwrap().status, 429);

    let shown = serving.ask(&["sessions", "show", &opened.session]).await;
    let status = serving.ask(&["status"]).await;
    let overview = ask(&serving, "GET", "/dashboard/api/overview", &cookie, "")
        .await
        .json();
    for traffic in [&shown["traffic"], &status["recent"], &overview["total"]] {
        let counted = ["callbacks", "denied", "throttled", "indeterminate", "failed"]
            .map(|name| traffic[name].as_u64());
        assert_eq!(counted, [6, 2, 1, 1, 0].map(Some), "{traffic}");
        assert!(
            traffic["p95_us"].as_u64() >= traffic["p50_us"].as_u64(),
            "{traffic}"
        );
    }
    assert!(shown["last_callback_at"].is_string());
    assert_eq!(overview["silent"], 1, "{overview}");
    assert_eq!(overview["upstreams"][0]["state"], "answers", "{overview}");
    assert_eq!(overview["upstreams"][0]["sessions"], 2);
    assert_eq!(overview["places"][0]["tunnel"], "local");
    let page = format!("/dashboard/api/sessions/{}", quiet.session);
    let page = ask(&serving, "GET", &page, &cookie, "").await.json();
    assert_eq!(page["session"]["traffic"]["callbacks"], 0);
    assert_eq!(page["used"]["most_under_way"], 64);
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_shown_so() {
    let (mut upstream, serving) = (Upstream::start().await, Serving::start().await);
    serving.session(&upstream, &[]).await;
    let (cookie, _) = logged_in(&serving).await;
    upstream.stop().await;

    let told = ask(
        &serving,
        "GET",
        "/dashboard/api/overview",
        &[("cookie", &cookie)],
        "",
    )
    .await;

    let upstream = &told.json()["upstreams"][0];
    assert_eq!(upstream["state"], "unreachable", "{upstream}");
    assert!(upstream["detail"].as_str().unwrap().contains("cannot reach"));
}

#[tokio::test]
async fn a_har_file_needs_the_audit_and_holds_the_sessions_callbacks_only() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let one = serving.session(&upstream, &[]).await;
    let other = serving.session(&upstream, &[]).await;
    agent(&one).get("/api/agents/me").await.unwrap();
    agent(&other).get("/api/issues/PAP-9").await.unwrap();
    let (cookie, _) = logged_in(&serving).await;
    let path = format!("/dashboard/api/sessions/{}/har", one.session);

    // The outcome is written after the answer.
    let mut entries = vec![];
    for _ in 0..200 {
        let har = ask(&serving, "GET", &path, &[("cookie", &cookie)], "")
            .await
            .json();
        entries = har["log"]["entries"].as_array().expect("it is a HAR").clone();
        if entries.iter().any(|entry| entry["response"]["status"] == 200) {
            break;
        }
    }

    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(
        entries[0]["request"]["url"],
        "http://paperclip.invalid/api/agents/me"
    );
    let off = Serving::builder();
    let file = serving.folder.path().join("off.toml");
    std::fs::write(&file, "[audit]\nenabled = false\n[control]\nadhoc = true\n").unwrap();
    let off = off.args(["--config", file.to_str().unwrap()]).start().await;
    let session = off.session(&upstream, &[]).await;
    let (cookie, _) = logged_in(&off).await;
    let path = format!("/dashboard/api/sessions/{}/har", session.session);
    let refused = ask(&off, "GET", &path, &[("cookie", &cookie)], "").await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "no_audit"));
}
