//! The parsers and the whole request path under arbitrary bytes.
//!
//! Here: one function a harness, `pub fn NAME(data: &[u8])`, that panics when a law is broken; each file begins with
//! its laws. Not here: the fuzzer's entry points (`fuzz_targets/`, one line each), the seeds (`corpus/NAME/`), and how
//! to start them (`run.sh`). `tests/replay.rs` puts the whole corpus and some mutations of it through the harnesses in
//! the ordinary test run, so that they cannot rot.
//!
//! A harness knows the product's public API only. What it compares with is written anew, slowly and directly from the
//! RFC or manual, so that one mistake is not made twice.

mod target;
mod decision;
mod request;
mod ready;
mod http2;
mod envelope;
mod envelope_signed;
mod listing;
mod journal;
mod known_hosts;
mod ssh_config;
mod connect_frames;
mod sse;
mod relay_frames;
mod config;
mod control_body;

pub use config::config;
mod audit;

pub use audit::audit;
pub use connect_frames::connect_frames;
pub use control_body::control_body;
pub use decision::decision;
pub use envelope::envelope;
pub use envelope_signed::envelope_signed;
pub use http2::http2;
pub use journal::journal;
pub use known_hosts::known_hosts;
pub use listing::listing;
pub use ready::ready;
pub use relay_frames::relay_frames;
pub use request::request;
pub use sse::sse;
pub use ssh_config::ssh_config;
pub use target::target;
