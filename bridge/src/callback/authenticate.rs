//! Step 2, authenticate: is this caller on its own channel, at its own address, with its own token?
//!
//! Here: the checks that need nothing but the head, in their order: framing, Host, token, and whether this daemon may
//! serve the session. The token is checked on each
//! request, against the one session whose channel this is. Next: `read.rs`.

use http::header;
use policy::token::bearer;
use tunnel::CallerProof;

use super::accept::{Arrived, NamedHost};
use super::refusal::Refusal;
use crate::session::Session;

/// A callback whose caller holds the session's token.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(super) arrived: Arrived,
}

pub(crate) fn session(arrived: Arrived) -> Result<Caller, Refusal> {
    if let Some(fault) = arrived.fault {
        return Err(Refusal::Framing(fault));
    }
    let named = match &arrived.host {
        NamedHost::InHeaders => {
            let mut hosts = arrived.headers.get_all(header::HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(host), None) => arrived.pins.admits(host.as_bytes()),
                (None, _) | (Some(_), Some(_)) => false,
            }
        }
        NamedHost::Told(host) => arrived.pins.admits(host),
        NamedHost::NotTold => true,
    };
    if !named {
        return Err(Refusal::HostMismatch);
    }
    match arrived.proof {
        // The gateway on the session's own channel has checked the token and does not hand it on.
        CallerProof::Channel => {}
        CallerProof::Token => token(&arrived)?,
    }
    // Before anything of it is read: another daemon may serve the session by now.
    arrived.session.is_ours()?;
    Ok(Caller { arrived })
}

fn token(arrived: &Arrived) -> Result<(), Refusal> {
    let mut authorizations = arrived.headers.get_all(header::AUTHORIZATION).iter();
    let known = match (authorizations.next(), authorizations.next()) {
        (Some(value), None) => bearer(value.as_bytes()).is_some_and(|token| owned(&arrived.session, token)),
        (None, _) | (Some(_), Some(_)) => false,
    };
    known.then_some(()).ok_or(Refusal::InvalidToken)
}

fn owned(session: &Session, token: &[u8]) -> bool {
    let owned = session.owns_token(token);
    if !owned
        && let Some(owner) = session
            .observer()
            .and_then(|observer| observer.wrong_token(session.id, token))
        && let Some(audit) = &session.audit
    {
        audit.wrong_channel(owner);
    }
    owned
}
