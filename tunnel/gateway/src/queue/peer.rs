//! Requests in the drop-in role: the published gateway's checks, in its order, with its statuses and texts.
//!
//! Here: what Paperclip's own host and its callers expect, odd statuses included. Not here: what we would rather say
//! (`ours.rs`); the token, which the listener has checked.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;
use tokio::time::Instant;
use wire::encoding;
use wire::envelope::{
    EnvelopeBody, EnvelopeFault, Field, Reading, RequestEnvelope, ResponseEnvelope, envelope_limit,
};

use super::directory::{OpenResponse, PutFault};
use super::exchange::{self, BodyFault};
use super::ledger::Share;
use super::ours::finish;
use super::{Queue, SWEEP_SLACK, is_safe, new_id, now};
use crate::answers::{OUTCOME, json, peer_error};
use crate::caller::{CallerRequest, GatewayBody};
use crate::diagnostics::say;
use crate::headers::for_peers_host;
use crate::url;

const QUEUE_FULL: &str = "Bridge request queue is full.";
const ONLY_JSON: &str = "Bridge only accepts JSON request bodies.";
const REQUEST_TOO_LARGE: &str = "Bridge request body exceeded the configured size limit.";
const BODY_TOO_LARGE: &str = "Bridge body exceeded the configured size limit.";
const RESPONSE_TOO_LARGE: &str = "Bridge response envelope exceeded the configured size limit.";
const RESPONSE_CHANGED: &str = "Bridge response envelope changed while reading.";
const RESPONSE_UNREADABLE: &str = "The bridge response could not be read.";
const RESPONSE_INVALID: &str = "Invalid bridge response envelope.";
/// Callers look for the word JSON in it.
const RESPONSE_NO_JSON: &str = "Unexpected JSON in the bridge response envelope.";
const NO_CAPACITY: &str = "The bridge gateway process reached its reserved body byte ceiling. Retry later.";
const TIMED_OUT: &str = "Timed out waiting for host bridge response.";
const NOT_WRITTEN: &str = "The bridge request could not be written.";
const INVALID_URL: &str = "Invalid URL";

/// Why a request has no answer of the host's.
struct Failure {
    text: &'static str,
    /// The ledger refused.
    capacity: bool,
    /// The request may be with the host.
    dispatched: bool,
}

impl Failure {
    fn before(text: &'static str) -> Self {
        Self {
            text,
            capacity: text == NO_CAPACITY,
            dispatched: false,
        }
    }

    fn after(text: &'static str) -> Self {
        Self {
            dispatched: true,
            ..Self::before(text)
        }
    }
}

/// The keys in the order in which they are written.
#[derive(Serialize)]
struct Indeterminate {
    error: &'static str,
    outcome: &'static str,
    retryable: bool,
}

/// Answers one request, whether or not its caller still waits.
pub(super) async fn answer(queue: &Queue, request: CallerRequest) -> Response<GatewayBody> {
    if is_full(queue) {
        return peer_error(StatusCode::SERVICE_UNAVAILABLE, QUEUE_FULL);
    }
    let Ok(target) = url::parse(&request.target) else {
        return failed(&request.method, &Failure::before(INVALID_URL));
    };
    let multipart = is_attachment(&request.method, &target.path, &request.headers);
    if !multipart && !admits_type(&request.method, &request.headers) {
        return peer_error(StatusCode::UNSUPPORTED_MEDIA_TYPE, ONLY_JSON);
    }
    let method = request.method.clone();
    match carry(queue, request, target, multipart).await {
        Ok(envelope) => {
            let status = if envelope.is_indeterminate() {
                StatusCode::CONFLICT
            } else {
                envelope.status
            };
            finish(status, envelope.headers, envelope.body.into_bytes())
        }
        Err(failure) => failed(&method, &failure),
    }
}

fn failed(method: &Method, failure: &Failure) -> Response<GatewayBody> {
    if failure.dispatched && !is_safe(method) {
        let body = Indeterminate {
            error: failure.text,
            outcome: "indeterminate",
            retryable: false,
        };
        let mut response = json(StatusCode::CONFLICT, &body);
        response
            .headers_mut()
            .insert(OUTCOME, HeaderValue::from_static("indeterminate"));
        return response;
    }
    let status = if failure.capacity {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::BAD_GATEWAY
    };
    peer_error(status, failure.text)
}

fn is_full(queue: &Queue) -> bool {
    let depth = queue.settings.max_queue_depth;
    // A folder that cannot be listed counts as empty; writing into it will tell.
    let is_full = || {
        queue
            .directory
            .waiting_requests(depth)
            .is_ok_and(|count| count >= depth)
    };
    if !is_full() {
        return false;
    }
    let _as_far_as_it_went = queue
        .directory
        .sweep_requests(SystemTime::now() - queue.settings.response_timeout - SWEEP_SLACK);
    is_full()
}

fn content_type(headers: &HeaderMap) -> String {
    let first = headers
        .get(header::CONTENT_TYPE)
        .map_or(&[][..], HeaderValue::as_bytes);
    first
        .iter()
        .map(|byte| char::from(*byte).to_ascii_lowercase())
        .collect()
}

fn admits_type(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::GET || method == Method::HEAD || content_type(headers).contains("json")
}

/// Whether this is the one upload that is carried as bytes.
fn is_attachment(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    let is_path = matches!(segments.as_slice(), ["", "api", "companies", company, "issues", issue, "attachments"]
        if !company.is_empty() && !issue.is_empty());
    let is_type = content_type(headers)
        .strip_prefix("multipart/form-data")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(';'));
    method == Method::POST && is_path && is_type
}

async fn carry(
    queue: &Queue,
    request: CallerRequest,
    target: url::Parsed,
    multipart: bool,
) -> Result<ResponseEnvelope, Failure> {
    let CallerRequest {
        method,
        headers,
        body,
        ..
    } = request;
    let limit = queue.settings.max_body;
    let mut share = queue.ledger.share();
    let body = exchange::read_body(body, limit, &mut share)
        .await
        .map_err(|fault| match fault {
            BodyFault::TooLarge => Failure::before(REQUEST_TOO_LARGE),
            BodyFault::NoRoom => Failure::before(NO_CAPACITY),
            BodyFault::Caller(_) => Failure::before("aborted"),
        })?;
    let reserved = envelope_limit(body.len()).saturating_mul(4);
    take(&mut share, u64::try_from(reserved).unwrap_or(u64::MAX))
        .map_err(|()| Failure::before(NO_CAPACITY))?;
    let envelope = RequestEnvelope {
        id: new_id(),
        method,
        path: target.path,
        query: target.query,
        host: None,
        headers: for_peers_host(&headers).into_iter().collect(),
        body: spelled(body, multipart, limit)?,
        created_at: now(),
    };
    let bytes = envelope.to_bytes();
    let deadline = Instant::now() + queue.settings.response_timeout;
    exchange::put(&queue.directory, &envelope.id, bytes)
        .await
        .map_err(|fault| {
            say(&fault);
            match fault {
                PutFault::Unwritten(_) => Failure::before(NOT_WRITTEN),
                PutFault::Unnamed { .. } => Failure::after(NOT_WRITTEN),
            }
        })?;
    let response = receive(queue, &envelope.id, deadline, &mut share).await;
    if response.is_err() {
        queue.directory.withdraw_request(&envelope.id);
        queue.abandoned.add(&envelope.id);
    }
    let bytes = response.map_err(Failure::after)?;
    ResponseEnvelope::parse(&bytes, &envelope.id, size(limit), Reading::AsPublished)
        .map_err(|fault| Failure::after(fault_text(fault)))
}

/// The body as the envelope carries it; text that is not UTF-8 loses what is not.
fn spelled(body: Bytes, multipart: bool, limit: u64) -> Result<EnvelopeBody, Failure> {
    if multipart {
        return Ok(EnvelopeBody::Base64(body));
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    if text.len() > size(limit) {
        return Err(Failure::before(BODY_TOO_LARGE));
    }
    Ok(EnvelopeBody::Text(text))
}

async fn receive(
    queue: &Queue,
    id: &str,
    deadline: Instant,
    share: &mut Share,
) -> Result<Vec<u8>, &'static str> {
    let interval = queue.settings.poll_interval;
    let waited = exchange::wait(&queue.directory, id, deadline, |_: Duration| interval).await;
    let opened: OpenResponse = waited.map_err(|_| RESPONSE_UNREADABLE)?.ok_or(TIMED_OUT)?;
    let most = u64::try_from(envelope_limit(size(queue.settings.max_body))).unwrap_or(u64::MAX);
    if opened.size > most {
        return Err(RESPONSE_TOO_LARGE);
    }
    take(share, opened.size.saturating_mul(6).saturating_add(1)).map_err(|()| NO_CAPACITY)?;
    exchange::read(opened)
        .await
        .map_err(|_| RESPONSE_UNREADABLE)?
        .ok_or(RESPONSE_CHANGED)
}

fn fault_text(fault: EnvelopeFault) -> &'static str {
    match fault {
        EnvelopeFault::Body(encoding::BodyFault::TooLarge { .. }) => BODY_TOO_LARGE,
        EnvelopeFault::Body(encoding::BodyFault::NotBase64) => "Invalid bridge base64 body.",
        EnvelopeFault::Body(encoding::BodyFault::UnknownEncoding) => "Unsupported bridge body encoding.",
        EnvelopeFault::Missing(Field::Body) | EnvelopeFault::WrongType(Field::Body) => "Invalid bridge body.",
        EnvelopeFault::TooLarge { .. } => RESPONSE_TOO_LARGE,
        EnvelopeFault::NotAnObject => RESPONSE_NO_JSON,
        EnvelopeFault::Missing(_)
        | EnvelopeFault::Twice(_)
        | EnvelopeFault::WrongType(_)
        | EnvelopeFault::TooLong(_)
        | EnvelopeFault::NotValid(_)
        | EnvelopeFault::OtherId => RESPONSE_INVALID,
    }
}

fn take(share: &mut Share, bytes: u64) -> Result<(), ()> {
    share.take(bytes).map_err(drop)
}

fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
