//! How a body stands inside a queue envelope: as text, or as base64.
//!
//! Here: the one accepted spelling of each, and the bound that is checked before anything is decoded.
//! Not here: the envelope around it, see `envelope`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// The value of `bodyEncoding` that says base64.
pub const BASE64: &str = "base64";

/// The value of `bodyEncoding` that says text; an absent key says the same.
pub const UTF8: &str = "utf8";

/// Why a body of an envelope is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// More bytes than the limit, whether they were decoded or not.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes of the decoded body.
        limit: usize,
    },
    /// `bodyEncoding` says base64 and the text is not its canonical form.
    #[error("the body is not canonical base64")]
    NotBase64,
    /// `bodyEncoding` names something else.
    #[error("bodyEncoding is neither utf8 nor base64")]
    UnknownEncoding,
}

/// The bytes of a body that stands in an envelope as `text`, at most `limit` of them.
///
/// Base64 is taken only in its one canonical spelling: standard alphabet, padded, no line ends, pad
/// bits zero. Both bounds are checked before anything is decoded.
///
/// # Errors
///
/// - [`BodyFault::TooLarge`]: more than `limit` bytes, or more base64 than can stand for so many.
/// - [`BodyFault::NotBase64`]: not the canonical spelling.
/// - [`BodyFault::UnknownEncoding`]: `encoding` is something other than `utf8` or `base64`.
pub fn decode_body(text: Cow<'_, str>, encoding: Option<&str>, limit: usize) -> Result<Bytes, BodyFault> {
    match encoding {
        None | Some(UTF8) if text.len() > limit => Err(BodyFault::TooLarge { limit }),
        None | Some(UTF8) => Ok(Bytes::from(text.into_owned())),
        Some(BASE64) => decode_base64(&text, limit),
        Some(_) => Err(BodyFault::UnknownEncoding),
    }
}

/// The bytes that canonical base64 stands for, at most `limit` of them.
///
/// # Errors
///
/// As [`decode_body`].
pub fn decode_base64(text: &str, limit: usize) -> Result<Bytes, BodyFault> {
    if text.len() > base64_length(limit) {
        return Err(BodyFault::TooLarge { limit });
    }
    // The engine wants padding and refuses set pad bits, so that what it takes is what it would write.
    let bytes = STANDARD.decode(text).map_err(|_| BodyFault::NotBase64)?;
    if bytes.len() > limit {
        return Err(BodyFault::TooLarge { limit });
    }
    Ok(Bytes::from(bytes))
}

/// Appends the canonical base64 of `bytes` to `out`.
pub fn push_base64(out: &mut String, bytes: &[u8]) {
    STANDARD.encode_string(bytes, out);
}

/// How many characters the padded base64 of `bytes` bytes has; saturates.
#[must_use]
pub const fn base64_length(bytes: usize) -> usize {
    bytes.div_ceil(3).saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str, limit: usize) -> Result<Vec<u8>, BodyFault> {
        decode_body(Cow::Borrowed(text), Some(BASE64), limit).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn canonical_base64_is_taken_and_comes_back_the_same() {
        for length in 0..70_usize {
            let bytes: Vec<u8> = (0..length)
                .map(|at| u8::try_from(at * 7 % 256).unwrap())
                .collect();
            let mut text = String::new();

            push_base64(&mut text, &bytes);

            assert_eq!(text.len(), base64_length(length));
            assert_eq!(decoded(&text, length).unwrap(), bytes);
        }
    }

    #[test]
    fn any_other_spelling_of_base64_is_refused() {
        for text in [
            "QQ", "QQ=", "QR==", "QUJ=", "QUI", "Q", "====", "QQ==QQ==", "QUJD\n", "QU JD", " QUJD", "-_-_",
            "QQ=A", "QQ===", "Q===", "=QQQ",
        ] {
            assert_eq!(decoded(text, 64), Err(BodyFault::NotBase64), "{text:?}");
        }
    }

    #[test]
    fn the_limit_counts_decoded_bytes_to_the_byte() {
        assert_eq!(decoded("QUJD", 3).unwrap(), b"ABC");
        assert_eq!(decoded("QUI=", 1), Err(BodyFault::TooLarge { limit: 1 }));
        assert_eq!(decoded("QUJDRA==", 3), Err(BodyFault::TooLarge { limit: 3 }));
        assert_eq!(decoded("", 0).unwrap(), b"");
        assert_eq!(decoded("QQ==", 0), Err(BodyFault::TooLarge { limit: 0 }));
    }

    #[test]
    fn text_is_measured_in_bytes_and_not_in_characters() {
        let text = |body: &'static str, encoding, limit| decode_body(Cow::Borrowed(body), encoding, limit);

        assert_eq!(text("ab", None, 2).unwrap().as_ref(), b"ab");
        assert_eq!(text("é", Some(UTF8), 2).unwrap().as_ref(), "é".as_bytes());
        assert_eq!(text("é", None, 1), Err(BodyFault::TooLarge { limit: 1 }));
        assert_eq!(text("abc", Some(UTF8), 2), Err(BodyFault::TooLarge { limit: 2 }));
    }

    #[test]
    fn an_unknown_encoding_is_refused() {
        for name in ["", "BASE64", "base64url", "hex", "utf-8"] {
            assert_eq!(
                decode_body(Cow::Borrowed("QQ=="), Some(name), 9),
                Err(BodyFault::UnknownEncoding),
                "{name:?}"
            );
        }
    }
}
