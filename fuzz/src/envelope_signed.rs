//! Signed requests, as a Worker or an auditor would get them; `envelope` is the file queue's, another thing.
//!
//! Laws: a slow reading, written from the format's description, takes and refuses the same requests with the same codes;
//! what is taken has a signature over the eleven lines that the slow reading finds; it is taken once; one byte more in its
//! body is refused; signing it again gives the same signature; the canonical form of a target is canonical; a relay
//! bearer that is taken is the one that would be minted; a host that a URL names is the one to insist on.
//!
//! The input is `METHOD TARGET`, header fields a line each, an empty line, the body. `{sig}` stands for the good signature,
//! where the slow reading can find one: no mutation would.

use std::cell::RefCell;
use std::collections::BTreeMap;

use policy::TokenDigest;
use policy::envelope::{
    CanonicalTarget, KeyId, KeyRing, Nonce, Received, Refusal, RelayBearer, SeenNonces, SigningKey, Stamp,
    Unsigned, Validity, Verifier, host_header, insist_on_host, sign,
};
use sha2::{Digest as _, Sha256};

const NOW: u64 = 1_767_225_600;
const HOST: &str = "bridge.example.dev";
const MAX_BODY: usize = 64;

/// Takes the bytes as a signed request, and the first line as a URL and a relay bearer.
///
/// # Panics
///
/// On a broken law.
pub fn envelope_signed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.split('\n');
    let first = lines.next().unwrap_or_default();
    url_and_bearer(first);
    let (method, target) = first.split_once(' ').unwrap_or((first, ""));
    let mut fields: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let lines = slow_lines(method, target, &fields, body);
    let good = lines.as_ref().map(|lines| hex(&slow_hmac(lines)));
    for (_, value) in &mut fields {
        *value = value.replace("{sig}", good.as_deref().unwrap_or_default());
    }

    let nonces = RefCell::new(SeenNonces::default());
    let verdict = verdict(method, target, &fields, body, &nonces);

    let expected = slow_verdict(method, target, &fields, body, good.as_deref());
    assert_eq!(verdict, expected, "{method} {target} {fields:?}");
    if verdict == "ok" {
        let again = self::verdict(method, target, &fields, body, &nonces);
        assert_eq!(again, "nonce_replayed");
        let longer = format!("{body}x");
        let changed = self::verdict(method, target, &fields, &longer, &nonces);
        assert_eq!(changed, "content_hash_mismatch");
        signs_alike(method, target, &fields, body, good.as_deref().unwrap_or_default());
    }
    if let Ok(once) = CanonicalTarget::parse(target) {
        assert_eq!(
            slow_target(target),
            Some((once.path().to_owned(), once.query().to_owned()))
        );
        let again = CanonicalTarget::parse(&format!("{}?{}", once.path(), once.query()));
        assert_eq!(again, Ok(once));
    }
}

fn key() -> Vec<u8> {
    (0..32).collect()
}

fn ring() -> KeyRing {
    let mut ring = KeyRing::default();
    let key = SigningKey::from_bytes(key()).expect("long enough");
    let id = KeyId::parse("k1").expect("a key id");
    ring.add(id, key, Validity::default()).expect("the only one");
    ring
}

fn verdict(
    method: &str,
    target: &str,
    fields: &[(String, String)],
    body: &str,
    nonces: &RefCell<SeenNonces>,
) -> &'static str {
    let headers: Vec<(&str, &[u8])> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let received = Received {
        method,
        target,
        headers: &headers,
        has_trailers: false,
        body: body.as_bytes(),
    };
    let verifier = Verifier::new(ring(), [HOST], MAX_BODY, Some(TokenDigest::of(b"b")));
    let verdict = verifier.verify(&received, nonces, NOW);
    verdict.map_or_else(Refusal::code, |_| "ok")
}

/// Everything again, slowly: fields are counted, then read.
fn slow_verdict(
    method: &str,
    target: &str,
    fields: &[(String, String)],
    body: &str,
    good: Option<&str>,
) -> &'static str {
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, value) in fields {
        found.entry(name.to_ascii_lowercase()).or_default().push(value);
    }
    let all = |name: &str| found.get(name).cloned().unwrap_or_default();
    let hosts: Vec<&String> = fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("host") || name == ":authority")
        .map(|(_, value)| value)
        .collect();
    if hosts.is_empty() || hosts.iter().any(|host| !host.eq_ignore_ascii_case(HOST)) {
        return "host_mismatch";
    }
    // Only the names of HTTP/2 have a colon, and no capitals.
    let colon = |name: &str| name.starts_with(':') && name != ":authority";
    if slow_fields(method, target, &found).is_none() || fields.iter().any(|(name, _)| colon(name)) {
        return "invalid_request";
    }
    let only = |name: &str| all(name).first().copied().unwrap_or_default();
    let timestamp: u64 = only("x-paperclip-timestamp").parse().expect("it was read");
    if NOW.abs_diff(timestamp) > 300 {
        return "timestamp_out_of_window";
    }
    if only("x-paperclip-key-id") != "k1" {
        return "unknown_key";
    }
    if body.len() > MAX_BODY || hex(&Sha256::digest(body)) != only("x-paperclip-content-sha256") {
        return "content_hash_mismatch";
    }
    let length = only("content-length").parse::<usize>().ok();
    if length.is_some_and(|length| length != body.len()) {
        return "invalid_request";
    }
    let good = format!("v1={}", good.expect("what was read has eleven lines"));
    let mut signatures = only("x-paperclip-signature").split(',');
    if !signatures.any(|signature| signature.trim_matches(' ') == good) {
        return "signature_invalid";
    }
    let authorization = only("authorization");
    let scheme = authorization.get(..7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer ") || authorization.get(7..) != Some("b") {
        return "unauthorized";
    }
    "ok"
}

/// `Some` where the header can be read, and in one way only.
fn slow_fields(method: &str, target: &str, found: &BTreeMap<String, Vec<&str>>) -> Option<()> {
    let demand = |held: bool| held.then_some(());
    demand(slow_method(method) && slow_target(target).is_some())?;
    for (name, values) in found {
        demand(name == ":authority" || is_token(name))?;
        demand(
            values
                .iter()
                .all(|value| !value.chars().any(|c| c.is_ascii_control() && c != '\t')),
        )?;
    }
    demand(!found.contains_key("content-encoding"))?;
    let alone = [
        "host",
        ":authority",
        "authorization",
        "content-type",
        "content-length",
        "transfer-encoding",
        "x-paperclip-environment-id",
        "x-paperclip-issue-id",
        "x-paperclip-run-id",
        "x-paperclip-key-id",
        "x-paperclip-timestamp",
        "x-paperclip-nonce",
        "x-paperclip-content-sha256",
        "x-paperclip-signature",
    ];
    demand(
        alone
            .iter()
            .all(|name| found.get(*name).is_none_or(|values| values.len() == 1)),
    )?;
    let get = |name: &str| found.get(name).and_then(|values| values.first()).copied();
    if let (Some(host), Some(authority)) = (get("host"), get(":authority")) {
        demand(host == authority)?;
    }
    for name in ["environment-id", "issue-id", "run-id"] {
        if let Some(value) = get(&format!("x-paperclip-{name}")) {
            demand(is_visible(value) && !value.is_empty() && value.trim_matches(' ') == value)?;
        }
    }
    demand(is_visible(get("content-type").unwrap_or_default().trim_ascii()))?;
    let coding = get("transfer-encoding");
    demand(coding.is_none_or(|coding| coding.eq_ignore_ascii_case("chunked")))?;
    if let Some(length) = get("content-length") {
        demand(coding.is_none() && !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()))?;
        demand(length.parse::<u64>().is_ok())?;
    }
    let key_id = get("x-paperclip-key-id")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    demand((1..=64).contains(&key_id.len()) && key_id.chars().all(plain))?;
    let timestamp = get("x-paperclip-timestamp")?;
    demand(
        timestamp
            .parse::<u64>()
            .is_ok_and(|number| number.to_string() == timestamp),
    )?;
    demand(is_nonce(get("x-paperclip-nonce")?))?;
    demand(is_hash(get("x-paperclip-content-sha256")?))?;
    let list = get("x-paperclip-signature")?;
    let signatures: Vec<&str> = list.split(',').collect();
    let one = |text: &&str| text.trim_matches(' ').strip_prefix("v1=").is_some_and(is_hash);
    demand(signatures.len() <= 3 && signatures.iter().all(one) && list.trim_matches(' ') == list)
}

/// The eleven lines, if there are some.
fn slow_lines(method: &str, target: &str, fields: &[(String, String)], body: &str) -> Option<String> {
    let get = |wanted: &str| {
        let mut named = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.next().map(|(_, value)| value.as_str())
    };
    let (path, query) = slow_target(target)?;
    let mut context = vec![];
    for name in ["environment-id", "issue-id", "run-id"] {
        if let Some(value) = get(&format!("x-paperclip-{name}")) {
            context.push(format!("{name}={}", encode(value.as_bytes())));
        }
    }
    let host = get("host").or_else(|| get(":authority"))?;
    Some(format!(
        "PCS1-HMAC-SHA256\n{}\n{}\n{}\n{method}\n{path}\n{query}\n{}\n{}\n{}\n{}",
        get("x-paperclip-key-id")?,
        get("x-paperclip-timestamp")?,
        get("x-paperclip-nonce")?,
        host.to_ascii_lowercase(),
        get("content-type")
            .unwrap_or_default()
            .trim_ascii()
            .to_ascii_lowercase(),
        context.join(";"),
        hex(&Sha256::digest(body)),
    ))
}

fn slow_target(target: &str) -> Option<(String, String)> {
    let plain = |byte: u8| byte > b' ' && byte < 0x7f && byte != b'#' && byte != b'\\';
    if !target.starts_with('/') || target.len() > 16_384 || !target.bytes().all(plain) {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut segments = vec![];
    for segment in path.split('/') {
        let decoded = decode(segment)?;
        if [".", ".."].contains(&decoded.as_str()) {
            return None;
        }
        segments.push(encode(decoded.as_bytes()));
    }
    let mut items = vec![];
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let mut parts = item.splitn(2, '=').map(decode);
        let (name, value) = (parts.next()??, parts.next().unwrap_or(Some(String::new()))?);
        items.push([encode(name.as_bytes()), encode(value.as_bytes())]);
    }
    items.sort();
    let items: Vec<String> = items.iter().map(|item| item.join("=")).collect();
    Some((segments.join("/"), items.join("&")))
}

fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(bytes).ok()
}

fn encode(bytes: &[u8]) -> String {
    let one = |byte: &u8| match char::from(*byte) {
        plain if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => plain.to_string(),
        _ => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

/// RFC 2104, from its text.
fn slow_hmac(message: &str) -> Vec<u8> {
    let key = key();
    let padded = |pad: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).unwrap_or(&0) ^ pad).collect() };
    let inner = Sha256::digest([&padded(0x36)[..], message.as_bytes()].concat());
    Sha256::digest([&padded(0x5c)[..], &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn slow_method(text: &str) -> bool {
    is_token(text) && text.len() <= 32 && text.to_ascii_uppercase() == text
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// 22 letters of base64url; of the last one only the upper two bits count, and the others are zero.
fn is_nonce(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.len() == 22 && text.chars().all(letter) && text.ends_with(['A', 'Q', 'g', 'w'])
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

/// A client that sends this request signs it with the same signature.
fn signs_alike(method: &str, target: &str, fields: &[(String, String)], body: &str, good: &str) {
    let get = |wanted: &str| {
        let mut named = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.next().map(|(_, value)| value.as_str())
    };
    let names = [
        ("run-id", "x-paperclip-run-id"),
        ("environment-id", "x-paperclip-environment-id"),
        ("issue-id", "x-paperclip-issue-id"),
    ];
    let context: Vec<(&str, &str)> = names
        .iter()
        .filter_map(|(name, field)| Some((*name, get(field)?)))
        .collect();
    let request = Unsigned {
        method,
        target,
        host: get("host").or_else(|| get(":authority")).unwrap_or_default(),
        content_type: get("content-type").unwrap_or_default().trim_ascii(),
        context: &context,
        body: body.as_bytes(),
    };
    let stamp = Stamp {
        key_id: &KeyId::parse("k1").expect("a key id"),
        timestamp: get("x-paperclip-timestamp")
            .and_then(|text| text.parse().ok())
            .expect("taken"),
        nonce: get("x-paperclip-nonce").and_then(Nonce::parse).expect("taken"),
    };
    let key = SigningKey::from_bytes(key()).expect("long enough");
    let signed = sign(&key, stamp, &request).expect("what is taken can be signed");
    assert_eq!(signed.signature(), good, "{}", signed.string_to_sign());
}

fn url_and_bearer(text: &str) {
    if let Ok(host) = host_header(text) {
        assert_eq!(insist_on_host(text, &host).as_ref(), Ok(&host));
        assert_eq!(host_header(&format!("https://{host}/")).as_ref(), Ok(&host));
        assert!(!host.contains(['@', '/', '\\', '?', '#']), "{host}");
    }
    let parts: Vec<&str> = text.splitn(5, '.').collect();
    // With the right mac in place of whatever stands there, so that some are taken.
    if let [version, bridge_id, expiry, _, token] = parts.as_slice() {
        let key = SigningKey::from_bytes(key()).expect("long enough");
        let expires_unix = expiry.parse().unwrap_or_default();
        let bearer = RelayBearer {
            bridge_id,
            expires_unix,
            session_token: token,
        };
        let Ok(minted) = bearer.mint(&key) else { return };
        let taken = RelayBearer::check(&minted, &ring(), NOW);
        assert_eq!(taken.is_ok(), NOW < expires_unix, "{}", *minted);
        let mac = minted.split('.').nth(3).unwrap_or_default();
        let respelled = format!("{version}.{bridge_id}.{expiry}.{mac}.{token}");
        if RelayBearer::check(&respelled, &ring(), NOW).is_ok() {
            assert_eq!(respelled, *minted);
        }
    }
    if let Ok(taken) = RelayBearer::check(text, &ring(), NOW) {
        let key = SigningKey::from_bytes(key()).expect("long enough");
        assert_eq!(taken.mint(&key).expect("taken").as_str(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_seeds_are_taken_and_so_reach_every_check() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/envelope_signed/good");
        let text = std::fs::read_to_string(folder).expect("the seed can be read");
        let (head, body) = text.split_once("\n\n").expect("head and body");
        let mut lines = head.lines();
        let (method, target) = lines
            .next()
            .and_then(|line| line.split_once(' '))
            .expect("a request");
        let mut fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let good = hex(&slow_hmac(
            &slow_lines(method, target, &fields, body).expect("eleven lines"),
        ));
        for (_, value) in &mut fields {
            *value = value.replace("{sig}", &good);
        }

        let verdict = verdict(method, target, &fields, body, &RefCell::default());

        assert_eq!(verdict, "ok");
    }
}
