//! Step 2, authenticate: is this caller on its own channel, at its own address, with its own token?
//!
//! Here: the checks that need nothing but the head, in their order: framing (the gate's note), Host, token. The token
//! is checked on each request, against the one session whose channel this is. Next: `read.rs`.

use http::header;
use policy::token::bearer;

use super::accept::Arrived;
use super::refusal::Refusal;

/// A callback whose caller holds the session's token.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(super) arrived: Arrived,
}

pub(crate) fn session(arrived: Arrived) -> Result<Caller, Refusal> {
    if let Some(fault) = arrived.note.fault {
        return Err(Refusal::Framing(fault));
    }
    let headers = &arrived.head.headers;
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => arrived.pins.admits(host.as_bytes()),
        (None, _) | (Some(_), Some(_)) => false,
    };
    if !named {
        return Err(Refusal::HostMismatch);
    }
    let mut authorizations = headers.get_all(header::AUTHORIZATION).iter();
    let known = match (authorizations.next(), authorizations.next()) {
        (Some(value), None) => {
            bearer(value.as_bytes()).is_some_and(|token| arrived.session.owns_token(token))
        }
        (None, _) | (Some(_), Some(_)) => false,
    };
    if !known {
        return Err(Refusal::InvalidToken);
    }
    Ok(Caller { arrived })
}
