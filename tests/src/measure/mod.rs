//! What the benchmarks share: load, the API that both sides call, what processes cost, and a slow line.
//!
//! Here: nothing that knows a side. Not here: the benchmarks themselves (`src/bin/bench_ssh`,
//! `src/bin/bench_tunnels`), which say what is measured, against whom and what was promised. Read next: [`load`].

pub mod load;
pub mod api;
pub mod cost;
pub mod relay;
pub mod figures;
pub mod guard;

pub use api::Api;
pub use cost::{Family, Snapshot};
pub use figures::{Goal, median};
pub use load::{Load, Mode, Sample};
pub use relay::DelayRelay;
