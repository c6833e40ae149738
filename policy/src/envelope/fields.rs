//! What the header of a signed request says, once it is known to say it in one way only.
//!
//! Here: [`Fields`], which refuses every field that stands twice or in another spelling than its one. Not here: whether
//! what it says is true ([`super::verify`]).

use alloc::vec::Vec;
use core::str;

use super::canonical::CanonicalTarget;
use super::key::KeyId;
use super::nonces::Nonce;
use super::verify::{Received, Refusal};
use super::{CONTENT_SHA256, CONTEXT, KEY_ID, MAX_SIGNATURES, NONCE, SIGNATURE, TIMESTAMP, seconds, unhex};

/// The header of a request, read.
pub(super) struct Fields<'a> {
    pub(super) key_id: KeyId,
    pub(super) timestamp: u64,
    pub(super) nonce: Nonce,
    pub(super) content_sha256: [u8; 32],
    pub(super) signatures: Vec<[u8; 32]>,
    pub(super) target: CanonicalTarget,
    pub(super) content_type: &'a str,
    pub(super) context: [Option<&'a str>; 3],
    pub(super) content_length: Option<u64>,
    pub(super) authorization: Option<&'a [u8]>,
}

/// The values of `Host`, or of HTTP/2's `:authority`.
pub(super) fn hosts<'a>(request: &Received<'a>) -> impl Iterator<Item = &'a [u8]> {
    let named = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    request
        .headers
        .iter()
        .filter(move |(name, _)| named(name))
        .map(|(_, value)| *value)
}

impl<'a> Fields<'a> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidRequest`] with what is wrong.
    pub(super) fn read(request: &Received<'a>) -> Result<Self, Refusal> {
        if !is_method(request.method) {
            return Err(Refusal::InvalidRequest("the method must be a word in upper case"));
        }
        if request.has_trailers {
            return Err(Refusal::InvalidRequest(
                "trailers are not signed and so not taken",
            ));
        }
        every_field(request)?;
        let header = Header { request };
        if header.count("content-encoding") > 0 {
            return Err(Refusal::InvalidRequest("Content-Encoding is not taken"));
        }
        let mut context = [None; 3];
        for ((_, name), place) in CONTEXT.iter().zip(&mut context) {
            *place = header.text(name)?;
        }
        let key_id = header.needed(KEY_ID, KeyId::parse)?;
        let timestamp = header.needed(TIMESTAMP, seconds)?;
        let nonce = header.needed(NONCE, Nonce::parse)?;
        let content_sha256 = header.needed(CONTENT_SHA256, |text| unhex(text.as_bytes()))?;
        let signatures = header.needed(SIGNATURE, signatures)?;
        let content_type = header.one("content-type")?.unwrap_or_default().trim_ascii();
        if !content_type.is_empty() && !content_type.iter().all(is_plain_byte) {
            return Err(Refusal::InvalidRequest("Content-Type is not visible ASCII"));
        }
        Ok(Self {
            key_id,
            timestamp,
            nonce,
            content_sha256,
            signatures,
            target: CanonicalTarget::parse(request.target).map_err(Refusal::InvalidTarget)?,
            content_type: str::from_utf8(content_type).unwrap_or_default(),
            context,
            content_length: framing(&header)?,
            authorization: header.one("authorization")?,
        })
    }
}

/// Names and values that HTTP cannot carry, and a second Host, in whatever field.
fn every_field(request: &Received<'_>) -> Result<(), Refusal> {
    for (name, value) in request.headers {
        if *name != ":authority" && !is_token(name) {
            return Err(Refusal::InvalidRequest(
                "a header field has a name that none can have",
            ));
        }
        // RFC 9110 section 5.5: anything else could end the field.
        let fits = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        if !value.iter().all(fits) {
            return Err(Refusal::InvalidRequest(
                "a header field has a control character in its value",
            ));
        }
    }
    let header = Header { request };
    header.one("host")?;
    header.one(":authority")?;
    let mut hosts = hosts(request);
    let first = hosts.next();
    if hosts.any(|host| Some(host) != first) {
        return Err(Refusal::InvalidRequest("Host and :authority differ"));
    }
    Ok(())
}

/// The declared length, if the framing is one that nobody can read in two ways.
fn framing(header: &Header<'_, '_>) -> Result<Option<u64>, Refusal> {
    let length = header.one("content-length")?;
    let coding = header.one("transfer-encoding")?;
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        return Err(Refusal::InvalidRequest("Transfer-Encoding may only be chunked"));
    }
    if coding.is_some() && length.is_some() {
        return Err(Refusal::InvalidRequest("Content-Length beside Transfer-Encoding"));
    }
    let Some(length) = length else { return Ok(None) };
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    str::from_utf8(length)
        .ok()
        .filter(|_| digits)
        .and_then(|length| length.parse().ok())
        .map(Some)
        .ok_or(Refusal::InvalidRequest("Content-Length is not a number"))
}

/// `v1=` and 64 digits, up to three times, with commas between them.
fn signatures(text: &str) -> Option<Vec<[u8; 32]>> {
    let signatures: Option<Vec<_>> = text
        .split(',')
        .map(|one| unhex(one.trim_matches([' ', '\t']).strip_prefix("v1=")?.as_bytes()))
        // One more than allowed tells a list that is too long.
        .take(MAX_SIGNATURES + 1)
        .collect();
    signatures.filter(|signatures| signatures.len() <= MAX_SIGNATURES)
}

/// Fields by name, whatever the case of its letters.
struct Header<'r, 'a> {
    request: &'r Received<'a>,
}

impl<'a> Header<'_, 'a> {
    fn count(&self, name: &str) -> usize {
        self.values(name).count()
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.request.headers.iter();
        headers
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The only value.
    fn one(&self, name: &str) -> Result<Option<&'a [u8]>, Refusal> {
        let mut values = self.values(name);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Refusal::InvalidRequest(
                "a header field that must be alone stands twice",
            )),
            None => Ok(first),
        }
    }

    /// The only value, which is not empty, visible ASCII, and without blanks around it.
    fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let Some(value) = self.one(name)? else {
            return Ok(None);
        };
        str::from_utf8(value)
            .ok()
            .filter(|text| is_plain_value(text))
            .map(Some)
            .ok_or(Refusal::InvalidRequest(
                "an X-Paperclip header field is empty or not visible ASCII",
            ))
    }

    /// The only value, which must be there, as `parse` reads it.
    fn needed<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Refusal> {
        let text = self.text(name)?.ok_or(Refusal::InvalidRequest(
            "one of the five X-Paperclip header fields of the signature is missing",
        ))?;
        parse(text).ok_or(Refusal::InvalidRequest(
            "an X-Paperclip header field of the signature is not in its one form",
        ))
    }
}

/// A method as it is signed: a word without small letters.
pub(super) fn is_method(text: &str) -> bool {
    text.len() <= 32 && is_token(text) && !text.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// Bytes that a host with an optional port is made of; whether it is the right one is compared elsewhere.
pub(super) fn is_host(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    matches!(text.len(), 1..=261) && text.bytes().all(plain)
}

/// What a header field carries unchanged: visible ASCII and blanks, the latter only inside.
pub(super) fn is_plain_value(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| is_plain_byte(&byte))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
}

const fn is_plain_byte(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}
