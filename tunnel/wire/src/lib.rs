//! What the daemon and the gateway in the sandbox say to each other, and the limits of it.
//!
//! Here: names, formats and bounds that both ends must read alike. Not here: sockets, processes, rules.

pub mod names;
pub mod limits;
pub mod http1;
pub mod ready;
pub mod encoding;
pub mod envelope;
