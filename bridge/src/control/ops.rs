//! The ops listener: whether the daemon is alive, and whether it is ready.
//!
//! Here: `/healthz`, `/readyz` and `/metrics`, and, on loopback only, what `dashboard/` answers. There the Host is
//! pinned, so that no page of a browser can read it under a name of its own. Not here: anything that changes something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use hyper::service::service_fn;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::listener::{HEAD, serve_http};
use super::problem::Problem;
use crate::daemon::Daemon;
use crate::dashboard;

/// Connections at the same time; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// Answers under way get so long when the listener is closed.
const CLOSING: Duration = Duration::from_secs(1);
/// After a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The ops listener at its address.
#[derive(Debug)]
pub(crate) struct Ops {
    listener: TcpListener,
    address: SocketAddr,
}

impl Ops {
    /// Listens.
    ///
    /// # Errors
    ///
    /// One line: what is in the way, and what to do.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, String> {
        let fault = |error: std::io::Error| {
            format!("cannot listen on {address}: {error}; name another address with --ops ADDR")
        };
        let listener = TcpListener::bind(address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        Ok(Self { listener, address })
    }

    /// Listens on a socket that a service manager opened.
    ///
    /// # Errors
    ///
    /// One line, where the system does not let us.
    pub(crate) fn passed(listener: std::net::TcpListener) -> Result<Self, String> {
        let fault = |error: std::io::Error| format!("the ops socket that was passed cannot be used: {error}");
        listener.set_nonblocking(true).map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let listener = TcpListener::from_std(listener).map_err(fault)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`.
    pub(crate) async fn serve(self, daemon: Arc<Daemon>, stop: CancellationToken) {
        let router = router(daemon, self.address, stop.clone());
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let Ok((stream, place)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let mut router = router.clone();
                    async move { router.call(request.map(Body::new)).await }
                });
                serve_http(stream, service, HEAD, stop).await;
                drop(place);
            });
        }
        connections.close();
        // What is still being answered then ends with the process.
        let _closed = tokio::time::timeout(CLOSING, connections.wait()).await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn router(daemon: Arc<Daemon>, address: SocketAddr, stop: CancellationToken) -> Router {
    let dashboard = match daemon.door().address() {
        Some(_) => dashboard::router(Arc::clone(&daemon), stop),
        None => Router::new(),
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .with_state(daemon)
        .merge(dashboard)
        .layer(from_fn_with_state(address, pinned))
}

/// A browser that was lured to a name which points here sends that name.
async fn pinned(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    if !address.ip().is_loopback() || named_by(&request, address.port()) {
        return next.run(request).await;
    }
    Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "host_mismatch",
        format!("this listener answers to {address} and localhost only"),
    )
    .into_response()
}

fn named_by(request: &Request, port: u16) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| {
        host.as_bytes()
            .eq_ignore_ascii_case(format!("{name}:{port}").as_bytes())
    })
}

/// The process runs and answers; that is all.
async fn healthz() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

/// Each check by its name; ready only where all are.
async fn readyz(State(daemon): State<Arc<Daemon>>) -> Response {
    let checks = checks(&daemon).await;
    let ready = checks.iter().all(|(_, fault)| fault.is_none());
    let told: serde_json::Map<_, _> = checks
        .into_iter()
        .map(|(name, fault)| (name.to_owned(), json!(fault.as_deref().unwrap_or("ok"))))
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "ready": ready, "checks": told }))).into_response()
}

/// What keeps the daemon from being ready.
pub(super) async fn faults(daemon: &Daemon) -> BTreeMap<String, String> {
    let checks = checks(daemon).await.into_iter();
    checks
        .filter_map(|(name, fault)| Some((name.to_owned(), fault?)))
        .collect()
}

/// What must be so for the daemon to take sessions and serve them, each with what is wrong with it.
///
/// The configuration and the listeners were checked before this could be asked.
async fn checks(daemon: &Daemon) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("configuration", None),
        ("listeners", None),
        ("audit", daemon.audit_fault()),
        ("store", daemon.store_fault().await),
        (
            "draining",
            daemon.is_draining().then(|| "the daemon is ending".to_owned()),
        ),
    ]
}

/// What is counted, as OpenMetrics text.
async fn metrics(State(daemon): State<Arc<Daemon>>) -> Response {
    let Some(text) = daemon.metrics_text() else {
        return Problem::new(
            StatusCode::NOT_FOUND,
            "metrics_off",
            "this daemon counts nothing: telemetry.metrics is off; set it to true and restart the daemon",
        )
        .into_response();
    };
    let kind = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    )];
    (kind, text).into_response()
}

async fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there are /healthz, /readyz and /metrics, and on loopback /dashboard/",
    )
}
