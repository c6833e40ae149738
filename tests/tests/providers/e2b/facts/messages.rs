//! How calls are answered: messages, defaults, errors, types.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::super::caller::{Caller, END, end, pieces};

pub(super) async fn messages(caller: &Caller) {
    let mut stream = caller.script("echo out; echo err >&2; exit 3").await;

    stream.pid().await;
    let frames = stream.rest().await;

    assert_eq!(pieces(&frames, "stdout"), [b"out\n"]);
    assert_eq!(pieces(&frames, "stderr"), [b"err\n"]);
    let status = "exit status 3";
    assert_eq!(
        end(&frames),
        json!({"exitCode": 3, "exited": true, "status": status, "error": status})
    );
    assert_eq!(frames.last(), Some(&(END, json!({}))));
}

pub(super) async fn defaults(caller: &Caller) {
    let frames = caller.script("exit 0").await.rest().await;
    assert_eq!(end(&frames), json!({"exited": true, "status": "exit status 0"}));

    let mut cat = caller.fed("cat", "cat").await;
    cat.pid().await;
    assert_eq!(caller.input("cat", b"x").await, (200, json!({})));
    assert_eq!(
        caller
            .unary("CloseStdin", json!({"process": {"tag": "cat"}}))
            .await,
        (200, json!({}))
    );
    cat.rest().await;
    assert_eq!(caller.unary("List", json!({})).await, (200, json!({})));
}

pub(super) async fn missing_program(caller: &Caller) {
    let request = json!({"process": {"cmd": "/no/such"}, "stdin": false});
    let frames = caller.stream("Start", request, &[]).await.rest().await;

    assert_eq!(end(&frames)["exitCode"], 127);
    assert!(String::from_utf8_lossy(&pieces(&frames, "stderr").concat()).contains("/no/such"));
}

pub(super) async fn missing_folder(caller: &Caller) {
    let request = json!({"process": {"cmd": "/bin/true", "cwd": "/no/such"}});
    let frames = caller.stream("Start", request, &[]).await.rest().await;

    assert_eq!((frames.len(), frames[0].0), (1, END));
    assert_eq!(frames[0].1["error"]["code"], "invalid_argument");
}

pub(super) async fn unknown_user(caller: &Caller) {
    let basic = format!("Basic {}", STANDARD.encode("nobodyhere:"));
    let request = json!({"process": {"cmd": "/bin/true"}});
    let frames = caller
        .stream("Start", request, &[("authorization", &basic)])
        .await
        .rest()
        .await;

    assert_eq!(frames[0].1["error"]["code"], "unauthenticated");
}

pub(super) async fn wrong_type(caller: &Caller) {
    let headers = [("content-type", "application/json")];
    let answer = caller
        .fetch(
            "POST",
            "/process.Process/Start",
            &headers,
            r#"{"process":{"cmd":"true"}}"#,
        )
        .await;

    assert_eq!((answer.0, answer.1.len()), (415, 0));
}

pub(super) async fn unknown_process(caller: &Caller) {
    let request = json!({"process": {"pid": 999_999_999}, "input": {"stdin": "eA=="}});
    let (status, body) = caller.unary("SendInput", request).await;

    assert_eq!((status, &body["code"]), (404, &json!("not_found")));
}
