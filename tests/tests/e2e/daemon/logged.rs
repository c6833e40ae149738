//! The log of a daemon: as the configuration says, the environment over it, and the options over both.

use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Upstream, eventually};
use serde_json::{Value, json};

use super::SOON;
use super::configured::{configured, session, with_upstream, write};

const LEVEL: &str = "PCBRIDGE_TELEMETRY__LEVEL";
const FORM: &str = "PCBRIDGE_TELEMETRY__LOG";

fn text(upstream: &Upstream, telemetry: &str) -> String {
    with_upstream(
        upstream,
        &format!("[control]\nadhoc = true\n[telemetry]\n{telemetry}"),
    )
}

/// What a daemon with such a file, variables and options has logged when it has served one callback and ended.
async fn logged(telemetry: &str, variables: &[(&str, &str)], options: &[&str]) -> String {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &text(&upstream, telemetry));
    let mut builder = Serving::in_folder(folder)
        .args(["--config".to_owned(), file])
        .args(options.iter().copied());
    for (name, value) in variables {
        builder = builder.env(name, value);
    }
    let serving = builder.start().await;
    let opened = session(&serving, &[]).await;
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    serving.running.signal("TERM");
    let ended = serving.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stderr
}

#[tokio::test]
async fn the_level_is_that_of_the_option_else_of_the_environment_else_of_the_file() {
    let of_file = logged("level = \"warn\"\n", &[], &[]).await;
    let of_environment = logged("level = \"warn\"\n", &[(LEVEL, "info")], &[]).await;
    let of_option = logged(
        "level = \"debug\"\n",
        &[(LEVEL, "info")],
        &["--log-level", "error"],
    )
    .await;

    let tells = |log: &str| log.contains("\"level\":\"INFO\"");
    assert!(!tells(&of_file), "{of_file}");
    assert!(tells(&of_environment), "{of_environment}");
    assert!(!tells(&of_option), "{of_option}");
}

#[tokio::test]
async fn the_form_is_that_of_the_option_else_of_the_environment_else_of_the_file() {
    let of_file = logged("log = \"pretty\"\n", &[], &[]).await;
    let of_environment = logged("log = \"pretty\"\n", &[(FORM, "json")], &[]).await;
    let of_option = logged("log = \"json\"\n", &[(FORM, "json")], &["--log", "pretty"]).await;

    let pretty = |log: &str| log.lines().next().is_some_and(|line| !line.starts_with('{'));
    assert!(pretty(&of_file), "{of_file}");
    assert!(!pretty(&of_environment), "{of_environment}");
    assert!(pretty(&of_option), "{of_option}");
}

#[tokio::test]
async fn level_and_form_change_with_a_reload_and_metrics_after_a_restart() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "level = \"warn\"\n")).await;
    let opened = session(&serving, &[]).await;
    let call = async || assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    let reload = async |telemetry: &str| -> Value {
        write(serving.folder.path(), &text(&upstream, telemetry));
        serving.ask(&["reload"]).await
    };
    call().await;

    let louder = reload("level = \"info\"\nlog = \"json\"\n").await;
    assert!(!serving.running.stderr().contains("/api/agents/me"));
    call().await;

    assert_eq!(
        louder,
        json!({ "changed": ["telemetry.level", "telemetry.log"], "needs_restart": [] })
    );
    let running = &serving.running;
    let has =
        |what: &'static str| eventually(SOON, what, move || running.stderr().contains(what).then_some(()));
    has("\"message\":\"callback\"").await;
    let other = reload("level = \"info\"\nlog = \"pretty\"\nmetrics = false\n").await;
    call().await;
    assert_eq!(
        other,
        json!({ "changed": ["telemetry.log"], "needs_restart": ["telemetry.metrics"] })
    );
    has(" INFO callback").await;
}
