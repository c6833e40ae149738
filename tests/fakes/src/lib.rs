//! Sandbox providers played on this machine: servers that speak a provider's protocol and run real processes.
//!
//! Here: one module a provider, each judged by that provider's own client before our runner is tested against it. Not
//! here: any code of ours that is tested. They listen on loopback only and end their processes when they are dropped;
//! nobody else may reach them, for they run what they are told.

pub mod daytona;
pub mod e2b;

pub use e2b::FakeE2b;
