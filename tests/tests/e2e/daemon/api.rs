//! The control API under requests that are not as they should be, and the ops listener.

use paperclip_bridge_tests::Agent;
use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::world::CREDENTIAL;

const NO_SESSION: &str = "/v1/sessions/00000000-0000-7000-8000-000000000000";

#[tokio::test]
async fn a_request_that_is_not_acceptable_is_answered_with_problem_details() {
    let serving = Serving::start().await;
    let large = format!(r#"{{"target":"{}"}}"#, "x".repeat(1024 * 1024));
    for (method, target, body, status, code) in [
        ("POST", "/v1/sessions", "", 400, "malformed_body"),
        ("POST", "/v1/sessions", "{", 400, "malformed_body"),
        ("POST", "/v1/sessions", "[]", 400, "malformed_body"),
        ("POST", "/v1/sessions", "{}", 422, "invalid_request"),
        ("POST", "/v1/sessions", r#"{"target":""}"#, 422, "invalid_request"),
        ("POST", "/v1/sessions", r#"{"target":7}"#, 422, "invalid_request"),
        ("POST", "/v1/sessions", large.as_str(), 413, "body_too_large"),
        (
            "POST",
            "/v1/sessions?wait=x",
            r#"{"target":"local"}"#,
            400,
            "invalid_query",
        ),
        (
            "POST",
            "/v1/sessions?what=x",
            r#"{"target":"local"}"#,
            400,
            "invalid_query",
        ),
        ("GET", "/v1/sessions/x", "", 404, "session_unknown"),
        ("GET", NO_SESSION, "", 404, "session_unknown"),
        ("GET", "/v1/outcomes/x", "", 404, "outcome_unknown"),
        ("GET", "/v1/outcomes/key:x", "", 400, "invalid_query"),
        ("GET", "/v1/events?denied=perhaps", "", 400, "invalid_query"),
        ("GET", "/v1", "", 404, "not_found"),
        ("GET", "/v2/sessions", "", 404, "not_found"),
        ("DELETE", "/v1/sessions", "", 405, "method_not_allowed"),
    ] {
        let answer = serving.call(method, target, body).await;

        let what = format!("{method} {target}: {}", answer.text());
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{what}"
        );
        let told = answer.json();
        assert_eq!(told["status"], status, "{what}");
        assert_eq!(
            told["type"],
            format!("urn:paperclip-bridge:problem:{code}"),
            "{what}"
        );
        assert!(told["title"].is_string() && told["detail"].is_string(), "{what}");
    }
    let text = serving
        .caller()
        .call("POST", "/v1/sessions", &[("content-type", "text/plain")], b"{}")
        .await
        .unwrap();
    assert_eq!((text.status, text.code().as_str()), (415, "not_json"));
}

#[tokio::test]
async fn every_mistake_is_named_by_its_field_and_a_value_is_not_repeated() {
    let serving = Serving::start().await;

    let kinds = serving
        .call(
            "POST",
            "/v1/sessions",
            &format!(r#"{{"targett":"local","credential":["{CREDENTIAL}"],"streams":"4","polcy":1}}"#),
        )
        .await;
    let values = serving
        .call(
            "POST",
            "/v1/sessions",
            &format!(
                r#"{{"target":"nobody:x","credential":"{CREDENTIAL}","streams":0,"max_body":"1MB","rate":"x","ttl":"0s",
                "heartbeat":"1ms","policy":"rules.toml","tunnel":"tcp","pack":"none-such","run_id":"a b"}}"#
            ),
        )
        .await;

    assert_eq!((kinds.status, values.status), (422, 422));
    let fields = |told: serde_json::Value| -> Vec<String> {
        let mut fields: Vec<_> = told["mistakes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mistake| mistake["field"].as_str().unwrap().to_owned())
            .collect();
        fields.sort();
        fields
    };
    assert!(kinds.text().contains("did you mean `target`") && kinds.text().contains("did you mean `policy`"));
    assert_eq!(
        fields(kinds.json()),
        ["credential", "polcy", "streams", "target", "targett"]
    );
    assert_eq!(
        fields(values.json()),
        [
            "credential",
            "heartbeat",
            "max_body",
            "pack",
            "policy",
            "rate",
            "run_id",
            "streams",
            "target",
            "ttl",
            "tunnel"
        ]
    );
    for said in [kinds.text(), values.text(), serving.running.stderr()] {
        assert!(!said.contains(CREDENTIAL), "{said}");
    }
}

#[tokio::test]
async fn the_document_that_a_daemon_gives_is_the_committed_one() {
    let serving = Serving::start().await;

    let given = serving.call("GET", "/v1/openapi.json", "").await;

    let committed = paperclip_bridge_tests::World::workspace().join("docs/openapi.json");
    let committed = std::fs::read_to_string(committed).unwrap();
    assert_eq!(
        given.json(),
        serde_json::from_str::<serde_json::Value>(&committed).unwrap()
    );
}

#[tokio::test]
async fn health_is_answered_to_its_own_name_only() {
    let serving = Serving::start().await;
    let ops = Agent {
        url: serving.ops.clone(),
        token: String::new(),
    };

    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ops.get(path).await.unwrap().status, 200, "{path}");
    }
    let ready = ops.get("/readyz").await.unwrap().json();
    assert_eq!(
        (&ready["ready"], &ready["checks"]["listeners"]),
        (&true.into(), &"ok".into())
    );
    let counted = ops.get("/metrics").await.unwrap().text();
    assert!(
        counted.contains(r#"paperclip_bridge_sessions{state="ready"} 0"#),
        "{counted}"
    );
    assert_eq!(ops.get("/v1/sessions").await.unwrap().status, 404);
    let mut wire = paperclip_bridge_tests::Wire::connect(&ops.url).await.unwrap();
    let lured = wire
        .exchange(
            b"GET /readyz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            &["GET"],
            false,
        )
        .await;
    let lured = lured[0].as_ref().unwrap();
    assert_eq!((lured.status, lured.code().as_str()), (421, "host_mismatch"));
}
