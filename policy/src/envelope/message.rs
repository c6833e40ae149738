//! The eleven lines that a signature covers.
//!
//! Here: [`string_to_sign`], which the client and the verifier share. Not here: whether the lines may be as they are;
//! [`mod@super::sign`] and [`super::verify`] each see to it before they come here, so that no value has a line end in it.

use alloc::string::{String, ToString as _};

use super::canonical::{CanonicalTarget, encode};
use super::key::KeyId;
use super::nonces::Nonce;
use super::{CONTEXT, hex};

/// Line 1, and so part of every signature: another format would have another name.
const ALGORITHM: &str = "PCS1-HMAC-SHA256";

/// What is signed, checked by whoever made it.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a> {
    /// Line 2.
    pub key_id: &'a KeyId,
    /// Line 3, in Unix seconds.
    pub timestamp: u64,
    /// Line 4.
    pub nonce: Nonce,
    /// Line 5, in upper case.
    pub method: &'a str,
    /// Lines 6 and 7.
    pub target: &'a CanonicalTarget,
    /// Line 8; put into lower case here.
    pub host: &'a str,
    /// Line 9; trimmed and put into lower case here.
    pub content_type: &'a str,
    /// Line 10: the values of [`CONTEXT`], in its order.
    pub context: [Option<&'a str>; 3],
    /// Line 11.
    pub body_sha256: [u8; 32],
}

/// The eleven lines, with a line end between each two and none behind the last.
#[must_use]
pub fn string_to_sign(lines: &Lines<'_>) -> String {
    [
        ALGORITHM,
        lines.key_id.as_str(),
        &lines.timestamp.to_string(),
        &lines.nonce.to_string(),
        lines.method,
        lines.target.path(),
        lines.target.query(),
        &lines.host.to_ascii_lowercase(),
        &content_type(lines.content_type),
        &context(lines.context),
        &hex(&lines.body_sha256),
    ]
    .join("\n")
}

/// A content type as it is signed.
pub(super) fn content_type(text: &str) -> String {
    text.trim_matches([' ', '\t']).to_ascii_lowercase()
}

fn context(values: [Option<&str>; 3]) -> String {
    let mut line = String::new();
    for ((name, _), value) in CONTEXT.iter().zip(values) {
        let Some(value) = value else { continue };
        if !line.is_empty() {
            line.push(';');
        }
        line.push_str(name);
        line.push('=');
        encode(value.as_bytes(), &mut line);
    }
    line
}
