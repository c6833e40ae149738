//! The listener in the sandbox: reads callers' requests, and has a carrier answer each.
//!
//! Here: hyper's HTTP/1 server over the gate, a bounded number of connections, and the two refusals that need no host
//! (framing, token). Not here: how a request reaches the host; that is the [`Carrier`]'s (`http2/`, `queue/`).

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::http1::{Gate, HeadLimits, MAX_HEADERS, Waits};
use wire::limits;

use crate::answers::{Refusal, peer_error};
use crate::caller::{AsItStands, CallerRequest, GatewayBody, Notes};
use crate::cut::{CallerSocket, Unfinished};
use crate::settings::{Role, Settings};

/// Connections served at a time; more wait in the kernel.
const MAX_CONNECTIONS: usize = 512;
/// After an `accept` that failed, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// As peer: what Node allows a head.
const PEER_MAX_HEAD: usize = 16 * 1024;

/// An answer on its way.
pub type Answering = Pin<Box<dyn Future<Output = Response<GatewayBody>> + Send>>;

/// Takes callers' requests to the host and brings its answers.
pub trait Carrier: Send + Sync {
    /// Answers one request of a caller who holds the token; never fails: what goes wrong is answered, too.
    ///
    /// Dropping the future means that the caller has gone.
    fn answer(self: Arc<Self>, request: CallerRequest) -> Answering;
}

/// Serves callers until `stop`, then lets the answers under way go out for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    settings: Arc<Settings>,
    carrier: Arc<dyn Carrier>,
    stop: CancellationToken,
    grace: Duration,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // A finished task is taken out here, so that the set holds no more than the room.
        while connections.try_join_next().is_some() {}
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    serve_connection(stream, Arc::clone(&settings), Arc::clone(&carrier), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Who has not read its answer by then does not hold up the end; dropping the set cuts it off.
    let _all_in_time = tokio::time::timeout(grace, all).await;
}

fn head_limits(settings: &Settings) -> HeadLimits {
    match settings.role {
        Role::Ours => HeadLimits {
            max_head: limits::MAX_HEAD,
            max_target: limits::MAX_TARGET,
            max_headers: MAX_HEADERS,
            max_body: settings.max_body,
        },
        // The body's limit has an answer of its own there.
        Role::Peer => HeadLimits {
            max_head: PEER_MAX_HEAD,
            max_target: PEER_MAX_HEAD,
            max_headers: MAX_HEADERS,
            max_body: u64::MAX,
        },
    }
}

async fn serve_connection(
    stream: TcpStream,
    settings: Arc<Settings>,
    carrier: Arc<dyn Carrier>,
    stop: CancellationToken,
) {
    // Without it small answers wait for the caller's delayed acknowledgement; a socket that cannot have it still works.
    let _set = stream.set_nodelay(true);
    let notes = Arc::new(Notes::default());
    let unfinished = Unfinished::default();
    let gate = Gate::<_, AsItStands>::new(
        CallerSocket::new(stream, unfinished.clone()),
        head_limits(&settings),
        Waits::default(),
        Arc::clone(&notes),
    );
    let service = service_fn(move |request: Request<Incoming>| {
        let unfinished = Unfinished::is_for(&request).then(|| unfinished.clone());
        let answering = answer(request, &notes, &settings, &carrier);
        async move {
            let response = answering.await;
            Ok::<_, Infallible>(match unfinished {
                Some(unfinished) => unfinished.follow(response),
                None => response,
            })
        }
    });
    // A caller that shut down its sending side after the request still gets its answer.
    let mut connection = pin!(
        http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(gate), service)
    );
    let _ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

fn answer(
    request: Request<Incoming>,
    notes: &Arc<Notes>,
    settings: &Settings,
    carrier: &Arc<dyn Carrier>,
) -> Answering {
    let note = notes.next();
    let refused = if let Some(fault) = note.fault {
        Refusal::Framing(fault).in_role(settings.role, &fault.to_string())
    } else if !settings.token.admits(request.headers(), settings.role) {
        match settings.role {
            Role::Ours => Refusal::InvalidToken.answer(),
            Role::Peer => peer_error(StatusCode::UNAUTHORIZED, "Invalid bridge token."),
        }
    } else {
        let request = CallerRequest::new(request, note, notes);
        return Arc::clone(carrier).answer(request);
    };
    Box::pin(std::future::ready(refused))
}
