//! The tunnel `http2_v1` with our own gateway as a child of this process, as it would run on a target.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up its world has failed"
)]

#[path = "../../runners/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use runners::local::{BaseEnvironment, LocalRunner};
use runners::ssh::{SshHost, SshRunner};
use runners::{CommandManagedRuntimeRunner, SecretText, Shell};
use sha2::Digest as _;
use support::{Sshd, sshd_is_here};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::http2::{Http2, Http2Options};
use tunnel::launch::{ChangeFault, GatewayProgram, GatewayToken, Launcher, SessionName, SharedToken};
use tunnel::{
    AgentMessage, AgentStream, Callbacks, Listening, MessageBody, Status, StatusReporter, Tunnel, TunnelEnd,
};

const TOKEN: &str = "pcb_0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(60);

/// The gateway, built by the cargo that built this test.
fn gateway() -> GatewayProgram {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "-p", "paperclip-bridge-gateway"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "the gateway does not build");
        // This test lies in `target/PROFILE/deps`.
        let here = std::env::current_exe().unwrap();
        let profile = here.parent().and_then(Path::parent).unwrap();
        std::fs::read(profile.join("paperclip-bridge-gateway"))
            .unwrap()
            .into()
    });
    GatewayProgram::binary(bytes.clone())
}

/// Says what it was asked.
#[derive(Debug, Default)]
struct Echo {
    hanging: Arc<AtomicUsize>,
}

impl Callbacks for Echo {
    fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
        unreachable!("this tunnel hands over messages")
    }

    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
        let hanging = Arc::clone(&self.hanging);
        Box::pin(async move {
            if message.target == "/hang" {
                hanging.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            let host = message.host.unwrap_or_default();
            let mut said = [
                message.method.as_str().as_bytes(),
                b" ",
                &message.target,
                b" ",
                &host,
                b" ",
            ]
            .concat();
            said.extend_from_slice(&message.body.collect().await.unwrap().to_bytes());
            Response::new(
                Full::new(Bytes::from(said))
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            )
        })
    }
}

struct World {
    home: tempfile::TempDir,
    hanging: Arc<AtomicUsize>,
    token: SharedToken,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    serving: JoinHandle<TunnelEnd>,
}

impl World {
    fn new(port: Option<u16>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let base = BaseEnvironment {
            home: home.path().to_str().unwrap().to_owned(),
            ..BaseEnvironment::default()
        };
        Self::on(Arc::new(LocalRunner::new(base, None)), home, port)
    }

    /// A target whose cache is `home`'s.
    fn on(runner: Arc<dyn CommandManagedRuntimeRunner>, home: tempfile::TempDir, port: Option<u16>) -> Self {
        let launcher = Launcher::new(runner, Shell::Sh, gateway());
        let token = SharedToken::from(GatewayToken::from_text(SecretText::new(TOKEN)));
        let mut options = Http2Options::new(SessionName::new("s1").unwrap(), token.clone());
        options.port = port;
        let (reporter, status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let tunnel = Box::new(Http2::new(launcher, options));
        let echo = Arc::new(Echo::default());
        Self {
            home,
            hanging: Arc::clone(&echo.hanging),
            token,
            status,
            serving: tokio::spawn(tunnel.serve(echo, reporter, stop.clone())),
            stop,
        }
    }

    async fn port(&mut self) -> u16 {
        let ready = self
            .status
            .wait_for(|status| matches!(status, Status::Ready { .. }));
        let status = tokio::time::timeout(LIMIT, ready).await.unwrap().unwrap().clone();
        let Status::Ready {
            listening: Listening::Tcp { port },
            verified_loopback,
        } = status
        else {
            panic!("{status:?}")
        };
        assert_eq!(verified_loopback, Some(true));
        port
    }

    fn record(&self) -> PathBuf {
        self.home.path().join(".cache/paperclip-bridge/run-s1")
    }

    fn pid(&self) -> u32 {
        // While a gateway starts its record may be empty, and one that has ended has taken its own away.
        let record = std::fs::read_to_string(self.record()).unwrap_or_default();
        record
            .split(' ')
            .next()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or_default()
    }

    async fn end(self) -> TunnelEnd {
        tokio::time::timeout(LIMIT, self.serving).await.unwrap().unwrap()
    }
}

fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

async fn ask(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn post(target: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: my host\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_callback_goes_through_the_gateway_and_comes_back() {
    let mut world = World::new(None);
    let port = world.port().await;

    let answer = ask(port, &post("/api/x?y=%2F|z", "body")).await.unwrap();
    let stranger = ask(port, &post("/api/x", "").replace(TOKEN, "other"))
        .await
        .unwrap();

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("POST /api/x?y=%2F|z my host body"), "{answer}");
    assert!(stranger.starts_with("HTTP/1.1 401 "), "{stranger}");
    let (pid, record) = (world.pid(), world.record());
    assert!(is_running(pid));
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!command.contains(TOKEN));
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains(TOKEN));
    world.stop.cancel();
    let home = world.home.path().to_owned();
    let end = tokio::time::timeout(LIMIT, &mut world.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(!is_running(pid));
    assert!(!record.exists(), "{record:?} is left in {home:?}");
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn a_killed_gateway_comes_back_on_its_port() {
    let mut world = World::new(None);
    let port = world.port().await;

    for _ in 0..3 {
        let pid = world.pid();
        let killed = Command::new("kill")
            .args(["-s", "KILL", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
        let started = Instant::now();
        while world.pid() == pid
            || !ask(port, &post("/again", "x"))
                .await
                .is_ok_and(|said| said.contains(" 200 "))
        {
            assert!(started.elapsed() < LIMIT, "it does not come back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.port().await, port);
    }

    world.stop.cancel();
    world.end().await;
}

/// The status of a call with this token; 0 where nobody answers.
async fn status(port: u16, token: &str) -> u16 {
    let answer = ask(port, &post("/x", "").replace(TOKEN, token)).await;
    let answer = answer.unwrap_or_default();
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_running_gateway_takes_another_token_and_so_does_the_next_one() {
    let mut world = World::new(None);
    let port = world.port().await;
    let file = world.home.path().join(".cache/paperclip-bridge/token-s1");
    let digest = |token: &str| -> [u8; 32] { sha2::Sha256::digest(token).into() };

    let first = world.pid();
    for (before, token) in [(TOKEN, "second"), ("second", "third")] {
        world.token.change(digest(token)).await.unwrap();
        assert_eq!(
            (status(port, before).await, status(port, token).await),
            (401, 200)
        );
    }
    assert_eq!(world.pid(), first);
    // What is not for this gateway, or nothing at all, changes nothing.
    std::fs::write(&file, format!("{} {}\n", "0".repeat(32), "0".repeat(64))).unwrap();
    assert_eq!(status(port, "third").await, 200);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(status(port, "third").await, 200);
    assert!(matches!(
        world.token.change(digest("fourth")).await,
        Err(ChangeFault::NotFollowed)
    ));
    let killed = Command::new("kill")
        .args(["-s", "KILL", &first.to_string()])
        .status();
    assert!(killed.unwrap().success());
    let started = Instant::now();
    while [first, 0].contains(&world.pid()) || status(port, "third").await != 200 {
        assert!(started.elapsed() < LIMIT, "it does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert_eq!(
        (status(port, TOKEN).await, status(port, "second").await),
        (401, 401)
    );
    world.token.change(digest("fourth")).await.unwrap();
    assert_eq!(
        (status(port, "third").await, status(port, "fourth").await),
        (401, 200)
    );
    world.stop.cancel();
    let home = world.home.path().to_owned();
    let end = tokio::time::timeout(LIMIT, &mut world.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(!file.exists(), "{file:?} is left in {home:?}");
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_refused_by_name() {
    let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = held.local_addr().unwrap().port();
    let world = World::new(Some(port));

    let end = world.end().await;

    assert!(
        matches!(
            &end,
            TunnelEnd::Refused {
                reason: "port_taken",
                ..
            }
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_stop_with_a_caller_that_waits_leaves_nothing_within_five_seconds() {
    let mut world = World::new(None);
    let port = world.port().await;
    let waiting = tokio::spawn(async move { ask(port, &post("/hang", "")).await });
    tokio::time::timeout(LIMIT, async {
        while world.hanging.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    let (pid, started) = (world.pid(), Instant::now());

    world.stop.cancel();
    let end = world.end().await;

    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    assert!(!is_running(pid));
    let _ = waiting.await.unwrap();
}

#[tokio::test]
async fn over_ssh_a_lost_connection_brings_the_gateway_back_on_its_port() {
    if !sshd_is_here() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join(".cache");
    let sshd = Sshd::start(&format!(
        "AllowTcpForwarding no\nSetEnv XDG_CACHE_HOME={}",
        cache.display()
    ));
    let host = SshHost::new(sshd.settings());
    let mut world = World::on(Arc::new(SshRunner::new(Arc::clone(&host))), home, None);
    let port = world.port().await;
    let big = "b".repeat(3 * 1024 * 1024);

    let before = ask(port, &post("/before", &big)).await.unwrap();
    let first = world.pid();
    sshd.signal_sessions("KILL");
    let started = Instant::now();
    while [first, 0].contains(&world.pid())
        || !ask(port, &post("/after", "x"))
            .await
            .is_ok_and(|said| said.contains(" 200 "))
    {
        assert!(started.elapsed() < LIMIT, "it does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert!(before.ends_with(&big), "{} bytes came back", before.len());
    assert!(!is_running(first));
    assert_eq!(world.port().await, port);
    let (pid, record) = (world.pid(), world.record());
    world.stop.cancel();
    let end = tokio::time::timeout(LIMIT, &mut world.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(!is_running(pid) && !record.exists());
}
