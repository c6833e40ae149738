//! The one canonical form of a request target.
//!
//! Here: [`Target::parse`], which accepts a raw request target if it already is canonical and says why if
//! it is not. It never repairs: what was matched is byte for byte what is sent to the upstream.
//! Not here: the length limit ([`crate::size`]) and which routes exist ([`crate::route`]).
//!
//! The path is RFC 3986 `absolute-path` with these spellings refused, because some parser on the way
//! could read them as another path: dot segments, empty segments, escaped `/ \ .` and control bytes,
//! escapes of characters that need none (`%61` is `a`), lower-case hex digits, escapes that are not UTF-8
//! (overlong forms), and an escaped `%` that would start a second escape. So no path has a second
//! spelling that differs only in its escapes of unreserved characters.
//!
//! The query is opaque to policy and passed through: escapes in it, also malformed ones, are the
//! upstream's business. Only bytes that could end the target early or that an HTTP stack refuses are
//! refused there.

use core::fmt;

use thiserror::Error;

/// A request target in canonical form, borrowed from the request head.
///
/// Only [`Target::parse`] makes one, so holding it proves that the form was checked.
///
/// ```
/// use policy::{Target, TargetFault};
///
/// let target = Target::parse(b"/api/issues/PAP-1?a=%2F").expect("canonical");
/// assert_eq!((target.path(), target.query()), ("/api/issues/PAP-1", Some("a=%2F")));
/// assert_eq!(Target::parse(b"/api/%2e%2e/x"), Err(TargetFault::DotSegment));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    text: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

/// Why a request target is not in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum TargetFault {
    /// Nothing at all.
    #[error("the request target is empty")]
    Empty,
    /// `*`, which belongs to `OPTIONS` for a whole server.
    #[error("`*` names the server, not a path; send a path that starts with `/`")]
    AsteriskForm,
    /// `http://host/path`.
    #[error("an absolute URL is for proxies; send only the path, starting with `/`")]
    AbsoluteForm,
    /// `host:port`.
    #[error("a host and port is for CONNECT; send a path that starts with `/`")]
    AuthorityForm,
    /// Anything else that does not start with `/`.
    #[error("the path must start with `/`")]
    NotOriginForm,
    /// `//` somewhere in the path.
    #[error("the path has an empty segment (`//`)")]
    EmptySegment,
    /// `.` or `..` as a segment, plain or escaped, also with `;parameters` behind it.
    #[error("the path has a dot segment (`.` or `..`, plain or escaped); send the path already resolved")]
    DotSegment,
    /// `%2F` in the path.
    #[error("the path has an escaped slash (`%2F`)")]
    EncodedSlash,
    /// `%5C` in the path.
    #[error("the path has an escaped backslash (`%5C`)")]
    EncodedBackslash,
    /// `\` in the path or the query.
    #[error("the target has a backslash")]
    Backslash,
    /// An escape of a control character: `%00` to `%1F`, `%7F`, or a C1 control.
    #[error("the path has an escaped control character")]
    EncodedControl,
    /// A raw byte below 0x20, or 0x7F.
    #[error("the target has a control character")]
    Control,
    /// A raw space.
    #[error("the target has a space; write `%20`")]
    Space,
    /// A raw byte of 0x80 or above.
    #[error("the target has a raw non-ASCII byte; percent-encode it as UTF-8")]
    NonAscii,
    /// `%` without two hex digits behind it, in the path.
    #[error("the path has a `%` that is not followed by two hex digits; a plain `%` is written `%25`")]
    MalformedEscape,
    /// `%25` followed by two hex digits: an escape of an escape.
    #[error("the path is escaped twice (`%25` followed by two hex digits)")]
    DoubleEscape,
    /// An escape of a letter, a digit, `-`, `.`, `_` or `~`.
    #[error("the path escapes a letter, digit, `-`, `.`, `_` or `~`, which must be written plainly")]
    NeedlessEscape,
    /// `%c3` instead of `%C3`.
    #[error("the path has an escape with lower-case hex digits; write them in upper case")]
    LowercaseEscape,
    /// Escaped bytes that are not UTF-8, such as overlong forms.
    #[error("the escapes in the path are not UTF-8")]
    EscapeNotUtf8,
    /// A raw `#`.
    #[error("the target has a fragment (`#`); leave it out, or write `%23`")]
    Fragment,
    /// A byte that RFC 3986 does not allow here, such as `<`, `"` or, in the path, `{`.
    #[error("the target has a character that must be percent-encoded")]
    ForbiddenByte,
}

impl TargetFault {
    /// Every fault, for tables and tests.
    pub const ALL: [Self; 21] = [
        Self::Empty,
        Self::AsteriskForm,
        Self::AbsoluteForm,
        Self::AuthorityForm,
        Self::NotOriginForm,
        Self::EmptySegment,
        Self::DotSegment,
        Self::EncodedSlash,
        Self::EncodedBackslash,
        Self::Backslash,
        Self::EncodedControl,
        Self::Control,
        Self::Space,
        Self::NonAscii,
        Self::MalformedEscape,
        Self::DoubleEscape,
        Self::NeedlessEscape,
        Self::LowercaseEscape,
        Self::EscapeNotUtf8,
        Self::Fragment,
        Self::ForbiddenByte,
    ];

    /// The stable name of this fault in logs, case tables and JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::AsteriskForm => "asterisk_form",
            Self::AbsoluteForm => "absolute_form",
            Self::AuthorityForm => "authority_form",
            Self::NotOriginForm => "not_origin_form",
            Self::EmptySegment => "empty_segment",
            Self::DotSegment => "dot_segment",
            Self::EncodedSlash => "encoded_slash",
            Self::EncodedBackslash => "encoded_backslash",
            Self::Backslash => "backslash",
            Self::EncodedControl => "encoded_control",
            Self::Control => "control",
            Self::Space => "space",
            Self::NonAscii => "non_ascii",
            Self::MalformedEscape => "malformed_escape",
            Self::DoubleEscape => "double_escape",
            Self::NeedlessEscape => "needless_escape",
            Self::LowercaseEscape => "lowercase_escape",
            Self::EscapeNotUtf8 => "escape_not_utf8",
            Self::Fragment => "fragment",
            Self::ForbiddenByte => "forbidden_byte",
        }
    }
}

impl<'a> Target<'a> {
    /// Accepts `raw` if it is canonical; the module documentation says what that is.
    ///
    /// - `raw`: the request target exactly as received, without limit of length (the caller's part).
    ///
    /// Linear in `raw.len()`, no allocation. A single `/` at the end is canonical, but no route ends so.
    ///
    /// # Errors
    ///
    /// The first fault met, reading from the left.
    ///
    /// # Source
    ///
    /// RFC 9112 section 3.2 (forms of a target), RFC 3986 sections 2 and 3.3 (characters), 6.2.2
    /// (equivalent spellings).
    pub fn parse(raw: &'a [u8]) -> Result<Self, TargetFault> {
        let Some((b'/', after_slash)) = raw.split_first() else {
            return Err(not_origin_form(raw));
        };
        let (path, query) = match after_slash.iter().position(|byte| *byte == b'?') {
            Some(mark) => (
                after_slash.get(..mark).unwrap_or_default(),
                after_slash.get(mark + 1..),
            ),
            None => (after_slash, None),
        };
        check_path(path)?;
        check_query(query.unwrap_or_default())?;
        let text = core::str::from_utf8(raw).map_err(|_| TargetFault::NonAscii)?;
        Ok(match text.split_once('?') {
            Some((path, query)) => Self {
                text,
                path,
                query: Some(query),
            },
            None => Self {
                text,
                path: text,
                query: None,
            },
        })
    }

    /// The whole target, byte for byte as parsed and as to be sent.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.text
    }

    /// The part before the first `?`; starts with `/`.
    #[must_use]
    pub const fn path(&self) -> &'a str {
        self.path
    }

    /// The part behind the first `?`; `None` when there is no `?`, empty when nothing follows it.
    #[must_use]
    pub const fn query(&self) -> Option<&'a str> {
        self.query
    }
}

/// Shows the path only: queries may hold secrets and belong in no log.
impl fmt::Debug for Target<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Target")
            .field("path", &self.path)
            .field("query_bytes", &self.query.map(str::len))
            .finish()
    }
}

/// Whether `byte` may stand plainly in a path segment (RFC 3986 `pchar` without escapes).
pub(crate) const fn is_segment_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}

const fn is_unreserved(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~')
}

/// `raw` does not start with `/`: says which of the other forms it looks like.
fn not_origin_form(raw: &[u8]) -> TargetFault {
    let port_like = |port: &[u8]| !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    match raw {
        [] => TargetFault::Empty,
        [b'*'] => TargetFault::AsteriskForm,
        _ if raw.windows(3).any(|three| three == b"://") => TargetFault::AbsoluteForm,
        _ if raw.rsplit(|byte| *byte == b':').next().is_some_and(port_like) && raw.contains(&b':') => {
            TargetFault::AuthorityForm
        }
        _ => TargetFault::NotOriginForm,
    }
}

/// Checks the path behind its first slash, segment by segment.
fn check_path(path: &[u8]) -> Result<(), TargetFault> {
    let mut empty_before = false;
    for segment in path.split(|byte| *byte == b'/') {
        if empty_before {
            return Err(TargetFault::EmptySegment);
        }
        empty_before = segment.is_empty();
        check_segment(segment)?;
    }
    Ok(())
}

fn check_segment(segment: &[u8]) -> Result<(), TargetFault> {
    if is_dot_segment(segment) {
        return Err(TargetFault::DotSegment);
    }
    let mut rest = segment;
    while let Some((byte, behind)) = rest.split_first() {
        rest = match *byte {
            b'%' => check_escape(behind)?,
            plain if is_segment_byte(plain) => behind,
            other => return Err(raw_fault(other)),
        };
    }
    Ok(())
}

/// Whether the segment is one or two dots, each plain or escaped, alone or before `;parameters`.
///
/// WHATWG URL parsers read `%2e` as a dot; Java servers cut `;parameters` off before they resolve dots.
fn is_dot_segment(segment: &[u8]) -> bool {
    let mut rest = segment;
    let mut dots = 0_u8;
    loop {
        rest = match rest {
            [b'.', behind @ ..] | [b'%', b'2', b'e' | b'E', behind @ ..] => behind,
            [] | [b';', ..] | [b'%', b'3', b'b' | b'B', ..] => return dots == 1 || dots == 2,
            _ => return false,
        };
        dots = dots.saturating_add(1);
    }
}

/// Checks one escape whose `%` is already read; returns what follows it.
fn check_escape(behind: &[u8]) -> Result<&[u8], TargetFault> {
    let (value, canonical_case, rest) = read_escape(behind)?;
    match value {
        b'/' => return Err(TargetFault::EncodedSlash),
        b'\\' => return Err(TargetFault::EncodedBackslash),
        0..=0x1F | 0x7F => return Err(TargetFault::EncodedControl),
        b'%' if matches!(rest, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()) => {
            return Err(TargetFault::DoubleEscape);
        }
        unreserved if is_unreserved(unreserved) => return Err(TargetFault::NeedlessEscape),
        _ => {}
    }
    if !canonical_case {
        return Err(TargetFault::LowercaseEscape);
    }
    if value < 0x80 {
        Ok(rest)
    } else {
        check_utf8(value, rest)
    }
}

/// Checks a character of several escaped bytes whose first byte is already read; returns what follows it.
fn check_utf8(first: u8, mut rest: &[u8]) -> Result<&[u8], TargetFault> {
    let width = match first {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return Err(TargetFault::EscapeNotUtf8),
    };
    let mut bytes = [first, 0, 0, 0];
    for slot in bytes.iter_mut().take(width).skip(1) {
        let Some((b'%', behind)) = rest.split_first() else {
            return Err(TargetFault::EscapeNotUtf8);
        };
        let (value, canonical_case, after) = read_escape(behind)?;
        if !canonical_case {
            return Err(TargetFault::LowercaseEscape);
        }
        *slot = value;
        rest = after;
    }
    let text = core::str::from_utf8(bytes.get(..width).unwrap_or_default());
    match text.map(|text| text.chars().any(char::is_control)) {
        Ok(false) => Ok(rest),
        Ok(true) => Err(TargetFault::EncodedControl),
        Err(_) => Err(TargetFault::EscapeNotUtf8),
    }
}

/// The value of the two hex digits in front, whether they are in upper case, and what follows.
fn read_escape(behind: &[u8]) -> Result<(u8, bool, &[u8]), TargetFault> {
    let [high, low, rest @ ..] = behind else {
        return Err(TargetFault::MalformedEscape);
    };
    match (hex_value(*high), hex_value(*low)) {
        (Some(high_value), Some(low_value)) => {
            let canonical_case = !high.is_ascii_lowercase() && !low.is_ascii_lowercase();
            Ok((high_value << 4 | low_value, canonical_case, rest))
        }
        _ => Err(TargetFault::MalformedEscape),
    }
}

/// The value of one hex digit, in either case.
pub(crate) const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The query: RFC 3986 characters, and `[ ] { } | ^`, which WHATWG clients send plainly and no parser
/// takes for a delimiter. A `%` needs nothing behind it.
fn check_query(query: &[u8]) -> Result<(), TargetFault> {
    let admitted = |byte: u8| {
        is_segment_byte(byte) || matches!(byte, b'/' | b'?' | b'%' | b'[' | b']' | b'{' | b'}' | b'|' | b'^')
    };
    match query.iter().find(|byte| !admitted(**byte)) {
        Some(byte) => Err(raw_fault(*byte)),
        None => Ok(()),
    }
}

const fn raw_fault(byte: u8) -> TargetFault {
    match byte {
        b' ' => TargetFault::Space,
        b'#' => TargetFault::Fragment,
        b'\\' => TargetFault::Backslash,
        0..=0x1F | 0x7F => TargetFault::Control,
        0x80.. => TargetFault::NonAscii,
        _ => TargetFault::ForbiddenByte,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_parsed_is_what_is_sent() {
        let target = Target::parse(b"/api/issues/PAP-1?a=%2F?b").expect("canonical");

        assert_eq!(target.as_str(), "/api/issues/PAP-1?a=%2F?b");
        assert_eq!(target.path(), "/api/issues/PAP-1");
        assert_eq!(target.query(), Some("a=%2F?b"));
    }

    #[test]
    fn an_empty_query_is_not_an_absent_one() {
        assert_eq!(Target::parse(b"/a?").expect("canonical").query(), Some(""));
        assert_eq!(Target::parse(b"/a").expect("canonical").query(), None);
    }

    #[test]
    fn what_begins_with_no_slash_is_named_by_what_it_looks_like() {
        for (raw, fault) in [
            (&b""[..], TargetFault::Empty),
            (b"*", TargetFault::AsteriskForm),
            (b"http://host/api", TargetFault::AbsoluteForm),
            (b"host:80", TargetFault::AuthorityForm),
            (b"80", TargetFault::NotOriginForm),
            (b"host:", TargetFault::NotOriginForm),
            (b"host:port", TargetFault::NotOriginForm),
            (b"api/issues", TargetFault::NotOriginForm),
        ] {
            assert_eq!(Target::parse(raw), Err(fault), "{raw:?}");
        }
    }

    #[test]
    fn raw_bytes_that_are_not_utf8_are_refused_wherever_they_stand() {
        for raw in [&b"/\xFF"[..], b"/a/\xC0\xAE", b"/a?\x80", b"/a\x80?"] {
            assert_eq!(Target::parse(raw), Err(TargetFault::NonAscii));
        }
    }

    #[test]
    fn every_single_byte_is_either_plain_in_a_path_or_a_fault() {
        let plain: alloc::vec::Vec<u8> = (0..=255)
            .filter(|byte| Target::parse(&[b'/', b'a', *byte, b'a']).is_ok())
            .collect();

        assert_eq!(
            core::str::from_utf8(&plain),
            Ok("!$&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
        );
    }

    #[test]
    fn the_query_never_shows_in_debug_output() {
        let target = Target::parse(b"/a?token=hunter2").expect("canonical");

        assert!(!std::format!("{target:?}").contains("hunter2"));
    }

    #[test]
    fn fault_codes_are_unique() {
        let codes: alloc::collections::BTreeSet<&str> =
            TargetFault::ALL.iter().map(|fault| fault.code()).collect();

        assert_eq!(codes.len(), TargetFault::ALL.len());
    }
}
