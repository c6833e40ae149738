//! What the shells really do with our text.
