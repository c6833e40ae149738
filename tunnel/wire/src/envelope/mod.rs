//! The two documents of the file queue: the request envelope and the response envelope.
//!
//! Here: their exact bytes, their strict reading, and which file names are entries of a queue. Not
//! here: files and directories. Bodies are spelled in `encoding`; the JSON is read in `reading.rs`.

mod reading;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod writing;

use bytes::Bytes;

use crate::encoding::BodyFault;

pub use request::RequestEnvelope;
pub use response::{Reading, ResponseEnvelope};

/// How many headers an envelope may carry.
pub const MAX_HEADERS: usize = 128;

/// How many bytes the names and values of an envelope's headers may have together.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// How many bytes `path` and `query` of a request envelope may have together.
pub const MAX_TARGET_BYTES: usize = 32 * 1024;

/// How many bytes a request's method may have.
pub const MAX_METHOD_BYTES: usize = 32;

/// How many bytes the stem of an entry's file name may have.
pub const MAX_ID_BYTES: usize = 128;

/// How many bytes the other short texts (`host`, `createdAt`, `completedAt`, `bodyEncoding`) may have.
pub const MAX_SHORT_TEXT_BYTES: usize = 512;

/// The header by which a host says that nobody knows whether the call happened.
pub const OUTCOME_HEADER: &str = "x-paperclip-bridge-outcome";

/// The value of [`OUTCOME_HEADER`] that says so.
pub const INDETERMINATE: &str = "indeterminate";

/// How many bytes an envelope may have around a body of at most `max_body` bytes; saturates.
///
/// One byte escapes to at most six in JSON; 64 KiB are left for everything else.
#[must_use]
pub const fn envelope_limit(max_body: usize) -> usize {
    max_body.saturating_mul(6).saturating_add(65_536)
}

/// The id that a file name of the queue stands for, if the name is one of an entry.
///
/// `[A-Za-z0-9._-]+` before `.json`, not led by a dot, at most [`MAX_ID_BYTES`] long. Nothing that
/// passes can leave its directory, be an option to a command, or break a line.
#[must_use]
pub fn entry_id(file_name: &str) -> Option<&str> {
    let stem = file_name.strip_suffix(".json")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let sound = !stem.is_empty()
        && stem.len() <= MAX_ID_BYTES
        && !stem.starts_with(['.', '-'])
        && stem.bytes().all(plain);
    sound.then_some(stem)
}

/// A body as it stands in an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvelopeBody {
    /// Text, as it is; `bodyEncoding` is absent.
    Text(String),
    /// Bytes in base64, with `bodyEncoding` saying so.
    Base64(Bytes),
}

impl EnvelopeBody {
    /// The body's bytes, copied only where they were text.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::from(text),
            Self::Base64(bytes) => bytes,
        }
    }
}

/// The keys of the envelopes, for naming one in a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `id`
    Id,
    /// `method`
    Method,
    /// `path`
    Path,
    /// `query`
    Query,
    /// `host`, our own: the caller's Host header, which the host checks
    Host,
    /// `headers`
    Headers,
    /// `body`
    Body,
    /// `bodyEncoding`
    BodyEncoding,
    /// `createdAt`
    CreatedAt,
    /// `status`
    Status,
    /// `completedAt`
    CompletedAt,
}

impl Field {
    /// The key as it is written.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Method => "method",
            Self::Path => "path",
            Self::Query => "query",
            Self::Host => "host",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::BodyEncoding => "bodyEncoding",
            Self::CreatedAt => "createdAt",
            Self::Status => "status",
            Self::CompletedAt => "completedAt",
        }
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.key())
    }
}

/// Why an envelope is not taken; says which key is at fault, never what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeFault {
    /// More bytes than [`envelope_limit`] allows.
    #[error("the envelope is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not one JSON object in UTF-8.
    #[error("the envelope is not one JSON object")]
    NotAnObject,
    /// A key that must be there is not.
    #[error("the envelope has no {0}")]
    Missing(Field),
    /// A key stands there twice.
    #[error("the envelope has {0} twice")]
    Twice(Field),
    /// A key holds another type than it should.
    #[error("{0} has the wrong type")]
    WrongType(Field),
    /// A key holds more than it may.
    #[error("{0} is too long")]
    TooLong(Field),
    /// A key holds what is no value of its kind.
    #[error("{0} is not valid")]
    NotValid(Field),
    /// `id` is another than the file name says.
    #[error("id differs from the file name")]
    OtherId,
    /// The body is at fault.
    #[error(transparent)]
    Body(#[from] BodyFault),
}
