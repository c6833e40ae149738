//! Placeholder.

pub mod config;
pub mod known_hosts;
