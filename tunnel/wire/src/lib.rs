//! What the daemon and the gateway in the sandbox say to each other, and the limits of it.
//!
//! Here: names, formats and bounds that both ends must read alike. Not here: sockets, processes, rules.

pub mod http1;
