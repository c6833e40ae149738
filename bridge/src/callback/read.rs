//! Step 3, read: what is asked, in the one form.
//!
//! Here: the target's canonical form (refused if it is not in it already) and the parts that later steps use. Not here:
//! the body; that is read only after it has been admitted (`throttle.rs`). Next: `decide.rs`, or `introspect.rs` for
//! what is asked of the bridge itself.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use policy::Target;
use uuid::Uuid;

use super::authenticate::Caller;
use super::body::CallerBody;
use super::record::Record;
use super::refusal::Refusal;
use crate::session::Session;

/// Paths below this are answered by the bridge and never reach the upstream.
pub(crate) const BRIDGE_PREFIX: &str = "/_bridge";

/// Whom the callback is for.
#[derive(Debug)]
pub(crate) enum Asked {
    Api(CallbackRequest),
    Bridge(CallbackRequest),
}

/// A callback with its target in canonical form.
#[derive(Debug)]
pub(crate) struct CallbackRequest {
    pub(super) session: Arc<Session>,
    pub(super) request_id: Uuid,
    pub(super) method: Method,
    /// Byte for byte what the caller wrote, and what will be sent.
    pub(super) target: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) idempotency_key: Option<String>,
    pub(super) body: CallerBody,
}

pub(crate) fn canonical(caller: Caller, record: &mut Record) -> Result<Asked, Refusal> {
    let arrived = caller.arrived;
    let target = arrived.target.map_err(Refusal::PathNotCanonical)?;
    // The raw bytes have been looked at; this holds whatever way a request came in by.
    Target::parse(target.as_str().as_bytes()).map_err(Refusal::PathNotCanonical)?;
    record.asks(target.path());
    let request = CallbackRequest {
        session: arrived.session,
        request_id: arrived.request_id,
        method: arrived.method,
        idempotency_key: idempotency_key(&arrived.headers)?,
        target,
        headers: arrived.headers,
        body: arrived.body,
    };
    let path = request.target.path();
    let ours = path
        .strip_prefix(BRIDGE_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    Ok(if ours {
        Asked::Bridge(request)
    } else {
        Asked::Api(request)
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut keys = headers.get_all("idempotency-key").iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => match key.to_str() {
            Ok(text) if (1..=255).contains(&text.len()) => Ok(Some(text.to_owned())),
            Ok(_) | Err(_) => Err(Refusal::Malformed(
                "the Idempotency-Key is not 1 to 255 visible ASCII characters",
            )),
        },
        (Some(_), Some(_)) => Err(Refusal::Malformed("there is more than one Idempotency-Key")),
    }
}
