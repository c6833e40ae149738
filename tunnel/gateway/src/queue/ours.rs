//! Requests under our own daemon: the target as it came, the caller's Host beside it, and answers that say what is known.
//!
//! Here: the envelope for our host, and what a caller is told when no usable response comes. Not here: Host, path and
//! route, which our host judges; the published gateway's ways (`peer.rs`).

use std::pin::pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::sync::oneshot;
use tokio::time::Instant;
use wire::encoding::base64_length;
use wire::envelope::{EnvelopeBody, Reading, RequestEnvelope, ResponseEnvelope, envelope_limit};

use super::directory::{OpenResponse, PutFault};
use super::exchange::{self, BodyFault};
use super::ledger::Share;
use super::{Queue, SWEEP_SLACK, is_safe, new_id, now};
use crate::answers::{Refusal, whole};
use crate::caller::{CallerBodyError, CallerRequest, GatewayBody};
use crate::diagnostics::say;
use crate::headers::{drop_hop_by_hop, for_our_host};

/// What an envelope needs beside its body.
const ENVELOPE_ROOM: u64 = 4096;

const NO_ROOM: &str = "too many bodies are on their way at once";
const FULL: &str = "the queue is full";
const NOT_WRITTEN: &str = "the request could not be put into the queue";
const NOT_TAKEN: &str = "nobody took the request in time";
const UNREADABLE: &str = "the response in the queue cannot be read";
const ENDING: &str = "the gateway is ending";
const LATE: &str = "no answer came in time";

/// Answers one request. `caller` closes when nobody waits for the answer any more.
pub(super) async fn answer(
    queue: &Queue,
    request: CallerRequest,
    caller: &mut oneshot::Sender<Response<GatewayBody>>,
) -> Response<GatewayBody> {
    match carry(queue, request, caller).await {
        Ok(envelope) => response(envelope),
        Err(refusal) => refusal.answer(),
    }
}

async fn carry(
    queue: &Queue,
    request: CallerRequest,
    caller: &mut oneshot::Sender<Response<GatewayBody>>,
) -> Result<ResponseEnvelope, Refusal> {
    let CallerRequest {
        method,
        target,
        host,
        mut headers,
        body,
    } = request;
    let target =
        std::str::from_utf8(&target).map_err(|_| Refusal::Malformed("the request target is not UTF-8"))?;
    let (path, query) = target
        .split_at_checked(target.find('?').unwrap_or(target.len()))
        .unwrap_or((target, ""));
    if path.is_empty() {
        return Err(Refusal::Malformed("the request target has no path"));
    }
    let limit_bytes = queue.settings.max_body;
    if body.declared().is_some_and(|declared| declared > limit_bytes) {
        return Err(Refusal::BodyTooLarge { limit_bytes });
    }
    check_room(queue)?;

    let mut share = queue.ledger.share();
    let body = exchange::read_body(body, limit_bytes, &mut share)
        .await
        .map_err(|fault| match fault {
            BodyFault::TooLarge => Refusal::BodyTooLarge { limit_bytes },
            BodyFault::NoRoom => Refusal::Unavailable(NO_ROOM),
            BodyFault::Caller(CallerBodyError::Fault(fault)) => Refusal::Framing(fault),
            BodyFault::Caller(CallerBodyError::Broken) => Refusal::Malformed("the body broke off"),
        })?;
    take_room_for(&mut share, body.len())?;
    for_our_host(&mut headers);
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::CONTENT_LENGTH);
    let envelope = RequestEnvelope {
        id: new_id(),
        method: method.clone(),
        path: path.to_owned(),
        query: query.to_owned(),
        host: host.map(|host| host.iter().map(|byte| char::from(*byte)).collect()),
        headers,
        body: if body.is_empty() {
            EnvelopeBody::Text(String::new())
        } else {
            EnvelopeBody::Base64(body)
        },
        created_at: now(),
    };
    let bytes = envelope.to_bytes();
    let id = envelope.id.clone();
    drop(envelope);
    // Bodies took their time: the queue may have filled meanwhile.
    check_room(queue)?;

    let deadline = Instant::now() + queue.settings.response_timeout;
    match exchange::put(&queue.directory, &id, bytes).await {
        Ok(()) => {}
        Err(fault) => {
            say(&fault);
            return Err(match fault {
                PutFault::Unwritten(_) | PutFault::Unnamed { withdrawn: true, .. } => {
                    Refusal::Unavailable(NOT_WRITTEN)
                }
                PutFault::Unnamed { withdrawn: false, .. } => lost(&method, NOT_WRITTEN),
            });
        }
    }
    share.release();
    let opened = await_response(queue, &id, &method, deadline, caller).await?;
    read(queue, opened, &id, &mut share)
        .await
        .ok_or_else(|| lost(&method, UNREADABLE))
}

/// Whether the queue has room for one more, after those were removed whose callers have gone.
fn check_room(queue: &Queue) -> Result<(), Refusal> {
    let depth = queue.settings.max_queue_depth;
    let is_full = || {
        queue
            .directory
            .waiting_requests(depth)
            .map(|count| count >= depth)
    };
    let full = is_full().map_err(|_| Refusal::Unavailable(NOT_WRITTEN))?;
    if !full {
        return Ok(());
    }
    let then = SystemTime::now() - queue.settings.response_timeout - SWEEP_SLACK;
    let swept = queue.directory.sweep_requests(then);
    match swept.and_then(|()| is_full()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Refusal::Unavailable(FULL)),
        Err(_) => Err(Refusal::Unavailable(NOT_WRITTEN)),
    }
}

fn take_room_for(share: &mut Share, body: usize) -> Result<(), Refusal> {
    let envelope = u64::try_from(base64_length(body))
        .unwrap_or(u64::MAX)
        .saturating_add(ENVELOPE_ROOM);
    share.take(envelope).map_err(|_| Refusal::Unavailable(NO_ROOM))
}

/// The response to a request that is in the queue.
async fn await_response(
    queue: &Queue,
    id: &str,
    method: &Method,
    deadline: Instant,
    caller: &mut oneshot::Sender<Response<GatewayBody>>,
) -> Result<OpenResponse, Refusal> {
    let directory = &queue.directory;
    let cap = queue.settings.poll_interval;
    let mut waiting = pin!(exchange::wait(directory, id, deadline, |waited| pace(
        waited, cap
    )));
    let early = tokio::select! {
        waited = waiting.as_mut() => Some(waited),
        () = caller.closed() => Some(Ok(None)),
        () = queue.stop.cancelled() => None,
    };
    // The host takes a request out of the queue before it serves it: what can be taken back was never served.
    let waited = match early {
        Some(waited) => waited,
        None if directory.withdraw_request(id) => return Err(Refusal::Unavailable(ENDING)),
        None => waiting.await,
    };
    match waited {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => {}
        Err(_) => return Err(lost(method, UNREADABLE)),
    }
    if directory.withdraw_request(id) {
        return Err(Refusal::Unavailable(NOT_TAKEN));
    }
    // It may have been answered between the last look and now.
    match directory.response(id) {
        Ok(Some(opened)) => Ok(opened),
        Ok(None) | Err(_) => {
            queue.abandoned.add(id);
            Err(if is_safe(method) {
                Refusal::UpstreamTimeout
            } else {
                Refusal::Indeterminate(LATE)
            })
        }
    }
}

/// A quick answer is seen quickly; a slow one costs little to wait for.
fn pace(waited: Duration, cap: Duration) -> Duration {
    let pause = match waited.as_millis() {
        0..500 => 10,
        500..5_000 => 50,
        5_000.. => 100,
    };
    Duration::from_millis(pause).min(cap)
}

async fn read(queue: &Queue, opened: OpenResponse, id: &str, share: &mut Share) -> Option<ResponseEnvelope> {
    let limit = usize::try_from(queue.settings.max_body).unwrap_or(usize::MAX);
    let most = u64::try_from(envelope_limit(limit)).unwrap_or(u64::MAX);
    let size = opened.size;
    if size > most
        || share
            .take(size.saturating_mul(2).saturating_add(ENVELOPE_ROOM))
            .is_err()
    {
        return None;
    }
    let bytes = exchange::read(opened).await.ok()??;
    ResponseEnvelope::parse(&bytes, id, limit, Reading::Strict).ok()
}

/// What a caller is told whose request was in the queue and has no usable answer.
fn lost(method: &Method, why: &'static str) -> Refusal {
    if is_safe(method) {
        Refusal::UpstreamFailed(why)
    } else {
        Refusal::Indeterminate(why)
    }
}

/// The host's answer as the caller gets it.
fn response(envelope: ResponseEnvelope) -> Response<GatewayBody> {
    let status = if envelope.is_indeterminate() {
        StatusCode::CONFLICT
    } else {
        envelope.status
    };
    finish(status, envelope.headers, envelope.body.into_bytes())
}

/// An answer with the host's headers, but for those that belong to one connection.
pub(super) fn finish(status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Response<GatewayBody> {
    drop_hop_by_hop(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let mut response = Response::new(whole(if bodiless { Bytes::new() } else { body }));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
