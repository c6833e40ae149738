//! `serve`: many sessions in one daemon, made and ended through its control API and its command line.

mod sessions;
mod ending;
mod returning;
mod rotating;
mod begun;
mod leased;
mod behind_worker;
mod peers;
mod api;
mod configured;
mod logged;
mod bounds;
mod agents;
mod service;
mod unix_socket;
mod reloading;
mod policies;
mod tcp;
mod traces;
mod fuzzed;
mod kept;
mod owners;
mod fenced;
mod exported;

use std::time::Duration;

/// What happens at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);
