//! Runners of sandbox providers against servers that speak their protocols: one module a provider.
//!
//! Beside them the runners without a provider: the same suite runs over all.

mod local;
mod ssh;
mod worker;
mod relay;
