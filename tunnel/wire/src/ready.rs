//! The READY line: the first thing an `http2_v1` gateway says, before the first octet of HTTP/2.
//!
//! Here: its writing. Not here: finding it in what a channel delivers, which is the host's.

use serde::Serialize;

/// Version of the frame codec.
pub const VERSION: u8 = 2;

/// The keys in the order in which they are written.
#[derive(Serialize)]
struct Ready<'a> {
    version: u8,
    r#type: &'static str,
    nonce: &'a str,
}

/// The line with its line feed; `nonce` is what the host gave the gateway.
#[must_use]
pub fn line(nonce: &str) -> String {
    let ready = Ready {
        version: VERSION,
        r#type: "ready",
        nonce,
    };
    // A string and a number always have a JSON form.
    let mut line = serde_json::to_string(&ready).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_written_byte_for_byte_as_published() {
        assert_eq!(
            line("0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
            "{\"version\":2,\"type\":\"ready\",\"nonce\":\"0f1e2d3c4b5a69788796a5b4c3d2e1f0\"}\n"
        );
        assert_eq!(
            line("a\"\n"),
            "{\"version\":2,\"type\":\"ready\",\"nonce\":\"a\\\"\\n\"}\n"
        );
    }
}
