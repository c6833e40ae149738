//! The one form in which path, query and context are signed.
//!
//! Here: [`CanonicalTarget`]. Not here: [`crate::path`], the stricter form of callbacks; a Worker's client may escape more
//! than is needed, and a lease's name may hold an escaped slash. Each part is decoded once and encoded again, so that
//! two spellings of one target have one signature. Refused is what another reader could take for another target: a Worker's
//! URL parser resolves dot segments, escaped ones too, turns `\` into `/`, and drops tabs and line ends.

use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;

/// Longest target, in bytes; a Worker takes no longer URL.
const MAX_TARGET_BYTES: usize = 16 * 1024;

/// Path and query as they are signed.
///
/// ```
/// use policy::envelope::{CanonicalTarget, TargetRefusal};
///
/// let target = CanonicalTarget::parse("/leases/pc%2fenv%20x?b=2&a=%7e&a=&c")?;
/// assert_eq!(target.path(), "/leases/pc%2Fenv%20x");
/// assert_eq!(target.query(), "a=&a=~&b=2&c=");
/// assert_eq!(CanonicalTarget::parse("/a/%2e%2E/b"), Err(TargetRefusal::DotSegment));
/// # Ok::<(), TargetRefusal>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalTarget {
    path: String,
    query: String,
}

/// Why a target is neither signed nor accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TargetRefusal {
    /// It does not start with `/`: a whole URL, `*`, or nothing.
    #[error("the target must be a path that starts with `/`")]
    NotAPath,
    /// Longer than 16 KiB.
    #[error("the target is longer than {MAX_TARGET_BYTES} bytes")]
    TooLong,
    /// A control character, a space, `#`, `\`, or a byte outside ASCII.
    #[error("the target has a character that must be percent-encoded")]
    ForbiddenByte,
    /// A segment that is, or decodes to, `.` or `..`.
    #[error("the path has a dot segment (`.` or `..`, plain or escaped); send the path already resolved")]
    DotSegment,
    /// `%` without two hex digits behind it.
    #[error("the target has a `%` that is not followed by two hex digits; a plain `%` is written `%25`")]
    BadEscape,
    /// Escaped bytes that are not UTF-8.
    #[error("the escapes in the target are not UTF-8")]
    NotUtf8,
}

impl CanonicalTarget {
    /// Takes a target as it stands in the request line.
    ///
    /// # Errors
    ///
    /// [`TargetRefusal`].
    pub fn parse(target: &str) -> Result<Self, TargetRefusal> {
        if target.len() > MAX_TARGET_BYTES {
            return Err(TargetRefusal::TooLong);
        }
        if !target.starts_with('/') {
            return Err(TargetRefusal::NotAPath);
        }
        let fits = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'#' && byte != b'\\';
        if !target.bytes().all(fits) {
            return Err(TargetRefusal::ForbiddenByte);
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Self {
            path: canonical_path(path)?,
            query: canonical_query(query)?,
        })
    }

    /// Begins with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Sorted, without `?`; empty for none.
    #[must_use]
    pub fn query(&self) -> &str {
        &self.query
    }
}

fn canonical_path(path: &str) -> Result<String, TargetRefusal> {
    let mut canonical = String::with_capacity(path.len());
    for (number, segment) in path.split('/').enumerate() {
        if number > 0 {
            canonical.push('/');
        }
        let segment = decode(segment)?;
        if segment == b"." || segment == b".." {
            return Err(TargetRefusal::DotSegment);
        }
        encode(&segment, &mut canonical);
    }
    Ok(canonical)
}

fn canonical_query(query: &str) -> Result<String, TargetRefusal> {
    let mut items = Vec::new();
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=').unwrap_or((item, ""));
        let mut canonical = (String::new(), String::new());
        encode(&decode(name)?, &mut canonical.0);
        encode(&decode(value)?, &mut canonical.1);
        items.push(canonical);
    }
    items.sort();
    let mut canonical = String::with_capacity(query.len() + 1);
    for (number, (name, value)) in items.iter().enumerate() {
        if number > 0 {
            canonical.push('&');
        }
        canonical.push_str(name);
        canonical.push('=');
        canonical.push_str(value);
    }
    Ok(canonical)
}

fn decode(text: &str) -> Result<Vec<u8>, TargetRefusal> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(TargetRefusal::BadEscape);
        };
        decoded.push(u8::try_from(high << 4 | low).map_err(|_| TargetRefusal::BadEscape)?);
    }
    if core::str::from_utf8(&decoded).is_err() {
        return Err(TargetRefusal::NotUtf8);
    }
    Ok(decoded)
}

/// Escapes everything but the unreserved characters of RFC 3986 section 2.3, with upper-case digits.
pub(super) fn encode(bytes: &[u8], into: &mut String) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                into.push(char::from(*byte))
            }
            _ => {
                into.push('%');
                into.extend(DIGITS.get(usize::from(byte >> 4)));
                into.extend(DIGITS.get(usize::from(byte & 15)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    fn canonical(target: &str) -> Result<String, TargetRefusal> {
        let target = CanonicalTarget::parse(target)?;
        Ok([target.path(), "?", target.query()].concat())
    }

    #[test]
    fn each_part_is_decoded_once_and_encoded_again() {
        for (raw, wanted) in [
            ("/", "/?"),
            ("/?", "/?"),
            ("//a//", "//a//?"),
            ("/a%2fb/%2F", "/a%2Fb/%2F?"),
            ("/%61%7E%20%c3%a9", "/a~%20%C3%A9?"),
            ("/%2561", "/%2561?"),
            ("/a+b*(c)'!", "/a%2Bb%2A%28c%29%27%21?"),
            ("/.../..a/%2e%2e%2f", "/.../..a/..%2F?"),
            ("/%00%0a", "/%00%0A?"),
            ("/a?b+c=d+e", "/a?b%2Bc=d%2Be"),
            ("/a?&&b&&", "/a?b="),
            ("/a?=", "/a?="),
            ("/a?b=c=d?e/f", "/a?b=c%3Dd%3Fe%2Ff"),
            ("/a?z=1&a=2&a=1&a", "/a?a=&a=1&a=2&z=1"),
            ("/a?~=1&%C3%A9=2", "/a?%C3%A9=2&~=1"),
            ("/a?a-=1&a=2", "/a?a=2&a-=1"),
            ("/a?b=../..", "/a?b=..%2F.."),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(wanted), "{raw}");
        }
    }

    #[test]
    fn what_another_reader_could_take_for_another_target_is_refused() {
        use TargetRefusal::{BadEscape, DotSegment, ForbiddenByte, NotAPath, NotUtf8};
        for (raw, fault) in [
            ("", NotAPath),
            ("*", NotAPath),
            ("a", NotAPath),
            ("?a", NotAPath),
            ("http://host/a", NotAPath),
            (" /a", NotAPath),
            ("/a b", ForbiddenByte),
            ("/a\tb", ForbiddenByte),
            ("/a\nb", ForbiddenByte),
            ("/a\u{7f}", ForbiddenByte),
            ("/a#b", ForbiddenByte),
            ("/a?b#", ForbiddenByte),
            ("/a\\b", ForbiddenByte),
            ("/é", ForbiddenByte),
            ("/.", DotSegment),
            ("/a/..", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/%2e/b", DotSegment),
            ("/a/.%2E/b", DotSegment),
            ("/%2e%2e", DotSegment),
            ("/%", BadEscape),
            ("/%4", BadEscape),
            ("/%4/", BadEscape),
            ("/%+4", BadEscape),
            ("/%zz", BadEscape),
            ("/a?b=%", BadEscape),
            ("/a?%g0", BadEscape),
            ("/%ff", NotUtf8),
            ("/%c0%af", NotUtf8),
            ("/%ed%a0%80", NotUtf8),
            ("/%c3/%a9", NotUtf8),
            ("/a?b=%80", NotUtf8),
        ] {
            assert_eq!(canonical(raw), Err(fault), "{raw:?}");
        }
        let long = "/".to_string() + &"a".repeat(MAX_TARGET_BYTES);
        assert_eq!(canonical(&long), Err(TargetRefusal::TooLong));
    }
}
