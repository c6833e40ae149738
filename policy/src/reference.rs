//! The same answers, worked out slowly: for tests and fuzzing only.
//!
//! Here: the canonical form and the decision again, written as directly as their definitions read, with
//! allocation and backtracking and without the index, the matcher or the scanner of the real code.
//! A difference between the two is a mistake in one of them. Not for production: the cost is unbounded.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::rule::{Effect, RuleView};
use crate::rules::Rules;

/// Whether `raw` is a request target in canonical form.
#[must_use]
pub fn is_canonical(raw: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(raw) else {
        return false;
    };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    path.starts_with('/')
        && text
            .chars()
            .all(|letter| letter.is_ascii_graphic() && !"#\\<>\"`".contains(letter))
        && !path.contains(['{', '}', '|', '^', '[', ']'])
        && !path.contains("//")
        && path.split('/').all(segment_is_canonical)
        && query.is_ascii()
}

/// Whether `rules` allow a call, by going through every rule.
#[must_use]
pub fn allows(rules: &Rules, method: &str, raw_target: &[u8], now_unix: u64) -> bool {
    let Some(target) = core::str::from_utf8(raw_target)
        .ok()
        .filter(|_| is_canonical(raw_target))
    else {
        return false;
    };
    let path = target.split('?').next().unwrap_or_default();
    let live: Vec<RuleView<'_>> = rules
        .views()
        .filter(|rule| rule.expires_unix.is_none_or(|expires| now_unix < expires))
        .collect();
    let denied = live.iter().any(|rule| {
        let head = rule.method == "GET" && method == "HEAD";
        rule.effect == Effect::Deny
            && (rule.method == "*" || rule.method == method || head)
            && spelt_out(rule)
                .iter()
                .any(|template| matches_broadly(template, path))
    });
    !denied
        && live.iter().any(|rule| {
            rule.effect == Effect::Allow
                && rule.method == method
                && spelt_out(rule).iter().any(|template| matches(template, path))
        })
}

/// Whether `template` matches the whole of `path`, byte for byte.
#[must_use]
pub fn matches(template: &str, path: &str) -> bool {
    matches_from(&pieces(template), path.as_bytes())
}

/// Whether `template` matches `path` with escapes decoded and ASCII case ignored on both sides.
#[must_use]
pub fn matches_broadly(template: &str, path: &str) -> bool {
    let folded: Vec<Piece> = pieces(template)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => Piece::Text(fold(&text)),
            Piece::Parameter => Piece::Parameter,
        })
        .collect();
    matches_from(&folded, &fold(path.as_bytes()))
}

enum Piece {
    Text(Vec<u8>),
    /// One or more bytes other than `/`.
    Parameter,
}

/// The rule's templates with every constrained parameter replaced by each of its values in turn.
fn spelt_out(rule: &RuleView<'_>) -> Vec<String> {
    let mut templates = Vec::from([String::from(rule.path)]);
    for (parameter, values) in &rule.constraints {
        let hole = format!("{{{parameter}}}");
        templates = templates
            .iter()
            .flat_map(|template| values.iter().map(|value| template.replace(&hole, value)))
            .collect();
    }
    templates
}

fn pieces(template: &str) -> Vec<Piece> {
    let mut found = Vec::new();
    for (number, part) in template.split('{').enumerate() {
        let text = match part.split_once('}') {
            Some((_name, text)) if number > 0 => {
                found.push(Piece::Parameter);
                text
            }
            _ => part,
        };
        found.push(Piece::Text(text.as_bytes().to_vec()));
    }
    found
}

fn matches_from(pieces: &[Piece], path: &[u8]) -> bool {
    match pieces.split_first() {
        None => path.is_empty(),
        Some((Piece::Text(text), rest)) => path
            .strip_prefix(text.as_slice())
            .is_some_and(|behind| matches_from(rest, behind)),
        Some((Piece::Parameter, rest)) => (1..=path.len())
            .take_while(|length| path.get(length - 1) != Some(&b'/'))
            .any(|length| matches_from(rest, path.get(length..).unwrap_or_default())),
    }
}

fn fold(text: &[u8]) -> Vec<u8> {
    decode(text).unwrap_or_else(|| text.to_vec()).to_ascii_lowercase()
}

/// `text` with each escape replaced by its byte; `None` when one is malformed.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut parts = text.split(|byte| *byte == b'%');
    let mut decoded = parts.next()?.to_vec();
    for part in parts {
        let digits = part
            .get(..2)
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        decoded.push(u8::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()?);
        decoded.extend(part.get(2..)?);
    }
    Some(decoded)
}

fn segment_is_canonical(segment: &str) -> bool {
    let Some(decoded) = decode(segment.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return false;
    };
    let escapes = || segment.split('%').skip(1).filter_map(|part| part.get(..2));
    let needed = |letter: char| !letter.is_ascii_alphanumeric() && !"-._~/\\".contains(letter);
    ![".", ".."].contains(&decoded.split(';').next().unwrap_or_default())
        && escapes().all(|digits| !digits.contains(|digit: char| digit.is_ascii_lowercase()))
        && escapes().all(|digits| u8::from_str_radix(digits, 16).is_ok_and(|byte| needed(char::from(byte))))
        && !decoded.contains(char::is_control)
        && decode_again_changes_nothing(&decoded)
}

/// Whether no `%` in the decoded text is followed by two hex digits.
fn decode_again_changes_nothing(decoded: &str) -> bool {
    decoded.as_bytes().windows(3).all(
        |three| !matches!(three, [b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()),
    )
}
