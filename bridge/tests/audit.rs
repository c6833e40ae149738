//! The audit from end to end: a session of an `App` writes it, the program verifies and reads it.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers as well"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use bridge::app::{App, GatewayChoice, SessionRequest, TargetSpec, TunnelChoice};
use bridge::audit::{Audit, AuditSettings};
use bridge::secrets::Secret;
use bridge::upstream::UpstreamSettings;
use policy::{Limits, Pack, Rules};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn what_an_app_writes_down_the_program_verifies_and_reads() {
    let state = tempfile::tempdir().unwrap();
    let audit = Audit::open(AuditSettings::in_state_folder(state.path())).unwrap();
    let app = App::default().with_audit(Arc::clone(&audit));
    let session = Box::pin(app.open(request(&upstream()))).await.unwrap();
    let token = session.token.as_ref().unwrap().expose().to_owned();

    let allowed = call(&session.url, &token, "/api/agents/me").await;
    let denied = call(&session.url, &token, "/api/no/such/route").await;
    session.close().await.unwrap();
    audit.close().unwrap();

    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    let verified = program(state.path(), &["verify", "--json"]);
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(
        (verified.status.code(), &report["ok"]),
        (Some(0), &true.into()),
        "{report}"
    );

    let anchor = text(&program(state.path(), &["head"]));
    let anchor = anchor.trim();
    let expected = program(state.path(), &["verify", "--expect-head", anchor]);
    assert_eq!(expected.status.code(), Some(0), "{}", text(&expected));

    let found = text(&program(state.path(), &["query", "--denied", "--json"]));
    let entry: Value = serde_json::from_str(found.trim()).unwrap();
    assert_eq!(entry["attempt"]["path"], "/api/no/such/route");
    assert_eq!(entry["outcome"]["status"], 403);

    let tail = text(&program(state.path(), &["tail"]));
    let kinds = [
        "session_started",
        "session_ready",
        "allow 200 GET /api/agents/me",
        "deny 403",
        "session_ended",
    ];
    assert!(kinds.iter().all(|kind| tail.contains(kind)), "{tail}");

    assert_eq!(
        text(&program(state.path(), &["export", "csv"])).lines().count(),
        3
    );
    let har: Value = serde_json::from_str(&text(&program(state.path(), &["export", "har"]))).unwrap();
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), 2);
    let segment = state.path().join("audit/0000000001.jsonl");
    let lines = std::fs::read_to_string(&segment).unwrap();
    assert_eq!(text(&program(state.path(), &["export", "jsonl"])), lines);

    std::fs::write(&segment, lines.replacen("/api/agents/me", "/api/agents/us", 1)).unwrap();
    let tampered = program(state.path(), &["verify"]);
    assert_eq!(tampered.status.code(), Some(1));
    assert!(
        text(&tampered).contains("record_changed segment 1 line 4 record 4"),
        "{}",
        text(&tampered)
    );
}

#[test]
fn a_folder_without_an_audit_is_a_wrong_value_and_no_finding() {
    let state = tempfile::tempdir().unwrap();

    for command in [
        ["verify"].as_slice(),
        &["query"],
        &["tail"],
        &["export", "csv"],
        &["head"],
    ] {
        let output = program(state.path(), command);

        assert_eq!(output.status.code(), Some(3), "{command:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("there is no audit in"),
            "{command:?}"
        );
    }
}

fn program(state: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paperclip-bridge"))
        .arg("audit")
        .args(arguments)
        .arg("--state-dir")
        .arg(state)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn request(upstream: &str) -> SessionRequest {
    SessionRequest {
        whose: bridge::audit::Identities::default(),
        named: None,
        target: TargetSpec::Local,
        upstream: UpstreamSettings::parse(upstream, None).unwrap(),
        credential: Secret::new("real-credential").into(),
        run_id: "run-1".into(),
        rules: Rules::from_pack(Pack::newest()).into(),
        limits: Limits::default(),
        rate: None,
        tunnel: TunnelChoice::Auto,
        gateway: GatewayChoice::Builtin,
        streams: None,
        state_dir: None,
        resume: false,
        returns: None,
        unix_socket: None,
        passed: None,
        allow_exposed_forward: false,
        hold: None,
    }
}

/// Answers one request with 200, and ends.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .unwrap();
    });
    format!("http://127.0.0.1:{port}")
}

async fn call(url: &str, token: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
