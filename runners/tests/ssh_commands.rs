//! Commands over SSH against a real OpenSSH server.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up its world has failed"
)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use runners::ssh::{SshHost, SshRunner};
use runners::{
    CommandManagedRuntimeRunner, DuplexRequest, Execution, ExecutionResult, Input, Killed, OutputSink,
    OutputStream, RunnerError, SecretText,
};
use support::{Sshd, eventually_async, is_alive, sshd_is_here};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn runner(sshd: &Sshd) -> SshRunner {
    SshRunner::new(SshHost::new(sshd.settings()))
}

fn sh(script: &str) -> Execution {
    Execution::new("sh", ["-c", script])
}

async fn run(runner: &SshRunner, script: &str) -> ExecutionResult {
    runner.execute(sh(script)).await.unwrap()
}

#[derive(Default)]
struct Recorder(Mutex<Vec<(OutputStream, Vec<u8>)>>, tokio::sync::Notify);

impl Recorder {
    fn text(&self, wanted: OutputStream) -> String {
        let chunks = self.0.lock().unwrap();
        let bytes: Vec<u8> = chunks
            .iter()
            .filter(|(stream, _)| *stream == wanted)
            .flat_map(|(_, b)| b.clone())
            .collect();
        String::from_utf8(bytes).unwrap()
    }
}

impl OutputSink for Recorder {
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.lock().unwrap().push((stream, bytes.to_vec()));
            self.1.notify_one();
        })
    }
}

#[tokio::test]
async fn a_command_gives_back_its_outputs_and_its_exit_code() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let recorder = Arc::new(Recorder::default());
    let mut execution = sh("echo out; echo err >&2; exit 7");
    execution.output = Some(recorder.clone());

    let result = runner(&sshd).execute(execution).await.unwrap();

    assert_eq!(result.exit_code, Some(7));
    assert_eq!(
        (result.stdout, result.stderr),
        (b"out\n".to_vec(), b"err\n".to_vec())
    );
    assert_eq!(recorder.text(OutputStream::Stdout), "out\n");
    assert_eq!(recorder.text(OutputStream::Stderr), "err\n");
}

#[tokio::test]
async fn output_reaches_the_sink_while_the_command_still_runs() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let recorder = Arc::new(Recorder::default());
    let mut execution = sh("echo first; read line; echo \"then $line\"");
    let (mut stdin, theirs) = tokio::io::duplex(64);
    execution.stdin = Input::Stream(Box::new(theirs));
    execution.output = Some(recorder.clone());
    let runner = runner(&sshd);
    let running = runner.execute(execution);
    tokio::pin!(running);

    tokio::select! {
        _ = &mut running => panic!("it waits for a line"),
        () = recorder.1.notified() => assert_eq!(recorder.text(OutputStream::Stdout), "first\n"),
    }
    stdin.write_all(b"second\n").await.unwrap();
    let result = running.await.unwrap();

    assert_eq!(result.stdout, b"first\nthen second\n");
}

#[tokio::test]
async fn a_signal_that_ended_the_command_is_named() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");

    let result = run(&runner(&sshd), "kill -s USR1 $$").await;

    assert_eq!((result.exit_code, result.signal.as_deref()), (None, Some("USR1")));
}

#[tokio::test]
async fn a_secret_arrives_in_the_environment_and_stands_in_no_argv() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut execution = sh(
        "printf '%s|' \"$TOKEN\" \"$PLAIN\"; cat; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'it.s \\$ecret' ",
    );
    execution
        .secret_env
        .insert("TOKEN".to_owned(), SecretText::new("it's $ecret\nin two lines"));
    execution.env.insert("PLAIN".to_owned(), "b\"c".to_owned());
    execution.stdin = Input::Bytes(Bytes::from_static(b"the rest "));

    let result = runner(&sshd).execute(execution).await.unwrap();

    let text = String::from_utf8(result.stdout).unwrap();
    // The `grep` itself is the one process that has the pattern in its argv, in another spelling.
    assert_eq!(text, "it's $ecret\nin two lines|b\"c|the rest 0\n");
}

#[tokio::test]
async fn megabytes_pass_through_stdin_and_stdout_unchanged_also_over_many_key_exchanges() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.rekey_bytes = 2 * 1024 * 1024;
    let runner = SshRunner::new(SshHost::new(settings));
    let sent: Vec<u8> = (0..24 * 1024 * 1024_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut execution = Execution::new("cat", Vec::<String>::new());
    execution.stdin = Input::Bytes(Bytes::from(sent.clone()));
    execution.keep_output = 64 * 1024 * 1024;

    let result = runner.execute(execution).await.unwrap();

    assert!(
        result.stdout == sent,
        "{} of {} bytes came back",
        result.stdout.len(),
        sent.len()
    );
}

#[tokio::test]
async fn output_beyond_what_is_kept_is_marked_as_truncated() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut execution = sh("head -c 300000 /dev/zero");
    execution.keep_output = 1000;

    let result = runner(&sshd).execute(execution).await.unwrap();

    assert_eq!(
        (result.stdout.len(), result.truncated, result.exit_code),
        (1000, true, Some(0))
    );
}

#[tokio::test]
async fn output_that_nobody_takes_ends_the_command_at_the_cap() {
    if !sshd_is_here() {
        return;
    }
    struct Stuck;
    impl OutputSink for Stuck {
        fn chunk(&self, _: OutputStream, _: Bytes) -> BoxFuture<'_, ()> {
            // Long enough for the cap to be reached, not for ever: the pump goes on afterwards.
            Box::pin(tokio::time::sleep(Duration::from_millis(300)))
        }
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.output_cap = 256 * 1024;
    let runner = SshRunner::new(SshHost::new(settings));
    let mut execution = sh("echo go; cat /dev/zero");
    execution.output = Some(Arc::new(Stuck));

    let error = runner.execute(execution).await.unwrap_err();

    assert!(error.to_string().contains("output_overrun"), "{error}");
}

async fn child_pid(recorder: &Recorder) -> u32 {
    loop {
        let text = recorder.text(OutputStream::Stdout);
        if let Some(pid) = text.strip_suffix('\n') {
            return pid.trim().parse().unwrap();
        }
        recorder.1.notified().await;
    }
}

#[tokio::test]
async fn a_time_out_ends_the_whole_process_group_on_the_target() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let recorder = Arc::new(Recorder::default());
    let mut execution = sh("sleep 300 & echo $!; wait");
    execution.output = Some(recorder.clone());
    execution.timeout = Some(Duration::from_millis(500));

    let result = runner(&sshd).execute(execution).await.unwrap();

    assert!(result.timed_out);
    assert_eq!(result.killed, Some(Killed::Group));
    let pid = child_pid(&recorder).await;
    eventually_async("the child is gone", || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_kill_finds_its_way_where_only_one_session_is_allowed_per_connection() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("MaxSessions 1");
    let recorder = Arc::new(Recorder::default());
    let mut execution = sh("sleep 300 & echo $!; wait");
    execution.output = Some(recorder.clone());
    let cancel = execution.cancel.clone();
    let runner = runner(&sshd);
    let running = runner.execute(execution);
    tokio::pin!(running);

    let pid = tokio::select! {
        _ = &mut running => panic!("it runs for minutes"),
        pid = child_pid(&recorder) => pid,
    };
    cancel.cancel();
    let result = running.await.unwrap();

    assert!(result.cancelled);
    assert_eq!(result.killed, Some(Killed::Group));
    eventually_async("the child is gone", || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_server_without_sessions_is_named_as_the_obstacle() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("MaxSessions 0");

    let error = runner(&sshd).execute(sh("true")).await.unwrap_err();

    assert!(matches!(error, RunnerError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("MaxSessions"), "{error}");
}

#[tokio::test]
async fn many_commands_at_once_spread_over_further_connections() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let runner = runner(&sshd);
    let mut running = tokio::task::JoinSet::new();
    for number in 0..20 {
        let runner = runner.clone();
        running.spawn(async move { run(&runner, &format!("sleep 0.2; echo {number}")).await });
    }

    let mut answers = Vec::new();
    while let Some(result) = running.join_next().await {
        answers.push(
            String::from_utf8(result.unwrap().stdout)
                .unwrap()
                .trim()
                .parse::<u32>()
                .unwrap(),
        );
    }
    answers.sort_unstable();

    assert_eq!(answers, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lost_connection_leaves_a_kill_owed_that_the_next_one_does() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let recorder = Arc::new(Recorder::default());
    let runner = runner(&sshd);
    let mut execution = sh("trap '' PIPE; echo $$; while :; do sleep 1; done");
    execution.output = Some(recorder.clone());
    let running = runner.execute(execution);
    tokio::pin!(running);
    let pid = tokio::select! {
        _ = &mut running => panic!("it runs for minutes"),
        pid = child_pid(&recorder) => pid,
    };

    sshd.signal_sessions("KILL");
    let error = running.await.unwrap_err();

    assert!(matches!(error, RunnerError::Lost { .. }), "{error:?}");
    assert!(is_alive(pid));
    assert_eq!(runner.host().owed(), 1);
    assert_eq!(run(&runner, "echo again").await.stdout, b"again\n");
    eventually_async("the process is gone", || !is_alive(pid)).await;
    eventually_async("nothing is owed", || runner.host().owed() == 0).await;
}

#[tokio::test]
async fn a_duplex_carries_bytes_both_ways_until_its_input_ends() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let request = DuplexRequest {
        command: "cat".to_owned(),
        ..DuplexRequest::default()
    };
    let mut duplex = runner(&sshd).open_duplex(request).await.unwrap();

    duplex.stream.write_all(b"\x00\xff\r\n there").await.unwrap();
    duplex.stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    duplex.stream.read_to_end(&mut answer).await.unwrap();

    assert_eq!(answer, b"\x00\xff\r\n there");
}
