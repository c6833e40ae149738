//! What a command says, and how it comes.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use std::fmt::Write as _;

use runners::{ExecutionResult, OutputStream};

use super::{Difference, Recorder, Subject, every_byte, sh, told};

/// Where output is compared byte by byte: the first difference, not ten million bytes.
fn same(what: &str, found: &[u8], wanted: &[u8]) {
    let at = found
        .iter()
        .zip(wanted)
        .position(|(found, wanted)| found != wanted)
        .unwrap_or(found.len().min(wanted.len()));
    assert!(
        found == wanted,
        "{what}: {} bytes instead of {}, other from byte {at}",
        found.len(),
        wanted.len()
    );
}

/// What `seq` prints.
fn numbers(last: u32) -> Vec<u8> {
    let mut text = String::new();
    for number in 1..=last {
        writeln!(text, "{number}").expect("a string takes every write");
    }
    text.into_bytes()
}

/// A script that prints exactly these bytes.
fn printing(bytes: &[u8]) -> String {
    let mut script = "printf '".to_owned();
    for byte in bytes {
        write!(script, "\\{byte:03o}").expect("a string takes every write");
    }
    script + "'"
}

async fn run_keeping(subject: &Subject, script: &str, keep: usize) -> ExecutionResult {
    let mut execution = sh(script);
    execution.keep_output = keep;
    subject.run(execution).await
}

pub async fn both_outputs_arrive_apart_and_whole(subject: &Subject) {
    let result = subject
        .run(sh("for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done"))
        .await;

    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "out 1\nout 2\nout 3\nout 4\nout 5\n"
    );
    assert_eq!(
        String::from_utf8_lossy(&result.stderr),
        "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n"
    );
    assert!(result.success() && !result.truncated);
}

pub async fn ten_mebibytes_arrive_on_stdout(subject: &Subject) {
    let wanted = numbers(1_500_000);
    assert!(wanted.len() > 10 * 1024 * 1024);

    let result = run_keeping(subject, "seq 1 1500000", 16 * 1024 * 1024).await;

    same("stdout", &result.stdout, &wanted);
    assert!(result.success() && !result.truncated, "{}", told(&result));
}

pub async fn ten_mebibytes_arrive_on_both_at_once(subject: &Subject) {
    let result = run_keeping(
        subject,
        "seq 1 1500000 & seq 1 1500001 >&2; wait",
        16 * 1024 * 1024,
    )
    .await;

    same("stdout", &result.stdout, &numbers(1_500_000));
    same("stderr", &result.stderr, &numbers(1_500_001));
    assert!(result.success() && !result.truncated, "{}", told(&result));
}

pub async fn every_byte_arrives_as_it_was_written(subject: &Subject) {
    let bytes = every_byte();
    let script = format!("{0}; {0} >&2", printing(&bytes));

    let result = subject.run(sh(&script)).await;

    assert!(result.success(), "{}", told(&result));
    if subject.differs(Difference::TextOutput) {
        // What is text in it still is there.
        for output in [&result.stdout, &result.stderr] {
            for letter in b'a'..=b'z' {
                assert!(output.contains(&letter), "{}", told(&result));
            }
        }
    } else {
        same("stdout", &result.stdout, &bytes);
        same("stderr", &result.stderr, &bytes);
    }
}

pub async fn characters_of_several_bytes_survive_the_chunks(subject: &Subject) {
    // An odd beginning, so that characters lie across every even boundary.
    let script = "printf x; n=0; while [ $n -lt 2000 ]; do \
                  printf 'é€😀é€😀é€😀é€😀é€😀é€😀é€😀é€😀é€😀é€😀'; n=$((n+1)); done";
    let wanted = format!("x{}", "é€😀".repeat(20_000));

    let result = subject.run(sh(script)).await;

    same("stdout", &result.stdout, wanted.as_bytes());
}

pub async fn nothing_and_a_missing_line_end_stay_as_they_are(subject: &Subject) {
    let nothing = subject.run(sh("true")).await;
    assert!(
        nothing.stdout.is_empty() && nothing.stderr.is_empty(),
        "{}",
        told(&nothing)
    );

    let open = subject.run(sh("printf 'a\\r\\n\\n b '; printf '\\nc' >&2")).await;
    assert_eq!(
        (open.stdout.as_slice(), open.stderr.as_slice()),
        (&b"a\r\n\n b "[..], &b"\nc"[..])
    );
}

pub async fn what_is_beyond_the_kept_is_dropped_and_said(subject: &Subject) {
    let cut = run_keeping(subject, "seq 1 100000; echo short >&2", 1000).await;
    let exact = run_keeping(subject, "printf 12345", 5).await;

    same("stdout", &cut.stdout, &numbers(100_000)[..1000]);
    assert_eq!((cut.stderr.as_slice(), cut.truncated), (&b"short\n"[..], true));
    assert!(cut.success(), "{}", told(&cut));
    assert_eq!((exact.stdout.as_slice(), exact.truncated), (&b"12345"[..], false));
}

pub async fn nothing_is_kept_where_nothing_was_asked_for(subject: &Subject) {
    let sink = Recorder::new();
    let mut execution = sh("seq 1 50000; seq 1 100 >&2");
    execution.keep_output = 0;
    execution.output = Some(sink.clone());

    let result = subject.run(execution).await;

    assert!(
        result.stdout.is_empty() && result.stderr.is_empty(),
        "{}",
        told(&result)
    );
    same("stdout", &sink.all(OutputStream::Stdout), &numbers(50_000));
    same("stderr", &sink.all(OutputStream::Stderr), &numbers(100));
}

pub async fn the_sink_sees_what_the_result_holds_in_order(subject: &Subject) {
    let sink = Recorder::new();
    let mut execution = sh("seq 1 100000 & seq 1 90000 >&2; wait; exit 7");
    execution.output = Some(sink.clone());

    let result = subject.run(execution).await;

    assert_eq!(result.exit_code, Some(7));
    same("stdout", &result.stdout, &numbers(100_000));
    same("stderr", &result.stderr, &numbers(90_000));
    same(
        "stdout of the sink",
        &sink.all(OutputStream::Stdout),
        &result.stdout,
    );
    same(
        "stderr of the sink",
        &sink.all(OutputStream::Stderr),
        &result.stderr,
    );
}

pub async fn output_reaches_the_sink_while_the_command_runs(subject: &Subject) {
    let capabilities = subject.runner().capabilities();
    if !capabilities.streaming_output || !capabilities.concurrent {
        return;
    }
    let folder = subject.folder().await;
    let sink = Recorder::new();
    let mut execution = sh(&format!(
        "echo early; until [ -e {folder}/go ]; do sleep 0.05; done; echo late"
    ));
    execution.output = Some(sink.clone());

    let (result, ()) = tokio::join!(subject.run(execution), async {
        // The command ends only after this, so that the line came while it ran.
        sink.says("early").await;
        subject.says(&format!("touch {folder}/go")).await;
    });

    assert_eq!(result.stdout, b"early\nlate\n");
}

pub async fn a_slow_sink_loses_nothing_and_is_asked_one_at_a_time(subject: &Subject) {
    let sink = Recorder::slow();
    let mut execution = sh("seq 1 300000 & seq 1 200000 >&2; wait");
    execution.keep_output = 0;
    execution.output = Some(sink.clone());

    let result = subject.run(execution).await;

    assert!(result.success(), "{}", told(&result));
    same("stdout", &sink.all(OutputStream::Stdout), &numbers(300_000));
    same("stderr", &sink.all(OutputStream::Stderr), &numbers(200_000));
}

pub async fn a_background_process_does_not_keep_the_result(subject: &Subject) {
    let mut execution = sh("sleep 987 & echo $!; exit 4");
    let holds = subject.differs(Difference::BackgroundHoldsResult);
    if holds {
        // Then the time limit is what lets go of it.
        execution.timeout = Some(std::time::Duration::from_secs(5));
    }

    let result = subject.run(execution).await;

    let background = String::from_utf8_lossy(&result.stdout).into_owned();
    if holds {
        assert!(result.timed_out, "{}", told(&result));
    } else {
        assert_eq!(result.exit_code, Some(4), "{}", told(&result));
        // A command may leave a server behind.
        subject.says(&format!("kill -KILL {background}")).await;
    }
    subject.until_gone(&background).await;
}

pub async fn what_a_background_process_says_at_once_is_there(subject: &Subject) {
    let result = subject
        .run(sh("{ sleep 0.2; echo late; } & echo early; exit 3"))
        .await;

    assert_eq!(result.exit_code, Some(3), "{}", told(&result));
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    assert!(text == "early\nlate\n" || text == "early\n", "{text:?}");
}
