//! Whether a signed request is taken: the checks in their order.
//!
//! Here: [`Verifier::verify`]. Its order is part of the format: what a refusal tells a caller depends on nothing that
//! comes later. In particular, a nonce is noted only after the signature is known to be good, so that nobody without a key
//! can fill the store. Not here: the reading of the header (`fields`).

use alloc::collections::BTreeSet;
use alloc::string::String;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::canonical::TargetRefusal;
use super::fields::{self, Fields};
use super::key::{KeyId, KeyRing, SigningKey};
use super::message::{Lines, string_to_sign};
use super::nonces::{Nonce, Nonces, Use};
use super::{WINDOW_SECONDS, hex};
use crate::token::{TokenDigest, bearer};

/// A request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// As sent.
    pub method: &'a str,
    /// Path and query as they stand in the request line.
    pub target: &'a str,
    /// Every field of the header, as sent, without the line ends.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Whether fields came behind the body.
    pub has_trailers: bool,
    /// The body, without the framing of chunks.
    pub body: &'a [u8],
}

/// Who may send what here. Every part that is left empty refuses.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: KeyRing,
    allowed_hosts: BTreeSet<String>,
    max_body_bytes: usize,
    bearer: Option<TokenDigest>,
}

/// A request that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The key that signed it.
    pub key_id: KeyId,
    /// Its nonce, which a signed reply covers.
    pub nonce: Nonce,
    /// The signature that was good, in hexadecimal, which a signed reply covers.
    pub signature: String,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The Host is none of ours, or there is none.
    #[error("the Host header is not one of the allowed hosts")]
    HostMismatch,
    /// Something is missing, stands twice, or can be read in two ways.
    #[error("{0}")]
    InvalidRequest(&'static str),
    /// The target has no canonical form.
    #[error(transparent)]
    InvalidTarget(TargetRefusal),
    /// Signed too long ago, or too far ahead.
    #[error("the timestamp is {off_by_seconds} s off, and {WINDOW_SECONDS} s are allowed; set the clock")]
    TimestampOutOfWindow {
        /// How far the two clocks are apart.
        off_by_seconds: u64,
    },
    /// No such key, or not now.
    #[error("no key of that name is live")]
    UnknownKey,
    /// The body is not the one that was signed, or longer than allowed.
    #[error("the body is not the one that was signed, or is longer than allowed")]
    ContentHashMismatch,
    /// None of the signatures is good.
    #[error("the signature is not good")]
    SignatureInvalid,
    /// No bearer, or a wrong one.
    #[error("the bearer is missing or wrong")]
    Unauthorized,
    /// The same request came before.
    #[error("the nonce was used before")]
    NonceReplayed,
    /// Whether it came before is not known.
    #[error("the store of used nonces cannot be used; try again later")]
    NonceStoreDown,
}

impl Refusal {
    /// One of each, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::HostMismatch,
        Self::InvalidRequest("…"),
        Self::InvalidTarget(TargetRefusal::NotAPath),
        Self::TimestampOutOfWindow { off_by_seconds: 301 },
        Self::UnknownKey,
        Self::ContentHashMismatch,
        Self::SignatureInvalid,
        Self::Unauthorized,
        Self::NonceReplayed,
        Self::NonceStoreDown,
    ];

    /// The status of the answer; never 404 or 409, which mean a lost lease.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::HostMismatch => 421,
            Self::InvalidRequest(_) | Self::InvalidTarget(_) => 400,
            Self::TimestampOutOfWindow { .. }
            | Self::UnknownKey
            | Self::ContentHashMismatch
            | Self::SignatureInvalid
            | Self::Unauthorized
            | Self::NonceReplayed => 401,
            Self::NonceStoreDown => 503,
        }
    }

    /// A stable name for the answer's body.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::HostMismatch => "host_mismatch",
            Self::InvalidRequest(_) | Self::InvalidTarget(_) => "invalid_request",
            Self::TimestampOutOfWindow { .. } => "timestamp_out_of_window",
            Self::UnknownKey => "unknown_key",
            Self::ContentHashMismatch => "content_hash_mismatch",
            Self::SignatureInvalid => "signature_invalid",
            Self::Unauthorized => "unauthorized",
            Self::NonceReplayed => "nonce_replayed",
            Self::NonceStoreDown => "nonce_store_unavailable",
        }
    }
}

impl Verifier {
    /// A verifier that takes requests to `allowed_hosts`, in any case of their letters, with bodies of at most
    /// `max_body_bytes`. Without a `bearer` it refuses everything.
    pub fn new<H: AsRef<str>>(
        keys: KeyRing,
        allowed_hosts: impl IntoIterator<Item = H>,
        max_body_bytes: usize,
        bearer: Option<TokenDigest>,
    ) -> Self {
        Self {
            keys,
            allowed_hosts: allowed_hosts
                .into_iter()
                .map(|host| host.as_ref().to_ascii_lowercase())
                .collect(),
            max_body_bytes,
            bearer,
        }
    }

    /// Checks a request, and notes its nonce once everything else is good.
    ///
    /// # Errors
    ///
    /// The first [`Refusal`], in the order of its variants.
    pub fn verify(
        &self,
        request: &Received<'_>,
        nonces: &dyn Nonces,
        now_unix: u64,
    ) -> Result<Accepted, Refusal> {
        let host = self.host(request)?;
        let fields = Fields::read(request)?;
        in_window(fields.timestamp, now_unix)?;
        let signature = self.signature(request, host, &fields, now_unix)?;
        self.bearer(fields.authorization)?;
        match nonces.note(&fields.key_id, fields.nonce, now_unix) {
            Ok(Use::First) => Ok(Accepted {
                key_id: fields.key_id,
                nonce: fields.nonce,
                signature,
            }),
            Ok(Use::Again) => Err(Refusal::NonceReplayed),
            Err(_) => Err(Refusal::NonceStoreDown),
        }
    }

    /// A Host that is allowed; where there are two, each must be, and the reading of the header refuses them next.
    fn host<'a>(&self, request: &Received<'a>) -> Result<&'a str, Refusal> {
        let mut host = None;
        for value in fields::hosts(request) {
            let text = core::str::from_utf8(value).map_err(|_| Refusal::HostMismatch)?;
            if !self.allowed_hosts.contains(&text.to_ascii_lowercase()) {
                return Err(Refusal::HostMismatch);
            }
            host = Some(text);
        }
        host.ok_or(Refusal::HostMismatch)
    }

    /// The signature that is good, in hexadecimal.
    fn signature(
        &self,
        request: &Received<'_>,
        host: &str,
        fields: &Fields<'_>,
        now_unix: u64,
    ) -> Result<String, Refusal> {
        let fits = request.body.len() <= self.max_body_bytes;
        let body_sha256: [u8; 32] = if fits {
            Sha256::digest(request.body).into()
        } else {
            [0; 32]
        };
        let lines = string_to_sign(&Lines {
            key_id: &fields.key_id,
            timestamp: fields.timestamp,
            nonce: fields.nonce,
            method: request.method,
            target: &fields.target,
            host,
            content_type: fields.content_type,
            context: fields.context,
            body_sha256,
        });
        // An unknown key costs the same work as a known one, so that the time taken does not tell which names exist.
        let key = self.keys.live(&fields.key_id, now_unix);
        let good = good_signature(key.unwrap_or(&SigningKey::dummy()), &lines, &fields.signatures);
        if key.is_none() {
            return Err(Refusal::UnknownKey);
        }
        if !fits || body_sha256 != fields.content_sha256 {
            return Err(Refusal::ContentHashMismatch);
        }
        let length = u64::try_from(request.body.len()).ok();
        if fields.content_length.is_some() && fields.content_length != length {
            return Err(Refusal::InvalidRequest("Content-Length is not the body's"));
        }
        good.map(|signature| hex(&signature))
            .ok_or(Refusal::SignatureInvalid)
    }

    fn bearer(&self, authorization: Option<&[u8]>) -> Result<(), Refusal> {
        let presented = authorization.and_then(bearer);
        match (&self.bearer, presented) {
            (Some(expected), Some(presented)) if expected.matches(presented) => Ok(()),
            _ => Err(Refusal::Unauthorized),
        }
    }
}

/// The last signature that is good; all are looked at.
fn good_signature(key: &SigningKey, lines: &str, presented: &[[u8; 32]]) -> Option<[u8; 32]> {
    let mut good = None;
    for signature in presented {
        if key.matches(lines.as_bytes(), signature) {
            good = Some(*signature);
        }
    }
    good
}

const fn in_window(timestamp: u64, now_unix: u64) -> Result<(), Refusal> {
    let off_by_seconds = now_unix.abs_diff(timestamp);
    if off_by_seconds > WINDOW_SECONDS {
        return Err(Refusal::TimestampOutOfWindow { off_by_seconds });
    }
    Ok(())
}
