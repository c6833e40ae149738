//! How callbacks travel from a target to the daemon.
//!
//! Here: the seam [`Tunnel`] and its kinds. Not here: rules, tokens and HTTP; a tunnel hands over byte streams and
//! knows nothing of what they say. Read [`tunnel`] first, then one kind.

pub mod tunnel;
pub mod local;
pub mod ssh_reverse;

pub use tunnel::{AgentStream, ByteStream, Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};
