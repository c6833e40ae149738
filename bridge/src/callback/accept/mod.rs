//! Step 1, accept: a byte stream becomes requests, answered in order.
//!
//! Here: hyper's HTTP/1 server over the gate, one per stream an agent opened; `message.rs` is the same step for what a
//! gateway has taken apart. Not here: what a request may do; each is handed to [`super::serve`] as [`Arrived`]. Next:
//! `authenticate.rs`.

mod message;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use policy::{HostPins, Target, TargetFault};
use tunnel::{AgentStream, CallerProof, Listening};
use uuid::Uuid;

pub(crate) use message::message;
pub(crate) use tunnel::wire::http1::{Fault, LINGER_BYTES, LINGER_TIME};
use tunnel::wire::http1::{Gate, HeadLimits, MAX_HEADERS, TargetJudge, Waits};

use super::answer::AnswerBody;
use super::body::CallerBody;
use crate::session::Session;

/// The notes of one connection.
pub(crate) type Notes = tunnel::wire::http1::Notes<TargetFault>;

/// Only a target in canonical form reaches hyper, whose own reading of targets is another one.
struct Canonical;

impl TargetJudge for Canonical {
    type Fault = TargetFault;

    fn judge(target: &[u8]) -> Result<(), TargetFault> {
        Target::parse(target).map(drop)
    }

    fn connect(_target: &[u8]) -> TargetFault {
        TargetFault::AuthorityForm
    }
}

/// One callback as it came in: nothing of it has been judged but its framing and the form of its target.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) request_id: Uuid,
    pub(crate) session: Arc<Session>,
    pub(crate) pins: HostPins,
    /// What the caller wrote, also where hyper was shown something else.
    pub(crate) method: Method,
    /// Why the head cannot be acted on at all; the rest then means nothing.
    pub(crate) fault: Option<Fault>,
    pub(crate) host: NamedHost,
    pub(crate) proof: CallerProof,
    pub(crate) target: Result<PathAndQuery, TargetFault>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallerBody,
    /// Whether there is somebody to answer once the session is cut; a stream is closed then.
    pub(crate) outlives_cut: bool,
}

/// Where the `Host` of a callback stands.
#[derive(Debug)]
pub(crate) enum NamedHost {
    /// Among the headers, as it does in HTTP/1.
    InHeaders,
    /// Beside the headers.
    Told(Bytes),
    /// The gateway does not tell it.
    NotTold,
}

fn pins(listening: &Listening) -> HostPins {
    match listening {
        Listening::Tcp { port } => HostPins::tcp(*port),
        Listening::Unix { .. } => HostPins::unix(),
        Listening::Url { url, .. } => HostPins::url(url),
    }
}

/// Serves one stream of an agent to its end, or until the session is cut.
pub(crate) async fn stream(stream: AgentStream, session: Arc<Session>) {
    let _served = session.streams.token();
    let pins = pins(&stream.listening);
    let notes = Arc::new(Notes::default());
    let limits = HeadLimits {
        max_head: session.limits.max_head,
        max_target: session.limits.max_target,
        max_headers: session.limits.max_headers.min(MAX_HEADERS),
        max_body: session.limits.max_body,
    };
    let gate = Gate::<_, Canonical>::new(stream.bytes, limits, Waits::default(), Arc::clone(&notes));
    let served = Arc::clone(&session);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut note = notes.next();
        let (head, incoming) = request.into_parts();
        let body = CallerBody::stream(incoming, &head.headers, Arc::clone(&notes), served.tasks.clone());
        let target = match note.target_fault {
            Some(fault) => Err(fault),
            None => head.uri.into_parts().path_and_query.ok_or(TargetFault::Empty),
        };
        let arrived = Arrived {
            request_id: Uuid::now_v7(),
            session: Arc::clone(&served),
            pins: pins.clone(),
            method: note.method.take().unwrap_or(head.method),
            fault: note.fault,
            host: NamedHost::InHeaders,
            proof: CallerProof::Token,
            target,
            headers: head.headers,
            body,
            outlives_cut: false,
        };
        // Boxed: the future is large, and hyper keeps it in line with everything else of the connection.
        Box::pin(async move { Ok::<Response<AnswerBody>, Infallible>(super::serve(arrived).await) })
    });
    // A caller that shut down its sending side after the request still gets its answer.
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(gate), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = session.cut.cancelled() => return,
        () = session.closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = session.cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        // A cut answer must look cut: the stream is dropped without an orderly end.
        tracing::debug!(session = %session.id, %error, "an agent's connection broke");
    }
}
