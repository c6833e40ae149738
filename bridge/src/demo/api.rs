//! The demo's Paperclip API: answers three routes, wants the real credential, and remembers what it was asked.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::secrets::Secret;

/// A body holding this is taken in, and then the connection is cut without an answer.
pub(crate) const LOSE_THE_ANSWER: &str = "lose the answer";

/// A running stand-in. Ends when dropped.
#[derive(Debug)]
pub(crate) struct StandIn {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    _server: JoinSet<()>,
}

/// One call as the API saw it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// `METHOD /path`.
    pub(crate) what: String,
    /// It carried the real credential.
    pub(crate) credential: bool,
    /// Its `x-paperclip-run-id`.
    pub(crate) run_id: Option<String>,
    /// It said something that only the agent's own headers could have brought.
    pub(crate) smuggled: bool,
    /// Its body.
    pub(crate) body: Bytes,
}

impl StandIn {
    /// Starts the API; calls without `credential` are answered 401.
    pub(crate) async fn start(credential: &Secret) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let expected: Arc<str> = format!("Bearer {}", credential.expose()).into();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, expected, asked.clone()));
        Ok(Self {
            address,
            asked,
            _server: server,
        })
    }

    /// Every call so far, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(listener: TcpListener, expected: Arc<str>, asked: Arc<Mutex<Vec<Asked>>>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (expected, asked) = (expected.clone(), asked.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, expected.clone(), asked.clone()));
            // An error here is a cut connection, which is one of the things the demo shows.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The connection is to be cut.
#[derive(Debug, thiserror::Error)]
#[error("the answer is lost on purpose")]
struct Lost;

impl From<Infallible> for Lost {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn answer(
    request: Request<Incoming>,
    expected: Arc<str>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Full<Bytes>>, Lost> {
    let (head, body) = request.into_parts();
    let text = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let body = body.collect().await.map_err(|_| Lost)?.to_bytes();
    let credential = text("authorization").as_deref() == Some(&*expected);
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked {
        what: format!("{} {}", head.method, head.uri.path()),
        credential,
        run_id: text("x-paperclip-run-id"),
        smuggled: head.headers.contains_key("cookie") || head.headers.contains_key("x-forwarded-for"),
        body: body.clone(),
    });
    if !credential {
        return Ok(json(
            StatusCode::UNAUTHORIZED,
            r#"{"error":"unknown credential"}"#,
        ));
    }
    if String::from_utf8_lossy(&body).contains(LOSE_THE_ANSWER) {
        return Err(Lost);
    }
    Ok(match (&head.method, head.uri.path()) {
        (&Method::GET, "/api/agents/me") => json(StatusCode::OK, r#"{"id":"agent-7","name":"Demo agent"}"#),
        (&Method::POST, "/api/issues/PAP-1/comments") => json(StatusCode::CREATED, r#"{"id":"comment-1"}"#),
        _ => json(StatusCode::NOT_FOUND, r#"{"error":"no such thing"}"#),
    })
}

fn json(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
