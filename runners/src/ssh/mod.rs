//! Commands and forwards over SSH.
//!
//! Here: everything between a host name and a command's output or a listener's connections, on russh. Not here: what
//! the connections carry. Reading order: [`config`] and [`known_hosts`] say what the operator wants, [`settings`] what
//! one connection needs; [`connection`] opens it, `dispatch` and `inbox` receive for it, [`channel`] and
//! [`forward`] are what it gives; [`exec`] runs a command, [`pool`] keeps connections, [`runner`] is the seam.

pub mod config;
pub mod known_hosts;
pub mod settings;
mod socket;
mod shared;
mod dispatch;
mod inbox;
mod auth;
pub mod connection;
pub mod channel;
pub mod forward;
pub mod exec;
pub mod backoff;
pub mod pool;
pub mod runner;

pub use backoff::Backoff;
pub use channel::ChannelIo;
pub use connection::Connection;
pub use exec::ScriptOutput;
pub use forward::{Forward, ForwardError};
pub use inbox::ChannelEnd;
pub use pool::{SshHost, SshPool};
pub use runner::SshRunner;
pub use settings::{ConnectionLimits, ConnectionSettings, HostKeys, Identities};
