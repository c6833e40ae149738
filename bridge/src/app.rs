//! Where the parts are put together: one call opens a session.
//!
//! Here: [`App`], what a session is asked to be ([`SessionRequest`]) and what comes back ([`OpenSession`]).
//! Not here: how a callback is answered (`callback/`), what an operator types (`cli/`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use policy::{Limits, RateLimit, Rules};
use runners::CommandManagedRuntimeRunner;
use tokio::sync::watch;
use tunnel::Status;
use uuid::Uuid;

use crate::secrets::Secret;
use crate::upstream::UpstreamSettings;

/// Where the agent runs, as parsed from the operator's words.
#[derive(Clone, Debug)]
pub enum TargetSpec {
    /// This machine.
    Local,
    /// An SSH host.
    Ssh(SshTarget),
}

/// An SSH target before ssh_config is applied.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// Host name or ssh_config alias.
    pub host: String,
    /// User given in the target; wins over ssh_config.
    pub user: Option<String>,
    /// Port given in the target; wins over ssh_config.
    pub port: Option<u16>,
    /// Directory given in the target: where COMMAND runs.
    pub directory: Option<String>,
    /// `--identity`: used instead of those of ssh_config.
    pub identities: Vec<PathBuf>,
    /// `--known-hosts`: used instead of those of ssh_config.
    pub known_hosts: Option<PathBuf>,
}

/// Which tunnel to take.
#[derive(Clone, Debug, Default)]
pub enum TunnelChoice {
    /// The best that works on the target.
    #[default]
    Auto,
    /// Only `ssh-reverse`.
    SshReverse,
    /// Only `local`.
    Local,
}

/// What a session shall be.
#[derive(Debug)]
pub struct SessionRequest {
    /// Where the agent runs.
    pub target: TargetSpec,
    /// The Paperclip API.
    pub upstream: UpstreamSettings,
    /// The real credential.
    pub credential: Secret,
    /// Sent as `x-paperclip-run-id`; one line of visible ASCII.
    pub run_id: String,
    /// Compiled policy.
    pub rules: Arc<Rules>,
    /// Sizes.
    pub limits: Limits,
    /// Calls per second; `None` is no limit of rate.
    pub rate: Option<RateLimit>,
    /// Which tunnel.
    pub tunnel: TunnelChoice,
    /// Listen on a unix socket of this path on the target instead of a port.
    pub unix_socket: Option<PathBuf>,
    /// Go on although the listener is not on loopback.
    pub allow_exposed_forward: bool,
    /// `bash` or `sh`.
    pub shell: runners::Shell,
}

/// A session that is ready, and everything its owner needs.
#[derive(Debug)]
pub struct OpenSession {
    /// Our name of it.
    pub id: Uuid,
    /// What the agent calls, such as `http://127.0.0.1:40123`, or `unix:PATH`.
    pub url: String,
    /// The agent's throw-away token; printed once.
    pub token: policy::Token,
    /// The tunnel that was taken, such as `ssh-reverse`.
    pub tunnel: &'static str,
    /// The run id that was taken.
    pub run_id: String,
    /// Runs commands on the target.
    pub runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// Told of every change of the tunnel.
    pub status: watch::Receiver<Status>,
}

impl OpenSession {
    /// What the agent's process is given: the four `PAPERCLIP_*` variables.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Ends the session in order: no new streams, what is dispatched runs on, the listener on the target is gone.
    /// Five seconds at most for the tunnel. `Err` holds what may be left behind, one line for the operator.
    ///
    /// # Errors
    ///
    /// One line saying what may be left on the target.
    pub async fn close(self) -> Result<(), String> {
        Ok(())
    }
}

/// Why a session could not be opened; the command line maps each to its exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Exit code 3.
    #[error("{0}")]
    Configuration(String),
    /// Exit code 4.
    #[error("{0}")]
    Unreachable(String),
    /// The target is reachable and refuses what is needed. Exit code 4.
    #[error("{detail}")]
    Refused {
        /// Stable reason, such as `forwarding_refused`.
        reason: &'static str,
        /// What is in the way and how to change it.
        detail: String,
    },
}

/// Everything that lives as long as the process.
#[derive(Debug, Default)]
pub struct App {}

impl App {
    /// Opens a session and waits until an agent can use it.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with nothing left on the target.
    pub async fn open(&self, request: SessionRequest) -> Result<OpenSession, OpenError> {
        let _ = request;
        Err(OpenError::Configuration("not built yet".into()))
    }
}
