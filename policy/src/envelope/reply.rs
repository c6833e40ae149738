//! Signed replies, by which a client tells its Worker from an impostor.
//!
//! Here: [`sign_reply`] and [`verify_reply`]. A reply whose body is whole has one signature; of an event stream, each part
//! that has come to rest and at last the whole have one. Not here: where an event stream is cut, which whoever reads it
//! knows; `docs/signed-requests.md` says it.
//!
//! A Worker signs only what it says once the request's nonce is taken. A refusal before that could be had by anybody who
//! sends a request again that was overheard, and would then pass for the answer to the request itself.

use alloc::string::{String, ToString as _};

use super::key::SigningKey;
use super::message::content_type;
use super::nonces::Nonce;
use super::{hex, unhex};

const ALGORITHM: &str = "PCS1-HMAC-SHA256-RESPONSE";

/// What the signature of a reply covers.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The nonce of the request.
    pub request_nonce: Nonce,
    /// The signature of the request in hexadecimal, without `v1=`.
    pub request_signature: &'a str,
    /// The status.
    pub status: u16,
    /// The `Content-Type` field; empty for none.
    pub content_type: &'a str,
    /// Which part of an event stream it is, counted from 1; `None` for a whole reply, and for the end of a stream.
    pub part: Option<u64>,
    /// SHA-256 of the body as sent: of that part, or of everything before the event that ends the stream.
    pub body_sha256: [u8; 32],
}

/// The value of [`super::RESPONSE_SIGNATURE`], and of `signature` in an event.
#[must_use]
pub fn sign_reply(key: &SigningKey, reply: &Reply<'_>) -> String {
    ["v1=", &hex(&key.tag(reply_to_sign(reply).as_bytes()))].concat()
}

/// Whether `presented`, the value of [`super::RESPONSE_SIGNATURE`], is the signature of this reply to this request. The
/// time taken tells nothing of where two signatures differ.
#[must_use]
pub fn verify_reply(key: &SigningKey, reply: &Reply<'_>, presented: &str) -> bool {
    let presented = presented
        .strip_prefix("v1=")
        .and_then(|digits| unhex(digits.as_bytes()));
    presented.is_some_and(|presented| key.matches(reply_to_sign(reply).as_bytes(), &presented))
}

/// The six lines, with a line end between each two and none behind the last.
#[must_use]
pub fn reply_to_sign(reply: &Reply<'_>) -> String {
    let mut content_type = content_type(reply.content_type);
    if let Some(part) = reply.part {
        content_type.push_str(";part=");
        content_type.push_str(&part.to_string());
    }
    [
        ALGORITHM,
        &reply.request_nonce.to_string(),
        reply.request_signature,
        &reply.status.to_string(),
        &content_type,
        &hex(&reply.body_sha256),
    ]
    .join("\n")
}
