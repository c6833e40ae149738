//! The same configurations through `ssh -G`.
