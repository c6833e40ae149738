//! Our two halves against the peer's published ones.
//!
//! `requests.toml` is what is asked, `differences.toml` what may come out otherwise than in the peer's own pair;
//! `case.rs` reads the first, `pair.rs` starts a host with a gateway, `observe.rs` asks and writes down, `compare.rs`
//! judges by the second. `list.rs` has the tests, `over_ssh.rs` a few requests of the list behind a real SSH server;
//! `suite.rs` runs the peer's own tests with our gateway in its place; `packages.rs` says that all of it is here.

mod case;
mod compare;
mod list;
mod observe;
mod over_ssh;
mod packages;
mod pair;
mod suite;
