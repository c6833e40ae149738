//! Why a gateway could not be put on a target or started there.

use runners::RunnerError;

use super::PLATFORM;
use crate::TunnelEnd;

/// Why a gateway could not be installed or started; [`Self::reason`] is its stable name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchFault {
    /// Our binary does not run there.
    #[error(
        "the target is {found:?} and the built-in gateway runs on {PLATFORM:?} only; where Node is present, \
         `--gateway node:PATH` uses a script instead"
    )]
    NoGatewayForPlatform {
        /// What `uname -sm` said.
        found: String,
    },
    /// The script needs Node.
    #[error(
        "there is no `node` on the target's PATH for commands that are not a login shell's; install it there, or use \
         the built-in gateway"
    )]
    NodeMissing,
    /// The program could not be put on the target.
    #[error("the gateway's program could not be put on the target: {0}")]
    SyncFailed(String),
    /// The runner has no byte stream to a running command.
    #[error("the runner of this target offers no byte stream to a running command")]
    CapabilityAbsent,
    /// All byte streams that the provider allows are in use.
    #[error("the provider has no room for another byte stream")]
    RouteBusy(#[source] RunnerError),
    /// The gateway could not be started.
    #[error("the gateway could not be started: {0}")]
    ChannelOpenFailed(String),
    /// The target could not be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The peer's script needs the token itself, and only its digest was kept.
    #[error(
        "a gateway script needs the session's token, and only its digest was kept: open a new session, or use the \
         built-in gateway, which comes back with the digest"
    )]
    TokenNotKept,
    /// What was asked for is not acceptable; nothing was done.
    #[error("{0}")]
    Invalid(String),
}

impl LaunchFault {
    /// The stable name for status, logs and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoGatewayForPlatform { .. } => "no_gateway_for_platform",
            Self::NodeMissing => "node_missing",
            Self::SyncFailed(_) => "entrypoint_sync_failed",
            Self::CapabilityAbsent => "capability_absent",
            Self::RouteBusy(_) => "route_busy",
            Self::ChannelOpenFailed(_) => "channel_open_failed",
            Self::Unreachable(_) => "unreachable",
            Self::TokenNotKept => "token_not_kept",
            Self::Invalid(_) => "invalid_request",
        }
    }

    /// How a tunnel ends that has never served and met this.
    #[must_use]
    pub fn into_end(self) -> TunnelEnd {
        if let Self::Unreachable(detail) = self {
            return TunnelEnd::Unreachable(detail);
        }
        TunnelEnd::Refused {
            reason: self.reason(),
            detail: self.to_string(),
        }
    }

    /// Reads a failure to open a byte stream.
    pub(super) fn opening(error: RunnerError) -> Self {
        match error {
            RunnerError::Unreachable { .. } | RunnerError::Lost { .. } => {
                Self::Unreachable(error.to_string())
            }
            RunnerError::Unsupported(_) => Self::CapabilityAbsent,
            RunnerError::Invalid(text) => Self::Invalid(text),
            RunnerError::Refused { .. } | RunnerError::Io { .. } | _ => {
                let text = with_causes(&error);
                // The words of a provider's refusal, wherever its runner puts them.
                if text.contains("DUPLEX_CHANNEL_ROUTE_BUSY") {
                    Self::RouteBusy(error)
                } else {
                    Self::ChannelOpenFailed(text)
                }
            }
        }
    }

    /// Reads a failure to run one of our short commands.
    pub(super) fn running(error: &RunnerError) -> Self {
        match error {
            RunnerError::Unreachable { .. } | RunnerError::Lost { .. } => {
                Self::Unreachable(error.to_string())
            }
            RunnerError::Invalid(_)
            | RunnerError::Refused { .. }
            | RunnerError::Unsupported(_)
            | RunnerError::Io { .. }
            | _ => Self::SyncFailed(with_causes(error)),
        }
    }
}

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
