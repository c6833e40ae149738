//! E2B: its control plane and the server inside its sandboxes, on one port.
//!
//! Here: [`FakeE2b`], which a test holds, and the way of one call to the plane it is for. A sandbox is a home folder
//! and real processes of this machine, found again by a mark in their environment. Not played: templates, snapshots,
//! watchers of folders, signed URLs, other users than the one who runs the tests.
//!
//! Reading order: `control`, `sandbox`, `service` (the calls), `start`, `process`.

mod control;
mod sandbox;
mod service;
mod start;
mod process;
mod table;
mod filesystem;
mod rpc;
mod reply;
mod ending;
mod clock;
mod switches;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use reply::Reply;
use sandbox::Sandbox;

pub use clock::Clock;
pub use switches::Switches;

/// The only key that this server takes, until it is rotated.
pub const API_KEY: &str = "e2b_00112233445566778899aabbccddeeff00112233";
/// Bodies up to this size are kept in [`FakeE2b::calls`].
const KEPT_BODY: usize = 64 * 1024;
/// How long a sandbox lives that a test added.
const ADDED_FOR: Duration = Duration::from_secs(3600);
/// How often lifetimes are looked at.
const SWEEP: Duration = Duration::from_millis(200);

/// A running server. Dropping it ends the server, every sandbox and every process in them.
pub struct FakeE2b {
    state: Arc<State>,
    url: String,
    _tasks: AbortOnDropHandle<()>,
}

impl fmt::Debug for FakeE2b {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeE2b")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// One call that the server got.
#[derive(Clone, Debug)]
pub struct Call {
    /// Such as `POST`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Without the `?`.
    pub query: String,
    /// All of them.
    pub headers: HeaderMap,
    /// Empty where it is long, or a stream.
    pub body: Bytes,
}

impl Call {
    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default());
        value.unwrap_or_default()
    }

    /// The request of a call, taken out of its frame if it has one.
    pub fn message(&self) -> Value {
        let framed = self.header("content-type").starts_with(rpc::STREAM);
        let payload = if framed {
            self.body.get(5..)
        } else {
            Some(&self.body[..])
        };
        serde_json::from_slice(payload.unwrap_or_default()).unwrap_or(Value::Null)
    }
}

impl FakeE2b {
    /// Starts a server on a port of its own.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port on loopback");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State {
            api_key: Mutex::new(API_KEY.to_owned()),
            clock: Arc::default(),
            switches: Switches::default(),
            sandboxes: Mutex::default(),
            calls: Mutex::default(),
        });
        let tasks = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self {
            state,
            url,
            _tasks: AbortOnDropHandle::new(tasks),
        }
    }

    /// From now on this is the only key that the server takes.
    pub fn rotate_key(&self, key: &str) {
        key.clone_into(&mut self.state.lock_key());
    }

    /// Base URL of both planes.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server's time.
    pub fn clock(&self) -> &Clock {
        &self.state.clock
    }

    /// What it shall do wrong.
    pub fn switches(&self) -> &Switches {
        &self.state.switches
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock_calls().clone()
    }

    /// The calls to this path, or to one that ends so.
    pub fn calls_to(&self, end: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.path.ends_with(end));
        calls
    }

    /// Ids of the sandboxes that are there, paused ones too.
    pub fn sandboxes(&self) -> Vec<String> {
        self.state
            .all()
            .iter()
            .map(|sandbox| sandbox.id.clone())
            .collect()
    }

    /// What the control plane says of a sandbox; null once it is gone.
    pub fn detail(&self, id: &str) -> Value {
        self.state
            .sandbox(id)
            .map_or(Value::Null, |sandbox| sandbox.detail())
    }

    /// What `List` says of its processes.
    pub fn processes(&self, id: &str) -> Vec<Value> {
        let list = self
            .state
            .sandbox(id)
            .map_or(json!({}), |sandbox| sandbox.processes.list());
        list["processes"].as_array().cloned().unwrap_or_default()
    }

    /// Makes a sandbox as its creation with this body would, and tells its id.
    pub fn add_sandbox(&self, request: &Value) -> String {
        let sandbox = Sandbox::new(request, ADDED_FOR, &self.state.clock);
        let id = sandbox.id.clone();
        self.state.add(sandbox);
        id
    }

    /// Ends a sandbox behind everybody's back.
    pub fn kill_sandbox(&self, id: &str) {
        self.state.remove(id);
    }

    /// Breaks every connection into a sandbox that carries a stream.
    pub fn drop_streams(&self, id: &str) {
        if let Some(sandbox) = self.state.sandbox(id) {
            sandbox.cut();
        }
    }
}

impl Drop for FakeE2b {
    fn drop(&mut self) {
        for sandbox in self.state.all() {
            self.state.remove(&sandbox.id);
        }
    }
}

/// What all calls share.
struct State {
    api_key: Mutex<String>,
    clock: Arc<Clock>,
    switches: Switches,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    calls: Mutex<Vec<Call>>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Sandbox>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_key(&self) -> MutexGuard<'_, String> {
        self.api_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, sandbox: Sandbox) {
        self.lock().insert(sandbox.id.clone(), Arc::new(sandbox));
    }

    fn all(&self) -> Vec<Arc<Sandbox>> {
        self.lock().values().cloned().collect()
    }

    fn remove(&self, id: &str) {
        let sandbox = self.lock().remove(id);
        if let Some(sandbox) = sandbox {
            sandbox.end();
        }
    }

    /// One that is there; what has outlived its time is not.
    fn sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.sweep();
        self.lock().get(id).cloned()
    }

    fn sweep(&self) {
        let now = self.clock.now();
        for sandbox in self.all() {
            if sandbox.end_at() > now || sandbox.state() != sandbox::State::Running {
                continue;
            }
            if sandbox.auto_pause {
                sandbox.pause(true);
            } else {
                self.remove(&sandbox.id);
            }
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                stream.set_nodelay(true).expect("a socket");
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&state), request));
                    let mut http = hyper::server::conn::http1::Builder::new();
                    // A caller that has gone is what a cut connection looks like from here.
                    let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = sweep.tick() => state.sweep(),
        }
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str().to_owned();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let (body, streamed) = if path.ends_with("/StreamInput") {
        (Bytes::new(), Some(body))
    } else {
        (body.collect().await.map_err(io::Error::other)?.to_bytes(), None)
    };
    state.lock_calls().push(Call {
        method: method.clone(),
        path: path.clone(),
        query: query.clone(),
        headers: parts.headers.clone(),
        body: if body.len() <= KEPT_BODY {
            body.clone()
        } else {
            Bytes::new()
        },
    });
    tokio::time::sleep(state.switches.latency_now()).await;
    let planned = state.switches.planned(&format!("{method} {path}"));
    if let Some(switches::Fault::Refuse { status, retry_after }) = planned {
        let mut reply = reply::fault(status, "as the test wants it")?;
        if let Some(seconds) = retry_after {
            reply.headers_mut().insert("retry-after", seconds.into());
        }
        return Ok(reply);
    }
    let reply = if path.starts_with("/sandboxes") || path.starts_with("/v2/") {
        let key = parts.headers.get("x-api-key").and_then(|key| key.to_str().ok());
        control::answer(&state, &method, &path, &query, key.unwrap_or_default(), &body)
    } else {
        inside(&state, &parts.headers, &method, &path, &query, body, streamed).await
    };
    match planned {
        Some(switches::Fault::LoseAnswer) => Err(reply::cut()),
        Some(switches::Fault::Refuse { .. }) | None => reply,
    }
}

/// A call to the server inside a sandbox.
async fn inside(
    state: &State,
    headers: &HeaderMap,
    method: &str,
    path: &str,
    query: &str,
    body: Bytes,
    streamed: Option<Incoming>,
) -> Reply {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let id = match text("e2b-sandbox-id") {
        "" => text("host")
            .split('.')
            .next()
            .and_then(|label| label.split_once('-'))
            .map_or("", |(_, id)| id),
        id => id,
    };
    let Some(sandbox) = state
        .sandbox(id)
        .filter(|one| one.state() == sandbox::State::Running)
    else {
        return reply::no_sandbox(id);
    };
    if path == "/health" {
        return reply::empty(204);
    }
    if text("x-access-token") != sandbox.token {
        return reply::fault(
            401,
            "unauthorized access, please provide a valid access token or method signing if supported",
        );
    }
    let content_type = text("content-type");
    let cut = sandbox.sockets();
    let reply = async {
        match path.strip_prefix("/process.Process/") {
            Some("Start" | "Connect" | "StreamInput") if !content_type.starts_with(rpc::STREAM) => {
                service::wrong_type()
            }
            Some("StreamInput") => match streamed {
                Some(body) => service::stream_input(&sandbox, body).await,
                None => reply::empty(500),
            },
            Some(call @ ("Start" | "Connect")) => {
                service::stream(&sandbox, &state.switches, call, headers, &body)
            }
            Some(call) => rpc::unary(service::unary(&sandbox, call, &body).await),
            None => match path.strip_prefix("/filesystem.Filesystem/") {
                Some(call) => rpc::unary(filesystem::unary(&sandbox, call, &body)),
                None if path == "/files" => filesystem::files(&sandbox, method, query, content_type, &body),
                None => reply::fault(404, "no such path"),
            },
        }
    };
    tokio::select! {
        reply = reply => reply,
        () = cut.cancelled() => Err(reply::cut()),
    }
}
