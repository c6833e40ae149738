//! Commands: what travels with them, what nobody sees of them, what becomes of them when connections break.

use fakes::e2b::API_KEY;
use paperclip_bridge_tests::conformance::{Recorder, sh};
use paperclip_bridge_tests::eventually;
use runners::{Execution, Input, SecretText};
use serde_json::json;

use super::{LIMIT, World};

#[tokio::test]
async fn the_configured_time_out_reaches_the_process() {
    let world = World::with(json!({"executionTimeoutMs": 1500})).await;
    let (lease, runner) = world.sandbox().await;

    let result = runner
        .execute(sh("echo $$; sleep 987 & wait"))
        .await
        .expect("a result");

    assert!(result.timed_out && result.killed.is_some(), "{result:?}");
    assert_eq!(world.fake.processes(&lease.id), Vec::<serde_json::Value>::new());
    let started = world.fake.calls_to("/Start");
    assert!(
        started
            .iter()
            .any(|call| call.header("connect-timeout-ms") == "3500"),
        "2 s later than ours"
    );
}

#[tokio::test]
async fn a_secret_is_in_no_argv_and_no_request_but_the_input() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let mut execution = sh("echo \"$TOKEN\"; tr '\\0' ' ' </proc/$$/cmdline");
    execution
        .secret_env
        .insert("TOKEN".to_owned(), SecretText::new("pcb_hush"));

    let result = runner.execute(execution).await.expect("a result");

    let said = String::from_utf8_lossy(&result.stdout).into_owned();
    let (token, argv) = said.split_once('\n').expect("two lines");
    assert_eq!(token, "pcb_hush");
    assert!(!argv.contains("hush"), "{argv}");
    for call in world.fake.calls() {
        let body = String::from_utf8_lossy(&call.body).into_owned();
        assert!(
            !body.contains("hush") && !call.path.contains("hush"),
            "{}",
            call.path
        );
        assert!(
            !body.contains(API_KEY) && !call.query.contains(API_KEY),
            "{}",
            call.path
        );
        // The key is for the API, the token for the sandbox, and neither for the other.
        let inside = call.path.contains("process.Process") || call.path.contains("/files");
        assert_eq!(call.header("x-api-key").is_empty(), inside, "{}", call.path);
        assert_eq!(call.header("x-access-token").is_empty(), !inside, "{}", call.path);
    }
    assert_eq!(world.fake.processes(&lease.id), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn every_call_names_its_sandbox_and_user() {
    let world = World::with(json!({"user": "root"})).await;
    let (lease, runner) = world.sandbox().await;

    runner.execute(sh("true")).await.expect("a result");

    let call = world.fake.calls_to("/Start").pop().expect("a start");
    assert_eq!(call.header("e2b-sandbox-id"), lease.id);
    assert_eq!(call.header("e2b-sandbox-port"), "49983");
    assert_eq!(call.header("authorization"), "Basic cm9vdDo=");
    assert_eq!(call.header("keepalive-ping-interval"), "20");
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_by_its_tag_and_the_gap_is_told() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let folder = tempfile::tempdir().expect("a folder");
    let go = folder.path().join("go");
    let sink = Recorder::new();
    let mut execution = sh(&format!(
        "echo before; until [ -e {} ]; do sleep 0.02; done; echo after; exit 4",
        go.display()
    ));
    execution.output = Some(sink.clone());

    let breaking = async {
        sink.says("before").await;
        world.fake.drop_streams(&lease.id);
        let again = || (!world.fake.calls_to("/Connect").is_empty()).then_some(());
        eventually(LIMIT, "it is followed again", again).await;
        std::fs::write(&go, "").expect("a file");
    };
    let (result, ()) = tokio::join!(runner.execute(execution), breaking);

    let result = result.expect("a result");
    assert_eq!(result.exit_code, Some(4));
    assert!(result.stdout.starts_with(b"before\n"), "{result:?}");
    assert!(result.truncated, "there may be a gap");
    assert_eq!(
        world.fake.calls_to("/Start").len(),
        2,
        "one for the folder, one for the command"
    );
}

#[tokio::test]
async fn a_start_that_was_not_answered_is_found_by_its_tag_and_not_made_twice() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ran");
    world.fake.switches().lose_answer("/Start");

    let result = runner
        .execute(sh(&format!("echo ran >>{}", file.display())))
        .await
        .expect("a result");

    assert_eq!((result.exit_code, result.truncated), (Some(0), true));
    assert_eq!(std::fs::read_to_string(file).expect("it ran"), "ran\n");
}

#[tokio::test]
async fn input_of_unknown_fate_is_not_sent_again_and_ends_the_command() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let mut execution = Execution::new("cat", [""; 0]);
    execution.stdin = Input::Bytes("once".into());
    world.fake.switches().lose_answer("/SendInput");

    let error = runner.execute(execution).await.expect_err("lost");

    assert!(matches!(error, runners::RunnerError::Lost { .. }), "{error}");
    assert_eq!(world.fake.calls_to("/SendInput").len(), 1);
    assert_eq!(world.fake.processes(&lease.id), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn input_that_was_certainly_not_taken_is_sent_again() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let mut execution = Execution::new("cat", [""; 0]);
    execution.stdin = Input::Bytes("once".into());
    world.fake.switches().fail_next("/SendInput", 503);

    let result = runner.execute(execution).await.expect("a result");

    assert_eq!(result.stdout, b"once");
    assert_eq!(world.fake.calls_to("/SendInput").len(), 2);
}

#[tokio::test]
async fn a_process_that_may_not_be_started_is_a_refusal() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    world.fake.switches().refuse_tagged("pcb-x-");

    let error = runner.execute(sh("true")).await.expect_err("refused");

    assert!(matches!(error, runners::RunnerError::Refused { .. }), "{error}");
}
