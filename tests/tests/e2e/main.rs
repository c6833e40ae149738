//! Whole-program tests: the real daemon, real SSH servers, a scripted upstream.
//!
//! Every test starts what it needs and ends it. One that cannot run where it stands prints `SKIPPED:` and why, and
//! fails instead where `PAPERCLIP_BRIDGE_TESTS_MUST_RUN=1` is set.

mod first_call;
mod exit_codes;
mod envelope;
mod denial;
mod http1;
mod upstreams;
mod outcomes;
mod log;
mod forwarding;
mod ladder;
mod early_answers;
mod state_folder;
mod host;
mod connection_loss;
mod soak;
mod stalled_uploads;
mod many_sessions;
mod queue;
mod queue_restart;
mod queue_hosted;
mod attacks;
mod fake_target;
mod worker_target;
mod worker_ways;
mod leases;
mod provider_targets;
mod environment;
mod secrets;
mod probe;
mod daemon;

use paperclip_bridge_tests::sshd;

/// Whether a test over SSH can run; says so where it cannot.
fn ssh_can_run() -> bool {
    paperclip_bridge_tests::can_run(sshd::here())
}
