//! One gateway's connection, from READY to its end, through the whole request path to an upstream that writes down what
//! it saw.
//!
//! Laws: what is handed to the session as a callback is a request that a slow reading finds in the gateway's bytes, with
//! the same method, target, `Host` and no header that is not there; every request upstream is one of those, with the
//! session's token and a `Host` of its own, its body to the byte, and holds the laws of the `request` harness; answers
//! carry our request id, listed headers and no credential; what goes to the gateway are whole frames within the
//! published size; nothing panics; the connection ends soon after its input.
//!
//! Reading order: [`script`] (the input), [`frames`] and [`hpack`] (the second opinion), [`gateway`] (who plays it).

mod script;
mod frames;
mod hpack;
mod gateway;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policy::headers::response_header_allowed;

use crate::request::answers::{OURS, REQUEST_ID, contains};
use crate::request::splitter::{is_host, is_token};
use crate::request::world::{Carried, Seen, World};
use crate::request::{CREDENTIAL, is_ours};
use frames::Asked;
use gateway::{Heard, Talk};
use script::Script;

/// The largest frame that a gateway must take unasked.
const FRAME: usize = 16_384;

/// Takes the bytes as a gateway's part.
///
/// # Panics
///
/// On a broken law.
pub fn http2(data: &[u8]) {
    let script = Script::read(data);
    let (asked, whole) = frames::requests(behind_preface(&script));
    let mut world = World::lock();
    let carried = world.carry(|session| gateway::play(&script, &asked, whole, session));
    holds(&world, data, &script, &asked, &carried);
}

fn holds(world: &World, data: &[u8], script: &Script, asked: &[Asked], carried: &Carried<Talk>) {
    let talk = &carried.outcome;
    let shown = data.escape_ascii();
    assert!(talk.ended, "the connection did not end in time: {shown}");
    assert!(talk.served && !talk.panicked, "a task panicked: {shown}");
    for heard in &talk.heard {
        let found = asked.iter().any(|asked| said(asked, heard, script.is_script));
        assert!(found, "nobody asked for {heard:?}\nin {asked:?}");
    }
    let mut left: Vec<&Asked> = asked.iter().collect();
    for seen in &carried.seen {
        is_ours(world, &carried.run_id, seen);
        let found = left
            .iter()
            .position(|asked| may_be(asked, seen, script.is_script));
        let at =
            found.unwrap_or_else(|| panic!("nobody asked, with token and Host, for {seen:?}\nin {asked:?}"));
        left.swap_remove(at);
    }
    answers_hold(talk, data);
}

/// The gateway's frames; where the preface is left to the input, those behind the first one in it.
fn behind_preface(script: &Script) -> &[u8] {
    let preface = gateway::PREFACE;
    if !script.bare {
        return &script.bytes;
    }
    let at = script
        .bytes
        .windows(preface.len())
        .position(|window| window == preface);
    at.map_or(b"", |at| &script.bytes[at + preface.len()..])
}

/// Whether the callback is this request, judged by nobody yet.
fn said(asked: &Asked, heard: &Heard, is_script: bool) -> bool {
    let Some((target, host)) = addressed(asked, is_script) else {
        return false;
    };
    let mut left = asked.fields.clone();
    let headers = heard.headers.iter().all(|(name, value)| {
        let same =
            |(have, held): &(Vec<u8>, Vec<u8>)| have == name.as_str().as_bytes() && held == value.as_bytes();
        left.iter()
            .position(same)
            .map(|at| left.swap_remove(at))
            .is_some()
    });
    asked.pseudo(":method") == Some(heard.method.as_bytes())
        && target == heard.target
        && host == heard.host.as_deref().map(<[u8]>::to_vec)
        && headers
}

/// Whether the upstream's request may be this one.
fn may_be(asked: &Asked, seen: &Seen, is_script: bool) -> bool {
    let Some((target, host)) = addressed(asked, is_script) else {
        return false;
    };
    let body = if seen.whole {
        asked.ended && asked.body == seen.body
    } else {
        asked.body.starts_with(&seen.body)
    };
    asked.only("authorization").is_some_and(is_token)
        && host.is_none_or(|host| is_host(&host))
        && asked.pseudo(":method") == Some(seen.method.as_bytes())
        && target == seen.target.as_bytes()
        && body
}

/// Target and, under our own gateway, `Host` of a request in a form that a gateway may use.
fn addressed(asked: &Asked, is_script: bool) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let path = match asked.pseudo(":path") {
        Some(path) => path,
        // Without a path it is the root, or the authority where that is all there is.
        None if asked.pseudo(":scheme").is_some() => b"/",
        None => asked.pseudo(":authority")?,
    };
    // Hyper ends a target at its fragment; policy and upstream see the same rest.
    let path = path.split(|byte| *byte == b'#').next()?.to_vec();
    if is_script {
        return Some((path, None));
    }
    let decoded = |name: &str| URL_SAFE_NO_PAD.decode(asked.only(name)?).ok();
    let target = decoded("x-pcbridge-target")
        .filter(|_| path == b"/")
        .unwrap_or(path);
    let authority = asked.pseudo(":authority")?.to_vec();
    let host = decoded("x-pcbridge-host").filter(|_| authority == b"gateway.invalid");
    Some((target, Some(host.unwrap_or(authority))))
}

fn answers_hold(talk: &Talk, data: &[u8]) {
    let written = &talk.written;
    let shown = written.escape_ascii();
    assert!(
        !contains(written, CREDENTIAL) || contains(data, CREDENTIAL),
        "the real credential went to the gateway"
    );
    assert!(
        !contains(written, "the bridge failed while"),
        "a task of the session panicked"
    );
    let (frames, whole) = frames::frames(written);
    assert!(whole, "half a frame at the end: {shown}");
    assert!(
        frames.iter().all(|frame| frame.payload.len() <= FRAME),
        "too large a frame: {shown}"
    );
    assert!(
        frames.first().is_none_or(|frame| frame.kind == 4),
        "SETTINGS do not come first: {shown}"
    );
    for (status, headers) in &talk.answers {
        assert!(status.as_u16() >= 200, "{status}");
        for (name, value) in headers {
            assert!(
                response_header_allowed(name.as_str()) || OURS.contains(&name.as_str()),
                "{name} came back"
            );
            assert!(
                !contains(value.as_bytes(), CREDENTIAL),
                "the credential came back in {name}"
            );
            assert!(
                name != "www-authenticate" || value == "Bearer",
                "the upstream's challenge came back"
            );
        }
        let mut ids = headers.get_all(REQUEST_ID).iter();
        let id = ids
            .next()
            .and_then(|id| uuid::Uuid::try_parse_ascii(id.as_bytes()).ok());
        assert!(id.is_some() && ids.next().is_none(), "no request id: {headers:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::MutexGuard;

    use super::*;
    use crate::request::{PORT, TOKEN};

    /// One request and all that came of it.
    fn play(
        options: char,
        path: &str,
        more: &str,
    ) -> (MutexGuard<'static, World>, Script, Vec<Asked>, Carried<Talk>) {
        let script = format!(
            "{options}\nh 1 e\n:method: GET\n:scheme: http\n:authority: localhost:{PORT}\n:path: {path}\n{more}\n\n"
        );
        let script = Script::read(script.as_bytes());
        let (asked, whole) = frames::requests(&script.bytes);
        let mut world = World::lock();
        let carried = world.carry(|session| gateway::play(&script, &asked, whole, session));
        (world, script, asked, carried)
    }

    /// What reached the upstream and what was answered, as text.
    fn played(options: char, path: &str, more: &str) -> (Vec<String>, Vec<u16>) {
        let (world, script, asked, carried) = play(options, path, more);
        holds(&world, b"", &script, &asked, &carried);
        let seen = carried
            .seen
            .iter()
            .map(|seen| format!("{} {}", seen.method, seen.target));
        let statuses = carried.outcome.answers.iter().map(|(status, _)| status.as_u16());
        (seen.collect(), statuses.collect())
    }

    #[test]
    fn a_good_request_goes_all_the_way_in_every_manner() {
        let token = format!("authorization: Bearer {TOKEN}");
        for options in ['0', '1', '2', '4', '7'] {
            let (seen, statuses) = played(options, "/api/agents/me", &token);

            assert_eq!(seen, ["GET /api/agents/me"], "{options}");
            assert_eq!(statuses.len(), 1, "{options}");
        }
    }

    #[test]
    fn a_request_without_the_token_or_outside_the_rules_stays_here() {
        let token = format!("authorization: Bearer {TOKEN}");

        assert_eq!(played('0', "/api/agents/me", "accept: */*"), (vec![], vec![401]));
        assert_eq!(played('0', "/api/secrets", &token), (vec![], vec![403]));
        assert_eq!(
            played('0', "/api/agents/../agents/me", &token),
            (vec![], vec![400])
        );
    }

    #[test]
    fn what_the_gateway_did_not_ask_for_breaks_a_law() {
        let token = format!("authorization: Bearer {TOKEN}");
        let (world, script, asked, mut carried) = play('0', "/api/agents/me", &token);
        let broken = |asked: &[Asked], carried: &Carried<Talk>| {
            catch_unwind(AssertUnwindSafe(|| holds(&world, b"", &script, asked, carried))).is_err()
        };
        let anonymous = |mut one: Asked| {
            one.fields.retain(|(name, _)| name != b"authorization");
            one
        };

        assert!(!broken(&asked, &carried));
        assert!(broken(&[], &carried), "nothing was asked");
        carried.outcome.heard.clear();
        assert!(!broken(&asked, &carried));
        let asked: Vec<Asked> = asked.into_iter().map(anonymous).collect();
        assert!(broken(&asked, &carried), "the token was not shown");
        carried.seen.clear();
        assert!(!broken(&asked, &carried));
        carried.outcome.written.extend_from_slice(CREDENTIAL.as_bytes());
        assert!(broken(&asked, &carried), "the credential came out");
    }
}
