//! The peer's host as a child process.
//!
//! Here: `tests/peer/host.mjs` started, told what to do on its stdin, and ended. Not here: the upstream behind it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use super::gateway::{path_with_node, path_with_our_gateway};
use super::{Installed, Release, SshSandbox, Transport, install};
use crate::processes;
use crate::waiting::within;
use crate::world::{CREDENTIAL, RUN_ID};

/// How long the peer may take to open, and to end after it was told to.
const LIMIT: Duration = Duration::from_secs(60);

/// What the peer's host shall serve.
#[derive(Debug)]
pub struct HostOptions<'a> {
    /// Whose host code.
    pub release: Release,
    /// By which transport; another one than this is a fault.
    pub transport: Transport,
    /// Whether our gateway stands in the sandbox in place of the peer's.
    pub our_gateway: bool,
    /// The URL of the API.
    pub upstream: &'a str,
    /// The body limit, or the release's own.
    pub max_body: Option<u64>,
    /// Behind which SSH server the sandbox is, for `queue_v1`; on this machine where there is none.
    pub ssh: Option<&'a SshSandbox>,
}

#[derive(Debug, Deserialize)]
struct Opened {
    url: String,
    token: String,
}

/// A running host. Dropping it kills it and its gateway; [`Self::close`] ends both in order.
#[derive(Debug)]
pub struct PeerHost {
    /// Where the agent finds it.
    pub url: String,
    /// The agent's token.
    pub token: String,
    child: Child,
    stdin: Option<ChildStdin>,
    errors: JoinHandle<String>,
    folder: TempDir,
}

impl PeerHost {
    /// Starts it and returns once it serves.
    ///
    /// # Panics
    ///
    /// With what it wrote to stderr, where it does not come to that.
    pub async fn start(installed: &Installed, options: &HostOptions<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = if options.our_gateway {
            path_with_our_gateway(folder.path(), installed)
        } else {
            path_with_node(installed)
        };
        let wanted = json!({
            "package": installed.package(options.release),
            "transport": options.transport.name(),
            "upstream": options.upstream,
            "credential": CREDENTIAL,
            "runId": RUN_ID,
            "folder": folder.path(),
            "path": path,
            "maxBodyBytes": options.max_body,
            "ssh": options.ssh.map(SshSandbox::for_the_peer),
        });
        let mut child = Command::new(installed.node())
            .arg(install::drivers().join("host.mjs"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", folder.path())
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the installed node starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        let stdout = child.stdout.take().expect("it was piped");
        let mut stderr = child.stderr.take().expect("it was piped");
        let errors = tokio::spawn(async move {
            let mut bytes = vec![];
            // What cannot be read is missing from a report, and that is all.
            drop(stderr.read_to_end(&mut bytes).await);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        stdin
            .write_all(format!("{wanted}\n").as_bytes())
            .await
            .expect("the driver reads its first line");
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        let read = within(LIMIT, "the peer's host opens", reader.read_line(&mut line)).await;
        let Ok(opened) = serde_json::from_str::<Opened>(&line) else {
            drop(child.kill().await);
            let text = errors.await.unwrap_or_default();
            panic!("the peer's host did not open ({read:?}, {line:?}): {text}");
        };
        Self {
            url: opened.url,
            token: opened.token,
            child,
            stdin: Some(stdin),
            errors,
            folder,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// The queue directory that it uses in `queue_v1`.
    pub fn queue(&self) -> PathBuf {
        self.folder.path().join("runtime/paperclip-bridge/queue")
    }

    /// Ends it in order; its stderr.
    pub async fn close(mut self) -> String {
        self.stdin = None;
        let status = within(LIMIT, "the peer's host ends", self.child.wait()).await;
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "{status:?}"
        );
        self.end_gateway();
        (&mut self.errors).await.unwrap_or_default()
    }

    /// Its queue gateway is detached, and the host's end is no sign that it ended.
    fn end_gateway(&self) {
        let pid = fs::read_to_string(self.queue().join("server.pid")).ok();
        if let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) {
            // The number may be another's by now: only one whose arguments name this folder is ours.
            let arguments = processes::command_line(pid);
            let folder = self.folder.path().as_os_str().as_encoded_bytes();
            if arguments.windows(folder.len()).any(|part| part == folder) {
                processes::signal(pid, "KILL");
            }
        }
    }
}

impl Drop for PeerHost {
    fn drop(&mut self) {
        self.end_gateway();
    }
}
