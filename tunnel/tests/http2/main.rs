//! The tunnel `http2_v1` over gateways that are played in this process.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot set up its world has failed"
)]

mod callbacks;
mod life;
mod start;
mod world;
