//! How callbacks travel from a target to the daemon.
//!
//! Here: the seam [`Tunnel`] and its kinds. Not here: rules, tokens and HTTP; a tunnel hands over byte streams or
//! whole messages and knows nothing of what they say. Read [`tunnel`] first, then one kind.

pub mod tunnel;
pub mod ladder;
mod listeners;
pub mod launch;
pub mod http2;
pub mod local;
pub mod ssh_reverse;
pub mod queue;
pub mod worker;

pub use local::PassedListener;
pub use tunnel::{
    AgentMessage, AgentStream, BodyError, ByteStream, Callbacks, CallerProof, Listening, MessageBody,
    ProcessPlace, Status, StatusReporter, TargetProcess, Tunnel, TunnelEnd,
};
pub use wire;
