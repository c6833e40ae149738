//! Laws of signed requests, over generated ones.

use std::cell::RefCell;

use policy::TokenDigest;
use policy::envelope::{
    CanonicalTarget, KeyId, KeyRing, Nonce, Received, Refusal, SeenNonces, Signed, SigningKey, Stamp,
    Unsigned, Validity, Verifier, sign,
};
use proptest::prelude::*;
use proptest::sample::select;

const CONTEXT: [(&str, &str); 3] = [
    ("environment-id", "X-Paperclip-Environment-Id"),
    ("issue-id", "X-Paperclip-Issue-Id"),
    ("run-id", "X-Paperclip-Run-Id"),
];
const PIECES: &[&str] = &[
    "a",
    "B",
    "api",
    "%2f",
    "%2F",
    "%41",
    "%C3%A9",
    "%e2%82%ac",
    "%25",
    "%00",
    "+",
    "%2B",
    "~",
    "%7e",
    "=",
    "&",
    "&&",
    "?",
    "/",
    "//",
    ".",
    "%2e",
    "...",
    ";",
    ":",
    "@",
    "'",
    "*",
    "{",
    "|",
    "\"",
    "%",
    "%4",
    "%FF",
    "#",
    "\\",
    " ",
    "é",
];

/// Everything about one request.
#[derive(Clone, Debug)]
struct World {
    key: Vec<u8>,
    key_id: String,
    timestamp: u64,
    nonce: [u8; 16],
    method: String,
    target: String,
    host: String,
    content_type: String,
    context: [Option<String>; 3],
    body: Vec<u8>,
}

#[cfg(test)]
impl World {
    fn sign(&self) -> Signed {
        let context: Vec<(&str, &str)> = CONTEXT
            .iter()
            .zip(&self.context)
            .filter_map(|((name, _), value)| Some((*name, value.as_deref()?)))
            .collect();
        let request = Unsigned {
            method: &self.method,
            target: &self.target,
            host: &self.host,
            content_type: &self.content_type,
            context: &context,
            body: &self.body,
        };
        let stamp = Stamp {
            key_id: &KeyId::parse(&self.key_id).unwrap(),
            timestamp: self.timestamp,
            nonce: Nonce::from_bytes(self.nonce),
        };
        sign(&self.key(), stamp, &request).unwrap()
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_bytes(self.key.clone()).unwrap()
    }

    /// The verdict on this request with the signature of `signed`, at the second in which it says it was signed.
    fn verdict(&self, signed: &World) -> Result<(), Refusal> {
        let mine = self.sign();
        let signature = format!("v1={}", signed.sign().signature());
        let mut headers = vec![
            ("Host", self.host.as_bytes()),
            ("Authorization", b"Bearer b".as_slice()),
        ];
        for (name, value) in mine.fields() {
            let value = if *name == "X-Paperclip-Signature" {
                &signature
            } else {
                value
            };
            headers.push((*name, value.as_bytes()));
        }
        if !self.content_type.is_empty() {
            headers.push(("Content-Type", self.content_type.as_bytes()));
        }
        for ((_, name), value) in CONTEXT.iter().zip(&self.context) {
            if let Some(value) = value {
                headers.push((name, value.as_bytes()));
            }
        }
        let received = Received {
            method: &self.method,
            target: &self.target,
            headers: &headers,
            has_trailers: false,
            body: &self.body,
        };
        let mut keys = KeyRing::default();
        let key_id = KeyId::parse(&self.key_id).unwrap();
        keys.add(key_id, self.key(), Validity::default()).unwrap();
        let bearer = TokenDigest::of(b"b");
        let verifier = Verifier::new(keys, [&self.host], 1024, Some(bearer));
        let seen = RefCell::new(SeenNonces::default());
        verifier.verify(&received, &seen, self.timestamp).map(drop)
    }
}

fn target() -> impl Strategy<Value = String> {
    prop::collection::vec(select(PIECES), 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn world() -> impl Strategy<Value = World> {
    let value = || prop::option::of("[!-~]([ -~]{0,8}[!-~])?");
    let stamp = (
        prop::collection::vec(any::<u8>(), 32..80),
        "[A-Za-z0-9._-]{1,64}",
        any::<u64>(),
        any::<[u8; 16]>(),
    );
    let canonical = target().prop_filter("has a canonical form", |target| {
        CanonicalTarget::parse(target).is_ok()
    });
    let request = (
        "[A-Z][A-Z-]{0,8}",
        canonical,
        "[a-zA-Z0-9.-]{1,20}(:[1-9][0-9]{0,3})?",
        "([a-z]{1,8}/[a-zA-Z]{1,8}(; [a-z]{1,4}=[!-~]{1,4})?)?",
        (value(), value(), value()),
        prop::collection::vec(any::<u8>(), 0..64),
    );
    (stamp, request).prop_map(|((key, key_id, timestamp, nonce), request)| {
        let (method, target, host, content_type, context, body) = request;
        World {
            key,
            key_id,
            timestamp,
            nonce,
            method,
            target,
            host,
            content_type,
            context: [context.0, context.1, context.2],
            body,
        }
    })
}

/// The same with one of the eleven lines changed, or the key; line 1 is a constant.
#[cfg(test)]
fn changed(mut world: World, line: usize) -> World {
    match line {
        1 => world.key[0] ^= 1,
        2 => world.key_id = if world.key_id == "k" { "l" } else { "k" }.to_owned(),
        3 => world.timestamp ^= 1,
        4 => world.nonce[15] ^= 1,
        5 => world.method = if world.method == "A" { "B" } else { "A" }.to_owned(),
        6 => world.target.insert_str(0, "/x"),
        7 => world.target += if world.target.contains('?') { "&x" } else { "?x" },
        8 => world.host.push('x'),
        9 => world.content_type = format!("x{}", world.content_type),
        10 => world.context[1] = Some(format!("x{}", world.context[1].as_deref().unwrap_or_default())),
        11 => world.body.push(0),
        _ => unreachable!("there are eleven lines"),
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_signed_is_taken(world in world()) {
        prop_assert_eq!(world.verdict(&world), Ok(()));
    }

    #[test]
    fn a_change_to_any_line_is_refused(world in world(), line in 1_usize..=11) {
        let other = changed(world.clone(), line);

        prop_assert_eq!(other.verdict(&world), Err(Refusal::SignatureInvalid));
        if line > 1 {
            let (other, signed) = (other.sign(), world.sign());
            prop_assert_ne!(other.string_to_sign(), signed.string_to_sign());
        }
    }

    #[test]
    fn every_signature_covers_eleven_lines(world in world()) {
        let signed = world.sign();

        prop_assert_eq!(signed.string_to_sign().split('\n').count(), 11);
        prop_assert!(signed.string_to_sign().bytes().all(|byte| byte == b'\n' || matches!(byte, b' '..=b'~')));
    }

    #[test]
    fn the_canonical_form_is_a_fixed_point(target in target()) {
        if let Ok(once) = CanonicalTarget::parse(&target) {
            let text = format!("{}?{}", once.path(), once.query());
            prop_assert_eq!(CanonicalTarget::parse(&text), Ok(once), "{}", text);
        }
    }

    #[test]
    fn the_order_of_a_query_and_its_escapes_change_nothing(
        mut items in prop::collection::vec("[a-c]{1,2}(=[a-c]{0,2})?", 0..5),
        turn in 0_usize..5,
    ) {
        let one = format!("/p?{}", items.join("&"));
        let middle = turn.min(items.len());
        items.rotate_left(middle);
        let other = format!("/%70?{}&", items.join("&&").replace('a', "%61"));

        prop_assert_eq!(CanonicalTarget::parse(&one), CanonicalTarget::parse(&other));
    }
}
