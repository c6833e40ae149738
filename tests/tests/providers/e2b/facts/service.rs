//! The server itself: lists, files, tokens, HTTP.

use paperclip_bridge_tests::Wire;
use serde_json::{Value, json};

use super::super::caller::Caller;

pub(super) async fn list(caller: &Caller) {
    let config = json!({"cmd": "/bin/sleep", "args": ["987"], "envs": {"A": "b"}, "cwd": "/tmp"});
    let mut stream = caller
        .stream(
            "Start",
            json!({"process": config, "stdin": false, "tag": "t"}),
            &[],
        )
        .await;
    let pid = stream.pid().await;

    let listed = caller.unary("List", json!({})).await;

    assert_eq!(
        listed,
        (
            200,
            json!({"processes": [{"config": config, "pid": pid, "tag": "t"}]})
        )
    );
}

pub(super) async fn files(caller: &Caller) {
    let path = caller.path("folder/bytes.bin");
    let bytes: Vec<u8> = (0..=255).collect();
    let raw = [("content-type", "application/octet-stream")];

    let (status, body) = caller
        .fetch("POST", &format!("/files?path={path}"), &raw, bytes.clone())
        .await;

    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (status, told),
        (200, json!([{"name": "bytes.bin", "path": path, "type": "file"}]))
    );
    let read = caller.fetch("GET", &format!("/files?path={path}"), &[], "").await;
    assert_eq!((read.0, read.1.to_vec()), (200, bytes));
    let (status, body) = caller.fetch("GET", "/files?path=/no/such", &[], "").await;
    let fault: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &fault["code"]), (404, &json!(404)));
}

pub(super) async fn no_token(caller: &Caller) {
    for path in ["/files?path=/etc/hostname", "/process.Process/List"] {
        let (status, body) = caller
            .fetch("POST", path, &[("x-access-token", "other")], "")
            .await;

        let fault: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((status, &fault["code"]), (401, &json!(401)));
    }
}

pub(super) async fn health(caller: &Caller) {
    assert_eq!(caller.fetch("GET", "/health", &[], "").await.0, 204);
}

pub(super) async fn no_http2(caller: &Caller) {
    let mut wire = Wire::connect(caller.fake.url()).await.expect("a connection");

    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("sent");

    let answer = wire.answer("PRI").await;
    assert!(
        answer.as_ref().is_err() || answer.as_ref().is_ok_and(|answer| answer.status >= 400),
        "{answer:?}"
    );
}

pub(super) async fn gone(caller: &Caller) {
    caller.fake.kill_sandbox(&caller.id);

    let (status, body) = caller.fetch("GET", "/health", &[], "").await;

    let fault: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (status, &fault["code"], &fault["sandboxId"]),
        (502, &json!(502), &json!(caller.id))
    );
}
