//! The peer's published tests with our gateway in place of theirs.
