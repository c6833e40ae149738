//! What is kept of a session, and who owns it.
//!
//! Here: [`SessionRow`], and [`Claim`], by which an owner proves itself at each write. Not here: what the states mean.
//! Read next: `ledger.rs`.

use std::fmt;
use std::time::SystemTime;

use uuid::Uuid;

/// One session as it is written down. It holds no secret: references, and the digest of the token.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    /// Our name of it.
    pub id: Uuid,
    /// `starting`, `ready`, `degraded`, `reconnecting`, `draining` or `ended`; the store does not read it.
    pub state: String,
    /// Why it is in that state; a stable word.
    pub reason: Option<String>,
    /// In the operator's words, without a secret.
    pub target: String,
    /// The request as it came, with references in place of secrets.
    pub request: serde_json::Value,
    /// Whether any daemon reaches its target. Not so for `local`; then only its own daemon takes it again.
    pub anywhere: bool,
    /// The tunnel that was taken.
    pub tunnel: Option<String>,
    /// Where it listens on the target.
    pub port: Option<u16>,
    /// What the agent calls.
    pub url: Option<String>,
    /// Where it listens, for a unix socket.
    pub unix_path: Option<String>,
    /// The SHA-256 of the agent's token.
    pub token_sha256: [u8; 32],
    /// What the upstream and the agent know the run by.
    pub run_id: String,
    /// The agent.
    pub agent_id: Option<String>,
    /// The company.
    pub company_id: Option<String>,
    /// The issue.
    pub issue_id: Option<String>,
    /// The environment.
    pub environment_id: Option<String>,
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// When it was asked for.
    pub created_at: SystemTime,
    /// When it could be called first.
    pub ready_at: Option<SystemTime>,
    /// When its owner was last heard.
    pub heartbeat_at: Option<SystemTime>,
    /// When its time is over.
    pub expires_at: Option<SystemTime>,
    /// When it ended. From then on nobody can claim it.
    pub ended_at: Option<SystemTime>,
    /// It is to end. Written by [`Store::revoke`](super::Store::revoke) only.
    pub revoked: bool,
    /// Which daemon has it. Written by the calls of ownership only.
    pub hold: Hold,
}

/// Which daemon has a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// The daemon, unless it gave the session up.
    pub owner: Option<Uuid>,
    /// How often the session has changed hands.
    pub fence: Fence,
    /// The owner's lease, by the database's clock.
    pub lease_until: Option<SystemTime>,
}

/// Counts the owners of a session: each has a higher one than all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub i64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// That a daemon owns a session under a fence; what it writes with this is refused once another has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The session.
    pub session: Uuid,
    /// Its owner.
    pub daemon: Uuid,
    /// The owner's fence.
    pub fence: Fence,
}

/// Which sessions are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionFilter {
    /// Only those of this daemon.
    pub owner: Option<Uuid>,
    /// Also those that have ended.
    pub ended: bool,
    /// At most so many.
    pub most: u32,
}

impl Default for SessionFilter {
    /// All that have not ended, at most 10,000.
    fn default() -> Self {
        Self {
            owner: None,
            ended: false,
            most: 10_000,
        }
    }
}
