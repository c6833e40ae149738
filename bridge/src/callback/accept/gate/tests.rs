//! The gate behind a real hyper: see callback/tests.rs.
