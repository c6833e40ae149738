//! The store, on both databases.
//!
//! Here: one suite of sentences that run on SQLite and on a PostgreSQL cluster of the tests' own (`conformance/`), what
//! only one of them promises (`sqlite.rs`, `postgres.rs`), and a process that is killed in the middle of its inserts
//! (`killed.rs`). Not here: what the daemon makes of it.

mod ground;
mod conformance;
mod sqlite;
mod postgres;
mod killed;
