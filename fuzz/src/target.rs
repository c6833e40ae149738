//! The canonical form of a request target.
//!
//! Laws: `Target::parse` agrees with the slow reference; what it accepts is a fixed point, falls apart into path and
//! query and together again, is taken over unchanged by the `http` crate, and reads the same to a WHATWG URL parser
//! and to servers that decode once or twice.

use http::uri::PathAndQuery;
use policy::{Target, TargetFault, reference};

/// Takes the bytes as a raw request target.
///
/// # Panics
///
/// On a broken law.
pub fn target(data: &[u8]) {
    let parsed = Target::parse(data);
    assert_eq!(
        parsed.is_ok(),
        reference::is_canonical(data),
        "parser and reference disagree: {parsed:?}"
    );
    let target = match parsed {
        Ok(target) => target,
        Err(fault) => return assert!(TargetFault::ALL.contains(&fault), "{fault:?} is not listed"),
    };
    assert_eq!(
        target.as_str().as_bytes(),
        data,
        "what was parsed is not what is sent"
    );
    assert_eq!(
        Target::parse(target.as_str().as_bytes()),
        Ok(target),
        "no fixed point"
    );
    let together = match target.query() {
        Some(query) => format!("{}?{query}", target.path()),
        None => target.path().to_owned(),
    };
    assert_eq!(together.as_bytes(), data, "path and query are not the whole");
    let sent = PathAndQuery::try_from(data).expect("the http crate takes every canonical target");
    assert_eq!(
        sent.as_str().as_bytes(),
        data,
        "the http crate changes a canonical target"
    );
    assert_eq!(sent.path(), target.path());
    assert_eq!(sent.query(), target.query());
    one_reading(target.path());
}

/// Every reader on the way must find the same segments.
fn one_reading(path: &str) {
    assert_eq!(whatwg_path(path), path, "a WHATWG parser reads another path");
    let once = decode(path.as_bytes());
    let twice = decode(&once);
    assert_eq!(once, twice, "a second decoding changes the path");
    let text = String::from_utf8(once).expect("decoded paths are UTF-8");
    assert!(
        !text.contains(['\\']) && !text.chars().any(char::is_control),
        "decoded to {text:?}"
    );
    assert_eq!(
        text.matches('/').count(),
        path.matches('/').count(),
        "a segment's end is hidden in an escape"
    );
    let segments: Vec<&str> = text.split('/').collect();
    let (last, before) = segments.split_last().expect("split gives one part at least");
    assert!(
        before.iter().skip(1).all(|segment| !segment.is_empty()),
        "an empty segment"
    );
    for segment in before.iter().chain([last]) {
        let name = segment.split(';').next().unwrap_or_default();
        assert!(!matches!(name, "." | ".."), "a dot segment");
    }
}

/// `%XX` as its byte, in either case; a `%` without two digits stays (what lenient servers do).
fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hex digits are a byte"));
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// The path state of the WHATWG URL standard for a special scheme, on the path alone.
fn whatwg_path(path: &str) -> String {
    let cleaned: String = path
        .chars()
        .filter(|letter| !matches!(letter, '\t' | '\n' | '\r'))
        .collect();
    let mut segments: Vec<String> = Vec::new();
    let rest = cleaned.strip_prefix(['/', '\\']).unwrap_or(&cleaned);
    let parts: Vec<&str> = rest.split(['/', '\\']).collect();
    for (number, part) in parts.iter().enumerate() {
        let is_last = number + 1 == parts.len();
        match part.to_ascii_lowercase().replace("%2e", ".").as_str() {
            ".." => {
                segments.pop();
                if is_last {
                    segments.push(String::new());
                }
            }
            "." if is_last => segments.push(String::new()),
            "." => {}
            _ => segments.push(part.chars().map(whatwg_escape).collect()),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The path percent-encode set.
fn whatwg_escape(letter: char) -> String {
    let escaped = letter.is_control() || !letter.is_ascii() || " \"#<>?^`{}".contains(letter);
    if !escaped {
        return letter.to_string();
    }
    let mut buffer = [0; 4];
    letter
        .encode_utf8(&mut buffer)
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_readers_see_what_browsers_and_servers_see() {
        assert_eq!(whatwg_path("/a/%2E%2e/b\\c/./d/.."), "/b/c/");
        assert_eq!(whatwg_path("/a b\t/{x}"), "/a%20b/%7Bx%7D");
        assert_eq!(decode(b"/%2f%%41%4"), b"//%A%4");
    }
}
