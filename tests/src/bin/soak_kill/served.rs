//! `serve` on a folder, over all of its processes.
//!
//! Here: starting it, making sessions in it, and its end in order. Not here: which sessions ([`super::lives`],
//! [`super::mixed`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use paperclip_bridge_tests::Agent;
use paperclip_bridge_tests::binary::{BridgeCommand, Opened, Running};
use paperclip_bridge_tests::upstream::Upstream;
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, Place};

use super::lives::looked_for;

/// How long it may take to end when it is told to.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(15);

/// Where a `serve` lives.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    folder: PathBuf,
}

impl Served {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Starts it, and waits until it serves.
    pub(crate) async fn start(&self) -> anyhow::Result<Running> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))?;
        let running = BridgeCommand::new(["serve", "--json", "--ops", "127.0.0.1:0"])
            .args(["--state-dir".to_owned(), self.file("state").display().to_string()])
            .args(self.control())
            .env(CREDENTIAL_VARIABLE, CREDENTIAL)
            .log_to(log)
            .start();
        let serves = || running.stdout().contains('\n').then_some(());
        looked_for("`serve` says where it listens", serves)
            .await
            .with_context(|| self.log())?;
        Ok(running)
    }

    /// A session of it, ready.
    pub(crate) async fn session(
        &self,
        place: &Place,
        upstream: &Upstream,
        more: &[&str],
    ) -> anyhow::Result<Opened> {
        let made = BridgeCommand::new(["sessions", "new", &place.target(), "--wait", "ready", "--json"])
            .args(place.options())
            .args(["--upstream", &upstream.url()])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
            .args(more.iter().copied())
            .args(self.control())
            .finish()
            .await;
        serde_json::from_str(&made.stdout).with_context(|| made.stderr.clone())
    }

    /// The sessions that are in this state now, as it tells them itself; none where it does not answer.
    pub(crate) async fn sessions_that_are(&self, state: &str) -> usize {
        let control = Agent {
            url: format!("unix:{}", self.file("control.sock").display()),
            token: "none".to_owned(),
        };
        let told = control.get("/v1/sessions").await.map(|answer| answer.json());
        let told = told.unwrap_or_default();
        let all = told["sessions"].as_array();
        all.map_or(0, |all| {
            all.iter()
                .filter(|one| one["state"].as_str() == Some(state))
                .count()
        })
    }

    /// Ends its sessions for good, then itself; what it wrote down must verify.
    pub(crate) async fn end(&self, sessions: &[&str], running: Running) -> anyhow::Result<()> {
        for session in sessions {
            let revoke = BridgeCommand::new(["sessions", "revoke", session]).args(self.control());
            let revoked = revoke.finish().await;
            ensure!(revoked.code == Some(0), "not revoked: {}", revoked.stderr);
        }
        running.signal("TERM");
        let ended = tokio::time::timeout(2 * END_LIMIT, running.finish()).await;
        let ended = ended.map_err(|_| anyhow!("`serve` did not end: {}", self.log()))?;
        ensure!(
            ended.code == Some(0),
            "`serve` ended with {:?}: {}",
            ended.code,
            self.log()
        );
        let state = self.file("state").display().to_string();
        let verified = BridgeCommand::new(["audit", "verify", "--state-dir", &state])
            .finish()
            .await;
        let (told, why) = (&verified.stdout, &verified.stderr);
        ensure!(verified.code == Some(0), "the audit does not verify: {told}{why}");
        Ok(())
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.file("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("callback")).collect();
        lines[lines.len().saturating_sub(6)..].join(" / ")
    }

    fn control(&self) -> [String; 2] {
        let socket = self.file("control.sock");
        ["--control".to_owned(), format!("unix:{}", socket.display())]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
