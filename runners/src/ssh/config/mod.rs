//! OpenSSH's client configuration, as far as it says how to reach a target.
//!
//! Here: reading, matching and the settings that come out. Not here: using them.

pub mod pattern;
