//! The gateway in mode `queue_v1`, as a program: callers on its port, and a host of this test's own on its directory.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot set up its world has failed"
)]

mod support;
mod ours;
mod peer;
mod life;
mod stand_in;
