//! Step 5, throttle: is there room for this callback now?
//!
//! Here: rate, concurrency and the byte budgets, each taken before the body is read; and the holding of a body of
//! unknown length, so that everything after this step may be sent. Next: `forward.rs`.

use std::sync::Arc;

use bytes::Bytes;
use governor::clock::{Clock, DefaultClock};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use policy::Permit;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::body::{HoldError, UploadControl};
use super::decide::Permitted;
use super::forward::is_safe;
use super::read::CallbackRequest;
use super::refusal::Refusal;
use super::trail::Confirmation;
use crate::session::budget::Reservation;
use crate::session::rates::commented;

/// A callback with a place, and with room for its body.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(super) request: CallbackRequest,
    /// What policy said of it.
    pub(super) permit: Permit,
    pub(super) payload: Payload,
    /// Given back when the answer has gone.
    pub(super) place: Place,
    pub(super) held: Reservation,
    /// What the audit has still to keep before it is sent.
    pub(super) confirmation: Option<Confirmation>,
}

/// A place among the callbacks of the session and of the process, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _session: OwnedSemaphorePermit,
    _process: Reservation,
}

/// What is sent as the body.
#[derive(Debug)]
pub(crate) enum Payload {
    None,
    /// Held whole.
    Held(Bytes),
    /// Streams, with its declared length.
    Declared(Arc<UploadControl>, u64),
}

pub(crate) async fn admit(permitted: Permitted) -> Result<Admitted, Refusal> {
    let Permitted {
        mut request,
        class,
        permit,
    } = permitted;
    let session = &request.session;
    if let Some(rate) = &session.rate
        && let Err(not_until) = rate.check()
    {
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        return Err(Refusal::RateLimited {
            retry_after_seconds: wait.as_secs().saturating_add(1),
            why: "this session's rate limit is reached",
        });
    }
    if let Some(rates) = &session.shared.rates {
        let commented = commented(&request.method, permit.route(), request.target.path());
        rates
            .count(class, commented)
            .map_err(|beyond| Refusal::RateLimited {
                retry_after_seconds: beyond.wait.as_secs().saturating_add(1),
                why: beyond.why,
            })?;
    }
    let Ok(place) = Arc::clone(&session.places).try_acquire_owned() else {
        return Err(Refusal::RateLimited {
            retry_after_seconds: 1,
            why: "too many callbacks of this session are under way",
        });
    };
    let Some(process) = session.shared.in_force.place() else {
        return Err(Refusal::Unavailable {
            why: "the bridge has as many callbacks under way as it may",
        });
    };
    let place = Place {
        _session: place,
        _process: process,
    };
    if request.idempotency_key.is_none()
        && !is_safe(&request.method)
        && let Some(minting) = &*session.shared.in_force.minting()
        && minting.covers(permit.route())
    {
        mint(
            &mut request.headers,
            &mut request.idempotency_key,
            request.request_id,
        );
    }
    if session.draining.is_cancelled() {
        return Err(Refusal::Unavailable {
            why: "the session is ending",
        });
    }
    let declared = request.body.declared_length();
    let Some(mut held) = Reservation::take(&session.bodies, declared.unwrap_or(0)) else {
        return Err(Refusal::Unavailable {
            why: "no room for this body now",
        });
    };
    let body = request.body.take();
    let payload = match declared {
        Some(0) => Payload::None,
        Some(length) => Payload::Declared(UploadControl::new(body), length),
        None => {
            let limit = session.limits.max_body;
            let bytes = body
                .hold(limit, &mut held)
                .await
                .map_err(|error| refused(error, limit))?;
            if !bytes.is_empty() && matches!(request.method, Method::GET | Method::HEAD) {
                return Err(Refusal::Malformed("a GET or HEAD request carries a body"));
            }
            Payload::Held(bytes)
        }
    };
    Ok(Admitted {
        request,
        permit,
        payload,
        place,
        held,
        confirmation: None,
    })
}

/// The request's own id: new for each callback, and known to the caller by its answer.
fn mint(headers: &mut HeaderMap, key: &mut Option<String>, request_id: Uuid) {
    let minted = request_id.to_string();
    if let Ok(value) = HeaderValue::from_str(&minted) {
        headers.insert(HeaderName::from_static("idempotency-key"), value);
        *key = Some(minted);
    }
}

fn refused(error: HoldError, limit_bytes: u64) -> Refusal {
    match error {
        HoldError::TooLarge => Refusal::BodyTooLarge { limit_bytes },
        HoldError::NoRoom => Refusal::Unavailable {
            why: "no room for this body now",
        },
        HoldError::Fault(fault) => Refusal::Framing(fault),
        HoldError::Broken => Refusal::Malformed("the body broke off before its end"),
    }
}
