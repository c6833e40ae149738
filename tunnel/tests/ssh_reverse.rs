//! The reverse tunnel against a real OpenSSH server: its listener, its traps, its return after a loss.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot set up its world has failed"
)]

#[path = "../../runners/tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use runners::ssh::{ConnectionSettings, SshHost};
use support::{Sshd, sshd_is_here};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::ssh_reverse::{Bind, SshReverse, SshReverseOptions};
use tunnel::{AgentStream, Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};

/// Sends back what comes; a stream that starts with `stall` is never read again, one that starts with
/// `head` is answered and ended after its `body`.
#[derive(Debug, Default)]
struct Echo {
    served: AtomicUsize,
}

impl Callbacks for Echo {
    fn serve_message(
        &self,
        _: tunnel::AgentMessage,
    ) -> BoxFuture<'static, http::Response<tunnel::MessageBody>> {
        unreachable!("this tunnel hands over streams")
    }

    fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()> {
        self.served.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let mut bytes = stream.bytes;
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = bytes.read(&mut buffer).await {
                if buffer[..count].starts_with(b"stall") {
                    return std::future::pending().await;
                }
                if buffer[..count].starts_with(b"head") {
                    // As a request whose body comes in a packet of its own: nothing to answer before that.
                    if count < 8 {
                        let _ = bytes.read_exact(&mut buffer[count..8]).await;
                    }
                    let _ = bytes.write_all(&buffer[4..8]).await;
                    break;
                }
                if bytes.write_all(&buffer[..count]).await.is_err() || bytes.flush().await.is_err() {
                    return;
                }
            }
            let _ = bytes.shutdown().await;
        })
    }
}

struct Running {
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    serving: JoinHandle<TunnelEnd>,
    host: Arc<SshHost>,
    echo: Arc<Echo>,
}

fn start(settings: ConnectionSettings, options: SshReverseOptions) -> Running {
    let host = SshHost::new(settings);
    start_on(&host, options)
}

fn start_on(host: &Arc<SshHost>, options: SshReverseOptions) -> Running {
    let tunnel = Box::new(SshReverse::new(Arc::clone(host), options));
    let (reporter, status) = StatusReporter::new();
    let stop = CancellationToken::new();
    let echo = Arc::new(Echo::default());
    let serving = tokio::spawn(tunnel.serve(echo.clone(), reporter, stop.clone()));
    Running {
        status,
        stop,
        serving,
        host: Arc::clone(host),
        echo,
    }
}

impl Running {
    async fn wait(&mut self, what: &str, limit: u64, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut watch = self.status.clone();
        let status = tokio::time::timeout(Duration::from_secs(limit), watch.wait_for(wanted)).await;
        match status {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => panic!("{what}: the tunnel ended"),
            Err(_) => panic!("{what}: not within {limit} s, but {:?}", *self.status.borrow()),
        }
    }

    async fn ready(&mut self) -> (Listening, Option<bool>) {
        match self
            .wait("ready", 20, |status| matches!(status, Status::Ready { .. }))
            .await
        {
            Status::Ready {
                listening,
                verified_loopback,
            } => (listening, verified_loopback),
            other @ (Status::Starting | Status::Reconnecting { .. } | Status::Degraded { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    async fn port(&mut self) -> u16 {
        match self.ready().await.0 {
            Listening::Tcp { port } => port,
            other @ (Listening::Unix { .. } | Listening::Url { .. }) => panic!("{other:?}"),
        }
    }

    async fn stop(self) -> TunnelEnd {
        self.stop.cancel();
        self.serving.await.unwrap()
    }
}

async fn echo_once(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn echo_works_within(port: u16, limit: Duration) {
    let until = Instant::now() + limit;
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(1), echo_once(port, "again")).await;
        if let Ok(Ok(text)) = answer
            && text == "again"
        {
            return;
        }
        assert!(
            Instant::now() < until,
            "the port did not come back within {limit:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn refusal(settings: ConnectionSettings, options: SshReverseOptions) -> (String, String) {
    let running = start(settings, options);
    let end = tokio::time::timeout(Duration::from_secs(20), running.serving)
        .await
        .unwrap()
        .unwrap();
    let TunnelEnd::Refused { reason, detail } = end else {
        panic!("{end:?}")
    };
    (reason.to_owned(), detail)
}

#[tokio::test]
async fn an_agent_reaches_the_daemon_through_a_verified_loopback_port_that_is_gone_afterwards() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut running = start(sshd.settings(), SshReverseOptions::default());
    let (listening, verified) = running.ready().await;
    let Listening::Tcp { port } = listening else {
        panic!("{listening:?}")
    };

    assert_eq!(verified, Some(true));
    assert_eq!(echo_once(port, "hello").await.unwrap(), "hello");

    assert!(matches!(running.stop().await, TunnelEnd::Stopped));
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn each_session_on_one_connection_has_a_port_of_its_own() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let host = SshHost::new(sshd.settings());
    let mut sessions: Vec<Running> = (0..20)
        .map(|_| start_on(&host, SshReverseOptions::default()))
        .collect();
    let mut ports = Vec::new();
    for session in &mut sessions {
        ports.push(session.port().await);
    }

    for (session, port) in sessions.iter().zip(&ports) {
        assert_eq!(echo_once(*port, "mine").await.unwrap(), "mine");
        assert_eq!(session.echo.served.load(Ordering::Relaxed), 1);
    }
    // sshd shows one unprivileged and one privileged process for a connection at most.
    assert!(sshd.sessions().len() <= 2, "{:?}", sshd.sessions());
}

#[tokio::test]
async fn connections_one_after_the_other_do_not_wait_for_delayed_acknowledgements() {
    if !sshd_is_here() {
        return;
    }
    // Without an exec it is QUICKACK that must do it.
    for lines in ["", "MaxSessions 0"] {
        let sshd = Sshd::start(lines);
        let mut running = start(sshd.settings(), SshReverseOptions::default());
        let port = running.port().await;
        let begun = Instant::now();

        for _ in 0..40 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(b"head").await.unwrap();
            // Not a wait for a state: the two must reach sshd as two.
            tokio::time::sleep(Duration::from_millis(2)).await;
            stream.write_all(b"body").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "body");
        }

        // With the step each takes 40 ms and more.
        let took = begun.elapsed();
        eprintln!("{lines:?}: 40 connections took {took:?}");
        assert!(
            took < Duration::from_millis(40 * 25),
            "{lines:?}: 40 connections took {took:?}"
        );
    }
}

#[tokio::test]
async fn one_unread_connection_does_not_hold_up_the_others() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let options = SshReverseOptions {
        stream_cap: 4 * 1024 * 1024,
        ..SshReverseOptions::default()
    };
    let mut running = start(sshd.settings(), options);
    let port = running.port().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"stall").await.unwrap();
        stalled.push(tokio::spawn(async move {
            let junk = vec![0_u8; 64 * 1024];
            while stream.write_all(&junk).await.is_ok() {}
        }));
    }

    let mut answered = 0;
    while stalled.iter().any(|flood| !flood.is_finished()) {
        let answer = tokio::time::timeout(Duration::from_secs(5), echo_once(port, "beside")).await;
        assert_eq!(answer.expect("answered beside the floods").unwrap(), "beside");
        answered += 1;
    }

    // Each flood ended because its channel went over the cap, not because everything stopped.
    assert!(answered > 0);
    assert!(running.host.connection().await.unwrap().end_reason().is_none());
}

#[tokio::test]
async fn a_body_of_many_megabytes_comes_back_unchanged() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.rekey_bytes = 4 * 1024 * 1024;
    let options = SshReverseOptions {
        // What comes faster than it is sent back waits in between; how much of it may is another matter.
        stream_cap: 64 * 1024 * 1024,
        ..SshReverseOptions::default()
    };
    let mut running = start(settings, options);
    let port = running.port().await;
    let sent: Vec<u8> = (0..32 * 1024 * 1024_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (mut read, mut write) = TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap()
        .into_split();

    let to_send = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&to_send).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.unwrap();
    sending.await.unwrap();

    assert!(answer == sent, "{} of {} bytes", answer.len(), sent.len());
}

#[tokio::test]
async fn after_a_clean_loss_the_same_port_is_back_and_open_streams_had_failed() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut running = start(sshd.settings(), SshReverseOptions::default());
    let port = running.port().await;
    let mut open = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    open.write_all(b"held").await.unwrap();
    let mut buffer = [0; 4];
    open.read_exact(&mut buffer).await.unwrap();

    sshd.signal_sessions("KILL");
    running
        .wait("reconnecting", 5, |status| {
            matches!(status, Status::Reconnecting { .. })
        })
        .await;

    assert_eq!(open.read(&mut buffer).await.unwrap_or(0), 0);
    assert_eq!(running.port().await, port);
    echo_works_within(port, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_half_dead_sshd_that_still_holds_the_port_is_found_and_ended() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.keepalive_interval = Duration::from_millis(300);
    let mut running = start(settings, SshReverseOptions::default());
    let port = running.port().await;

    sshd.signal_sessions("STOP");
    let lost = running
        .wait("lost", 10, |status| !matches!(status, Status::Ready { .. }))
        .await;
    let back = running.port().await;

    assert!(
        matches!(
            lost,
            Status::Reconnecting {
                reason: "connection_lost",
                ..
            }
        ),
        "{lost:?}"
    );
    assert_eq!(back, port);
    echo_works_within(port, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_restarted_server_gives_the_same_port_again() {
    if !sshd_is_here() {
        return;
    }
    let mut sshd = Sshd::start("");
    let mut running = start(sshd.settings(), SshReverseOptions::default());
    let port = running.port().await;

    sshd.restart("");

    running
        .wait("seen", 10, |status| !matches!(status, Status::Ready { .. }))
        .await;
    assert_eq!(running.port().await, port);
    echo_works_within(port, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_port_that_somebody_else_took_meanwhile_is_waited_for_and_never_replaced() {
    if !sshd_is_here() {
        return;
    }
    let mut sshd = Sshd::start("");
    let mut running = start(sshd.settings(), SshReverseOptions::default());
    let port = running.port().await;
    let settings_port = sshd.port;

    // Stop the server, take the port, start the server again.
    sshd.signal_sessions("KILL");
    let squatter = loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => break Some(listener),
            Err(_) if matches!(*running.status.borrow(), Status::Ready { .. }) => {
                // It came back before us: once more.
                sshd.signal_sessions("KILL");
                tokio::task::yield_now().await;
            }
            Err(_) => tokio::task::yield_now().await,
        }
    };
    sshd.restart("");
    assert_eq!(sshd.port, settings_port);
    let degraded = running
        .wait("degraded", 20, |status| matches!(status, Status::Degraded { .. }))
        .await;
    drop(squatter);

    assert!(
        matches!(
            degraded,
            Status::Degraded {
                reason: "port_taken",
                ..
            }
        ),
        "{degraded:?}"
    );
    assert_eq!(running.port().await, port);
    echo_works_within(port, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_worn_out_connection_hands_its_port_to_a_fresh_one_and_its_last_stream_runs_on() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.linger = Duration::from_millis(50);
    settings.limits.worn_out_after = 5;
    let mut running = start(settings, SshReverseOptions::default());
    let port = running.port().await;
    let first = running.host.connection().await.unwrap();
    let mut last = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut answer = [0; 4];
    last.write_all(b"kept").await.unwrap();
    last.read_exact(&mut answer).await.unwrap();

    // Agents that read the end of their answer and never close: the server cannot close these channels, so we must.
    let mut unclosed = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"headbody").await.unwrap();
        let mut body = String::new();
        stream.read_to_string(&mut body).await.unwrap();
        assert_eq!(body, "body");
        unclosed.push(stream);
    }
    support::eventually_async("five channels closed by us", || first.is_worn_out()).await;
    assert_eq!(first.channels_closed_by_us(), 5);
    // The next one is still served by the old connection and makes the fresh one take over.
    assert_eq!(echo_once(port, "next").await.unwrap(), "next");

    echo_works_within(port, Duration::from_secs(10)).await;
    let second = running.host.connection().await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    let mut fresh = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    fresh.write_all(b"kept").await.unwrap();
    fresh.read_exact(&mut answer).await.unwrap();
    assert!(second.open_channels() > 0);
    assert_eq!(running.port().await, port);
    assert!(first.end_reason().is_none());
    last.write_all(b"more").await.unwrap();
    last.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"more");

    drop((last, fresh, unclosed));
    support::eventually_async("the worn-out connection has no channel left", || {
        first.open_channels() == 0
    })
    .await;
    drop(first);
    // One connection shows as one unprivileged and one privileged process at most.
    support::eventually_async("one connection left", || sshd.sessions().len() <= 2).await;
    echo_works_within(port, Duration::from_secs(5)).await;
    assert!(matches!(running.stop().await, TunnelEnd::Stopped));
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn a_listener_that_other_machines_could_reach_is_taken_back() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("GatewayPorts yes");

    let (reason, detail) = refusal(sshd.settings(), SshReverseOptions::default()).await;

    assert_eq!(reason, "forward_not_loopback");
    assert!(
        detail.contains("GatewayPorts") && detail.contains("0.0.0.0"),
        "{detail}"
    );
}

#[tokio::test]
async fn an_exposed_listener_is_kept_where_that_was_allowed_and_marked() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("GatewayPorts yes");
    let options = SshReverseOptions {
        allow_exposed: true,
        ..SshReverseOptions::default()
    };

    let (_, verified) = start(sshd.settings(), options).ready().await;

    assert_eq!(verified, Some(false));
}

#[tokio::test]
async fn without_any_command_allowed_the_tunnel_works_unverified() {
    if !sshd_is_here() {
        return;
    }
    for lines in [
        "MaxSessions 0",
        "ForceCommand echo no commands here",
        "ForceCommand sleep 1000",
    ] {
        let sshd = Sshd::start(lines);
        let mut running = start(sshd.settings(), SshReverseOptions::default());
        let (listening, verified) = running.ready().await;
        let Listening::Tcp { port } = listening else {
            panic!("{listening:?}")
        };

        assert_eq!(verified, None, "{lines}");
        assert_eq!(echo_once(port, "works").await.unwrap(), "works", "{lines}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_forwarding_is_told_by_its_settings() {
    if !sshd_is_here() {
        return;
    }
    for lines in [
        "AllowTcpForwarding no",
        "AllowTcpForwarding local",
        "PermitListen none",
        "DisableForwarding yes",
    ] {
        let sshd = Sshd::start(lines);

        let (reason, detail) = refusal(sshd.settings(), SshReverseOptions::default()).await;

        assert_eq!(reason, "forwarding_refused", "{lines}");
        for setting in ["AllowTcpForwarding", "PermitListen", "DisableForwarding"] {
            assert!(detail.contains(setting), "{lines}: {detail}");
        }
    }
}

#[tokio::test]
async fn a_unix_socket_serves_comes_back_after_a_loss_and_is_removed() {
    if !sshd_is_here() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let sshd = Sshd::start("");
    let path = sshd.path("agent.sock");
    let options = SshReverseOptions {
        bind: Bind::Unix { path: path.clone() },
        ..SshReverseOptions::default()
    };
    let mut running = start(sshd.settings(), options);
    assert_eq!(
        running.ready().await,
        (Listening::Unix { path: path.clone() }, Some(true))
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let echo = async |text: &str| {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    assert_eq!(echo("first").await.unwrap(), "first");

    sshd.signal_sessions("KILL");
    running
        .wait("lost", 5, |status| !matches!(status, Status::Ready { .. }))
        .await;
    running.ready().await;

    assert_eq!(echo("second").await.unwrap(), "second");
    assert!(matches!(running.stop().await, TunnelEnd::Stopped));
    assert!(!path.exists());
}

#[tokio::test]
async fn forwarding_of_unix_sockets_that_is_refused_is_told_by_its_setting() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("AllowStreamLocalForwarding no");
    let bind = Bind::Unix {
        path: sshd.path("agent.sock"),
    };

    let (reason, detail) = refusal(
        sshd.settings(),
        SshReverseOptions {
            bind,
            ..SshReverseOptions::default()
        },
    )
    .await;

    assert_eq!(reason, "forwarding_refused");
    assert!(detail.contains("AllowStreamLocalForwarding"), "{detail}");
}

#[tokio::test]
async fn a_target_that_is_not_there_is_unreachable() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.port = support::free_port();

    let end = start(settings, SshReverseOptions::default())
        .serving
        .await
        .unwrap();

    assert!(matches!(end, TunnelEnd::Unreachable(_)), "{end:?}");
}

#[tokio::test]
async fn a_hundred_connections_leave_no_channel_behind() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut running = start(sshd.settings(), SshReverseOptions::default());
    let port = running.port().await;
    for _ in 0..100 {
        echo_once(port, "x").await.unwrap();
    }

    let connection = running.host.connection().await.unwrap();
    support::eventually_async("all channels are closed", || connection.open_channels() == 0).await;
    assert_eq!(connection.channels_closed_by_us(), 0);
}
