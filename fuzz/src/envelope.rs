//! Envelopes of the file queue, requests as the host reads them and responses as the gateway does.
//!
//! Laws: a slow reading of the same JSON takes and refuses the same envelopes, and finds the same values in them; only
//! the id of the file's name passes; what passes is written as one line, and reads and writes the same again; neither
//! the body nor the envelope is over its limit, to the byte; base64 has one spelling; no header is one that HTTP could
//! not carry; the published reading takes all that the strict one takes, and takes it alike; a file name that stands
//! for an entry can only be a file of its own folder.

use std::borrow::Cow;
use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use wire::encoding::{decode_base64, decode_body};
use wire::envelope::{
    EnvelopeBody, EnvelopeFault, Field, MAX_HEADER_BYTES, MAX_HEADERS, MAX_ID_BYTES, MAX_METHOD_BYTES,
    MAX_SHORT_TEXT_BYTES, MAX_TARGET_BYTES, Reading, RequestEnvelope, ResponseEnvelope, entry_id,
    envelope_limit,
};

/// The id that seeds hold.
const ID: &str = "8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11";
/// Bytes of a body: few, so that seeds pass them.
const LIMIT: usize = 64;

/// Takes the bytes as an envelope in either direction, as a body, and as a file's name.
///
/// # Panics
///
/// On a broken law.
pub fn envelope(data: &[u8]) {
    let known: Option<Map<String, Value>> = serde_json::from_slice(data).ok();
    request(data, known.as_ref());
    for reading in [Reading::Strict, Reading::AsPublished] {
        response(data, known.as_ref(), reading);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        base64(text);
        file_name(text);
    }
}

fn request(data: &[u8], known: Option<&Map<String, Value>>) {
    let parsed = RequestEnvelope::parse(data, ID, LIMIT);
    if parsed.is_ok() {
        let other = RequestEnvelope::parse(data, "other", LIMIT);
        assert_eq!(other, Err(EnvelopeFault::OtherId));
    }
    verdicts_agree(data, known, parsed.as_ref().err(), |known| {
        let path = short(known, "path", MAX_TARGET_BYTES)?;
        let query = short(known, "query", MAX_TARGET_BYTES - path.len())?;
        let target = !path.is_empty() && !path.contains('?') && (query.is_empty() || query.starts_with('?'));
        let method = short(known, "method", MAX_METHOD_BYTES)?;
        let told = known.get("host").is_none() || short(known, "host", MAX_SHORT_TEXT_BYTES).is_some();
        let sound = short(known, "id", MAX_ID_BYTES)? == ID
            && short(known, "createdAt", MAX_SHORT_TEXT_BYTES).is_some()
            && is_token(method)
            && target
            && told;
        headers(known.get("headers")?.as_object()?, false)?;
        body(known)?;
        Some(sound)
    });
    let Ok(parsed) = parsed else { return };
    if let Some(known) = known {
        let text = |key: &str| known.get(key).and_then(Value::as_str);
        assert_eq!(Some(parsed.id.as_str()), text("id"));
        assert_eq!(Some(parsed.method.as_str()), text("method"));
        assert_eq!(Some(parsed.path.as_str()), text("path"));
        assert_eq!(Some(parsed.query.as_str()), text("query"));
        assert_eq!(parsed.host.as_deref(), text("host"));
        assert_eq!(Some(parsed.created_at.as_str()), text("createdAt"));
        assert_eq!(Some(parsed.body.clone().into_bytes().to_vec()), body(known));
        same_headers(&parsed.headers, known, false);
    }
    carriable(&parsed.headers);
    within(&parsed.body);
    let written = parsed.to_bytes();
    is_one_line(&written);
    let again = RequestEnvelope::parse(&written, ID, LIMIT).expect("what was written can be read");
    assert_eq!(again, parsed);
    assert_eq!(again.to_bytes(), written);
    size(data, |bytes| RequestEnvelope::parse(bytes, ID, LIMIT), &parsed);
}

fn response(data: &[u8], known: Option<&Map<String, Value>>, reading: Reading) {
    let strict = reading == Reading::Strict;
    let parse = |bytes: &[u8]| ResponseEnvelope::parse(bytes, ID, LIMIT, reading);
    let parsed = parse(data);
    verdicts_agree(data, known, parsed.as_ref().err(), |known| {
        let number = known.get("status").and_then(Value::as_f64);
        let status = number.map_or(!strict, |number| {
            (!strict || number.fract() == 0.0) && (200.0..1000.0).contains(&number)
        });
        if strict {
            let id = short(known, "id", MAX_ID_BYTES)?;
            short(known, "completedAt", MAX_SHORT_TEXT_BYTES)?;
            headers(known.get("headers")?.as_object()?, false)?;
            body(known)?;
            return Some(id == ID && status);
        }
        if let Some(Value::Object(object)) = known.get("headers") {
            headers(object, true)?;
        }
        body(known)?;
        Some(status)
    });
    let Ok(parsed) = parsed else { return };
    if let Some(known) = known {
        let status = known.get("status").and_then(Value::as_f64).unwrap_or(200.0);
        assert!((f64::from(parsed.status.as_u16()) - status.trunc()).abs() < f64::EPSILON);
        assert_eq!(Some(parsed.body.clone().into_bytes().to_vec()), body(known));
        same_headers(&parsed.headers, known, !strict);
    }
    carriable(&parsed.headers);
    within(&parsed.body);
    let written = parsed.to_bytes();
    is_one_line(&written);
    assert_eq!(parse(&written).as_ref(), Ok(&parsed));
    size(data, parse, &parsed);
    if strict {
        assert_eq!(parsed.id, ID);
        let loose = ResponseEnvelope::parse(data, ID, LIMIT, Reading::AsPublished)
            .expect("the published reading takes what the strict one takes");
        assert_eq!(
            (loose.status, &loose.headers, &loose.body),
            (parsed.status, &parsed.headers, &parsed.body)
        );
        assert_eq!(loose.is_indeterminate(), parsed.is_indeterminate());
    }
}

/// The product and the slow reading say the same, as far as the slow one can see.
fn verdicts_agree(
    data: &[u8],
    known: Option<&Map<String, Value>>,
    fault: Option<&EnvelopeFault>,
    sound: impl Fn(&Map<String, Value>) -> Option<bool>,
) {
    let shown = || data.escape_ascii().to_string();
    match (known, fault) {
        (Some(known), None) => assert_eq!(sound(known), Some(true), "taken: {}", shown()),
        // The slow reading keeps the last of two, and does not count what it has dropped.
        (Some(_), Some(EnvelopeFault::Twice(_) | EnvelopeFault::TooLong(Field::Headers)))
        | (None, Some(_)) => {}
        (Some(known), Some(fault)) => assert_ne!(sound(known), Some(true), "{fault}: {}", shown()),
        // Behind a key that is passed over, it minds numbers and texts that nobody looks at.
        (None, None) => {
            let minds = std::str::from_utf8(data).is_err()
                || data.contains(&b'\\')
                || data.iter().any(|byte| matches!(byte, b'e' | b'E' | b'0'..=b'9'));
            assert!(minds, "taken, and no JSON: {}", shown());
        }
    }
}

fn short<'a>(known: &'a Map<String, Value>, key: &str, most: usize) -> Option<&'a str> {
    known.get(key)?.as_str().filter(|text| text.len() <= most)
}

/// The headers in their one spelling, sorted; `None` where one of them cannot be.
fn headers(object: &Map<String, Value>, loose: bool) -> Option<BTreeSet<(String, Vec<u8>)>> {
    let mut found = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut held = 0;
    if object.len() > MAX_HEADERS {
        return None;
    }
    for (name, value) in object {
        let Some(text) = value.as_str() else {
            if loose {
                continue;
            }
            return None;
        };
        held += name.len() + text.len();
        let bytes: Option<Vec<u8>> = text
            .chars()
            .map(|character| u8::try_from(u32::from(character)).ok())
            .collect();
        let bytes = bytes.filter(|bytes| bytes.iter().all(|byte| is_value_byte(*byte)))?;
        let name = name.to_ascii_lowercase();
        if !is_token(&name) || !names.insert(name.clone()) || held > MAX_HEADER_BYTES {
            return None;
        }
        found.insert((name, bytes));
    }
    Some(found)
}

fn same_headers(parsed: &HeaderMap, known: &Map<String, Value>, loose: bool) {
    let expected = known
        .get("headers")
        .and_then(Value::as_object)
        .map_or_else(|| Some(BTreeSet::new()), |object| headers(object, loose));
    let found = parsed
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    assert_eq!(expected, Some(found));
}

fn carriable(headers: &HeaderMap) {
    assert!(headers.len() <= MAX_HEADERS && headers.len() == headers.keys_len());
    for (name, value) in headers {
        assert!(is_token(name.as_str()), "{name:?}");
        assert!(
            !name.as_str().bytes().any(|byte| byte.is_ascii_uppercase()),
            "{name:?}"
        );
        assert!(
            value.as_bytes().iter().all(|byte| is_value_byte(*byte)),
            "{value:?}"
        );
        assert!(HeaderValue::from_bytes(value.as_bytes()).is_ok(), "{value:?}");
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

/// RFC 9110 section 5.5, with everything above ASCII.
fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// The body's bytes, if it is acceptable.
fn body(known: &Map<String, Value>) -> Option<Vec<u8>> {
    let text = known.get("body")?.as_str()?;
    let bytes = match known.get("bodyEncoding").map(|encoding| encoding.as_str()) {
        None | Some(Some("utf8")) => text.as_bytes().to_vec(),
        Some(Some("base64")) => slow_base64(text)?,
        Some(_) => return None,
    };
    (bytes.len() <= LIMIT).then_some(bytes)
}

fn within(body: &EnvelopeBody) {
    assert!(body.clone().into_bytes().len() <= LIMIT, "{body:?}");
}

fn is_one_line(written: &[u8]) {
    let shown = written.escape_ascii();
    assert!(written.ends_with(b"}\n"), "{shown}");
    let ends = written.iter().filter(|byte| **byte < b' ').count();
    assert_eq!(ends, 1, "{shown}");
    assert!(
        serde_json::from_slice::<Map<String, Value>>(written).is_ok(),
        "{shown}"
    );
}

/// Blanks behind an envelope change nothing up to the limit, and one more is too many.
fn size<T: PartialEq + std::fmt::Debug>(
    data: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, EnvelopeFault>,
    parsed: &T,
) {
    let limit = envelope_limit(LIMIT);
    assert!(data.len() <= limit);
    let mut longer = data.to_vec();
    longer.resize(limit, b' ');
    assert_eq!(parse(&longer).as_ref(), Ok(parsed));
    longer.push(b' ');
    assert_eq!(parse(&longer), Err(EnvelopeFault::TooLarge { limit }));
}

fn base64(text: &str) {
    let expected = slow_base64(text);
    let most = expected.as_ref().map_or(text.len(), Vec::len);
    let decoded = decode_base64(text, most).ok().map(|bytes| bytes.to_vec());
    assert_eq!(decoded, expected, "{text:?}");
    let less = most.saturating_sub(1);
    if less < most && expected.is_some() {
        assert!(decode_base64(text, less).is_err(), "{text:?} in {less}");
    }
    for encoding in [None, Some("utf8"), Some("base64"), Some("hex")] {
        let decoded = decode_body(Cow::Borrowed(text), encoding, LIMIT);
        let expected = match encoding {
            None | Some("utf8") => Some(text.as_bytes().to_vec()),
            Some("base64") => expected.clone(),
            Some(_) => None,
        };
        let expected = expected.filter(|bytes| bytes.len() <= LIMIT);
        assert_eq!(
            decoded.ok().map(|bytes| bytes.to_vec()),
            expected,
            "{text:?} as {encoding:?}"
        );
    }
}

/// RFC 4648 section 4, bit by bit: padded, no other characters, bits behind the end zero.
pub(crate) fn slow_base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text
        .strip_suffix("==")
        .or_else(|| text.strip_suffix('='))
        .unwrap_or(text);
    let mut bits = Vec::new();
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|letter| *letter == digit)?;
        bits.extend((0..6).rev().map(|bit| value >> bit & 1));
    }
    let (whole, left) = bits.split_at(bits.len() / 8 * 8);
    let padding = text.len() - digits.len();
    if left.len() != padding * 2 || left.contains(&1) {
        return None;
    }
    let byte = |eight: &[usize]| eight.iter().fold(0, |byte, bit| byte << 1 | bit);
    whole
        .chunks(8)
        .map(|eight| u8::try_from(byte(eight)).ok())
        .collect()
}

fn file_name(text: &str) {
    let expected = text.strip_suffix(".json").filter(|stem| {
        let plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        let first = stem.chars().next();
        stem.chars().all(plain)
            && first.is_some_and(|first| first != '.' && first != '-')
            && stem.len() <= MAX_ID_BYTES
    });
    assert_eq!(entry_id(text), expected, "{text:?}");
    if entry_id(text).is_some() {
        let mut parts = std::path::Path::new(text).components();
        let only = parts.next();
        assert!(
            matches!(only, Some(std::path::Component::Normal(_))) && parts.next().is_none(),
            "{text:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_base64_knows_the_examples_of_its_rfc_and_refuses_their_neighbours() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
        ] {
            assert_eq!(slow_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for text in [
            "Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "Zm9v\n", "====", "-_==", "Z===",
        ] {
            assert_eq!(slow_base64(text), None, "{text}");
        }
    }
}
