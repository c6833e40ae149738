//! Which content types a request body may have.
//!
//! Here: [`check`]. JSON everywhere, `multipart/form-data` where the route admits it, nothing needed
//! without a body. Not here: whether the body really is what it says; the upstream parses it.

use core::fmt;

use thiserror::Error;

/// Longest multipart boundary, RFC 2046 section 5.1.1.
const MAX_BOUNDARY: usize = 70;

/// What is known of a request's body before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The message has none.
    None,
    /// As many bytes as `Content-Length` says.
    Known(u64),
    /// Chunked: some, or none.
    Unknown,
}

/// Why the content type is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ContentTypeFault {
    /// A body without a content type.
    #[error("a body needs a content type; send `content-type: application/json`")]
    Missing,
    /// More than one `Content-Type` line.
    #[error("more than one content-type header; send one")]
    Repeated,
    /// Not a media type by RFC 9110 section 8.3.1, or a parameter twice.
    #[error("the content type is malformed")]
    Malformed,
    /// A type other than JSON.
    #[error("only JSON bodies cross the bridge here; send `content-type: application/json`")]
    NotJson,
    /// JSON in another charset.
    #[error("JSON must be in UTF-8; leave the charset out")]
    Charset,
    /// Multipart on a route that takes JSON only.
    #[error("this route takes JSON only, not multipart/form-data")]
    MultipartNotAllowed,
    /// Multipart with a missing or impossible boundary.
    #[error("multipart/form-data needs a boundary of 1 to {MAX_BOUNDARY} characters")]
    Boundary,
}

impl ContentTypeFault {
    /// The stable name in logs and JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::NotJson => "not_json",
            Self::Charset => "charset",
            Self::MultipartNotAllowed => "multipart_not_allowed",
            Self::Boundary => "boundary",
        }
    }
}

/// Checks all `Content-Type` lines of one request.
///
/// # Errors
///
/// [`ContentTypeFault::Repeated`] for more than one line, with or without a body; else as [`check`].
pub fn check_lines<'a>(
    permit_multipart: bool,
    body: Body,
    lines: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(), ContentTypeFault> {
    let mut lines = lines.into_iter();
    let first = lines.next();
    if lines.next().is_some() {
        return Err(ContentTypeFault::Repeated);
    }
    check(permit_multipart, body, first)
}

/// Checks the content type of one request.
///
/// JSON is the essence `application/json` or any type whose subtype ends in `+json`, with `charset`
/// absent or UTF-8. Other parameters are let through; the same parameter twice is not. Without a body
/// the header is not looked at.
///
/// - `permit_multipart`: [`crate::Permit::multipart`].
/// - `content_type`: the value of the only `Content-Type` line.
///
/// # Errors
///
/// [`ContentTypeFault`], to be answered 415.
pub fn check(
    permit_multipart: bool,
    body: Body,
    content_type: Option<&[u8]>,
) -> Result<(), ContentTypeFault> {
    match body {
        Body::None | Body::Known(0) => return Ok(()),
        Body::Known(_) | Body::Unknown => {}
    }
    let value = content_type
        .map(<[u8]>::trim_ascii)
        .filter(|value| !value.is_empty());
    let media = MediaType::parse(value.ok_or(ContentTypeFault::Missing)?)?;
    if media.is("multipart", "form-data") {
        if !permit_multipart {
            return Err(ContentTypeFault::MultipartNotAllowed);
        }
        return if media.has_boundary()? {
            Ok(())
        } else {
            Err(ContentTypeFault::Boundary)
        };
    }
    if !media.is("application", "json") && !media.has_json_suffix() {
        return Err(ContentTypeFault::NotJson);
    }
    match media.parameter("charset")? {
        Some(charset) if !charset.is(b"utf-8") => Err(ContentTypeFault::Charset),
        Some(_) | None => Ok(()),
    }
}

/// A media type whose grammar and parameters have been checked.
struct MediaType<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    parameters: &'a [u8],
}

/// A parameter's value, perhaps with backslashes of a quoted string still in it.
#[derive(Clone, Copy)]
struct Value<'a> {
    raw: &'a [u8],
}

impl<'a> MediaType<'a> {
    fn parse(value: &'a [u8]) -> Result<Self, ContentTypeFault> {
        let (kind, rest) = token(value).ok_or(ContentTypeFault::Malformed)?;
        let rest = rest.strip_prefix(b"/").ok_or(ContentTypeFault::Malformed)?;
        let (subtype, parameters) = token(rest).ok_or(ContentTypeFault::Malformed)?;
        let media = Self {
            kind,
            subtype,
            parameters,
        };
        let mut rest = parameters;
        while let Some((name, _, behind)) = next_parameter(rest)? {
            rest = behind;
            let mut later = rest;
            while let Some((other, _, behind)) = next_parameter(later)? {
                if name.eq_ignore_ascii_case(other) {
                    return Err(ContentTypeFault::Malformed);
                }
                later = behind;
            }
        }
        Ok(media)
    }

    fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind.as_bytes())
            && self.subtype.eq_ignore_ascii_case(subtype.as_bytes())
    }

    /// RFC 6839 section 3.1; something must stand before the suffix.
    fn has_json_suffix(&self) -> bool {
        let before = self.subtype.len().saturating_sub(b"+json".len());
        before > 0
            && self
                .subtype
                .get(before..)
                .is_some_and(|end| end.eq_ignore_ascii_case(b"+json"))
    }

    fn parameter(&self, wanted: &str) -> Result<Option<Value<'a>>, ContentTypeFault> {
        let mut rest = self.parameters;
        while let Some((name, value, behind)) = next_parameter(rest)? {
            if name.eq_ignore_ascii_case(wanted.as_bytes()) {
                return Ok(Some(value));
            }
            rest = behind;
        }
        Ok(None)
    }

    fn has_boundary(&self) -> Result<bool, ContentTypeFault> {
        Ok(self.parameter("boundary")?.is_some_and(|boundary| {
            (1..=MAX_BOUNDARY).contains(&boundary.raw.len())
                && boundary.raw.iter().all(|byte| is_boundary_byte(*byte))
                && boundary.raw.last() != Some(&b' ')
        }))
    }
}

impl Value<'_> {
    fn is(&self, wanted: &[u8]) -> bool {
        self.raw.eq_ignore_ascii_case(wanted)
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Value({} bytes)", self.raw.len())
    }
}

type Parameter<'a> = (&'a [u8], Value<'a>, &'a [u8]);

/// The next `name=value` and what follows it; empty parameters are skipped (RFC 9110 section 5.6.6).
fn next_parameter(mut rest: &[u8]) -> Result<Option<Parameter<'_>>, ContentTypeFault> {
    loop {
        rest = skip_blanks(rest);
        let Some(behind) = rest.strip_prefix(b";") else {
            return if rest.is_empty() {
                Ok(None)
            } else {
                Err(ContentTypeFault::Malformed)
            };
        };
        rest = skip_blanks(behind);
        if rest.is_empty() || rest.starts_with(b";") {
            continue;
        }
        let (name, behind) = token(rest).ok_or(ContentTypeFault::Malformed)?;
        let behind = behind.strip_prefix(b"=").ok_or(ContentTypeFault::Malformed)?;
        let (raw, behind) = match behind.strip_prefix(b"\"") {
            Some(quoted) => quoted_string(quoted)?,
            None => token(behind).ok_or(ContentTypeFault::Malformed)?,
        };
        return Ok(Some((name, Value { raw }, behind)));
    }
}

/// The inside of a quoted string whose opening quote is already read, and what follows its end.
fn quoted_string(text: &[u8]) -> Result<(&[u8], &[u8]), ContentTypeFault> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            0..=0x08 | 0x0A..=0x1F | 0x7F => return Err(ContentTypeFault::Malformed),
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let (inside, end) = text.split_at_checked(at).ok_or(ContentTypeFault::Malformed)?;
                return Ok((inside, end.strip_prefix(b"\"").unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(ContentTypeFault::Malformed)
}

/// A token (RFC 9110 section 5.6.2) of at least one character, and what follows it.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text
        .iter()
        .position(|byte| !is_token_byte(*byte))
        .unwrap_or(text.len());
    if end == 0 {
        None
    } else {
        text.split_at_checked(end)
    }
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t'))
        .unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// RFC 2046 section 5.1.1 `bchars`.
const fn is_boundary_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'\'' | b'(' | b')' | b'+' | b'_' | b',' | b'-' | b'.' | b'/' | b':' | b'=' | b'?' | b' '
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &str) -> Result<(), ContentTypeFault> {
        check(false, Body::Known(2), Some(value.as_bytes()))
    }

    fn upload(value: &str) -> Result<(), ContentTypeFault> {
        check(true, Body::Unknown, Some(value.as_bytes()))
    }

    #[test]
    fn json_in_utf8_is_allowed_in_every_spelling_of_the_grammar() {
        for value in [
            "application/json",
            "Application/JSON",
            " application/json ; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json;",
            "application/json;; profile=\"a;charset=latin1\"",
            "application/merge-patch+json",
            "application/problem+JSON; v=1",
        ] {
            assert_eq!(json(value), Ok(()), "{value}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_reason() {
        use ContentTypeFault::{Charset, Malformed, Missing, MultipartNotAllowed, NotJson};
        for (value, fault) in [
            ("", Missing),
            ("text/plain", NotJson),
            ("text/json", NotJson),
            ("application/jsonp", NotJson),
            ("application/+json", NotJson),
            ("application/x-www-form-urlencoded", NotJson),
            ("text/plain; x=\"application/json\"", NotJson),
            ("application/json; charset=latin1", Charset),
            ("application/json; charset=\"utf-8 \"", Charset),
            ("application/json; charset=utf-8; Charset=utf-8", Malformed),
            ("application/json, text/plain", Malformed),
            ("application/json charset=utf-8", Malformed),
            ("application/json; charset", Malformed),
            ("application/json; charset = utf-8", Malformed),
            ("application/json; charset=\"utf-8", Malformed),
            ("application/json; charset=\"utf\u{1}-8\"", Malformed),
            ("application /json", Malformed),
            ("json", Malformed),
            ("/json", Malformed),
            ("application/", Malformed),
            ("multipart/form-data; boundary=x", MultipartNotAllowed),
        ] {
            assert_eq!(json(value), Err(fault), "{value:?}");
        }
    }

    #[test]
    fn multipart_needs_a_usable_boundary() {
        let longest = "b".repeat(70);

        assert_eq!(upload("multipart/form-data; boundary=----x1"), Ok(()));
        assert_eq!(upload("multipart/form-data; boundary=\"a b\""), Ok(()));
        assert_eq!(
            upload(&std::format!("multipart/form-data; boundary={longest}")),
            Ok(())
        );
        for value in [
            "multipart/form-data",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary=\"a\\\"b\"",
            &std::format!("multipart/form-data; boundary={longest}b"),
        ] {
            assert_eq!(upload(value), Err(ContentTypeFault::Boundary), "{value}");
        }
        assert_eq!(
            upload("multipart/mixed; boundary=x"),
            Err(ContentTypeFault::NotJson)
        );
        assert_eq!(upload("application/json"), Ok(()));
    }

    #[test]
    fn a_request_without_body_needs_no_content_type() {
        assert_eq!(check(false, Body::None, None), Ok(()));
        assert_eq!(check(false, Body::Known(0), Some(b"text/plain")), Ok(()));
        assert_eq!(check(false, Body::Known(1), None), Err(ContentTypeFault::Missing));
        assert_eq!(check(false, Body::Unknown, None), Err(ContentTypeFault::Missing));
    }

    #[test]
    fn two_content_type_lines_are_refused_even_when_equal() {
        let line = &b"application/json"[..];

        assert_eq!(check_lines(false, Body::Known(2), [line]), Ok(()));
        assert_eq!(
            check_lines(false, Body::Known(2), [line, line]),
            Err(ContentTypeFault::Repeated)
        );
        assert_eq!(
            check_lines(false, Body::Known(2), []),
            Err(ContentTypeFault::Missing)
        );
    }
}
