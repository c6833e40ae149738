//! Signing a request: the five header fields that go with it.
//!
//! Here: [`sign`]. Not here: the check that the request goes to the right host ([`super::host`]), which comes first.

use alloc::string::{String, ToString as _};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::canonical::{CanonicalTarget, TargetRefusal};
use super::fields::{is_host, is_method, is_plain_value};
use super::key::{KeyId, SigningKey};
use super::message::{Lines, string_to_sign};
use super::nonces::Nonce;
use super::{CONTENT_SHA256, CONTEXT, KEY_ID, NONCE, SIGNATURE, TIMESTAMP, hex};

/// A request as it will be sent.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    /// In upper case.
    pub method: &'a str,
    /// Path and query, exactly as they will stand in the request line.
    pub target: &'a str,
    /// The `Host` field, exactly as it will be sent; the port only if it is not the scheme's own.
    pub host: &'a str,
    /// The `Content-Type` field; empty for none.
    pub content_type: &'a str,
    /// The present ones of `environment-id`, `issue-id` and `run-id`, in any order.
    pub context: &'a [(&'a str, &'a str)],
    /// The body as it will be sent, without any encoding around it.
    pub body: &'a [u8],
}

/// What makes a signature one of its own.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// Name of the key.
    pub key_id: &'a KeyId,
    /// Now, in Unix seconds.
    pub timestamp: u64,
    /// Fresh for each request, also for one that is sent again.
    pub nonce: Nonce,
}

/// A signature and what was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    fields: [(&'static str, String); 5],
    signature: String,
    string_to_sign: String,
}

/// Why a request cannot be signed; it must then not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SignFault {
    /// A method with small letters or none at all.
    #[error("the method must be a word in upper case, such as GET")]
    Method,
    /// The target has no canonical form.
    #[error(transparent)]
    Target(#[from] TargetRefusal),
    /// The host is empty or has a character that no host has.
    #[error("the host must be a name with an optional port, such as bridge.example.dev")]
    Host,
    /// The content type cannot stand in a header field.
    #[error("the content type must be visible ASCII")]
    ContentType,
    /// A name that is not signed, one that is there twice, or a value that cannot stand in a header field.
    #[error(
        "the context must be made of environment-id, issue-id and run-id, each at most once, not empty and visible ASCII"
    )]
    Context,
}

impl Signed {
    /// The five fields, to be added as they are.
    #[must_use]
    pub const fn fields(&self) -> &[(&'static str, String); 5] {
        &self.fields
    }

    /// The same, to keep.
    #[must_use]
    pub fn into_fields(self) -> [(&'static str, String); 5] {
        self.fields
    }

    /// The signature in hexadecimal; a reply's signature covers it.
    #[must_use]
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// The eleven lines.
    #[must_use]
    pub fn string_to_sign(&self) -> &str {
        &self.string_to_sign
    }
}

/// Signs a request. Linear in the body.
///
/// # Errors
///
/// [`SignFault`] for what the verifier would refuse to read.
pub fn sign(key: &SigningKey, stamp: Stamp<'_>, request: &Unsigned<'_>) -> Result<Signed, SignFault> {
    if !is_method(request.method) {
        return Err(SignFault::Method);
    }
    if !is_host(request.host) {
        return Err(SignFault::Host);
    }
    let content_type = request.content_type;
    if !content_type.is_empty() && !is_plain_value(content_type.trim_matches([' ', '\t'])) {
        return Err(SignFault::ContentType);
    }
    let body_sha256 = Sha256::digest(request.body).into();
    let string_to_sign = string_to_sign(&Lines {
        key_id: stamp.key_id,
        timestamp: stamp.timestamp,
        nonce: stamp.nonce,
        method: request.method,
        target: &CanonicalTarget::parse(request.target)?,
        host: request.host,
        content_type,
        context: context(request.context)?,
        body_sha256,
    });
    let signature = hex(&key.tag(string_to_sign.as_bytes()));
    Ok(Signed {
        fields: [
            (KEY_ID, stamp.key_id.to_string()),
            (TIMESTAMP, stamp.timestamp.to_string()),
            (NONCE, stamp.nonce.to_string()),
            (CONTENT_SHA256, hex(&body_sha256)),
            (SIGNATURE, ["v1=", &signature].concat()),
        ],
        signature,
        string_to_sign,
    })
}

/// The values in the order in which they are signed.
fn context<'a>(given: &[(&str, &'a str)]) -> Result<[Option<&'a str>; 3], SignFault> {
    let mut values = [None; 3];
    for (name, value) in given {
        let known = CONTEXT
            .iter()
            .zip(&mut values)
            .find(|((known, _), _)| known == name);
        let Some((_, place)) = known else {
            return Err(SignFault::Context);
        };
        if place.is_some() || !is_plain_value(value) {
            return Err(SignFault::Context);
        }
        *place = Some(*value);
    }
    Ok(values)
}
