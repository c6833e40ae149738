//! Signed requests: the published vectors and the table `policy/cases/envelope.toml`.
//!
//! The table's requests are signed here by code that shares nothing with the product but SHA-256, so that signing and
//! checking cannot be wrong in the same way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use policy::TokenDigest;
use policy::envelope::{
    KeyId, KeyRing, Nonce, NonceStoreDown, Nonces, Received, Refusal, SeenNonces, SigningKey, Stamp,
    Unsigned, Use, Validity, Verifier, sign,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const NOW: u64 = 1_767_225_600;
const KEYS: [(&str, u8, Option<u64>, Option<u64>); 5] = [
    ("k1", 0, None, None),
    ("k2", 32, None, None),
    ("old", 64, None, Some(NOW - 1)),
    ("soon", 96, Some(NOW + 1), None),
    ("now", 128, Some(NOW), Some(NOW)),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    code: String,
    #[serde(default)]
    sign: BTreeMap<String, String>,
    method: Option<String>,
    target: Option<String>,
    body: Option<String>,
    #[serde(default)]
    trailers: bool,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    add: Vec<(String, String)>,
    at: Option<u64>,
    again: Option<u64>,
    store: Option<String>,
}

/// What is sent, with the texts that a careless signer would take.
struct Sent {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    trailers: bool,
}

struct Down;

impl Nonces for Down {
    fn note(&self, _: &KeyId, _: Nonce, _: u64) -> Result<Use, NonceStoreDown> {
        Err(NonceStoreDown)
    }
}

fn key_bytes(first: u8) -> Vec<u8> {
    (first..first + 32).collect()
}

#[cfg(test)]
fn verifier() -> Verifier {
    let mut keys = KeyRing::default();
    for (name, first, not_before, not_after) in KEYS {
        let key = SigningKey::from_bytes(key_bytes(first)).unwrap();
        let validity = Validity {
            not_before,
            not_after,
        };
        keys.add(KeyId::parse(name).unwrap(), key, validity).unwrap();
    }
    let digest = TokenDigest::of(b"the-bearer");
    Verifier::new(keys, ["bridge.example.dev", "127.0.0.1:8787"], 32, Some(digest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 2104, from its text.
fn slow_hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).unwrap_or(&0) ^ pad).collect() };
    let inner = Sha256::digest([&padded(0x36)[..], message].concat());
    Sha256::digest([&padded(0x5c)[..], &inner[..]].concat()).to_vec()
}

fn slow_encode(text: &str, already_escaped: bool) -> String {
    let mut encoded = String::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let mut byte = *first;
        rest = behind;
        if let (true, b'%', [high, low, behind @ ..]) = (already_escaped, byte, rest)
            && let Ok(value) = u8::from_str_radix(&String::from_utf8_lossy(&[*high, *low]), 16)
        {
            byte = value;
            rest = behind;
        }
        if byte.is_ascii_alphanumeric() || "-._~".contains(char::from(byte)) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

/// Signs and sends without asking whether that makes sense.
#[cfg(test)]
fn sent(case: &Case) -> Sent {
    let text = |name: &str, usual: &str| case.sign.get(name).map_or(usual, String::as_str).to_owned();
    let known = [
        "method",
        "target",
        "host",
        "content-type",
        "body",
        "key",
        "key-id",
        "timestamp",
        "nonce",
        "environment-id",
        "issue-id",
        "run-id",
    ];
    for name in case.sign.keys() {
        assert!(known.contains(&name.as_str()), "{}: {name}", case.name);
    }
    let key = text("key", "k1");
    let key_id = text("key-id", &key);
    let (timestamp, nonce) = (
        text("timestamp", &NOW.to_string()),
        text("nonce", "AAECAwQFBgcICQoLDA0ODw"),
    );
    let (method, target, body) = (
        text("method", "POST"),
        text("target", "/api/x?a=1"),
        text("body", "{}"),
    );
    let (host, content_type) = (
        text("host", "bridge.example.dev"),
        text("content-type", "application/json"),
    );
    let context: Vec<(&str, &String)> = ["environment-id", "issue-id", "run-id"]
        .into_iter()
        .filter_map(|name| Some((name, case.sign.get(name)?)))
        .collect();

    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path: Vec<String> = path
        .split('/')
        .map(|segment| slow_encode(segment, true))
        .collect();
    let mut items: Vec<(String, String)> = query
        .split('&')
        .filter(|item| !item.is_empty())
        .map(|item| item.split_once('=').unwrap_or((item, "")))
        .map(|(name, value)| (slow_encode(name, true), slow_encode(value, true)))
        .collect();
    items.sort();
    let items: Vec<String> = items
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let line_10: Vec<String> = context
        .iter()
        .map(|(name, value)| format!("{name}={}", slow_encode(value, false)))
        .collect();
    let hash = hex(&Sha256::digest(&body));
    let lines = [
        "PCS1-HMAC-SHA256",
        &key_id,
        &timestamp,
        &nonce,
        &method,
        &path.join("/"),
        &items.join("&"),
        &host.to_lowercase(),
        &content_type.trim().to_lowercase(),
        &line_10.join(";"),
        &hash,
    ]
    .join("\n");
    let first = KEYS.iter().find(|(name, ..)| *name == key).unwrap().1;
    let signature = hex(&slow_hmac(&key_bytes(first), lines.as_bytes()));

    let mut headers = vec![
        ("Host".to_owned(), host),
        ("Authorization".to_owned(), "Bearer the-bearer".to_owned()),
        ("X-Paperclip-Key-Id".to_owned(), key_id),
        ("X-Paperclip-Timestamp".to_owned(), timestamp),
        ("X-Paperclip-Nonce".to_owned(), nonce),
        ("X-Paperclip-Content-SHA256".to_owned(), hash),
        ("X-Paperclip-Signature".to_owned(), format!("v1={signature}")),
    ];
    if !content_type.is_empty() {
        headers.push(("Content-Type".to_owned(), content_type));
    }
    for (name, value) in context {
        headers.push((format!("X-Paperclip-{name}"), value.clone()));
    }
    let filled = |value: &str| {
        let upper = signature.to_uppercase();
        value.replace("{sig}", &signature).replace("{SIG}", &upper)
    };
    let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
    for (name, value) in &case.set {
        headers.retain(|(other, _)| !is(other, name));
        headers.push((name.clone(), filled(value)));
    }
    for name in &case.drop {
        let before = headers.len();
        headers.retain(|(other, _)| !is(other, name));
        assert!(
            headers.len() < before,
            "{}: there is no {name} to drop",
            case.name
        );
    }
    headers.extend(case.add.iter().map(|(name, value)| (name.clone(), filled(value))));
    Sent {
        method: case.method.clone().unwrap_or(method),
        target: case.target.clone().unwrap_or(target),
        headers,
        body: case.body.clone().unwrap_or(body),
        trailers: case.trailers,
    }
}

fn verdict(sent: &Sent, nonces: &dyn Nonces, now: u64) -> Result<(), Refusal> {
    let headers: Vec<(&str, &[u8])> = sent
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let received = Received {
        method: &sent.method,
        target: &sent.target,
        headers: &headers,
        has_trailers: sent.trailers,
        body: sent.body.as_bytes(),
    };
    verifier().verify(&received, nonces, now).map(drop)
}

#[cfg(test)]
fn found(case: &Case) -> &'static str {
    let sent = sent(case);
    let seen = RefCell::new(SeenNonces::default());
    if let Some(time) = case.again {
        // What came before was good, whatever became of it since.
        let good = Case {
            sign: case.sign.clone(),
            ..Case::default()
        };
        assert_eq!(verdict(&self::sent(&good), &seen, time), Ok(()), "{}", case.name);
    }
    let nonces: &dyn Nonces = match case.store.as_deref() {
        None => &seen,
        Some("down") => &Down,
        Some(other) => panic!("{}: store = {other}", case.name),
    };
    let verdict = verdict(&sent, nonces, case.at.unwrap_or(NOW));
    verdict.map_or_else(Refusal::code, |()| "ok")
}

#[cfg(test)]
fn table() -> Vec<Case> {
    let table: Table = toml::from_str(include_str!("../cases/envelope.toml")).expect("the table can be read");
    table.case
}

#[test]
fn every_row_of_the_table_gets_its_code() {
    let failed: Vec<String> = table()
        .iter()
        .filter(|case| found(case) != case.code)
        .map(|case| format!("{}: expected {}, found {}", case.name, case.code, found(case)))
        .collect();

    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_table_has_every_code_and_more_than_60_refusals() {
    let table = table();

    let refusals = table.iter().filter(|case| case.code != "ok").count();
    assert!(refusals >= 60, "only {refusals}");
    let names: BTreeSet<&str> = table.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), table.len(), "two rows have one name");
    for refusal in Refusal::ALL {
        let code = refusal.code();
        assert!(table.iter().any(|case| case.code == code), "no row gets {code}");
    }
}

#[test]
fn the_published_vectors_are_signed_as_published() {
    let exec = br#"{"providerLeaseId":"pc-r1-ab12cd34","command":"sh","args":["-c","echo "#;
    let exec = [&exec[..], "é\"]}".as_bytes()].concat();
    for (key_id, timestamp, nonce, request, signature) in [
        (
            "k1",
            NOW,
            "AAECAwQFBgcICQoLDA0ODw",
            Unsigned {
                method: "GET",
                target: "/api/paperclip-sandbox/v1/health",
                host: "Bridge.Example.workers.dev",
                content_type: "",
                context: &[],
                body: b"",
            },
            "7f4fb1a764b44227de238840151c859c4be82f06144add72daff1953567ce775",
        ),
        (
            "k1",
            NOW,
            "EBESExQVFhcYGRobHB0eHw",
            Unsigned {
                method: "POST",
                target: "/api/paperclip-sandbox/v1/exec",
                host: "bridge.example.workers.dev",
                content_type: "application/json",
                context: &[("run-id", "r1"), ("environment-id", "env 1")],
                body: &exec,
            },
            "3bd693ff3615ae236aed086d601fa700d4dfddd4c1225d294fcb414286be60c3",
        ),
        (
            "k2",
            NOW + 1,
            "ICEiIyQlJicoKSorLC0uLw",
            Unsigned {
                method: "DELETE",
                target: "/api/paperclip-sandbox/v1/leases/pc%2fenv%20x?b=2&a=%7e&a=&c",
                host: "127.0.0.1:8787",
                content_type: "",
                context: &[],
                body: b"",
            },
            "68c9f0ccd85897b5c88aee4c916f7442f3c6ef4d95fb278b88648233866c814c",
        ),
    ] {
        let key = SigningKey::from_bytes(key_bytes(0)).unwrap();
        let stamp = Stamp {
            key_id: &KeyId::parse(key_id).unwrap(),
            timestamp,
            nonce: Nonce::parse(nonce).unwrap(),
        };

        let signed = sign(&key, stamp, &request).unwrap();

        assert_eq!(signed.signature(), signature, "{}", signed.string_to_sign());
        assert_eq!(signed.string_to_sign().split('\n').count(), 11);
    }
}

#[test]
fn no_refusal_has_a_status_that_means_a_lost_lease() {
    for refusal in Refusal::ALL {
        assert!(!matches!(refusal.status(), 404 | 409), "{refusal}");
        assert!(matches!(refusal.status(), 400 | 401 | 421 | 503), "{refusal}");
    }
}

#[test]
fn every_code_is_documented_with_its_status() {
    let document = include_str!("../../docs/signed-requests.md");

    for refusal in Refusal::ALL {
        let row = format!("| {} | `{}` |", refusal.status(), refusal.code());
        assert!(document.contains(&row), "{row}");
    }
}

#[test]
fn a_verifier_with_an_empty_part_takes_nothing() {
    let sent = sent(&Case::default());
    let headers: Vec<(&str, &[u8])> = sent
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let received = Received {
        method: &sent.method,
        target: &sent.target,
        headers: &headers,
        has_trailers: false,
        body: sent.body.as_bytes(),
    };
    let mut keys = KeyRing::default();
    let key = SigningKey::from_bytes(key_bytes(0)).unwrap();
    keys.add(KeyId::parse("k1").unwrap(), key, Validity::default())
        .unwrap();
    let digest = Some(TokenDigest::of(b"the-bearer"));
    let hosts = ["Bridge.example.dev"];
    let code = |verifier: Verifier| {
        let seen = RefCell::new(SeenNonces::default());
        let verdict = verifier.verify(&received, &seen, NOW);
        verdict.map_or_else(Refusal::code, |_| "ok")
    };

    assert_eq!(code(Verifier::new(keys.clone(), hosts, 32, digest)), "ok");
    assert_eq!(
        code(Verifier::new(keys.clone(), [""; 0], 32, digest)),
        "host_mismatch"
    );
    assert_eq!(
        code(Verifier::new(KeyRing::default(), hosts, 32, digest)),
        "unknown_key"
    );
    assert_eq!(
        code(Verifier::new(keys.clone(), hosts, 0, digest)),
        "content_hash_mismatch"
    );
    assert_eq!(code(Verifier::new(keys, hosts, 32, None)), "unauthorized");
}
