//! What the whole-program tests and the benchmark are made of.
//!
//! Here: real SSH servers, a scripted upstream, a strict raw HTTP/1 client, the daemon as a child process, and
//! [`World`], which puts them together. Not here: any test; those are in `tests/e2e/`, one file a subject. Read
//! next: [`world`].
//!
//! Everything in here reports a fault of the set-up by panicking with a sentence, and everything that was started
//! is ended by its process id when the value that stands for it is dropped.

pub mod world;
pub mod leased;
pub mod clouds;
pub mod attack;
pub mod raw;
pub mod upstream;
pub mod binary;
pub mod serving;
pub mod manager;
pub mod remote;
pub mod sshd;
pub mod dropbear;
pub mod peer;
pub mod moto;
pub mod postgres;
pub mod user;
pub mod workerd;
pub mod browser;
pub mod relayed;
pub mod rotating;
pub mod processes;
pub mod waiting;
pub mod measure;
pub mod conformance;

pub use raw::{Agent, Answer, Broken, Wire};
pub use upstream::{Script, Upstream};
pub use waiting::{can_run, eventually, within};
pub use world::World;
