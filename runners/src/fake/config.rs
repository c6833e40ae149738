//! What a test can order: latencies, failures, disconnects, lost leases, missing capabilities.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KEY;
use super::cloud::Cloud;
use crate::provider::ConfigError;

/// The configuration of the provider `fake`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FakeConfig {
    /// The folder that is the cloud: its log of calls and its sandboxes. Absolute, and required: this provider runs
    /// commands on this machine. Several processes may use one at the same time.
    #[schemars(length(max = 1024))]
    pub cloud: Option<String>,
    /// How long each kind of call takes before it does anything.
    pub latency_ms: Latency,
    /// Calls that fail; for each call the first entry that fits and is not used up.
    #[schemars(length(max = 100))]
    pub fail: Vec<Failure>,
    /// After so many bytes in both directions together a duplex breaks.
    pub cut_duplex_after_bytes: Option<u64>,
    /// After so many executions of it a lease is lost.
    pub lose_after_executions: Option<u64>,
    /// Whether runners have a duplex.
    pub duplex: bool,
    /// Whether runners take files.
    pub file_transfer: bool,
    /// Whether output comes while a command runs; otherwise at its end.
    pub streaming_output: bool,
    /// Whether executions run side by side; otherwise each waits for the one before.
    pub background: bool,
    /// `shellCommand` of the lease metadata; anything may be put here, also what no caller should take.
    #[schemars(length(max = 100))]
    pub shell_command: Option<String>,
    /// Keep released sandboxes, and give them to the same environment again.
    pub reuse_lease: bool,
    /// Limit of executions that name none.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: Option<u64>,
    /// Leases end by themselves so long after they were last acquired, resumed or kept alive.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub expires_after_ms: Option<u64>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            cloud: None,
            latency_ms: Latency::default(),
            fail: Vec::new(),
            cut_duplex_after_bytes: None,
            lose_after_executions: None,
            duplex: true,
            file_transfer: true,
            streaming_output: true,
            background: true,
            shell_command: None,
            reuse_lease: false,
            timeout_ms: None,
            expires_after_ms: None,
        }
    }
}

impl FakeConfig {
    /// The cloud.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] without an absolute path: nobody gets this provider who did not mean it.
    pub(super) fn cloud(&self) -> Result<Cloud, ConfigError> {
        let refused = |problem: &str| ConfigError {
            provider: KEY,
            field: "cloud".to_owned(),
            problem: problem.to_owned(),
        };
        match &self.cloud {
            Some(path) if Path::new(path).is_absolute() => Ok(Cloud::at(path)),
            Some(_) => Err(refused("must be an absolute path")),
            None => Err(refused(
                "is missing: this provider is for tests and runs every command on this machine; if that is meant, \
                 name the absolute path of a folder for its sandboxes",
            )),
        }
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// A new lease.
    Acquire,
    /// A lease of before.
    Resume,
    /// A lease given back.
    Release,
    /// A sandbox ended.
    Destroy,
    /// A sign of life.
    KeepAlive,
    /// All leases.
    List,
    /// A command.
    Execute,
    /// A long-lived command.
    OpenDuplex,
    /// A file.
    Upload,
}

/// Milliseconds for each kind of call.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is the call of the same name")]
pub struct Latency {
    pub acquire: u32,
    pub resume: u32,
    pub release: u32,
    pub destroy: u32,
    pub keep_alive: u32,
    pub list: u32,
    pub execute: u32,
    pub open_duplex: u32,
    pub upload: u32,
}

impl Latency {
    pub(super) fn of(&self, call: Call) -> u64 {
        u64::from(match call {
            Call::Acquire => self.acquire,
            Call::Resume => self.resume,
            Call::Release => self.release,
            Call::Destroy => self.destroy,
            Call::KeepAlive => self.keep_alive,
            Call::List => self.list,
            Call::Execute => self.execute,
            Call::OpenDuplex => self.open_duplex,
            Call::Upload => self.upload,
        })
    }
}

/// A fault on order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// Which calls fail.
    pub call: Call,
    /// How often, in all processes on this cloud together; absent: always.
    #[serde(default)]
    pub times: Option<u32>,
    /// How the caller hears of it.
    pub how: How,
    /// The call does its work and fails then.
    #[serde(default)]
    pub after_effect: bool,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// Nobody answers.
    Unreachable,
    /// The provider will not.
    Refused,
    /// The provider asks to wait.
    Busy,
    /// No answer came.
    Unknown,
    /// The sandbox is gone.
    Lost,
}
