//! The states of a session, and why it is in one.
//!
//! Here: [`SessionState`], [`Standing`] and [`Ending`], plain values. Not here: what moves a session from one to the
//! next (`life.rs`).

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tunnel::Status;
use utoipa::ToSchema;

/// What an operator is told of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Being opened; its agent cannot call yet.
    Starting,
    /// Its agent can call.
    Ready,
    /// Connected, but its listener could not be had again yet; retried.
    Degraded,
    /// The channel is gone and is being brought back.
    Reconnecting,
    /// It takes no new callbacks, and those under way may end.
    Draining,
    /// It is over.
    Ended,
}

impl SessionState {
    /// Each of them, in the order of a session's life.
    pub(crate) const ALL: [Self; 6] = [
        Self::Starting,
        Self::Ready,
        Self::Degraded,
        Self::Reconnecting,
        Self::Draining,
        Self::Ended,
    ];

    /// As it stands in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Reconnecting => "reconnecting",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

/// A state, since when, and why.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) state: SessionState,
    /// A stable reason, such as `connection_lost` or `revoked`.
    pub(crate) reason: Option<&'static str>,
    /// One line for the operator.
    pub(crate) detail: Option<String>,
    pub(crate) since: SystemTime,
    /// It has ended here and is left to a successor of this process.
    pub(crate) left: bool,
}

impl Standing {
    pub(crate) fn new(state: SessionState, reason: Option<&'static str>, detail: Option<String>) -> Self {
        Self {
            state,
            reason,
            detail,
            since: SystemTime::now(),
            left: false,
        }
    }

    /// The same, with the session left to a successor of this process.
    pub(crate) fn leaving(self) -> Self {
        Self { left: true, ..self }
    }

    /// Whether nobody goes on with it.
    pub(crate) fn is_over_for_good(&self) -> bool {
        self.state == SessionState::Ended && !self.left
    }

    /// What a tunnel's status means for its session.
    pub(crate) fn of(status: &Status) -> Self {
        match status {
            Status::Starting => Self::new(SessionState::Starting, None, None),
            Status::Ready { .. } => Self::new(SessionState::Ready, None, None),
            Status::Reconnecting { reason, detail } => {
                Self::new(SessionState::Reconnecting, Some(reason), Some(detail.clone()))
            }
            Status::Degraded { reason, detail } => {
                Self::new(SessionState::Degraded, Some(reason), Some(detail.clone()))
            }
        }
    }
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Somebody said so.
    Revoked,
    /// Whoever asked for it went away before it was told of it.
    OwnerGone,
    /// Its time is over.
    Expired,
    /// Its owner has not been heard of.
    HeartbeatMissed,
    /// The daemon is ending.
    Drained,
    /// The tunnel ended by itself.
    TunnelEnded,
    /// Another daemon has it, or may have it.
    TakenOver,
    /// The provider's hold on the sandbox is gone; in the provider's words.
    LeaseLost(String),
}

impl Ending {
    /// A stable reason.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::OwnerGone => "owner_gone",
            Self::Expired => "expired",
            Self::HeartbeatMissed => "heartbeat_missed",
            Self::Drained => "drained",
            Self::TunnelEnded => "tunnel_ended",
            Self::TakenOver => "taken_over",
            Self::LeaseLost(_) => "lease_lost",
        }
    }

    /// Whether callers are cut at once; otherwise callbacks under way may end.
    pub(crate) const fn cuts(&self) -> bool {
        match self {
            Self::Revoked
            | Self::OwnerGone
            | Self::HeartbeatMissed
            | Self::TunnelEnded
            | Self::TakenOver
            | Self::LeaseLost(_) => true,
            Self::Expired | Self::Drained => false,
        }
    }

    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::LeaseLost(why) => Some(why.clone()),
            Self::HeartbeatMissed => Some("its owner sent no heartbeat in time".to_owned()),
            Self::TakenOver => {
                Some("another daemon serves it now, or may; only there can it be ended".to_owned())
            }
            Self::TunnelEnded => Some("the log says why".to_owned()),
            Self::Revoked | Self::OwnerGone | Self::Expired | Self::Drained => None,
        }
    }
}
