//! Step 6, forward: one dispatch with the real credential, and the truth about what became of it.
//!
//! Here: the request that goes out (the caller's headers filtered first, ours put on last), its deadlines, the one
//! further try of what was provably never sent, and the ledger. An unsafe callback runs in a task of the session, so
//! that its outcome is learnt even when its caller has gone. Next: `answer.rs`.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use policy::headers::{ConnectionNamed, request_header_allowed};
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::{self, Reply};
use super::body::{UploadControl, UpstreamBody};
use super::refusal::Refusal;
use super::throttle::{Admitted, Payload};
use crate::session::Session;
use crate::session::hold::NotServed;
use crate::session::ledger::Outcome;
use crate::store::NewEntry;
use crate::upstream::{Authorization, Via, never_sent};

/// Safe methods change nothing, so a lost answer does no harm (RFC 9110 section 9.2.1).
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

pub(crate) async fn once(mut admitted: Admitted) -> Result<Reply, Refusal> {
    let request = &admitted.request;
    if is_safe(&request.method) {
        let deadline = Instant::now() + request.session.upstream.deadlines.total;
        return match dispatch(&admitted, deadline).await {
            Ok(sent) => answer::of_safe(sent, admitted, deadline).await,
            Err(failure) => Err(failure.of_safe()),
        };
    }
    let session = Arc::clone(&request.session);
    let request_id = request.request_id;
    let key = request.idempotency_key.as_deref();
    let (route, path) = (admitted.permit.route(), request.target.path());
    if !session
        .ledger
        .open(request_id, request.method.clone(), route, path, key)
    {
        return Err(Refusal::Unavailable {
            why: "too many callbacks with an open outcome",
        });
    }
    let settling = Arc::clone(&session);
    let confirmation = admitted.confirmation.take();
    let task = session.tasks.spawn(async move {
        let confirmed = async {
            match confirmation {
                Some(confirmation) => confirmation.wait().await,
                None => Ok(()),
            }
        };
        // Both wait for the disk.
        let (entered, confirmed) = tokio::join!(enter(&admitted), confirmed);
        if let Err(not_served) = entered {
            counted(&settling, &Outcome::NotSent);
            settling.ledger.settle(request_id, Outcome::NotSent);
            return Err(not_served.into());
        }
        if let Err(refusal) = confirmed {
            settle(&settling, request_id, Outcome::NotSent);
            return Err(refusal);
        }
        let result = run_unsafe(admitted).await;
        settle(&settling, request_id, outcome_of(&result));
        super::trail::settled_late(&settling, request_id);
        result
    });
    match task.await {
        Ok(result) => result,
        Err(_) => {
            let reason = "task_failed".into();
            settle(&session, request_id, Outcome::Indeterminate { reason });
            Err(Refusal::Indeterminate(
                "the bridge failed while it waited for the answer",
            ))
        }
    }
}

/// What became of it is written down, and counted.
fn settle(session: &Session, request_id: Uuid, outcome: Outcome) {
    counted(session, &outcome);
    session.settles(request_id, outcome);
}

fn counted(session: &Session, outcome: &Outcome) {
    if let Some(metrics) = &session.shared.metrics {
        metrics.outcome(outcome.name());
    }
}

/// It stands in the store that it is sent, before it is; or it is not sent.
async fn enter(admitted: &Admitted) -> Result<(), NotServed> {
    let request = &admitted.request;
    let Some(hold) = &request.session.hold else {
        return Ok(());
    };
    let entry = NewEntry {
        request_id: request.request_id,
        idempotency_key: request.idempotency_key.clone(),
        method: request.method.as_str().to_owned(),
        route: admitted.permit.route().to_owned(),
        path: request.target.path().to_owned(),
    };
    hold.enter(&entry).await
}

async fn run_unsafe(admitted: Admitted) -> Result<Reply, Refusal> {
    let deadline = Instant::now() + admitted.request.session.upstream.deadlines.total;
    match dispatch(&admitted, deadline).await {
        Ok(sent) => answer::of_unsafe(sent, admitted, deadline).await,
        Err(failure) => Err(failure.of_unsafe()),
    }
}

fn outcome_of(result: &Result<Reply, Refusal>) -> Outcome {
    match result {
        Ok(reply) => Outcome::Answered {
            status: reply.status.as_u16(),
        },
        Err(Refusal::Indeterminate(reason)) => Outcome::Indeterminate {
            reason: (*reason).into(),
        },
        // Every other refusal of this step says that nothing was sent.
        Err(_) => Outcome::NotSent,
    }
}

/// An answer whose head has come.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) upload: Option<Arc<UploadControl>>,
}

/// What the agent is told; where the credential is kept is no business of its.
const NO_CREDENTIAL: Refusal = Refusal::Unavailable {
    why: "the bridge cannot read its credential for the Paperclip API at the moment; nothing was sent",
};

/// How a dispatch failed.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Nothing was sent, and the upstream cannot be reached.
    NeverSent,
    /// No head of an answer came in time.
    TimedOut,
    /// Something may have been sent.
    Lost,
    /// The caller's own body broke on the way.
    CallerBroke,
    /// The request could not even be built.
    NotARequest,
    /// There is no credential to send it with.
    NoCredential,
    /// The session is not this daemon's any more.
    NotOwner,
}

impl Failure {
    fn of_safe(self) -> Refusal {
        match self {
            Self::NeverSent => Refusal::UpstreamUnreachable,
            Self::TimedOut => Refusal::UpstreamTimeout,
            Self::Lost => Refusal::UpstreamFailed("the connection broke"),
            Self::CallerBroke => Refusal::Malformed("the body ended before its declared length"),
            Self::NotARequest => Refusal::Malformed("the request cannot be forwarded"),
            Self::NoCredential => NO_CREDENTIAL,
            Self::NotOwner => Refusal::NotOwner,
        }
    }

    fn of_unsafe(self) -> Refusal {
        match self {
            Self::NeverSent => Refusal::UpstreamUnreachable,
            Self::TimedOut => Refusal::Indeterminate("no answer in time"),
            Self::Lost => Refusal::Indeterminate("the connection broke"),
            Self::CallerBroke => Refusal::Indeterminate("the body broke on its way"),
            Self::NotARequest => Refusal::Malformed("the request cannot be forwarded"),
            Self::NoCredential => NO_CREDENTIAL,
            Self::NotOwner => Refusal::NotOwner,
        }
    }
}

async fn dispatch(admitted: &Admitted, deadline: Instant) -> Result<Sent, Failure> {
    let upstream = &admitted.request.session.upstream;
    let head_deadline = deadline.min(Instant::now() + upstream.deadlines.head);
    let (upload, length) = match &admitted.payload {
        Payload::Declared(control, length) => (Some(Arc::clone(control)), *length),
        Payload::None | Payload::Held(_) => (None, 0),
    };
    let body = || match (&admitted.payload, &upload) {
        (Payload::Declared(..), Some(control)) => control.upload(length),
        (Payload::Held(bytes), _) => UpstreamBody::Held(Some(bytes.clone())),
        (Payload::None | Payload::Declared(..), _) => UpstreamBody::Empty,
    };
    let authorization = tokio::time::timeout_at(head_deadline, upstream.authorization())
        .await
        .map_err(|_| Failure::NoCredential)?
        .map_err(|error| {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "no credential for a callback"
            );
            Failure::NoCredential
        })?;
    let mut via = Via::Pool;
    loop {
        let request = build(admitted, body(), &authorization)?;
        // What came before may have taken its time.
        if admitted.request.session.is_ours().is_err() {
            return Err(Failure::NotOwner);
        }
        let error = match tokio::time::timeout_at(head_deadline, upstream.send(request, via)).await {
            Ok(Ok(response)) => {
                if let Some(control) = &upload {
                    control.pause();
                }
                if response.status() == http::StatusCode::UNAUTHORIZED {
                    upstream.rejected(&authorization);
                }
                return Ok(Sent { response, upload });
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(Failure::TimedOut),
        };
        let untouched = upload.as_ref().is_none_or(|control| control.untouched());
        if !(never_sent(&error) && untouched) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a dispatched callback got no answer"
            );
            return Err(if caller_broke(&error) {
                Failure::CallerBroke
            } else {
                Failure::Lost
            });
        }
        if error.is_connect() || via == Via::FreshConnection {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the upstream was not reached"
            );
            return Err(Failure::NeverSent);
        }
        // An idle connection had been closed under us before a byte was written: once more, on a new one.
        via = Via::FreshConnection;
    }
}

/// The caller's headers are filtered first; only then comes what only we may set.
fn build(
    admitted: &Admitted,
    body: UpstreamBody,
    authorization: &Authorization,
) -> Result<Request<UpstreamBody>, Failure> {
    let request = &admitted.request;
    let upstream = &request.session.upstream;
    let has_content = body.size_hint().exact() != Some(0);
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = request.method.clone();
    *outgoing.uri_mut() = upstream.uri(&request.target).map_err(|_| Failure::NotARequest)?;
    let headers = outgoing.headers_mut();
    *headers = HeaderMap::with_capacity(12);
    let named = connection_named(&request.headers);
    for (name, value) in &request.headers {
        if request_header_allowed(name.as_str()) && !named.drops(name.as_str()) {
            headers.append(name, value.clone());
        }
    }
    // RFC 9110 section 8.6: methods that are meant to have content say that there is none; hyper would say nothing.
    if !has_content && matches!(request.method, Method::POST | Method::PUT | Method::PATCH) {
        headers.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from_static("0"));
    }
    upstream.put_on(headers, &request.session.run_id, authorization);
    Ok(outgoing)
}

/// What a `Connection` header names is for this hop only.
pub(super) fn connection_named(headers: &HeaderMap) -> ConnectionNamed<'_> {
    ConnectionNamed::from_values(
        headers
            .get_all(http::header::CONNECTION)
            .iter()
            .map(http::HeaderValue::as_bytes),
    )
}

fn caller_broke(error: &hyper_util::client::legacy::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<super::body::UploadError>() {
            return true;
        }
        source = error.source();
    }
    false
}
