//! What an answer of the Worker must show before anything of it counts.
//!
//! Here: [`Demand`], one request's, and what is said of an answer that does not meet it. Not here: the signature itself
//! (`provider::RequestSigner`), and how an event stream is cut into what is signed (`signed`).

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::refusal::skew;
use crate::SecretText;
use crate::provider::{RequestSigner, SignedAnswer};

/// Carries the signature of an answer that is whole.
const SIGNATURE: &str = "x-paperclip-response-signature";

/// What the answer to one signed request must show.
#[derive(Clone)]
pub(super) struct Demand {
    pub(super) signer: Arc<dyn RequestSigner>,
    pub(super) key: SecretText,
    /// What signed the request.
    pub(super) request: Vec<(&'static str, String)>,
    /// An answer without any signature counts all the same.
    pub(super) lenient: bool,
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand")
            .field("lenient", &self.lenient)
            .finish_non_exhaustive()
    }
}

impl Demand {
    /// Whether `presented` signs this much of an answer.
    pub(super) fn is_met(
        &self,
        status: u16,
        content_type: &str,
        part: Option<u64>,
        sha256: [u8; 32],
        presented: &str,
    ) -> bool {
        self.signer.is_answer(
            &self.key,
            &SignedAnswer {
                request: &self.request,
                status,
                content_type,
                part,
                sha256,
                presented,
            },
        )
    }

    /// Checks an answer that is whole; the error says why nothing of it counts.
    pub(super) fn check(&self, head: &http::response::Parts, body: &[u8]) -> Result<(), String> {
        let status = head.status.as_u16();
        let mut values = head.headers.get_all(SIGNATURE).iter();
        let (first, second) = (values.next(), values.next());
        match first {
            None if self.lenient => Ok(()),
            None => Err(unsigned(status, &head.headers, body)),
            Some(value) => {
                let content_type = content_type(&head.headers);
                let met = second.is_none()
                    && value.to_str().is_ok_and(|presented| {
                        self.is_met(
                            status,
                            &content_type,
                            None,
                            Sha256::digest(body).into(),
                            presented,
                        )
                    });
                met.then_some(()).ok_or_else(|| {
                    format!(
                        "it answered {status} with a signature that is not signingKey's for this answer to this request: \
                         something on the way changes answers, or plays the Worker"
                    )
                })
            }
        }
    }
}

/// The `Content-Type` field as it is signed. One that stands twice is none that was signed.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let values = headers.get_all(http::header::CONTENT_TYPE).iter();
    let values: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect();
    values.join(", ")
}

/// What is said of an answer without a signature. What it says itself is at best a hint: a Worker refuses unsigned what it
/// cannot tell from a stranger's request.
fn unsigned(status: u16, headers: &HeaderMap, body: &[u8]) -> String {
    let body = serde_json::from_slice::<Map<String, Value>>(body).unwrap_or_default();
    let code = body.get("error").and_then(Value::as_str).unwrap_or_default();
    let hint = match code {
        "host_mismatch" => {
            "the Worker does not know this host: add it to its BRIDGE_ALLOWED_HOSTS".to_owned()
        }
        "invalid_request" => "something on the way changes header fields".to_owned(),
        "timestamp_out_of_window" => {
            let apart = skew(headers, SystemTime::now());
            if apart.is_empty() {
                "set the clock".to_owned()
            } else {
                apart
            }
        }
        "unknown_key" => {
            "its BRIDGE_HMAC_KEYS has no live key of the name that signingKeyId gives".to_owned()
        }
        "content_hash_mismatch" => {
            "something on the way changes bodies, or they are over its BRIDGE_MAX_BODY_BYTES".to_owned()
        }
        "signature_invalid" => "signingKey is not the key that it has under signingKeyId".to_owned(),
        "unauthorized" => "authToken is not its BRIDGE_AUTH_TOKEN".to_owned(),
        "nonce_replayed" => "somebody else has sent this request before".to_owned(),
        "nonce_store_unavailable" | "misconfigured" => "its log says what is wrong with it".to_owned(),
        _ => {
            return format!(
                "it answered {status} without a signature: something on the way answers in the Worker's place, or the \
                 Worker signs no replies; deploy it anew with BRIDGE_AUTH_MODE=signed, or either (unsignedReplies: \
                 \"accept\" makes do without signatures until then)"
            );
        }
    };
    format!("it answered {status} without a signature; if it is the Worker ({code}), {hint}")
}
