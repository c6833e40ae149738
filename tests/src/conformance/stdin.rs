//! What a command is given to read.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use bytes::Bytes;
use runners::{Execution, Input};
use tokio::io::AsyncWriteExt as _;

use super::{Difference, Recorder, Subject, every_byte, sh, told};

fn cat() -> Execution {
    Execution::new("cat", [] as [&str; 0])
}

/// Bytes without a short period.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// The same as text, for runners whose output is text.
fn fitting(subject: &Subject, bytes: Vec<u8>) -> Vec<u8> {
    if subject.differs(Difference::TextOutput) {
        return bytes.into_iter().map(|byte| b'a' + byte % 26).collect();
    }
    bytes
}

pub async fn without_input_its_end_comes_at_once(subject: &Subject) {
    let result = subject.run(cat()).await;

    assert!(result.success() && result.stdout.is_empty(), "{}", told(&result));
}

pub async fn empty_input_ends_at_once(subject: &Subject) {
    for stdin in [
        Input::Bytes(Bytes::new()),
        Input::Stream(Box::new(tokio::io::empty())),
    ] {
        let mut execution = sh("cat; echo end");
        execution.stdin = stdin;

        let result = subject.run(execution).await;

        assert_eq!(result.stdout, b"end\n", "{}", told(&result));
    }
}

pub async fn every_byte_of_input_arrives(subject: &Subject) {
    let bytes = every_byte();
    // Their values as text, so that output that is text only does not hide what arrived.
    let mut execution = sh("od -An -v -tu1");
    execution.stdin = Input::Bytes(Bytes::from(bytes.clone()));

    let result = subject.run(execution).await;

    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    let arrived: Vec<u8> = text
        .split_ascii_whitespace()
        .map(|value| value.parse().expect("od prints numbers"))
        .collect();
    assert_eq!(arrived, bytes, "{}", told(&result));
}

pub async fn two_mebibytes_of_input_come_back_whole(subject: &Subject) {
    let bytes = fitting(subject, noise(2 * 1024 * 1024 + 1));
    let mut execution = cat();
    execution.stdin = Input::Bytes(Bytes::from(bytes.clone()));
    execution.keep_output = 4 * 1024 * 1024;

    let result = subject.run(execution).await;

    assert!(result.stdout == bytes, "{}", told(&result));
}

pub async fn input_that_nobody_reads_is_no_failure(subject: &Subject) {
    let mut execution = sh("echo done; exit 0");
    execution.stdin = Input::Bytes(Bytes::from(vec![b'x'; 1024 * 1024]));

    let result = subject.run(execution).await;

    assert!(result.success(), "{}", told(&result));
    assert_eq!(result.stdout, b"done\n");
}

pub async fn a_stream_is_input_to_its_end(subject: &Subject) {
    let bytes = fitting(subject, noise(300_001));
    let mut execution = cat();
    execution.stdin = Input::Stream(Box::new(std::io::Cursor::new(bytes.clone())));

    let result = subject.run(execution).await;

    assert!(result.stdout == bytes, "{}", told(&result));
}

pub async fn a_command_can_be_talked_with(subject: &Subject) {
    let (mut writer, reader) = tokio::io::duplex(64);
    let sink = Recorder::new();
    let mut execution = sh("echo ready; while read -r line; do echo \"got $line\"; done; echo over");
    execution.stdin = Input::Stream(Box::new(reader));
    execution.output = Some(sink.clone());
    let waits =
        subject.runner().capabilities().streaming_output && !subject.differs(Difference::StdinCollected);

    let (result, ()) = tokio::join!(subject.run(execution), async {
        for (before, line) in [("ready", "one\n"), ("got one", "two\n"), ("got two", "three\n")] {
            if waits {
                sink.says(before).await;
            }
            writer
                .write_all(line.as_bytes())
                .await
                .expect("the command takes it");
        }
        drop(writer);
    });

    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "ready\ngot one\ngot two\ngot three\nover\n"
    );
}

pub async fn a_stream_without_end_does_not_outlive_the_command(subject: &Subject) {
    let (writer, reader) = tokio::io::duplex(16);
    let mut execution = sh("exit 3");
    execution.stdin = Input::Stream(Box::new(reader));
    if subject.differs(Difference::StdinCollected) {
        // Then nothing is run, and cancelling is what ends the waiting.
        execution.cancel.cancel();
        assert!(subject.run(execution).await.cancelled);
    } else {
        assert_eq!(subject.run(execution).await.exit_code, Some(3));
    }
    drop(writer);
}

pub async fn a_script_of_many_lines_is_read_from_stdin(subject: &Subject) {
    let script = "a='one\ntwo'\nprintf '%s\\n' \"$a\"\nexit 6\n";
    let mut execution = Execution::new("sh", ["-s"]);
    execution.stdin = Input::Bytes(Bytes::from_static(script.as_bytes()));

    let result = subject.run(execution).await;

    assert_eq!(
        (result.exit_code, result.stdout.as_slice()),
        (Some(6), &b"one\ntwo\n"[..])
    );
}
