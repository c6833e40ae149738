//! A stream between our gateway and Paperclip's host: order, texts and statuses as published.
//!
//! Here: the body held whole before it goes, the answer held whole before it is given, the mapping of statuses. The one
//! wanted difference: an answer that was reset in the middle is a failure, never a whole answer. Not here: the token,
//! which the listener has checked.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};

use super::Http2;
use super::exchange::{Failure, exchange};
use crate::answers::{is_indeterminate, peer_error, whole};
use crate::caller::{CallerBody, CallerBodyError, CallerRequest, GatewayBody};
use crate::headers;
use crate::url;

/// Body bytes held by all requests together, in bodies of the largest size.
const LEDGER_BODIES: u64 = 8;
const AUTHORITY: &str = "bridge.internal";

const OVER_LIMIT: &str = "Bridge request body exceeded the configured size limit.";
const LEDGER_FULL: &str = "The bridge gateway process reached its reserved body byte ceiling. Retry later.";
const LOST: &str = "The bridge stream ended before its response was complete.";

/// Counts the bytes of bodies held, requests' and answers' each up to the ceiling.
#[derive(Debug)]
pub(super) struct Ledger {
    ceiling: u64,
    held: AtomicU64,
}

impl Ledger {
    pub(super) fn new(max_body: u64) -> Arc<Self> {
        Arc::new(Self {
            ceiling: max_body.saturating_mul(LEDGER_BODIES),
            held: AtomicU64::new(0),
        })
    }
}

/// What one request holds of the ledger. Dropped, it is given back.
#[derive(Debug)]
struct Held {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Held {
    fn of(ledger: &Arc<Ledger>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            bytes: 0,
        }
    }

    /// Takes more; nothing when that would pass the ceiling.
    fn take(&mut self, bytes: usize) -> Result<(), LedgerFull> {
        let bytes = bytes as u64;
        let ceiling = self.ledger.ceiling;
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= ceiling);
        self.ledger
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| LedgerFull)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct LedgerFull;

/// Answers one caller through Paperclip's host.
pub(super) async fn answer(http2: &Http2, request: CallerRequest) -> Response<GatewayBody> {
    if http2.is_lost() {
        return peer_error(StatusCode::SERVICE_UNAVAILABLE, "bridge_unavailable");
    }
    let Some(head) = head(&request.method, &request.target, &request.headers) else {
        return peer_error(StatusCode::BAD_GATEWAY, "Invalid URL");
    };
    let mut held = Held::of(&http2.ledger);
    let body = match hold(request.body, http2.max_body, &mut held).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let body = Full::new(body).map_err(|never| match never {});
    match exchange(&http2.sender, &http2.watch, head, body).await {
        Ok((response, _exchange)) => translate(response, Held::of(&http2.answers)).await,
        Err(Failure::NoHead) => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
        Err(Failure::NeverDispatched | Failure::Lost | Failure::Late | Failure::Caller(_)) => {
            peer_error(StatusCode::BAD_GATEWAY, LOST)
        }
    }
}

/// The head of the stream; `None` where the target is no URL.
fn head(method: &Method, target: &[u8], headers: &HeaderMap) -> Option<Request<()>> {
    let parsed = url::parse(target).ok()?;
    let uri = Uri::builder()
        .scheme("http")
        .authority(AUTHORITY)
        .path_and_query(format!("{}{}", parsed.path, parsed.query))
        .build()
        .ok()?;
    let mut head = Request::new(());
    *head.method_mut() = method.clone();
    *head.uri_mut() = uri;
    // The token as the caller gave it: it is the one that the host gave both.
    if let Some(token) = headers.get(header::AUTHORIZATION) {
        head.headers_mut().insert(header::AUTHORIZATION, token.clone());
    }
    head.headers_mut().extend(headers::for_peers_host(headers));
    Some(head)
}

async fn hold(mut body: CallerBody, max_body: u64, held: &mut Held) -> Result<Bytes, Response<GatewayBody>> {
    let full = |LedgerFull| peer_error(StatusCode::SERVICE_UNAVAILABLE, LEDGER_FULL);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(CallerBodyError::Fault(fault)) => {
                return Err(peer_error(StatusCode::BAD_GATEWAY, &fault.to_string()));
            }
            Err(CallerBodyError::Broken) => return Err(peer_error(StatusCode::BAD_GATEWAY, "aborted")),
        };
        if (whole.len() + data.len()) as u64 > max_body {
            return Err(peer_error(StatusCode::BAD_GATEWAY, OVER_LIMIT));
        }
        // Counted as published: the piece, and the whole that it is joined to.
        held.take(data.len().saturating_mul(2)).map_err(full)?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn translate(response: Response<RecvStream>, mut held: Held) -> Response<GatewayBody> {
    let (head, mut stream) = response.into_parts();
    let mut body = BytesMut::new();
    loop {
        let data = match poll_fn(|cx| stream.poll_data(cx)).await {
            None => break,
            Some(Ok(data)) => data,
            Some(Err(_)) => return peer_error(StatusCode::BAD_GATEWAY, LOST),
        };
        if held.take(data.len()).is_err() {
            return peer_error(StatusCode::BAD_GATEWAY, LEDGER_FULL);
        }
        body.extend_from_slice(&data);
        // It fails only where nothing more will come, which the next turn finds.
        let _released = stream.flow_control().release_capacity(data.len());
    }
    let mut response = Response::new(whole(body.freeze()));
    *response.status_mut() = if is_indeterminate(&head.headers) {
        StatusCode::CONFLICT
    } else {
        head.status
    };
    *response.headers_mut() = head.headers;
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_gives_back_what_a_request_held() {
        let ledger = Ledger::new(10);

        let mut first = Held::of(&ledger);
        first.take(50).expect("room");
        let mut second = Held::of(&ledger);
        second.take(30).expect("room up to the ceiling");
        assert!(second.take(1).is_err());
        drop(first);

        second.take(50).expect("what the first held");
    }
}
