//! The control API under schemathesis: every operation of its document, with a fixed seed.
//!
//! Left out are `drain`, which ends the daemon under test, and the events, whose answer does not end. That whatever fits
//! the document be accepted is not checked: targets, durations and sizes are texts with a grammar of their own. Nor is
//! authentication, which the document leaves to the listener (`tcp.rs` tests it).

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use paperclip_bridge_tests::moto::install::environment;
use paperclip_bridge_tests::remote::{Asks, CONTROL_TOKEN, Remote};
use paperclip_bridge_tests::{World, can_run, within};
use tokio::process::Command;

/// All of it; a run takes less than half of that.
const LIMIT: Duration = Duration::from_secs(300);

fn python() -> Result<PathBuf, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(|| environment("schemathesis")).clone()
}

#[test]
fn schemathesis_is_installed_as_pinned() {
    can_run(python().map(drop));
}

#[tokio::test]
async fn the_control_api_answers_whatever_it_is_sent_as_its_document_says() {
    if !can_run(python().map(drop)) {
        return;
    }
    let remote = Remote::start(Asks::Token, "").await;
    let mut command = Command::new(python().unwrap());
    command
        .args(["-I", "-B", "-m", "schemathesis.cli", "run"])
        .arg(World::workspace().join("docs/openapi.json"))
        .args(["--url", &format!("https://localhost:{}", remote.address.port())])
        .arg("--tls-verify")
        .arg(remote.file("ca.pem"))
        .args(["--header", &format!("Authorization: Bearer {CONTROL_TOKEN}")])
        .args(["--seed", "1", "--max-examples", "50", "--workers", "2"])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--exclude-checks", "ignored_auth,positive_data_acceptance"])
        .args(["--exclude-path", "/v1/drain", "--exclude-path", "/v1/events"])
        .args(["--generation-database", "none", "--max-time", "60"])
        .args(["--request-timeout", "20", "--no-color", "--warnings", "off"])
        .current_dir(remote.folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env_clear();

    let ran = within(LIMIT, "schemathesis ends", command.output())
        .await
        .unwrap();

    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{told}\n{}\n{}",
        String::from_utf8_lossy(&ran.stderr),
        remote.running.stderr()
    );
    let status = remote
        .run(&[
            "status",
            "--control-ca",
            "@ca.pem",
            "--control-token",
            "file:@token",
        ])
        .await;
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    assert!(
        !remote.running.stderr().contains("\"level\":\"ERROR\""),
        "{}",
        remote.running.stderr()
    );
}
