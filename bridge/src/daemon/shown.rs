//! What the daemon says of its sessions, as the control API and the command line show it.
//!
//! Here: [`Opened`], the one object that holds a token; [`SessionShown`] and [`StatusShown`]. Not here: what they are
//! told through (`control/`).

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tunnel::ladder::Attempt;
use utoipa::ToSchema;

use super::state::SessionState;
use super::traffic::{Recent, Traffic};
use crate::app::OpenSession;

/// A session that was opened, with its token. Shown once, to whoever asked for it.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Opened {
    /// Its name.
    pub session: String,
    /// What its agent calls, such as `http://127.0.0.1:40123`; `null` while it is being opened.
    pub url: Option<String>,
    /// What its agent shows; `null` where only its agent knows it, or where a relay's bearer is made when it is open.
    pub token: Option<String>,
    /// The tunnel that was taken; `null` while it is being opened.
    pub tunnel: Option<String>,
    /// The provider's name of the sandbox, where the target is one.
    pub lease: Option<String>,
    /// The better tunnels that were tried before, and why they were not taken.
    pub ladder: Vec<Rung>,
    /// What its agent's process is given, the token among it.
    pub env: BTreeMap<String, String>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Opened {
    /// A session that is ready. The token goes out here, to whoever asked for it, and nowhere else.
    pub(crate) fn of(session: &OpenSession) -> Self {
        Self {
            session: session.id.to_string(),
            url: Some(session.url.clone()),
            token: session.token.as_ref().map(|token| token.expose().to_owned()),
            tunnel: Some(session.tunnel.to_owned()),
            lease: session.lease().map(str::to_owned),
            ladder: Rung::of(&session.ladder),
            env: session.environment(),
        }
    }
}

/// A tunnel that was tried and not taken.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rung {
    /// Which.
    pub tunnel: String,
    /// How long that took.
    pub ms: u64,
    /// Why it was not taken; a stable reason.
    pub reason: String,
    /// One line.
    pub detail: String,
}

impl Rung {
    fn of(attempts: &[Attempt]) -> Vec<Self> {
        attempts
            .iter()
            .map(|attempt| Self {
                tunnel: attempt.tunnel.to_owned(),
                ms: u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX),
                reason: attempt.reason.to_owned(),
                detail: attempt.detail.clone(),
            })
            .collect()
    }
}

/// What an operator should know of a session, although it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// Stable: `other_logins`.
    pub code: String,
    /// One line: what it is, and what to do.
    pub detail: String,
}

impl Warning {
    pub(crate) fn other_logins(logins: u64) -> Self {
        let accounts = if logins == 1 { "account" } else { "accounts" };
        Self {
            code: "other_logins".to_owned(),
            detail: format!(
                "{logins} other {accounts} can log in on the target: whoever uses one could take this session's port while \
                 its connection is lost, and be sent its token; make sessions there with --unix-socket"
            ),
        }
    }
}

/// A session, without its token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionShown {
    /// Its name.
    pub session: String,
    /// The state it is in.
    pub state: SessionState,
    /// Why; a stable reason, such as `connection_lost` or `revoked`.
    pub reason: Option<String>,
    /// One line for the operator.
    pub detail: Option<String>,
    /// The daemon that serves it, where that is another one: its live stream and its audit are there.
    #[serde(default)]
    pub owner: Option<OwnerShown>,
    /// Since when.
    pub since: String,
    /// In the operator's words.
    pub target: String,
    /// The tunnel that was taken.
    pub tunnel: Option<String>,
    /// What its agent calls.
    pub url: Option<String>,
    /// Sent upstream as `x-paperclip-run-id`.
    pub run_id: String,
    /// As it was given.
    pub agent_id: Option<String>,
    /// As it was given.
    pub company_id: Option<String>,
    /// As it was given.
    pub issue_id: Option<String>,
    /// As it was given.
    pub environment_id: Option<String>,
    /// The provider's name of the sandbox, where the target is one.
    pub lease: Option<String>,
    /// The better tunnels that were tried before, and why they were not taken.
    pub ladder: Vec<Rung>,
    /// What an operator should know of it, although it works.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// The user who asked for it; 4294967295, which is nobody, where that was over TCP.
    pub uid: u32,
    /// When it was asked for.
    pub created_at: String,
    /// When its time is over.
    pub expires_at: String,
    /// It ends unless its owner is heard of so often.
    pub heartbeat_ms: Option<u64>,
    /// Dispatched unsafe callbacks whose outcome is still open.
    pub open_outcomes: u64,
    /// Its callbacks since it began, or since this process did.
    #[serde(default)]
    pub traffic: Traffic,
    /// When the last of them ended.
    #[serde(default)]
    pub last_callback_at: Option<String>,
}

/// A daemon that serves what the one that was asked does not.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OwnerShown {
    /// Its name: that of its state folder (`daemon.id`).
    pub daemon: String,
    /// Where its control API is reached, as `--control` takes it; `null` where it never said so.
    pub address: Option<String>,
    /// The name of its machine: a socket, and a loopback address, are found only there.
    pub host: Option<String>,
    /// Of its program.
    pub version: Option<String>,
    /// When its process began.
    pub started_at: Option<String>,
    /// When it was last heard of; one that lives is heard of every few seconds.
    pub seen_at: Option<String>,
}

/// The sessions of a daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionsShown {
    /// The newest last.
    pub sessions: Vec<SessionShown>,
}

/// What an agent's process is given, without the token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentShown {
    /// The session.
    pub session: String,
    /// Named `PAPERCLIP_*`. `PAPERCLIP_API_KEY` is not among it: the token is shown once, when the session is made.
    pub env: BTreeMap<String, String>,
}

/// The new token of a session. The one before is void.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Rotated {
    /// The session.
    pub session: String,
    /// What its agent shows from now on; shown this once.
    pub token: String,
}

impl std::fmt::Debug for Rotated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotated")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// The daemon as a whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusShown {
    /// Of this program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub started_at: String,
    /// It takes no new sessions and ends when those it has are closed.
    pub draining: bool,
    /// How many sessions are in each state.
    pub sessions: BTreeMap<String, u64>,
    /// Callbacks that have ended since it began.
    pub callbacks: u64,
    /// Those among them that were denied.
    pub denied: u64,
    /// The last minute.
    #[serde(default)]
    pub recent: Recent,
    /// Those among them that policy denies and that were let through, because denials are only reported.
    #[serde(default)]
    pub reported: u64,
    /// Tokens that were shown on the channel of another session.
    pub wrong_channel: u64,
    /// Dispatched unsafe callbacks whose outcome is still open.
    pub open_outcomes: u64,
    /// What keeps it from being ready, by the names that `/readyz` has for it; empty where it is.
    #[serde(default)]
    pub faults: BTreeMap<String, String>,
}

/// What was cleaned up.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reaped {
    /// Sessions that had ended and are no longer kept to be asked about.
    pub forgotten: u64,
    /// What became of each lease that an earlier process had left.
    pub leases: Vec<ReapedLease>,
}

/// What became of a lease that an earlier process had left.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReapedLease {
    /// Its entry in the book of leases.
    pub entry: String,
    /// `released`, `lost` or `owed`.
    pub outcome: String,
    /// One line.
    pub detail: String,
}

/// A configuration that was read again and is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// The keys whose values are others than before.
    pub changed: Vec<String>,
    /// The keys whose new values take effect when the daemon is started anew.
    pub needs_restart: Vec<String>,
}

/// How far a drain has come.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Drained {
    /// Sessions that are not closed yet.
    pub left: u64,
}

/// A moment, as every answer of ours writes it.
pub(crate) fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "unknown".to_owned(), |at| format!("{at:.3}"))
}
