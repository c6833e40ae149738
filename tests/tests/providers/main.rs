//! Runners of sandbox providers against servers that speak their protocols: one module a provider.
//!
//! Beside them the runners without a provider: the same suite runs over all.

mod seam;
mod local;
mod ssh;
mod ssh_pool;
mod fake;
mod e2b;
mod daytona;
mod daytona_facts;
mod daytona_sdk;
mod worker;
mod worker_replies;
mod rotation;
mod relay;
