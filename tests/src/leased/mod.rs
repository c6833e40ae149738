//! A sandbox of the provider for tests, with the folders that a daemon and its provider keep.
//!
//! Here: the cloud's folder, the state folder, and the command lines that use both; in `kill` what many of them leave
//! when they are killed at once. Not here: the provider itself, whose log of calls says what happened (`runners`).

pub mod kill;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use runners::SecretText;
use runners::fake::{Call, Cloud, Entry, LeaseState};
use runners::http::HttpClient;
use runners::provider::{Lease, ProviderSettings, RequestSigner, SecretFault, SecretSource, UnsignedRequest};
use tempfile::TempDir;

use crate::Upstream;
use crate::binary::{Bridge, BridgeCommand, Finished};
use crate::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID};

/// One provider's account and one daemon's state folder.
#[derive(Debug)]
pub struct Leased {
    /// The API.
    pub upstream: Upstream,
    folder: TempDir,
}

impl Leased {
    /// Nothing acquired yet.
    pub async fn new() -> Self {
        Self {
            upstream: Upstream::start().await,
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
        }
    }

    /// The provider's side.
    pub fn cloud(&self) -> Cloud {
        Cloud::at(self.folder.path().join("cloud"))
    }

    /// The daemon's side.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `run` or `open` on this target, which is `fake:` with or without an id.
    pub fn command(&self, subcommand: &str, target: &str) -> BridgeCommand {
        self.command_of_run(RUN_ID, subcommand, target)
    }

    fn command_of_run(&self, run: &str, subcommand: &str, target: &str) -> BridgeCommand {
        self.with_cloud([subcommand, target])
            .args(["--upstream", &self.upstream.url(), "--run-id", run])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
            .env(CREDENTIAL_VARIABLE, CREDENTIAL)
    }

    /// `leases` with these arguments, as JSON.
    ///
    /// # Panics
    ///
    /// Where it prints none.
    pub async fn leases<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> (Finished, serde_json::Value) {
        let ended = BridgeCommand::new(["leases"])
            .args(arguments)
            .args(["--json", "--state-dir", &self.state().display().to_string()])
            .finish()
            .await;
        let told = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
        (ended, told)
    }

    fn with_cloud<const N: usize>(&self, arguments: [&str; N]) -> BridgeCommand {
        BridgeCommand::new(arguments)
            .args(["--state-dir", &self.state().display().to_string()])
            .args([
                "--provider".to_owned(),
                format!("cloud={}", self.cloud().folder().display()),
            ])
    }

    /// `open --json` on this target.
    ///
    /// # Errors
    ///
    /// How it ended, where it did not open.
    pub async fn open(&self, target: &str, options: &[&str]) -> Result<Bridge, Finished> {
        self.open_run(RUN_ID, target, options).await
    }

    /// The same for a run of its own.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub async fn open_run(&self, run: &str, target: &str, options: &[&str]) -> Result<Bridge, Finished> {
        self.command_of_run(run, "open", target)
            .args(["--json", "--until-stdin-closes"])
            .args(options.iter().copied())
            .open()
            .await
    }

    /// The lease goes, whatever the daemon does: somebody ends it at the provider.
    ///
    /// # Panics
    ///
    /// Where it cannot be ended.
    pub async fn end_at_the_provider(&self, id: &str) {
        let config = serde_json::json!({ "cloud": self.cloud().folder() });
        let provider = (runners::fake::SPEC.build)(ProviderSettings {
            config: config.as_object().cloned().unwrap_or_default(),
            secrets: Arc::new(Nothing),
            signer: Arc::new(Nothing),
            http: HttpClient::new([]),
            environment: |_| None,
        });
        let lease = Lease {
            id: id.to_owned(),
            metadata: serde_json::Map::new(),
            remote_cwd: None,
            expires_at: None,
            resumed: true,
        };
        let ended = provider.expect("it is configured").destroy(&lease).await;
        ended.expect("it ends");
    }

    /// Every call of this kind so far.
    ///
    /// # Panics
    ///
    /// Where the log cannot be read.
    pub fn calls(&self, call: Call) -> Vec<Entry> {
        let calls = self.cloud().calls().expect("the log can be read");
        calls.into_iter().filter(|entry| entry.call == call).collect()
    }

    /// The leases that are there, with what they are.
    ///
    /// # Panics
    ///
    /// Where the log cannot be read.
    pub fn present(&self) -> Vec<(String, LeaseState)> {
        let leases = self.cloud().leases().expect("the log can be read");
        leases
            .into_iter()
            .filter(|(_, state)| *state != LeaseState::Gone)
            .collect()
    }

    /// Files that the provider keeps for sandboxes.
    pub fn sandboxes(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.cloud().folder().join("sandboxes"));
        entries
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("the folder can be read").path())
            .collect()
    }

    /// Entries of the daemon's book.
    pub fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state().join("leases"));
        entries
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("the folder can be read").path())
            .filter(|path| path.is_dir())
            .collect()
    }
}

/// Neither secrets nor signatures: the provider for tests asks for none.
struct Nothing;

impl SecretSource for Nothing {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        Box::pin(std::future::ready(Err(SecretFault(format!(
            "nobody knows {reference}"
        )))))
    }
}

impl RequestSigner for Nothing {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("nothing is signed".to_owned())
    }
}
