//! Real children of the test process.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{Killed, OutputSink, OutputStream, SecretText};

fn runner() -> LocalRunner {
    let base = BaseEnvironment {
        home: "/home/op".into(),
        user: "op".into(),
        lang: "C.UTF-8".into(),
    };
    LocalRunner::new(base, None)
}

fn sh(script: &str) -> Execution {
    Execution::new("sh", ["-c", script])
}

async fn run(execution: Execution) -> ExecutionResult {
    tokio::time::timeout(Duration::from_secs(60), runner().execute(execution))
        .await
        .expect("in time")
        .expect("runs")
}

#[tokio::test]
async fn a_child_gets_four_variables_and_what_was_asked_for() {
    let mut execution = Execution::new("env", [] as [&str; 0]);
    execution.env.insert("PLAIN".into(), "a b'c".into());
    execution
        .secret_env
        .insert("TOKEN".into(), SecretText::new("s\nt"));

    let result = run(execution).await;

    let text = String::from_utf8(result.stdout).expect("text");
    let seen: BTreeSet<&str> = text.lines().collect();
    let wanted = [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "HOME=/home/op",
        "USER=op",
        "LANG=C.UTF-8",
        "PLAIN=a b'c",
        "TOKEN=s",
        "t",
    ];
    assert_eq!(seen, BTreeSet::from(wanted));
}

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let result = run(Execution::new(
        "printf",
        ["%s|", "a b", "$HOME", "", "'\"\\", "é\n"],
    ))
    .await;

    assert_eq!(result.stdout, "a b|$HOME||'\"\\|é\n|".as_bytes());
    assert!(result.success());
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(run(sh("exit 7")).await.exit_code, Some(7));
    let killed = run(sh("kill -s KILL $$")).await;
    assert_eq!((killed.exit_code, killed.signal.as_deref()), (None, Some("KILL")));
}

#[tokio::test]
async fn a_child_without_input_sees_its_end_at_once() {
    let result = run(Execution::new("cat", [] as [&str; 0])).await;

    assert!(result.success());
    assert!(result.stdout.is_empty());
}

#[tokio::test]
async fn input_is_passed_whole_from_bytes_and_from_a_stream() {
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|number| u8::try_from(number % 251).expect("small"))
        .collect();
    let mut from_bytes = Execution::new("cat", [] as [&str; 0]);
    from_bytes.stdin = Input::Bytes(Bytes::from(bytes.clone()));
    let mut from_stream = Execution::new("cat", [] as [&str; 0]);
    from_stream.stdin = Input::Stream(Box::new(std::io::Cursor::new(bytes.clone())));

    assert_eq!(run(from_bytes).await.stdout, bytes);
    assert_eq!(run(from_stream).await.stdout, bytes);
}

#[tokio::test]
async fn a_child_that_ignores_its_input_does_not_fail() {
    let mut execution = sh("exit 0");
    execution.stdin = Input::Bytes(Bytes::from(vec![0_u8; 1 << 20]));

    assert!(run(execution).await.success());
}

#[tokio::test]
async fn an_input_stream_that_never_ends_does_not_outlive_the_command() {
    let (_writer, reader) = tokio::io::duplex(16);
    let mut execution = sh("exit 3");
    execution.stdin = Input::Stream(Box::new(reader));

    assert_eq!(run(execution).await.exit_code, Some(3));
}

#[derive(Default)]
struct Recorder {
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
    first: tokio::sync::Notify,
}

impl OutputSink for Recorder {
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()> {
        assert!(!bytes.is_empty());
        let kept = match stream {
            OutputStream::Stdout => &self.stdout,
            OutputStream::Stderr => &self.stderr,
        };
        kept.lock().expect("lock").extend_from_slice(&bytes);
        self.first.notify_one();
        Box::pin(async {})
    }
}

#[tokio::test]
async fn output_reaches_the_sink_while_the_command_runs() {
    let sink = std::sync::Arc::new(Recorder::default());
    let (mut go, reader) = tokio::io::duplex(16);
    let mut execution = sh("echo early; read line; echo late >&2");
    execution.stdin = Input::Stream(Box::new(reader));
    execution.output = Some(sink.clone());
    let runner = runner();

    let (result, ()) = tokio::join!(runner.execute(execution), async {
        // The command ends only after this line, so the first chunk came while it ran.
        sink.first.notified().await;
        go.write_all(b"go\n").await.expect("write");
    });

    let result = result.expect("runs");
    assert_eq!(
        (result.stdout.as_slice(), result.stderr.as_slice()),
        (&b"early\n"[..], &b"late\n"[..])
    );
    assert_eq!(*sink.stdout.lock().expect("lock"), b"early\n");
    assert_eq!(*sink.stderr.lock().expect("lock"), b"late\n");
}

#[tokio::test]
async fn output_beyond_what_is_kept_still_reaches_the_sink() {
    let sink = std::sync::Arc::new(Recorder::default());
    let mut execution = sh("head -c 200000 /dev/zero; echo short >&2");
    execution.keep_output = 1000;
    execution.output = Some(sink.clone());

    let result = run(execution).await;

    assert_eq!(
        (result.stdout.len(), result.stderr.len(), result.truncated),
        (1000, 6, true)
    );
    assert_eq!(sink.stdout.lock().expect("lock").len(), 200_000);
}

#[tokio::test]
async fn a_time_out_ends_the_whole_group_by_term() {
    let mut execution = sh("sleep 1000 & echo $!; wait");
    execution.timeout = Some(Duration::from_millis(300));

    let result = run(execution).await;

    assert!(result.timed_out && !result.success());
    assert_eq!(
        (result.signal.as_deref(), result.killed),
        (Some("TERM"), Some(Killed::Group))
    );
    assert_gone(&result.stdout);
}

#[tokio::test]
async fn a_group_that_ignores_term_is_killed_after_the_grace() {
    let mut execution = sh("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done");
    execution.timeout = Some(Duration::from_millis(300));
    let runner = runner().with_kill_grace(Duration::from_millis(200));

    let result = runner.execute(execution).await.expect("runs");

    assert_eq!((result.timed_out, result.signal.as_deref()), (true, Some("KILL")));
    assert_gone(&result.stdout);
}

#[tokio::test]
async fn a_cancelled_command_is_ended() {
    let sink = std::sync::Arc::new(Recorder::default());
    let mut execution = sh("echo up; exec sleep 1000");
    execution.output = Some(sink.clone());
    let cancel = execution.cancel.clone();
    let runner = runner();

    let (result, ()) = tokio::join!(runner.execute(execution), async {
        sink.first.notified().await;
        cancel.cancel();
    });

    let result = result.expect("runs");
    assert_eq!((result.cancelled, result.signal.as_deref()), (true, Some("TERM")));
}

#[tokio::test]
async fn a_command_cancelled_before_its_start_is_not_started() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mark = directory.path().join("mark");
    let execution = Execution::new("touch", [mark.to_str().expect("text")]);
    execution.cancel.cancel();

    assert!(run(execution).await.cancelled);
    assert!(!mark.exists());
}

#[tokio::test]
async fn a_background_process_that_holds_the_pipe_does_not_hold_the_result() {
    let started = std::time::Instant::now();

    let result = run(sh("sleep 30 & echo $!; exit 4")).await;

    assert_eq!(result.exit_code, Some(4));
    assert!(started.elapsed() < Duration::from_secs(20));
    // It was not killed: a command may leave a server behind.
    let left = pid(&result.stdout);
    rustix::process::kill_process(left, rustix::process::Signal::KILL).expect("still there");
}

#[tokio::test]
async fn a_command_that_does_not_exist_and_a_wrong_directory_are_errors() {
    let missing = runner()
        .execute(Execution::new("no-such-program-here", [] as [&str; 0]))
        .await;
    let mut lost = sh("true");
    lost.cwd = Some("/no/such/directory".into());
    let lost = runner().execute(lost).await;

    assert!(matches!(missing, Err(RunnerError::Io { .. })), "{missing:?}");
    let text = lost.expect_err("no directory").to_string();
    assert!(text.contains("/no/such/directory"), "{text}");
}

#[tokio::test]
async fn the_working_directory_is_the_asked_one() {
    let directory = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir(directory.path().join("in")).expect("mkdir");
    let runner = LocalRunner::new(BaseEnvironment::default(), Some(directory.path().to_path_buf()));
    let mut execution = sh("pwd -P");
    execution.cwd = Some("in".into());

    let result = runner.execute(execution).await.expect("runs");

    let wanted = directory.path().canonicalize().expect("path").join("in");
    assert_eq!(
        String::from_utf8_lossy(&result.stdout).trim_end(),
        wanted.display().to_string()
    );
}

#[tokio::test]
async fn a_duplex_is_eight_bit_clean_and_ends_after_its_input() {
    let request = DuplexRequest {
        command: "cat".into(),
        ..DuplexRequest::default()
    };
    let mut stream = runner().open_duplex(request).await.expect("opens").stream;
    let bytes: Vec<u8> = (0..=255).collect();

    stream.write_all(&bytes).await.expect("write");
    stream.shutdown().await.expect("shutdown");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.expect("read");

    assert_eq!(back, bytes);
}

#[tokio::test]
async fn a_dropped_duplex_leaves_no_process_and_a_chatty_stderr_does_not_block_it() {
    let script = "sleep 1000 & head -c 300000 /dev/zero >&2; echo $!; wait";
    let request = DuplexRequest {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        ..DuplexRequest::default()
    };
    let mut stream = runner().open_duplex(request).await.expect("opens").stream;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.expect("a line"));
    }

    drop(stream);

    assert_gone(&line);
}

fn pid(line: &[u8]) -> rustix::process::Pid {
    let text = String::from_utf8_lossy(line);
    rustix::process::Pid::from_raw(text.trim().parse().expect("a pid")).expect("not zero")
}

/// The process is gone or a zombie; a killed one may take a moment, which a child command waits for.
fn assert_gone(line: &[u8]) {
    let pid = pid(line).as_raw_pid();
    let script = format!(
        "n=0; while read -r s </proc/{pid}/stat && [ \"${{s##*) Z}}\" = \"$s\" ]; do \
         n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.05; done; exit 0"
    );
    let gone = std::process::Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("sh runs");
    assert!(gone.status.success(), "process {pid} is still there");
}
