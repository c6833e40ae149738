//! Starting the program.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncReadExt, Join, join};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::within;

pub(crate) const TOKEN: &str = "the-token";
pub(crate) const NONCE: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

pub(crate) type Channel = Join<ChildStdout, ChildStdin>;

/// A gateway that runs; it is ended with the value.
pub(crate) struct Gateway {
    pub(crate) port: u16,
    pub(crate) child: Child,
}

pub(crate) fn digest() -> String {
    use sha2::Digest;
    sha2::Sha256::digest(TOKEN)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// The program with the environment of our daemon, or with Paperclip's.
pub(crate) fn command(port: u16, ours: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paperclip-bridge-gateway"));
    command
        .env_clear()
        .env("PAPERCLIP_API_BRIDGE_MODE", "http2_v1")
        .env("PAPERCLIP_BRIDGE_HOST", "127.0.0.1")
        .env("PAPERCLIP_BRIDGE_PORT", port.to_string())
        .env("PAPERCLIP_BRIDGE_NONCE", NONCE)
        .env("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", (16 << 20).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if ours {
        command.env("PCBRIDGE_GATEWAY_TOKEN_SHA256", digest());
    } else {
        command.env("PAPERCLIP_BRIDGE_TOKEN", TOKEN);
    }
    command
}

/// Under our daemon, READY read.
pub(crate) async fn ours() -> (Gateway, Channel) {
    start(true, &[]).await
}

/// Under Paperclip's host, READY read.
pub(crate) async fn peer(extra: &[(&str, &str)]) -> (Gateway, Channel) {
    start(false, extra).await
}

pub(crate) async fn start(ours: bool, extra: &[(&str, &str)]) -> (Gateway, Channel) {
    let port = free_port();
    let mut child = command(port, ours)
        .envs(extra.iter().copied())
        .spawn()
        .expect("the program starts");
    let stdin = child.stdin.take().expect("piped");
    let mut stdout = child.stdout.take().expect("piped");
    let line = within(line(&mut stdout)).await;
    assert_eq!(
        line,
        format!("{{\"version\":2,\"type\":\"ready\",\"nonce\":\"{NONCE}\"}}\n")
    );
    (Gateway { port, child }, join(stdout, stdin))
}

/// Everything up to the first line feed, and not a byte more.
pub(crate) async fn line(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let byte = from.read_u8().await.expect("a line");
        line.push(char::from(byte));
    }
    line
}

impl Gateway {
    /// Waits for the end of the program.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        within(self.child.wait()).await.expect("a status")
    }

    /// What it said on standard error, once it has ended.
    pub(crate) async fn said(&mut self) -> String {
        let mut said = String::new();
        let mut stderr: ChildStderr = self.child.stderr.take().expect("piped");
        within(stderr.read_to_string(&mut said)).await.expect("text");
        said
    }
}
