//! What a session is asked to be.
//!
//! Here: values alone, as the command line and tests fill them in. Not here: what is made of them (`mod.rs`,
//! `placing.rs`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use policy::{Limits, RateLimit, Token, TokenDigest};
use runners::provider::ProviderSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunnel::PassedListener;
use uuid::Uuid;

use crate::audit::Identities;
use crate::secrets::{LiveSecret, Secrets};
use crate::session::hold::Hold;
use crate::session::live::LiveRules;
use crate::session::state::SessionRecord;
use crate::upstream::UpstreamSettings;

/// Where the agent runs, as parsed from the operator's words.
#[derive(Clone, Debug)]
pub enum TargetSpec {
    /// This machine.
    Local,
    /// An SSH host.
    Ssh(SshTarget),
    /// A sandbox of a provider.
    Provider(ProviderTarget),
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
    /// Apply ssh_config; without it, what stands here is all there is.
    pub ssh_config: bool,
}

/// A provider's sandbox, with what the provider is configured with.
#[derive(Clone, Debug)]
pub struct ProviderTarget {
    /// Whose.
    pub spec: &'static ProviderSpec,
    /// The lease to resume; `None` acquires one.
    pub id: Option<String>,
    /// The lease of that id is only looked at: at the end its provider hears nothing.
    pub probed: bool,
    /// Where leases are written down; a folder that many sessions may share.
    pub leases: PathBuf,
    /// The provider's own configuration.
    pub config: ProviderConfig,
    /// What reads the secrets that it names.
    pub secrets: Secrets,
    /// `--environment-id`.
    pub environment_id: Option<String>,
    /// `--issue-id`.
    pub issue_id: Option<String>,
    /// `--company-id`.
    pub company_id: Option<String>,
}

/// A provider's configuration as the operator gave it: secrets stand in it as references, if at all.
///
/// Its `Debug` names the fields only, because a secret may stand where a reference belongs.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderConfig(pub Map<String, Value>);

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Which tunnel to take.
#[derive(Clone, Debug, Default)]
pub enum TunnelChoice {
    /// The best that works on the target.
    #[default]
    Auto,
    /// Only `ssh-reverse`.
    SshReverse,
    /// Only `http2_v1`.
    Http2,
    /// Only `queue_v1`.
    Queue,
    /// Only `local`.
    Local,
    /// Only `worker`.
    Worker,
}

/// Which program listens in the sandbox, for the tunnels that need one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GatewayChoice {
    /// The one that this daemon carries.
    #[default]
    Builtin,
    /// A program in its place; a file on this machine.
    Binary(PathBuf),
    /// The peer's script, run by the target's own Node; a file on this machine.
    Script(PathBuf),
}

/// A session's name and token, where whoever asks for it has chosen them already.
#[derive(Debug)]
pub struct Named {
    /// Its name, here and on the target.
    pub id: Uuid,
    /// What its agent will show.
    pub token: GivenToken,
}

/// What its agent will show, as far as it is known here.
#[derive(Debug)]
pub enum GivenToken {
    /// The token itself.
    Whole(Token),
    /// Whoever asked for the session has it already, from an earlier process that kept no more than this.
    Digest(TokenDigest),
}

impl GivenToken {
    /// What is kept of it.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        match self {
            Self::Whole(token) => token.digest(),
            Self::Digest(digest) => *digest,
        }
    }

    /// The token itself, where it is known.
    #[must_use]
    pub fn whole(self) -> Option<Token> {
        match self {
            Self::Whole(token) => Some(token),
            Self::Digest(_) => None,
        }
    }
}

/// What a session shall be.
#[derive(Debug)]
pub struct SessionRequest {
    /// `None`: both are made when it is opened.
    pub named: Option<Named>,
    /// Where the agent runs.
    pub target: TargetSpec,
    /// The Paperclip API.
    pub upstream: UpstreamSettings,
    /// The real credential, read when it is used.
    pub credential: LiveSecret,
    /// Sent as `x-paperclip-run-id`; one line of visible ASCII.
    pub run_id: String,
    /// Compiled policy.
    pub rules: LiveRules,
    /// Whom it belongs to beyond what its target says; the run is `run_id`.
    pub whose: Identities,
    /// Sizes.
    pub limits: Limits,
    /// Calls per second; `None` is no limit of rate.
    pub rate: Option<RateLimit>,
    /// Which tunnel.
    pub tunnel: TunnelChoice,
    /// Which gateway, where the tunnel needs one.
    pub gateway: GatewayChoice,
    /// Callbacks of one `http2_v1` channel at the same time; `None` is what the gateway is known to bear.
    pub streams: Option<u32>,
    /// Where this session is written down for a successor of this process.
    pub state_dir: Option<PathBuf>,
    /// A session that a predecessor left may be gone on with; its token is known to its agent only.
    pub resume: bool,
    /// A session of an earlier process that is gone on with: the same name, token and place, or nothing.
    pub returns: Option<SessionRecord>,
    /// Listen on a unix socket of this path on the target instead of a port.
    pub unix_socket: Option<PathBuf>,
    /// A listener on this machine that somebody else opened, for the tunnel `local`; it goes before `unix_socket`.
    pub passed: Option<PassedListener>,
    /// Go on although the listener is not on loopback.
    pub allow_exposed_forward: bool,
    /// By which it may be served; `None` where it is not kept in a store.
    pub hold: Option<Arc<Hold>>,
}

impl SessionRequest {
    /// Whom it belongs to, as far as it or its target says so.
    pub(crate) fn identities(&self, run_id: &str) -> Identities {
        let leased = match &self.target {
            TargetSpec::Local | TargetSpec::Ssh(_) => [None, None, None],
            TargetSpec::Provider(target) => {
                [&target.company_id, &target.issue_id, &target.environment_id].map(Clone::clone)
            }
        };
        let [company, issue, environment] = leased;
        Identities {
            run: Some(run_id.to_owned()),
            agent: self.whose.agent.clone(),
            company: self.whose.company.clone().or(company),
            issue: self.whose.issue.clone().or(issue),
            environment: self.whose.environment.clone().or(environment),
        }
    }
}
