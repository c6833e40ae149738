//! Step 1 for what came as a message: an HTTP/2 stream of a gateway, or a file of a queue.
//!
//! Here: the checks that the gate makes of a byte stream, as far as they mean something for a message (sizes, a body where
//! none belongs), and the answer's way back. A message has no framing of its own to be ambiguous. Not here: what a
//! request may do ([`super::super::serve`]). Next: `authenticate.rs`.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, header};
use http_body_util::BodyExt;
use policy::{Limits, Target, TargetFault};
use tunnel::wire::http1::{Fault, MAX_HEADERS};
use tunnel::{AgentMessage, BodyError, MessageBody};
use uuid::Uuid;

use super::{Arrived, NamedHost, pins};
use crate::callback::body::CallerBody;
use crate::session::Session;

/// Answers one callback that a gateway has taken apart.
pub(crate) async fn message(message: AgentMessage, session: Arc<Session>) -> Response<MessageBody> {
    let body = CallerBody::message(message.body, session.tasks.clone());
    let fault = size_fault(
        &message.method,
        &message.target,
        message.host.as_ref(),
        &message.headers,
        &session.limits,
    )
    .or_else(|| {
        let carries = body.declared_length().is_some_and(|length| length > 0);
        (carries && matches!(message.method, Method::GET | Method::HEAD)).then_some(Fault::BodyWithoutMeaning)
    });
    let arrived = Arrived {
        request_id: Uuid::now_v7(),
        pins: pins(&message.listening),
        fault,
        host: message.host.map_or(NamedHost::NotTold, NamedHost::Told),
        proof: message.proof,
        target: canonical(&message.method, message.target),
        method: message.method,
        headers: message.headers,
        body,
        session,
        outlives_cut: true,
    };
    let mut response = Box::pin(super::super::serve(arrived))
        .await
        .map(|body| body.map_err(BodyError::from).boxed_unsync());
    // There is no connection of the caller's here that could be closed.
    response.headers_mut().remove(header::CONNECTION);
    response
}

/// Which limit of a head this one is over, counted as if it were written out in HTTP/1.
fn size_fault(
    method: &Method,
    target: &Bytes,
    host: Option<&Bytes>,
    headers: &HeaderMap,
    limits: &Limits,
) -> Option<Fault> {
    let most = limits.max_headers.min(MAX_HEADERS);
    if target.len() > limits.max_target {
        return Some(Fault::TargetTooLong {
            limit_bytes: limits.max_target,
        });
    }
    if headers.len() + usize::from(host.is_some()) > most {
        return Some(Fault::TooManyHeaders { limit: most });
    }
    let line = |name: usize, value: usize| name + ": \r\n".len() + value;
    let fields: usize = headers
        .iter()
        .map(|(name, value)| line(name.as_str().len(), value.len()))
        .sum();
    let host = host.map_or(0, |host| line("host".len(), host.len()));
    let request_line = method.as_str().len() + target.len() + "  HTTP/1.1\r\n".len();
    (request_line + host + fields + "\r\n".len() > limits.max_head).then_some(Fault::HeadTooLarge {
        limit_bytes: limits.max_head,
    })
}

/// The target if it is in its one form already, and if what will be sent is the same byte for byte.
fn canonical(method: &Method, raw: Bytes) -> Result<PathAndQuery, TargetFault> {
    Target::parse(&raw)?;
    if *method == Method::CONNECT {
        return Err(TargetFault::AuthorityForm);
    }
    PathAndQuery::from_maybe_shared(raw.clone())
        .ok()
        .filter(|target| target.as_str().as_bytes() == raw)
        .ok_or(TargetFault::ForbiddenByte)
}
