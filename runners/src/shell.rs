//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub enum Shell {}
