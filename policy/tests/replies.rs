//! Signed replies: the table `policy/cases/replies.toml`, which the Worker's own tests run, too.

use policy::envelope::{Nonce, Reply, SigningKey, sign_reply, verify_reply};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    good: bool,
    nonce: String,
    signature: String,
    status: u16,
    content_type: String,
    part: u64,
    body: String,
    presented: String,
}

impl Case {
    fn reply(&self) -> Reply<'_> {
        Reply {
            request_nonce: Nonce::parse(&self.nonce).unwrap_or_else(|| unreachable!("a nonce of the table")),
            request_signature: &self.signature,
            status: self.status,
            content_type: &self.content_type,
            part: (self.part > 0).then_some(self.part),
            body_sha256: Sha256::digest(&self.body).into(),
        }
    }
}

#[test]
fn every_row_of_the_table_is_told_as_it_says() {
    let table: Table = toml::from_str(include_str!("../cases/replies.toml")).expect("the table");
    let key = SigningKey::from_bytes((0..32).collect()).expect("a key");
    let other = SigningKey::from_bytes((1..33).collect()).expect("a key");

    for case in &table.case {
        let reply = case.reply();

        assert_eq!(
            verify_reply(&key, &reply, &case.presented),
            case.good,
            "{}",
            case.name
        );
        assert_eq!(
            sign_reply(&key, &reply) == case.presented,
            case.good,
            "{}",
            case.name
        );
        assert!(!verify_reply(&other, &reply, &case.presented), "{}", case.name);
    }
    assert!(table.case.iter().filter(|case| !case.good).count() >= 20);
}
