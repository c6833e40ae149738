//! Signed requests between the daemon and a Worker: `PCS1-HMAC-SHA256`.
//!
//! A stolen bearer, a wrong or hostile base URL, a proxy that changes a body, and a replay must all fail. What is signed
//! is a fixed list of eleven lines ([`message`]), so that there is nothing to negotiate and nothing to forget.
//!
//! Here: the one form of a target ([`canonical`]), keys ([`key`]), signing ([`mod@sign`]), the checks in their order
//! ([`verify`]), used nonces ([`nonces`]), the Host that a client insists on ([`host`]), signed replies ([`reply`]), clock
//! skew ([`skew`]), and the bearer of the push relay ([`relay`]). Not here: clocks, random bytes, sockets; the caller
//! brings them. `docs/signed-requests.md` describes the format for auditors. Read next: [`verify::Verifier::verify`].
//!
//! ```
//! use policy::envelope::{KeyId, Nonce, SigningKey, Stamp, Unsigned, sign};
//!
//! let key = SigningKey::from_bytes((0..32).collect())?;
//! let stamp = Stamp {
//!     key_id: &KeyId::parse("k1").expect("a key id"),
//!     timestamp: 1_767_225_600,
//!     nonce: Nonce::from_bytes(core::array::from_fn(|index| index as u8)),
//! };
//! let request = Unsigned {
//!     method: "GET",
//!     target: "/api/paperclip-sandbox/v1/health",
//!     host: "Bridge.Example.workers.dev",
//!     content_type: "",
//!     context: &[],
//!     body: b"",
//! };
//! let signed = sign(&key, stamp, &request)?;
//! assert!(signed.signature().starts_with("7f4fb1a764b44227"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod message;
pub mod canonical;
pub mod key;
pub mod sign;
pub mod verify;
mod fields;
pub mod nonces;
pub mod host;
pub mod reply;
pub mod skew;
pub mod relay;

pub use canonical::{CanonicalTarget, TargetRefusal};
pub use host::{HostRefusal, host_header, insist_on_host};
pub use key::{KeyFault, KeyId, KeyRing, SigningKey, Validity};
pub use nonces::{Nonce, NonceStoreDown, Nonces, SeenNonces, Use};
pub use relay::{RelayBearer, RelayFault};
pub use reply::{Reply, reply_to_sign, sign_reply, verify_reply};
pub use sign::{SignFault, Signed, Stamp, Unsigned, sign};
pub use skew::Skew;
pub use verify::{Accepted, Received, Refusal, Verifier};

/// A timestamp may be off by so much, in seconds, in either direction.
pub const WINDOW_SECONDS: u64 = 300;
/// A used nonce is remembered for so long: the whole window, and a minute.
pub const NONCE_KEPT_SECONDS: u64 = 2 * WINDOW_SECONDS + 60;
/// More signatures than this in one request are refused: one for each key of a rotation, and one to spare.
pub const MAX_SIGNATURES: usize = 3;

/// Name of the key that signed.
pub const KEY_ID: &str = "X-Paperclip-Key-Id";
/// When it was signed, in Unix seconds.
pub const TIMESTAMP: &str = "X-Paperclip-Timestamp";
/// What makes it different from every other request.
pub const NONCE: &str = "X-Paperclip-Nonce";
/// SHA-256 of the body in hexadecimal.
pub const CONTENT_SHA256: &str = "X-Paperclip-Content-SHA256";
/// `v1=` and the signature in hexadecimal.
pub const SIGNATURE: &str = "X-Paperclip-Signature";
/// Signature of a reply.
pub const RESPONSE_SIGNATURE: &str = "X-Paperclip-Response-Signature";

/// The header fields that say what a request is for, by their names in the string to sign, in its order.
pub const CONTEXT: [(&str, &str); 3] = [
    ("environment-id", "X-Paperclip-Environment-Id"),
    ("issue-id", "X-Paperclip-Issue-Id"),
    ("run-id", "X-Paperclip-Run-Id"),
];

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> alloc::string::String {
    use core::fmt::Write as _;

    let mut text = alloc::string::String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // A `String` takes every write.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// 64 digits of lower-case hexadecimal, the only spelling of 32 bytes.
pub(crate) fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

/// A number of seconds in its only spelling: digits, without sign and without leading zeros, at most `u64::MAX`.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let spelled_once = text == "0" || !text.starts_with('0');
    (plain && spelled_once).then(|| text.parse().ok()).flatten()
}
