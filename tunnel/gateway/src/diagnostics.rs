//! What the gateway says to whoever watches its standard error.

use std::io::Write;

/// Writes one line; nobody reading it is no reason to fail.
pub fn say(text: impl std::fmt::Display) {
    let line = format!("[paperclip-bridge] {text}\n");
    let _written = std::io::stderr().lock().write_all(line.as_bytes());
}
