//! Why a message is refused, in words that a caller may read, and the status it is told with.

use http::StatusCode;

/// Why a message is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The request line is not `METHOD target HTTP/1.1`.
    #[error("the request line is not `METHOD target HTTP/1.1`")]
    RequestLine,
    /// Only HTTP/1.0 and HTTP/1.1 are spoken here.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// A line of the head is not ended by CR LF, or holds a control character.
    #[error("a line of the head is not ended by CR LF, or holds a control character")]
    LineEnd,
    /// A header line is not `name: value`.
    #[error("a header line is not `name: value`")]
    HeaderLine,
    /// The Host header is missing.
    #[error("the Host header is missing")]
    HostMissing,
    /// There is more than one Host header.
    #[error("there is more than one Host header")]
    HostTwice,
    /// Content-Length is not one plain decimal number.
    #[error("Content-Length is not one plain decimal number")]
    ContentLength,
    /// Transfer-Encoding is not exactly one `chunked`.
    #[error("Transfer-Encoding is not exactly one `chunked`")]
    TransferEncoding,
    /// Content-Length and Transfer-Encoding stand side by side.
    #[error("Content-Length and Transfer-Encoding stand side by side")]
    BothLengths,
    /// Transfer-Encoding is not part of HTTP/1.0.
    #[error("Transfer-Encoding is not part of HTTP/1.0")]
    TransferEncodingInOneZero,
    /// A GET or HEAD request carries a body.
    #[error("a GET or HEAD request carries a body")]
    BodyWithoutMeaning,
    /// A chunk size is not plain hexadecimal with CR LF behind it.
    #[error("a chunk size is not plain hexadecimal with CR LF behind it")]
    ChunkSize,
    /// A chunk is not ended by CR LF.
    #[error("a chunk is not ended by CR LF")]
    ChunkEnd,
    /// A trailer line is malformed, or names a field that delimits messages.
    #[error("a trailer line is malformed, or names a field that delimits messages")]
    Trailer,
    /// The connection ended in the middle of the head.
    #[error("the connection ended in the middle of the head")]
    Truncated,
    /// The head is larger than its limit.
    #[error("the head is larger than {limit_bytes} bytes")]
    HeadTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The request target is longer than its limit.
    #[error("the request target is longer than {limit_bytes} bytes")]
    TargetTooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// There are too many header lines.
    #[error("there are more than {limit} header lines")]
    TooManyHeaders {
        /// The limit.
        limit: usize,
    },
    /// The only expectation known is 100-continue.
    #[error("the only expectation known is 100-continue")]
    Expectation,
    /// The body is larger than its limit.
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The head did not arrive whole in time.
    #[error("the head did not arrive whole in time")]
    HeadTimeout,
    /// The body did not go on in time.
    #[error("the body did not go on in time")]
    BodyTimeout,
}

impl Fault {
    /// The status of the answer, by the sections of RFC 9110 and RFC 6585 that name the case; 400 for all others.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::HeadTooLarge { .. } | Self::TargetTooLong { .. } | Self::TooManyHeaders { .. } => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RequestLine
            | Self::Version
            | Self::LineEnd
            | Self::HeaderLine
            | Self::HostMissing
            | Self::HostTwice
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::BothLengths
            | Self::TransferEncodingInOneZero
            | Self::BodyWithoutMeaning
            | Self::ChunkSize
            | Self::ChunkEnd
            | Self::Trailer
            | Self::Truncated => StatusCode::BAD_REQUEST,
        }
    }
}
