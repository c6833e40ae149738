//! What the upstream may and may not do to a session, and what of its answers reaches an agent.

use paperclip_bridge_tests::upstream::{Step, Upstream};
use paperclip_bridge_tests::world::{Place, daemon};
use paperclip_bridge_tests::{Agent, Script, World};

const COMMENTS: &str = "/api/issues/PAP-1/comments";
const ME: &str = "/api/agents/me";

#[tokio::test]
async fn an_https_upstream_is_called_with_the_given_authority() {
    let world = World::local().tls().open().await;

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.upstream.count(), 1);
    world.assert_upstream_saw_only_what_it_may();
}

#[tokio::test]
async fn an_https_upstream_that_nobody_vouches_for_is_unreachable_and_sees_nothing() {
    let upstream = Upstream::start_tls().await;
    let opened = daemon("open", &Place::Local, &upstream.url())
        .args(["--json", "--until-stdin-closes", "--no-upstream-check"])
        .open()
        .await;
    let opened = opened
        .unwrap_or_else(|ended| panic!("{}", ended.stderr))
        .opened_agent();

    let answer = opened.1.post(COMMENTS, "{}").await.unwrap();

    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "upstream_unreachable")
    );
    assert_eq!(upstream.count(), 0);
}

/// The session's agent beside its daemon, where there is no world.
trait OpenedAgent {
    fn opened_agent(self) -> (Self, Agent)
    where
        Self: Sized;
}

impl OpenedAgent for paperclip_bridge_tests::binary::Bridge {
    fn opened_agent(self) -> (Self, Agent) {
        let agent = Agent {
            url: self.opened.url.clone(),
            token: self.opened.token.clone(),
        };
        (self, agent)
    }
}

#[tokio::test]
async fn a_redirect_is_passed_on_without_its_location_and_never_followed() {
    let world = World::local().open().await;
    for status in [301, 302, 303, 307, 308] {
        let path = format!("/api/agents/r{status}");
        let location = format!("{}/api/agents/elsewhere", world.upstream.url());
        world.upstream.on(
            "GET",
            &path,
            Script::answer(status, &[("location", &location)], b""),
        );

        let answer = world.agent().get(&path).await.unwrap();

        assert_eq!((answer.status, answer.header("location")), (status, None));
    }
    assert!(
        !world
            .upstream
            .seen()
            .iter()
            .any(|seen| seen.target.contains("elsewhere"))
    );
    assert_eq!(world.upstream.count(), 5);
}

#[tokio::test]
async fn only_listed_headers_of_an_answer_come_through() {
    let world = World::local().open().await;
    let headers = [
        ("content-type", "application/json"),
        ("etag", "\"v1\""),
        ("retry-after", "7"),
        ("set-cookie", "session=secretive"),
        ("server", "secretive"),
        ("x-internal", "secretive"),
        ("www-authenticate", "Bearer realm=secretive"),
        ("access-control-allow-origin", "*"),
        ("connection", "keep-alive, etag-of-another"),
        ("keep-alive", "timeout=5"),
        ("alt-svc", "h2=\":443\""),
    ];
    world.upstream.on("GET", ME, Script::answer(200, &headers, b"{}"));

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!(
        (answer.header("etag"), answer.header("retry-after")),
        (Some("\"v1\""), Some("7"))
    );
    let allowed = [
        "content-type",
        "etag",
        "retry-after",
        "content-length",
        "date",
        "x-paperclip-bridge-request-id",
    ];
    for (name, value) in &answer.headers {
        assert!(allowed.contains(&name.as_str()), "{name}: {value} came through");
    }
}

#[tokio::test]
async fn a_header_named_by_connection_does_not_come_through() {
    let world = World::local().open().await;
    let headers = [
        ("content-type", "application/json"),
        ("etag", "\"v1\""),
        ("connection", "etag"),
    ];
    world.upstream.on("GET", ME, Script::answer(200, &headers, b"{}"));

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!((answer.status, answer.header("etag")), (200, None));
}

#[tokio::test]
async fn the_upstreams_own_refusals_are_passed_on_as_they_are() {
    let world = World::local().open().await;
    for status in [400, 401, 403, 404, 409, 422, 429, 500, 502, 503] {
        let path = format!("/api/agents/s{status}");
        world
            .upstream
            .on("GET", &path, Script::json(status, r#"{"error":"its own"}"#));

        let answer = world.agent().get(&path).await.unwrap();

        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, r#"{"error":"its own"}"#)
        );
    }
}

#[tokio::test]
async fn a_base_path_of_the_upstream_is_kept() {
    let world = World::local().base_path("/base/path").open().await;

    let answer = world.agent().get("/api/agents/me?a=b").await.unwrap();

    assert_eq!(answer.status, 200);
    assert_eq!(world.upstream.seen()[0].target, "/base/path/api/agents/me?a=b");
}

#[tokio::test]
async fn an_upstream_that_is_down_is_502_and_after_its_restart_the_session_works() {
    let mut world = World::local().open().await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    world.upstream.stop().await;
    let get = world.agent().get(ME).await.unwrap();
    let post = world.agent().post(COMMENTS, "{}").await.unwrap();
    world.upstream.start_again().await;
    let after = world.agent().post(COMMENTS, "{}").await.unwrap();

    for answer in [&get, &post] {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_unreachable"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.json()["retryable"], true);
    }
    assert_eq!(after.status, 200);
    assert_eq!(world.upstream.count(), 2);
}

#[tokio::test]
async fn a_safe_call_whose_answer_is_unusable_is_502() {
    let world = World::local().open().await;
    let gzip = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let scripts = [
        ("closes", Script::close_without_answer()),
        ("resets", Script::steps([Step::ReadBody, Step::Reset])),
        ("garbage", Script::raw("NONSENSE\r\n\r\n").then(Step::Close)),
        (
            "lengths",
            Script::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ")
                .then(Step::Close),
        ),
        ("gzip", Script::answer(200, &gzip, b"\x1f\x8b\x08")),
        (
            "huge",
            Script::raw(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999\r\n\r\n",
            ),
        ),
        (
            "cut-chunks",
            Script::chunked(200, "application/json", &[b"{\"a\":1}"]).cut_after(95),
        ),
        ("cut-head", Script::json(200, "{}").cut_after(20)),
    ];
    for (name, script) in scripts {
        let path = format!("/api/agents/{name}");
        world.upstream.on("GET", &path, script);

        let answer = world
            .agent()
            .get(&path)
            .await
            .unwrap_or_else(|broken| panic!("{name}: {broken:?}"));

        let told = (answer.status, answer.code());
        assert_eq!(
            told,
            (502, "upstream_failed".to_owned()),
            "{name}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["retryable"], true, "{name}");
    }
}

#[tokio::test]
async fn a_streamed_answer_that_breaks_off_never_looks_whole() {
    let world = World::local().open().await;
    let body = vec![b'x'; 1024 * 1024];
    let script = Script::answer(200, &[("content-type", "application/json")], &body);
    world
        .upstream
        .on("GET", "/api/agents/cut", script.clone().cut_after(600_000));
    world
        .upstream
        .on("GET", "/api/agents/reset", script.reset_after(600_000));

    for path in ["/api/agents/cut", "/api/agents/reset"] {
        let answer = world.agent().get(path).await;

        // Either the status could still tell it, or the connection was cut inside the body.
        match answer {
            Ok(answer) => assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_failed")),
            Err(broken) => assert!(
                matches!(broken, paperclip_bridge_tests::Broken::Cut(_)),
                "{broken:?}"
            ),
        }
    }
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_early_refusal_of_the_upstream_ends_the_upload_and_is_passed_on() {
    let world = World::local().open().await;
    world
        .upstream
        .on("POST", COMMENTS, Script::early(413, r#"{"error":"its own"}"#));
    let body = format!("\"{}\"", "x".repeat(8 * 1024 * 1024));

    let answer = world.agent().post(COMMENTS, &body).await.unwrap();

    assert_eq!(
        (answer.status, answer.text().as_str()),
        (413, r#"{"error":"its own"}"#)
    );
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}
