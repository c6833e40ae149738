//! The gateway: listens on the sandbox's loopback and hands each call to the host.
//!
//! Here: all of it; `main.rs` only starts it. Not here: rules and credentials, which it never holds.

pub mod node;
mod url;
