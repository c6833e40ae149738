//! Who may use a daemon's control API, and what for.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use paperclip_bridge_tests::binary::BridgeCommand;
use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::{can_run, user, waiting};
use serde_json::Value;

/// A user that every Debian has, and that owns nothing.
const NOBODY: &str = "65534";

fn another_user_can_be_taken_on() -> bool {
    let programs = waiting::program("setpriv").and(waiting::program("curl"));
    let root = || {
        user::is_root()
            .then_some(())
            .ok_or("only root can act as another user".to_owned())
    };
    can_run(programs.and_then(|_| root()))
}

/// Asks as another user, with the socket opened to all as a careless operator would.
async fn as_nobody(serving: &Serving, body: &str) -> (u16, Value) {
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(serving.folder.path(), 0o755);
    open(&serving.socket(), 0o666);
    let Output { stdout, stderr, .. } = tokio::process::Command::new("setpriv")
        .args([
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
            "curl",
            "-sS",
            "--unix-socket",
        ])
        .arg(serving.socket())
        .args([
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ])
        .arg("http://localhost/v1/sessions")
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let (told, status) = stdout
        .rsplit_once('\n')
        .unwrap_or_else(|| panic!("{stdout} {stderr}"));
    (
        status.parse().unwrap(),
        serde_json::from_str(told).unwrap_or_default(),
    )
}

#[tokio::test]
async fn the_control_socket_is_for_nobody_else_to_open() {
    let serving = Serving::start().await;

    let mode = std::fs::metadata(serving.socket()).unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn another_user_is_refused_even_where_the_socket_is_open_to_all() {
    if !another_user_can_be_taken_on() {
        return;
    }
    let serving = Serving::start().await;

    let (status, told) = as_nobody(&serving, r#"{"target":"local"}"#).await;

    assert_eq!((status, told["code"].as_str()), (403, Some("peer_not_allowed")));
    assert!(told["detail"].as_str().unwrap().contains(NOBODY), "{told}");
    assert_eq!(
        serving.ask(&["sessions", "ls"]).await["sessions"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_user_that_is_allowed_may_not_bring_what_only_the_daemon_s_own_may() {
    if !another_user_can_be_taken_on() {
        return;
    }
    let serving = Serving::builder().args(["--allow-uid", NOBODY]).start().await;

    let (status, told) = as_nobody(
        &serving,
        r#"{"target":"local","upstream":"http://127.0.0.1:1","credential":"env:HOME","policy":"/etc/shadow"}"#,
    )
    .await;

    assert_eq!((status, told["code"].as_str()), (403, Some("adhoc_refused")));
    let fields: Vec<_> = told["mistakes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["target", "upstream", "credential", "policy"]);
}

#[tokio::test]
async fn a_command_without_a_daemon_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}/control.sock", folder.path().display());

    for words in [
        ["status"].as_slice(),
        &["sessions", "ls"],
        &["sessions", "new", "local"],
        &["drain"],
        &["tail"],
        &["outcome", "0198c0de-0000-7000-8000-000000000000"],
    ] {
        let ended = BridgeCommand::new(words.iter().copied())
            .args(["--control", &address])
            .finish()
            .await;

        assert_eq!(ended.code, Some(4), "{words:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("paperclip-bridge serve"),
            "{}",
            ended.stderr
        );
    }
    let nowhere = BridgeCommand::new(["status"]).finish().await;
    assert_eq!(nowhere.code, Some(3), "{}", nowhere.stderr);
    assert!(
        nowhere.stderr.contains("--control unix:PATH"),
        "{}",
        nowhere.stderr
    );
}
