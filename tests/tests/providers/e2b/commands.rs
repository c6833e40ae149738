//! Commands: what travels with them, what nobody sees of them, what becomes of them when connections break.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fakes::e2b::API_KEY;
use paperclip_bridge_tests::conformance::{Recorder, sh};
use paperclip_bridge_tests::eventually;
use runners::{Execution, ExecutionResult, Input, Killed, SecretText};
use serde_json::json;
use tokio::io::{AsyncRead, ReadBuf};

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

/// A command that is over its time, while calls that start a process fail `failures` times.
async fn timed_out_while_starts_fail(failures: usize) -> (World, String, ExecutionResult) {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let sink = Recorder::new();
    let mut execution = sh("echo up; sleep 987 & wait");
    execution.timeout = Some(Duration::from_secs(1));
    execution.output = Some(sink.clone());
    let failing = async {
        sink.says("up").await;
        for _ in 0..failures {
            world.fake.switches().fail_next("/Start", 503);
        }
    };
    let (result, ()) = tokio::join!(runner.execute(execution), failing);
    (world, lease.id, result.expect("a result"))
}

#[tokio::test]
async fn a_kill_that_does_not_get_through_is_tried_again() {
    let (world, lease, result) = timed_out_while_starts_fail(3).await;

    assert!(result.timed_out, "{result:?}");
    assert_eq!(result.killed, Some(Killed::Group));
    assert_eq!(world.fake.processes(&lease), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn a_kill_that_never_gets_through_is_told_as_unconfirmed() {
    let (_world, _, result) = timed_out_while_starts_fail(100).await;

    assert!(result.timed_out, "{result:?}");
    assert_eq!(result.killed, Some(Killed::Unconfirmed));
}

#[tokio::test]
async fn a_kill_whose_answer_is_lost_counts_once_the_process_is_gone() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let sink = Recorder::new();
    let mut execution = sh("echo up; sleep 987 & wait");
    execution.timeout = Some(Duration::from_secs(1));
    execution.output = Some(sink.clone());
    let losing = async {
        sink.says("up").await;
        world.fake.switches().lose_answer("/Start");
        // Nor is it found again by its tag.
        world.fake.switches().fail_next("/Connect", 503);
    };

    let (result, ()) = tokio::join!(runner.execute(execution), losing);

    let result = result.expect("a result");
    assert_eq!((result.timed_out, result.killed), (true, Some(Killed::Group)));
    assert_eq!(world.fake.processes(&lease.id), Vec::<serde_json::Value>::new());
}

const LARGE: usize = 20 * 1024 * 1024;

#[tokio::test]
async fn twenty_mebibytes_of_input_arrive_whole_and_in_pieces() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let bytes: Bytes = (0..LARGE)
        .map(|at| u8::try_from(at % 251).expect("a byte"))
        .collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("a file");
    let inputs = [
        Input::Bytes(bytes.clone()),
        Input::Stream(Box::new(std::io::Cursor::new(bytes.clone()))),
    ];
    for input in inputs {
        let before = world.fake.calls_to("/SendInput").len();
        let mut execution = sh(&format!("cmp - {} && echo same", file.path().display()));
        execution.stdin = input;

        let result = runner.execute(execution).await.expect("a result");

        assert_eq!(result.stdout, b"same\n", "{result:?}");
        let calls = world.fake.calls_to("/SendInput").len() - before;
        assert!(calls >= LARGE / (256 * 1024), "{calls} calls");
    }
}

/// Counts what is read of it.
struct Counted<R>(R, Arc<AtomicUsize>);

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        self.1
            .fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        read
    }
}

#[tokio::test]
async fn no_more_input_is_taken_than_a_command_reads_and_two_pieces() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut execution = sh("head -c 100000 >/dev/null; echo read; sleep 987");
    execution.stdin = Input::Stream(Box::new(Counted(tokio::io::repeat(7), Arc::clone(&taken))));
    execution.timeout = Some(Duration::from_secs(3));

    let result = runner.execute(execution).await.expect("a result");

    assert!(result.timed_out && result.stdout == b"read\n", "{result:?}");
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken <= 2 * 256 * 1024 + 100_000, "{taken} bytes");
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
