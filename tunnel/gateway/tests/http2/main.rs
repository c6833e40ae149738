//! The program in mode `http2_v1`, with the host played here on its standard input and output.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot set up its world has failed"
)]

mod gateway;
mod caller;
mod host;
mod ours;
mod bodies;
mod outcomes;
mod life;
mod peer;

use std::time::Duration;

/// For anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}
