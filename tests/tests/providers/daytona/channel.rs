//! The duplex: how it ends, and what is left of it.

use fakes::daytona::{Daemon, Fault, Settings};
use paperclip_bridge_tests::{eventually, within};
use runners::DuplexRequest;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{LIMIT, World};

async fn duplex(world: &World, script: &str) -> runners::Duplex {
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    let request = DuplexRequest {
        command: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        cwd: None,
    };
    let opened = within(LIMIT, "a duplex", runner.open_duplex(request)).await;
    opened.expect("the fake has a terminal")
}

#[tokio::test]
async fn a_slow_reader_is_dropped_and_its_channel_ends_with_an_error() {
    let settings = Settings {
        outbound_messages: 16,
        ..Settings::default()
    };
    let world = World::with(settings, &json!({})).await;
    let duplex = duplex(&world, "head -c 20000000 /dev/zero; exec sleep 987").await;
    let mut stream = duplex.stream;
    let lease = world.fake.sandboxes()[0].0.clone();

    // Nothing is read until the daemon has let go: then `head` writes to nobody, and ends.
    let sleeps = || {
        let pids = world.fake.processes(&lease);
        let sleeping =
            |pid: &&u32| paperclip_bridge_tests::processes::command_line(**pid).starts_with(b"sleep\x00987");
        pids.iter().find(sleeping).map(drop)
    };
    eventually(LIMIT, "the daemon drops the reader", sleeps).await;
    let mut all = vec![];
    let read = within(LIMIT, "the end of the channel", stream.read_to_end(&mut all)).await;

    let error = read.expect_err("bytes are missing");
    assert!(error.to_string().contains("too slowly"), "{error}");
    assert!(all.len() < 20_000_000);
}

#[tokio::test]
async fn a_cut_channel_is_an_error_and_its_command_is_ended() {
    let world = World::new(&json!({})).await;
    let mut stream = duplex(&world, "echo ready; exec sleep 987").await.stream;
    let mut ready = [0; 6];
    stream.read_exact(&mut ready).await.unwrap();

    world.fake.drop_sockets();
    let read = within(LIMIT, "the end of the channel", stream.read_to_end(&mut vec![])).await;

    read.expect_err("a lost connection is no end");
    let lease = world.fake.sandboxes()[0].0.clone();
    let ended = || world.fake.processes(&lease).is_empty().then_some(());
    eventually(LIMIT, "the terminal is ended", ended).await;
}

#[tokio::test]
async fn a_command_that_fails_ends_its_channel_without_an_error() {
    for daemon in [Daemon::Newer, Daemon::Old] {
        let settings = Settings {
            daemon,
            ..Settings::default()
        };
        let world = World::with(settings, &json!({})).await;
        let mut stream = duplex(&world, "read line; echo \"$line\"; exit 7").await.stream;

        stream.write_all(b"last words\n").await.unwrap();
        let mut all = String::new();
        let read = within(LIMIT, "the end", stream.read_to_string(&mut all)).await;

        read.expect("an exit is an end");
        assert_eq!(all, "last words\n", "{daemon:?}");
    }
}

#[tokio::test]
async fn a_terminal_that_cannot_be_joined_is_not_left_behind() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    world.fake.fail("/connect", Fault::Status(502), 1);

    let request = DuplexRequest {
        command: "cat".to_owned(),
        ..DuplexRequest::default()
    };
    runner.open_duplex(request).await.unwrap_err();

    assert_eq!(
        world.calls("DELETE /toolbox").len(),
        2,
        "the terminal and its files"
    );
    let ended = || world.fake.processes(&lease.id).is_empty().then_some(());
    eventually(LIMIT, "the terminal is ended", ended).await;
}
