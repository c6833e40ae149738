//! Connections to a scripted SSH server that does what no honest one does.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world has failed"
)]

use std::sync::Arc;
use std::time::Duration;

use runners::ssh::known_hosts::PinnedKey;
use runners::ssh::{
    Connection, ConnectionLimits, ConnectionSettings, Forward, ForwardError, HostKeys, Identities,
};
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelOpenFailure, Error};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the script says of the next forward request.
const PORT: u32 = 45_678;

struct Peer {
    granted: u32,
    handles: mpsc::Sender<server::Handle>,
}

impl server::Handler for Peer {
    type Error = Error;

    async fn auth_publickey(&mut self, _: &str, _: server::VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Error> {
        self.handles.send(session.handle()).await.unwrap();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        reply.accept().await;
        Ok(())
    }

    async fn tcpip_forward(&mut self, _: &str, port: &mut u32, _: &mut Session) -> Result<bool, Error> {
        *port = self.granted;
        Ok(true)
    }
}

struct World {
    connection: Arc<Connection>,
    server: server::Handle,
    _keys: TempDir,
    _serving: JoinHandle<()>,
}

async fn world(window: u32, granted: u32, limits: ConnectionLimits) -> World {
    let keys = tempfile::tempdir().unwrap();
    let host_key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let user_key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let file = keys.path().join("user");
    std::fs::write(&file, user_key.to_openssh(Default::default()).unwrap().as_bytes()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = ConnectionSettings {
        target: "ssh://agent@hostile".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
        user: "agent".to_owned(),
        host_keys: HostKeys::Pinned(PinnedKey::Key(Box::new(host_key.public_key().clone()))),
        identities: Identities {
            files: vec![file],
            files_required: true,
            only: true,
            ..Identities::default()
        },
        via: None,
        limits,
    };
    let config = Arc::new(server::Config {
        keys: vec![host_key],
        window_size: window,
        inactivity_timeout: None,
        auth_rejection_time: Duration::ZERO,
        ..server::Config::default()
    });
    let (handles, mut got) = mpsc::channel(1);
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let running = server::run_stream(config, stream, Peer { granted, handles })
            .await
            .unwrap();
        let _ = running.await;
    });
    let connection = Connection::open(&settings).await.unwrap();
    World {
        connection,
        server: got.recv().await.unwrap(),
        _keys: keys,
        _serving: serving,
    }
}

const WINDOW: u32 = 2 * 1024 * 1024;

async fn forward(world: &World, cap: usize) -> Forward {
    world.connection.forward_tcp("127.0.0.1", 0, cap).await.unwrap()
}

async fn visit(world: &World) -> Result<Channel<Msg>, Error> {
    world
        .server
        .channel_open_forwarded_tcpip("127.0.0.1", PORT, "127.0.0.1", 9)
        .await
}

#[tokio::test]
async fn every_kind_of_channel_that_nobody_asked_for_is_refused() {
    let world = world(WINDOW, PORT, ConnectionLimits::default()).await;
    let _forward = forward(&world, 1024).await;
    let server = &world.server;

    let unwanted = [
        ("session", server.channel_open_session().await),
        (
            "direct-tcpip",
            server
                .channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 9)
                .await,
        ),
        (
            "direct-streamlocal",
            server.channel_open_direct_streamlocal("/run/secret.sock").await,
        ),
        ("x11", server.channel_open_x11("127.0.0.1", 9).await),
        ("agent", server.channel_open_agent().await),
        (
            "another port",
            server
                .channel_open_forwarded_tcpip("127.0.0.1", PORT + 1, "127.0.0.1", 9)
                .await,
        ),
        (
            "a socket",
            server.channel_open_forwarded_streamlocal("/run/other.sock").await,
        ),
    ];

    for (kind, opened) in unwanted {
        assert!(
            matches!(
                opened,
                Err(Error::ChannelOpenFailure(
                    ChannelOpenFailure::AdministrativelyProhibited
                ))
            ),
            "{kind}: {opened:?}"
        );
    }
    assert_eq!(world.connection.unsolicited_channels(), 7);
    assert!(
        visit(&world).await.is_ok(),
        "the one that was asked for is still taken"
    );
}

#[tokio::test]
async fn a_forward_that_was_given_back_takes_nothing_more() {
    let world = world(WINDOW, PORT, ConnectionLimits::default()).await;
    let forward = forward(&world, 1024).await;
    assert!(visit(&world).await.is_ok());

    drop(forward);

    assert!(visit(&world).await.is_err());
}

#[tokio::test]
async fn connections_beyond_the_accept_queue_are_refused_and_not_piled_up() {
    let world = world(WINDOW, PORT, ConnectionLimits::default()).await;
    let mut forward = forward(&world, 1024).await;
    let mut taken = Vec::new();

    let refusal = loop {
        match visit(&world).await {
            Ok(channel) => taken.push(channel),
            Err(error) => break error,
        }
        assert!(taken.len() < 10_000, "no end to it");
    };

    assert!(
        matches!(
            refusal,
            Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage)
        ),
        "{refusal:?}"
    );
    forward.accept().await.unwrap();
    assert!(visit(&world).await.is_ok(), "there is room again");
}

#[tokio::test]
async fn a_flood_into_an_unread_channel_ends_that_channel_and_no_other() {
    let world = world(WINDOW, PORT, ConnectionLimits::default()).await;
    let mut forward = forward(&world, 256 * 1024).await;
    let flooding = visit(&world).await.unwrap();
    let mut unread = forward.accept().await.unwrap();
    let mut beside_there = visit(&world).await.unwrap();
    let mut beside = forward.accept().await.unwrap();

    let flood = tokio::spawn(async move {
        let junk = bytes::Bytes::from(vec![0; 32 * 1024]);
        while flooding.data_bytes(junk.clone()).await.is_ok() {}
    });
    support_eventually(|| unread.end().is_some()).await;
    flood.abort();

    let error = unread.read(&mut [0; 16]).await.unwrap_err();
    assert!(error.to_string().contains("channel_overrun"), "{error}");
    beside.write_all(b"ping").await.unwrap();
    beside.flush().await.unwrap();
    let heard = loop {
        if let russh::ChannelMsg::Data { data } = beside_there.wait().await.unwrap() {
            break data;
        }
    };
    assert_eq!(&heard[..], b"ping");
}

async fn support_eventually(mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("within 10 s");
}

#[tokio::test]
async fn a_writer_without_window_is_woken_when_its_channel_closes() {
    let world = world(0, PORT, ConnectionLimits::default()).await;
    let mut forward = forward(&world, 1024).await;
    let there = visit(&world).await.unwrap();
    let mut here = forward.accept().await.unwrap();
    let writing = tokio::spawn(async move {
        here.write_all(b"never taken").await?;
        here.flush().await
    });
    // It has begun to wait once the runtime has nothing else to do.
    tokio::task::yield_now().await;

    there.close().await.unwrap();
    let written = tokio::time::timeout(Duration::from_secs(10), writing)
        .await
        .expect("woken")
        .unwrap();

    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_writer_without_window_gives_up_in_the_end() {
    let limits = ConnectionLimits {
        write_stall: Duration::from_millis(100),
        ..ConnectionLimits::default()
    };
    let world = world(0, PORT, limits).await;
    let mut forward = forward(&world, 1024).await;
    let _there = visit(&world).await.unwrap();
    let mut here = forward.accept().await.unwrap();

    here.write_all(b"never taken").await.unwrap();
    let flushed = tokio::time::timeout(Duration::from_secs(10), here.flush())
        .await
        .expect("given up");

    assert_eq!(flushed.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn reads_and_writes_fail_at_once_when_the_connection_ends_also_with_bytes_unread() {
    let world = world(0, PORT, ConnectionLimits::default()).await;
    let mut forward = forward(&world, 1024).await;
    let there = visit(&world).await.unwrap();
    let mut here = forward.accept().await.unwrap();
    let mut first = [0; 1];
    there.data_bytes(&b"ab"[..]).await.unwrap();
    here.read_exact(&mut first).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(here);
    let writing = tokio::spawn(async move {
        writing.write_all(b"never taken").await?;
        writing.flush().await
    });

    world
        .server
        .disconnect(russh::Disconnect::ByApplication, "bye".into(), "".into())
        .await
        .unwrap();
    let reason = world.connection.closed().await;

    assert!(reason.contains("bye"), "{reason}");
    assert_eq!(
        reading.read(&mut first).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(
        writing.await.unwrap().unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(forward.accept().await.is_none());
}

#[tokio::test]
async fn a_channel_that_the_server_never_closes_is_closed_by_us_and_counted() {
    let limits = ConnectionLimits {
        linger: Duration::from_millis(50),
        ..ConnectionLimits::default()
    };
    let world = world(WINDOW, PORT, limits).await;
    let mut forward = forward(&world, 1024).await;
    let mut there = visit(&world).await.unwrap();
    let here = forward.accept().await.unwrap();

    drop(here);
    let mut said = Vec::new();
    while let Some(message) = there.wait().await {
        said.push(format!("{message:?}"));
    }

    // End of input first, the server's chance to close, and only then our own close.
    assert_eq!(said, ["Eof", "Close"]);
    assert_eq!(world.connection.channels_closed_by_us(), 1);
    assert_eq!(world.connection.open_channels(), 0);
}

#[tokio::test]
async fn a_port_that_is_none_is_not_believed() {
    for granted in [0, 70_000] {
        let world = world(WINDOW, granted, ConnectionLimits::default()).await;

        let error = world
            .connection
            .forward_tcp("127.0.0.1", 0, 1024)
            .await
            .unwrap_err();

        assert!(matches!(error, ForwardError::Nonsense(_)), "{granted}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_within_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = ConnectionLimits {
        handshake: Duration::from_millis(200),
        ..ConnectionLimits::default()
    };

    let error = Connection::open(&silent(&listener, limits)).await.unwrap_err();

    assert!(error.to_string().contains("no login within"), "{error}");
}

#[tokio::test]
async fn something_that_is_no_ssh_server_is_told_as_that() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = silent(&listener, ConnectionLimits::default());
    let web = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
    });

    let error = Connection::open(&settings).await.unwrap_err();

    web.await.unwrap();
    assert!(error.to_string().contains("ssh://agent@hostile"), "{error}");
}

fn silent(listener: &TcpListener, limits: ConnectionLimits) -> ConnectionSettings {
    let pinned = PinnedKey::parse("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    ConnectionSettings {
        target: "ssh://agent@hostile".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
        user: "agent".to_owned(),
        host_keys: HostKeys::Pinned(pinned),
        identities: Identities::default(),
        via: None,
        limits,
    }
}
