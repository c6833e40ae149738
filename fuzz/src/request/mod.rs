//! One agent's connection, byte by byte, through the whole request path to an upstream that writes down what it saw.
//!
//! Laws: every request upstream is a message that a slow, strict splitter finds in the agent's bytes, in their order,
//! with the same method, target and body, and with the session's token and Host; it carries the real credential, our
//! run id and the upstream's Host once each, beside them only listed headers, a canonical target that policy allows,
//! and a body of the declared length. Every answer is whole HTTP/1.1 with our request id and nothing that is not
//! listed. How the bytes are cut into reads changes nothing that is forwarded, but where it ends. The connection ends in
//! time.
//!
//! Reading order: [`splitter`] (the agent's bytes), [`world`] (the session and its upstream), [`answers`].

pub(crate) mod splitter;
pub(crate) mod world;
pub(crate) mod answers;

use policy::headers::request_header_allowed;
use policy::{Ask, Target};

use splitter::Message;
use world::{Exchange, Seen, World};

/// The session's token, so that seeds can hold it.
pub(crate) const TOKEN: &str = "pcb_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
/// Where the agent believes to connect to.
pub(crate) const PORT: u16 = 40123;
/// What must reach the upstream, and nobody else.
pub(crate) const CREDENTIAL: &str = "real-credential-of-the-upstream";
/// Sizes of reads beside the whole: odd, so that they fall into every part of a message.
const PIECE: usize = 7;
/// Longer inputs are sent in one piece only.
const MOST_IN_PIECES: usize = 4096;

/// Takes the bytes as all that an agent sends on one connection.
///
/// # Panics
///
/// On a broken law.
pub fn request(data: &[u8]) {
    let messages = splitter::messages(data);
    let mut world = World::lock();
    let whole = world.exchange(data, usize::MAX);
    holds(&world, data, &messages, &whole);
    if data.len() <= MOST_IN_PIECES {
        let cut = world.exchange(data, PIECE);
        holds(&world, data, &messages, &cut);
        let asked = |exchange: &Exchange| -> Vec<(String, String, Vec<u8>)> {
            let whole = exchange.seen.iter().filter(|seen| seen.whole);
            whole
                .map(|seen| (seen.method.clone(), seen.target.clone(), seen.body.clone()))
                .collect()
        };
        // An early answer ends the connection or not, depending on how much of the unread body has already come.
        let (whole, cut) = (asked(&whole), asked(&cut));
        let agree = whole.starts_with(&cut) || cut.starts_with(&whole);
        assert!(
            agree,
            "what is forwarded depends on the size of reads: {whole:?} and {cut:?}"
        );
    }
}

fn holds(world: &World, data: &[u8], messages: &[Message], exchange: &Exchange) {
    assert!(
        exchange.ended,
        "the connection did not end in time: {:?}",
        exchange.answers.escape_ascii().to_string()
    );
    assert!(exchange.served, "the task that serves the connection panicked");
    let mut left = messages.iter();
    for seen in &exchange.seen {
        is_ours(world, &exchange.run_id, seen);
        let found = left.find(|message| said(message, seen) && message.may_call());
        assert!(
            found.is_some(),
            "the agent never asked, with token and Host, for {seen:?}\nit said {messages:?}"
        );
    }
    let cut_short = exchange.seen.iter().filter(|seen| !seen.whole).count();
    assert!(
        cut_short <= 1,
        "{cut_short} requests were broken off on one connection"
    );
    answers::hold(&exchange.answers, messages, data);
}

/// Whether the upstream's request is this message.
fn said(message: &Message, seen: &Seen) -> bool {
    let whole = message.whole && message.body == seen.body;
    let body = if seen.whole {
        whole
    } else {
        message.body.starts_with(&seen.body)
    };
    message.method == seen.method && message.target == seen.target && body
}

/// The laws of one request as the upstream got it.
pub(crate) fn is_ours(world: &World, run_id: &str, seen: &Seen) {
    assert!(seen.well_formed, "no HTTP/1.1 request: {seen:?}");
    let only = |name: &str, value: &str| {
        assert_eq!(seen.values(name), [value.as_bytes()], "{name} of {seen:?}");
    };
    only("authorization", &format!("Bearer {CREDENTIAL}"));
    only("x-paperclip-run-id", run_id);
    only("host", &world.host);
    only("accept-encoding", "identity");
    let ours = [
        "authorization",
        "x-paperclip-run-id",
        "host",
        "accept-encoding",
        "content-length",
    ];
    for (name, _) in &seen.fields {
        assert!(
            request_header_allowed(name) || ours.contains(&name.as_str()),
            "{name} went out: {seen:?}"
        );
    }
    let lengths = seen.values("content-length");
    assert!(lengths.len() <= 1, "{seen:?}");
    if seen.whole {
        let declared = lengths
            .first()
            .map_or("0", |text| std::str::from_utf8(text).unwrap_or("?"));
        assert_eq!(declared, seen.body.len().to_string(), "{seen:?}");
    }
    let target =
        Target::parse(seen.target.as_bytes()).unwrap_or_else(|fault| panic!("{fault} went out: {seen:?}"));
    let ask = Ask {
        method: &seen.method,
        target: &target,
        now_unix: 0,
    };
    assert!(
        world.rules.decide(&ask).is_allow(),
        "policy does not allow {seen:?}"
    );
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn forwarded(world: &mut World) -> Exchange {
        let head = format!(
            "POST /api/issues/1/comments HTTP/1.1\r\nHost: localhost:{PORT}\r\nAuthorization: bearer {TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        world.exchange(head.as_bytes(), usize::MAX)
    }

    #[test]
    fn a_good_request_reaches_the_upstream_and_holds() {
        let mut world = World::lock();

        let exchange = forwarded(&mut world);

        let [seen] = exchange.seen.as_slice() else {
            panic!("{:?}", exchange.seen)
        };
        is_ours(&world, &exchange.run_id, seen);
        assert_eq!((seen.body.as_slice(), seen.whole), (&b"{}"[..], true));
        assert!(exchange.answers.starts_with(b"HTTP/1.1 "));
    }

    #[test]
    fn a_request_that_is_not_as_we_send_it_breaks_a_law() {
        let mut world = World::lock();
        let exchange = forwarded(&mut world);
        let good = exchange.seen.first().expect("it was forwarded").clone();
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let mut bad = vec![good.clone(); 8];
        for (number, seen) in bad.iter_mut().enumerate() {
            match number {
                0 => seen.fields.push(field("cookie", "a=b")),
                1 => seen.fields.push(field("host", &world.host)),
                2 => seen
                    .fields
                    .push(field("authorization", &format!("Bearer {TOKEN}"))),
                3 => seen.fields.retain(|(name, _)| name != "x-paperclip-run-id"),
                4 => seen.target = "/api/issues/../comments".to_owned(),
                5 => seen.method = "DELETE".to_owned(),
                6 => seen.body.push(b'x'),
                _ => seen.well_formed = false,
            }
        }

        for seen in &bad {
            let held = catch_unwind(AssertUnwindSafe(|| is_ours(&world, &exchange.run_id, seen)));
            assert!(held.is_err(), "no law was broken by {seen:?}");
        }
    }

    #[test]
    fn a_request_that_the_agent_did_not_make_breaks_a_law() {
        let mut world = World::lock();
        let exchange = forwarded(&mut world);

        let smuggled = catch_unwind(AssertUnwindSafe(|| holds(&world, b"", &[], &exchange)));

        assert!(smuggled.is_err());
    }
}
