//! A long-lived command as a byte stream. Where the runner has none, every case is that it says so.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use runners::runner::DuplexStream;
use runners::{DuplexRequest, RunnerError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Difference, LIMIT, Subject, every_byte};
use crate::waiting::within;

fn request(command: &str, args: &[&str]) -> DuplexRequest {
    DuplexRequest {
        command: command.to_owned(),
        args: args.iter().map(|one| (*one).to_owned()).collect(),
        cwd: None,
    }
}

fn script(text: &str) -> DuplexRequest {
    request("sh", &["-c", text])
}

/// None where the runner has no duplex and says so.
async fn open(subject: &Subject, request: DuplexRequest) -> Option<Box<dyn DuplexStream>> {
    let opened = within(LIMIT, "a duplex opens", subject.runner().open_duplex(request)).await;
    if subject.runner().capabilities().duplex {
        return Some(opened.expect("a duplex opens").stream);
    }
    assert!(matches!(opened, Err(RunnerError::Unsupported(_))), "{opened:?}");
    None
}

async fn line(stream: &mut Box<dyn DuplexStream>) -> String {
    let mut line = Vec::new();
    let read = async {
        while !line.ends_with(b"\n") {
            line.push(stream.read_u8().await.expect("a line"));
        }
    };
    within(LIMIT, "a line comes", read).await;
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

async fn exactly(stream: &mut Box<dyn DuplexStream>, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within(LIMIT, "all bytes come", stream.read_exact(&mut bytes))
        .await
        .expect("all bytes come");
    bytes
}

/// What comes until the end; a stream that breaks off where its command ended has an end too.
async fn rest(stream: &mut Box<dyn DuplexStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ended = within(LIMIT, "the stream ends", stream.read_to_end(&mut bytes)).await;
    ended.expect("the stream ends cleanly");
    bytes
}

pub async fn a_duplex_passes_every_byte(subject: &Subject) {
    let Some(mut stream) = open(subject, request("cat", &[])).await else {
        return;
    };
    // Each value beside each other one: 128 KiB.
    let bytes: Vec<u8> = (0..=255_u8)
        .flat_map(|first| every_byte().into_iter().flat_map(move |second| [first, second]))
        .collect();

    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut back = vec![0; bytes.len()];
    let (wrote, read) = within(LIMIT, "the bytes come back", async {
        tokio::join!(
            async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            },
            reader.read_exact(&mut back)
        )
    })
    .await;

    wrote.expect("they are taken");
    read.expect("they come back");
    assert!(back == bytes, "they come back as they were");
}

pub async fn one_mebibyte_passes_both_ways_at_once(subject: &Subject) {
    let folder = subject.folder().await;
    let text = format!(
        "head -c 1048576 /dev/zero | tr '\\000' a & head -c 1048576 | cksum >{folder}/sum; wait; cat {folder}/sum; echo over"
    );
    let Some(mut stream) = open(subject, script(&text)).await else {
        return;
    };
    let sum = subject
        .says("head -c 1048576 /dev/zero | tr '\\000' b | cksum")
        .await;

    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut came = vec![0; 1024 * 1024];
    let (wrote, read) = within(LIMIT, "both ways pass", async {
        tokio::join!(
            async {
                writer.write_all(&vec![b'b'; 1024 * 1024]).await?;
                writer.flush().await
            },
            reader.read_exact(&mut came)
        )
    })
    .await;

    wrote.expect("it is taken");
    read.expect("it comes");
    assert!(came.iter().all(|byte| *byte == b'a'));
    assert_eq!(line(&mut stream).await, sum);
    assert_eq!(line(&mut stream).await, "over");
}

pub async fn the_end_of_input_reaches_the_command(subject: &Subject) {
    let Some(mut stream) = open(subject, script("cat; echo after; exit 3")).await else {
        return;
    };
    stream.write_all(b"before\n").await.expect("it is taken");
    stream.flush().await.expect("it is taken");
    assert_eq!(line(&mut stream).await, "before");
    if subject.differs(Difference::NoEndOfInput) {
        return;
    }

    stream.shutdown().await.expect("its end is taken");

    assert_eq!(String::from_utf8_lossy(&rest(&mut stream).await), "after\n");
}

pub async fn the_exit_of_the_command_ends_the_stream(subject: &Subject) {
    for code in [0, 7] {
        let Some(mut stream) = open(subject, script(&format!("seq 1 10000; exit {code}"))).await else {
            return;
        };

        let all = rest(&mut stream).await;

        let wanted: String = (1..=10_000).map(|number| format!("{number}\n")).collect();
        assert!(
            all == wanted.as_bytes(),
            "{} bytes of {}",
            all.len(),
            wanted.len()
        );
    }
}

pub async fn answers_come_line_by_line(subject: &Subject) {
    let text = "echo ready; while read -r one; do echo \"got $one\"; done";
    let Some(mut stream) = open(subject, script(text)).await else {
        return;
    };

    assert_eq!(line(&mut stream).await, "ready");
    for number in 0..50 {
        let asked = format!("line {number}\n");
        stream.write_all(asked.as_bytes()).await.expect("it is taken");
        stream.flush().await.expect("it is taken");
        assert_eq!(line(&mut stream).await, format!("got line {number}"));
    }
}

pub async fn a_dropped_duplex_ends_its_command(subject: &Subject) {
    let Some(mut stream) = open(subject, script("echo $$; exec cat >/dev/null")).await else {
        return;
    };
    let pid = line(&mut stream).await;

    drop(stream);

    subject.until_gone(&pid).await;
}

pub async fn a_duplex_takes_arguments_and_a_folder(subject: &Subject) {
    let folder = subject.folder().await;
    let odd = ["a b", "it's", "$HOME", "", "\"q\"", "é"];
    let mut request = script("pwd; for one; do printf '<%s>' \"$one\"; done; echo");
    request.args.push("sh".to_owned());
    request.args.extend(odd.map(str::to_owned));
    request.cwd = Some(folder.clone());
    let Some(mut stream) = open(subject, request).await else {
        return;
    };

    assert_eq!(line(&mut stream).await, folder);
    let wanted: String = odd.iter().map(|one| format!("<{one}>")).collect();
    assert_eq!(line(&mut stream).await, wanted);
}

pub async fn a_duplex_runs_beside_executions(subject: &Subject) {
    let Some(mut stream) = open(subject, request("cat", &[])).await else {
        return;
    };
    for number in 0..5 {
        let asked = format!("{number}\n");
        stream.write_all(asked.as_bytes()).await.expect("it is taken");
        stream.flush().await.expect("it is taken");
        assert_eq!(subject.says(&format!("echo {number}")).await, number.to_string());
        assert_eq!(exactly(&mut stream, asked.len()).await, asked.as_bytes());
    }
}

pub async fn what_a_duplex_says_on_stderr_is_not_in_the_stream(subject: &Subject) {
    // More than a pipe holds: nobody reading it would block the command.
    let Some(mut stream) = open(subject, script("seq 1 50000 >&2; echo only this")).await else {
        return;
    };

    assert_eq!(String::from_utf8_lossy(&rest(&mut stream).await), "only this\n");
}

pub async fn a_duplex_of_a_bad_command_is_refused(subject: &Subject) {
    for bad in [
        request("", &[]),
        request("-c", &["true"]),
        request("cat", &["a\0b"]),
    ] {
        let asked = format!("{bad:?}");
        let opened = within(LIMIT, "an answer", subject.runner().open_duplex(bad)).await;

        let refused = match opened {
            Err(RunnerError::Invalid(_)) => true,
            Err(RunnerError::Unsupported(_)) => !subject.runner().capabilities().duplex,
            Ok(_) | Err(_) => false,
        };
        assert!(refused, "{asked}");
    }
}
