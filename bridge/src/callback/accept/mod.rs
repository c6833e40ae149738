//! Step 1, accept: a byte stream becomes requests, answered in order.
//!
//! Here: hyper's HTTP/1 server over the gate, one per stream an agent opened, and the lingering close that lets slow
//! clients read an early answer. Not here: what a request may do; each is handed to [`super::serve`] with the gate's
//! note of it. Next: `authenticate.rs`.

mod framing;
mod gate;

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use policy::HostPins;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{AgentStream, ByteStream, Listening};
use uuid::Uuid;

pub(crate) use framing::Fault;
use framing::{HeadLimits, MAX_HEADERS};
use gate::{Gate, Waits};
pub(crate) use gate::{Note, Notes};

use super::answer::AnswerBody;
use crate::session::Session;

/// Read and dropped at most after an answer that came before its request was read.
pub(crate) const LINGER_BYTES: u64 = 64 * 1024 * 1024;
/// … and for so long at most.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);

/// One callback as it came in: nothing of it has been looked at but its framing.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) request_id: Uuid,
    pub(crate) session: Arc<Session>,
    pub(crate) pins: HostPins,
    /// What the caller wrote, also where hyper was shown something else.
    pub(crate) method: Method,
    pub(crate) note: Note,
    pub(crate) notes: Arc<Notes>,
    pub(crate) request: Request<Incoming>,
}

/// Serves one stream of an agent to its end, or until the session is cut.
pub(crate) async fn stream(stream: AgentStream, session: Arc<Session>) {
    let pins = match &stream.listening {
        Listening::Tcp { port } => HostPins::tcp(*port),
        Listening::Unix { .. } => HostPins::unix(),
    };
    let notes = Arc::new(Notes::default());
    let limits = HeadLimits {
        max_head: session.limits.max_head,
        max_target: session.limits.max_target,
        max_headers: session.limits.max_headers.min(MAX_HEADERS),
        max_body: session.limits.max_body,
    };
    let gate = Gate::new(stream.bytes, limits, Waits::default(), Arc::clone(&notes));
    let served = Arc::clone(&session);
    let service = service_fn(move |request: Request<Incoming>| {
        let note = notes.next();
        let arrived = Arrived {
            request_id: Uuid::now_v7(),
            session: Arc::clone(&served),
            pins,
            method: note.method.clone().unwrap_or_else(|| request.method().clone()),
            note,
            notes: Arc::clone(&notes),
            request,
        };
        // Boxed: hyper moves it, and wants it `Unpin` for the close without shutdown below.
        Box::pin(async move { Ok::<Response<AnswerBody>, Infallible>(super::serve(arrived).await) })
    });
    // A caller that shut down its sending side after the request still gets its answer.
    let mut connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(gate), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
        () = session.cut.cancelled() => return,
    };
    if let Err(error) = ended {
        // A cut answer must look cut: the stream is dropped without an orderly end.
        tracing::debug!(session = %session.id, %error, "an agent's connection broke");
        return;
    }
    let (bytes, may_send) = connection.into_parts().io.into_inner().into_inner();
    if tokio::time::timeout(LINGER_TIME, linger(bytes, may_send))
        .await
        .is_err()
    {
        tracing::debug!(session = %session.id, "an agent's connection was closed while it still sent");
    }
}

/// Says that we are done, then reads what the other side still sends: many clients see no answer otherwise.
async fn linger(mut bytes: Box<dyn ByteStream>, may_send: bool) {
    if bytes.shutdown().await.is_err() || !may_send {
        return;
    }
    let mut room = (&mut bytes).take(LINGER_BYTES);
    let mut sink = [0_u8; 8192];
    while matches!(room.read(&mut sink).await, Ok(count) if count > 0) {}
}
