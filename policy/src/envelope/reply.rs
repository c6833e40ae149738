//! Signed replies, by which a client tells its Worker from an impostor.
//!
//! Here: [`sign_reply`] and [`verify_reply`] for a reply whose body is whole. Not here: event streams, whose last event
//! carries a signature of its own.

use alloc::string::{String, ToString as _};

use sha2::{Digest as _, Sha256};

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
    /// The body as sent.
    pub body: &'a [u8],
}

/// The value of [`super::RESPONSE_SIGNATURE`].
#[must_use]
pub fn sign_reply(key: &SigningKey, reply: &Reply<'_>) -> String {
    ["v1=", &hex(&key.tag(lines(reply).as_bytes()))].concat()
}

/// Whether `header`, the value of [`super::RESPONSE_SIGNATURE`], is the signature of this reply to this request.
#[must_use]
pub fn verify_reply(key: &SigningKey, reply: &Reply<'_>, header: &str) -> bool {
    let presented = header
        .strip_prefix("v1=")
        .and_then(|digits| unhex(digits.as_bytes()));
    presented.is_some_and(|presented| key.matches(lines(reply).as_bytes(), &presented))
}

fn lines(reply: &Reply<'_>) -> String {
    [
        ALGORITHM,
        &reply.request_nonce.to_string(),
        reply.request_signature,
        &reply.status.to_string(),
        &content_type(reply.content_type),
        &hex(&Sha256::digest(reply.body)),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_known_by_its_signature_and_no_other_reply_is() {
        let key = SigningKey::from_bytes((0..32).collect()).unwrap();
        let reply = Reply {
            request_nonce: Nonce::from_bytes([1; 16]),
            request_signature: "7f4f",
            status: 200,
            content_type: "application/json",
            body: b"{}",
        };
        let header = sign_reply(&key, &reply);

        let same = Reply {
            content_type: " Application/JSON",
            ..reply
        };
        assert!(verify_reply(&key, &same, &header));
        for other in [
            Reply {
                request_nonce: Nonce::from_bytes([2; 16]),
                ..reply
            },
            Reply {
                request_signature: "7f4e",
                ..reply
            },
            Reply { status: 201, ..reply },
            Reply {
                content_type: "",
                ..reply
            },
            Reply {
                body: b"{ }",
                ..reply
            },
        ] {
            assert!(!verify_reply(&key, &other, &header), "{other:?}");
        }
        let upper = header.to_ascii_uppercase();
        for header in ["", "v1=", &upper, &header.replace("v1=", "v2=")] {
            assert!(!verify_reply(&key, &reply, header), "{header}");
        }
    }
}
