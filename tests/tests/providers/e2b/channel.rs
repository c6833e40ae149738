//! The duplex channel, where it breaks: what may be missing is never an end.

use paperclip_bridge_tests::{eventually, within};
use runners::DuplexRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{LIMIT, World};

fn cat() -> DuplexRequest {
    DuplexRequest {
        command: "sh".to_owned(),
        args: vec!["-c".to_owned(), "echo up; exec cat".to_owned()],
        cwd: None,
    }
}

#[tokio::test]
async fn a_broken_stream_is_an_error_and_ends_the_command() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let mut stream = runner.open_duplex(cat()).await.expect("a channel").stream;
    stream.read_exact(&mut [0; 3]).await.expect("a line");

    world.fake.drop_streams(&lease.id);

    let read = within(LIMIT, "the reader is told", stream.read(&mut [0; 1])).await;
    assert!(read.is_err(), "{read:?}");
    let gone = || world.fake.processes(&lease.id).is_empty().then_some(());
    eventually(LIMIT, "the command is ended", gone).await;
}

#[tokio::test]
async fn input_of_unknown_fate_breaks_the_channel() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let mut stream = runner.open_duplex(cat()).await.expect("a channel").stream;
    stream.read_exact(&mut [0; 3]).await.expect("a line");
    world.fake.switches().lose_answer("/SendInput");

    stream.write_all(b"once").await.expect("it is taken");

    let mut back = vec![];
    let read = within(LIMIT, "the reader is told", stream.read_to_end(&mut back)).await;
    assert!(read.is_err(), "{read:?}");
    assert!(b"once".starts_with(&back), "and nothing comes twice");
    assert_eq!(world.fake.calls_to("/SendInput").len(), 1);
}

#[tokio::test]
async fn what_waits_while_a_call_is_under_way_goes_in_one() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let mut stream = runner.open_duplex(cat()).await.expect("a channel").stream;
    stream.read_exact(&mut [0; 3]).await.expect("a line");

    for _ in 0..1000 {
        stream.write_all(&[7; 100]).await.expect("it is taken");
    }
    let mut back = vec![0; 100_000];
    within(LIMIT, "all comes back", stream.read_exact(&mut back))
        .await
        .expect("all bytes");

    let calls = world.fake.calls_to("/SendInput").len();
    assert!(calls < 100, "{calls} calls for 1000 writes");
}

#[tokio::test]
async fn a_channel_that_is_refused_is_no_channel() {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    world.fake.switches().refuse_tagged("pcb-d-");

    let error = runner.open_duplex(cat()).await.expect_err("refused");

    assert!(matches!(error, runners::RunnerError::Refused { .. }), "{error}");
}
