//! The tunnel `queue_v1`: callbacks as files, for targets where nothing but commands can be run.
//!
//! Here: the house of its parts. [`channel`] is how the host reaches the queue directory: [`pump`] with one long
//! execution; [`listing`] reads what a shell prints of it. Not here: HTTP and rules. The wire is `wire::envelope`.

pub mod channel;
pub mod listing;
mod stamp;
mod desk;
mod worker;
pub mod journal;
pub mod pump;
pub mod batch;
pub mod directory;
