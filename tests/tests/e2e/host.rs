//! `host`: the host's side for a gateway that the test started, over standard streams and in a directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::{BridgeCommand, bridge_binary};
use paperclip_bridge_tests::peer::{Installed, Release, installed, our_gateway, their_script};
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID, assert_headers};
use paperclip_bridge_tests::{Agent, Upstream, can_run, eventually};
use tokio::process::{Child, Command};

const ME: &str = "/api/agents/me";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const TOKEN: &str = "a-token-of-the-gateway";
const TOKEN_SHA256: &str = "73c7dc78a18b9594f4b835055cc6184a2be720d70ba0cb59c805ab1407f5a001";
const NONCE: &str = "0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(20);

/// Which of the two roles our gateway is started in; it goes by the variable that holds the token.
#[derive(Clone, Copy, Debug)]
enum Role {
    Ours,
    Peer,
}

impl Role {
    fn token(self) -> (&'static str, String) {
        match self {
            Self::Peer => ("PAPERCLIP_BRIDGE_TOKEN", TOKEN.to_owned()),
            Self::Ours => ("PCBRIDGE_GATEWAY_TOKEN_SHA256", TOKEN_SHA256.to_owned()),
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn agent(port: u16) -> Agent {
    Agent {
        url: format!("http://127.0.0.1:{port}"),
        token: TOKEN.to_owned(),
    }
}

/// Calls until the way stands, then a write and one with a wrong token.
async fn serves(upstream: &Upstream, port: u16, what: &str) {
    let until = Instant::now() + LIMIT;
    loop {
        match agent(port).get(ME).await {
            Ok(answer) if answer.status == 200 => break,
            other => assert!(Instant::now() < until, "{what}: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let written = agent(port).post(COMMENTS, "{}").await.unwrap();
    assert_eq!(written.status, 200, "{what}: {}", written.text());
    let stranger = Agent {
        token: "wrong".to_owned(),
        ..agent(port)
    };
    let seen = upstream.count();
    assert_eq!(stranger.get(ME).await.unwrap().status, 401, "{what}");
    assert_eq!(upstream.count(), seen, "{what}");
    assert_headers(&upstream.seen());
}

/// Starts gateway and host with their standard streams crossed.
///
/// The command is dropped: it holds ends of the pipes.
fn crossed(mut gateway: Command, role: Role, upstream: &Upstream, port: u16) -> (Child, Child) {
    let (from_gateway, to_host) = std::io::pipe().unwrap();
    let (from_host, to_gateway) = std::io::pipe().unwrap();
    let (variable, value) = role.token();
    let gateway = gateway
        .env_clear()
        .env("PAPERCLIP_API_BRIDGE_MODE", "http2_v1")
        .env("PAPERCLIP_BRIDGE_HOST", "127.0.0.1")
        .env("PAPERCLIP_BRIDGE_PORT", port.to_string())
        .env("PAPERCLIP_BRIDGE_NONCE", NONCE)
        .env("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "1000000")
        .env(variable, &value)
        .stdin(Stdio::from(from_host))
        .stdout(Stdio::from(to_host))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let host = Command::new(bridge_binary())
        .args([
            "host",
            "--stdio",
            "--upstream",
            &upstream.url(),
            "--run-id",
            RUN_ID,
        ])
        .args(["--credential", &format!("env:{CREDENTIAL_VARIABLE}")])
        .env_clear()
        .env(CREDENTIAL_VARIABLE, CREDENTIAL)
        .env("PAPERCLIP_BRIDGE_PORT", port.to_string())
        .env("PAPERCLIP_BRIDGE_NONCE", NONCE)
        .env("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "1000000")
        .env(variable, value)
        .stdin(Stdio::from(from_gateway))
        .stdout(Stdio::from(to_gateway))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (gateway, host)
}

async fn over_standard_streams(gateway: Command, role: Role, what: &str) {
    let upstream = Upstream::start().await;
    let port = free_port();
    let (mut gateway, mut host) = crossed(gateway, role, &upstream, port);

    serves(&upstream, port, what).await;

    paperclip_bridge_tests::processes::signal(gateway.id().unwrap(), "TERM");
    let waited = tokio::time::timeout(LIMIT, async { (gateway.wait().await, host.wait().await) }).await;
    let (_, host) = waited.unwrap_or_else(|_| panic!("{what}: the host does not end with its input"));
    assert_eq!(host.unwrap().code(), Some(0), "{what}");
}

#[tokio::test]
async fn our_gateway_in_either_role_is_served_over_standard_streams() {
    for role in [Role::Ours, Role::Peer] {
        over_standard_streams(Command::new(our_gateway()), role, &format!("{role:?}")).await;
    }
}

#[tokio::test]
async fn the_published_gateway_is_served_over_standard_streams() {
    let found: Result<&'static Installed, String> = installed();
    if !can_run(found.clone().map(drop)) {
        return;
    }
    let found = found.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Command::new(found.node());
    gateway.arg(their_script(found, Release::R916, folder.path()));
    over_standard_streams(gateway, Role::Peer, "the published gateway").await;
}

fn host_of(queue: &Path, role: Role, upstream: &Upstream) -> BridgeCommand {
    let (variable, value) = role.token();
    BridgeCommand::new([
        "host",
        "--queue",
        "--upstream",
        &upstream.url(),
        "--run-id",
        RUN_ID,
    ])
    .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
    .env(CREDENTIAL_VARIABLE, CREDENTIAL)
    .env("PAPERCLIP_BRIDGE_QUEUE_DIR", queue.to_str().unwrap())
    .env(variable, &value)
}

fn gateway_of(queue: &Path, role: Role) -> Child {
    let (variable, value) = role.token();
    Command::new(our_gateway())
        .env_clear()
        .env("PAPERCLIP_API_BRIDGE_MODE", "queue_v1")
        .env("PAPERCLIP_BRIDGE_QUEUE_DIR", queue)
        .env("PAPERCLIP_BRIDGE_HOST", "127.0.0.1")
        .env("PAPERCLIP_BRIDGE_PORT", "0")
        .env(variable, value)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ready(queue: &Path, other_than: u16) -> u16 {
    let path: PathBuf = queue.join("ready.json");
    eventually(LIMIT, "the gateway listens", || {
        let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let port = u16::try_from(ready["port"].as_u64()?).ok()?;
        (port != other_than).then_some(port)
    })
    .await
}

#[tokio::test]
async fn a_host_that_was_there_first_serves_a_gateway_at_whatever_port_it_comes_and_comes_back() {
    for role in [Role::Ours, Role::Peer] {
        let upstream = Upstream::start().await;
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("queue");
        let host = host_of(&queue, role, &upstream).start();
        eventually(LIMIT, "the host has its directory", || {
            queue.join("claimed").is_dir().then_some(())
        })
        .await;
        let mut gateway = gateway_of(&queue, role);
        let first = ready(&queue, 0).await;
        serves(&upstream, first, &format!("{role:?}")).await;

        gateway.kill().await.unwrap();
        let _second_gateway = gateway_of(&queue, role);
        let second = ready(&queue, first).await;
        serves(&upstream, second, &format!("{role:?} again")).await;

        host.signal("TERM");
        let ended = host.finish().await;
        assert_eq!(ended.code, Some(0), "{role:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_host_with_a_state_folder_writes_down_what_it_serves() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (queue, state) = (folder.path().join("queue"), folder.path().join("state"));
    let state = state.to_str().unwrap();
    let host = host_of(&queue, Role::Ours, &upstream)
        .args(["--state-dir", state])
        .start();
    eventually(LIMIT, "the host has its directory", || {
        queue.join("claimed").is_dir().then_some(())
    })
    .await;
    let _gateway = gateway_of(&queue, Role::Ours);
    let port = ready(&queue, 0).await;
    serves(&upstream, port, "with a state folder").await;

    host.signal("TERM");
    let ended = host.finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let audit = |words: &[&str]| {
        BridgeCommand::new(words.iter().copied())
            .args(["--state-dir", state])
            .finish()
    };
    let verified = audit(&["audit", "verify", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(verified.code, Some(0), "{report}");
    assert_eq!(report["warnings"], serde_json::json!([]), "{report}");
    let told = audit(&["audit", "query", "--run", RUN_ID]).await.stdout;
    for part in [
        " session_started run=",
        " target=queue:",
        " allow 200 POST /api/issues/PAP-1/comments ",
        " session_ended reason=closed run=",
    ] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert!(!told.contains(TOKEN) && !told.contains(CREDENTIAL), "{told}");
}

#[tokio::test]
async fn a_host_without_a_directory_says_where_it_could_be_named() {
    let upstream = Upstream::start().await;
    let ended = host_of(Path::new(""), Role::Peer, &upstream).finish().await;

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("PAPERCLIP_BRIDGE_QUEUE_DIR"),
        "{}",
        ended.stderr
    );
}
