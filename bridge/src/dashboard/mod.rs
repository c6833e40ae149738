//! The dashboard: a page compiled into this program, on the ops listener, where that is loopback.
//!
//! Here: [`router`] and the headers of every answer. In `door` who may come in, in `gate` what is asked of each request,
//! in `pages` the page itself and the way in and out, in `overview`, `sessions`, `callbacks` and `explained` the data it
//! shows, and `assets/`, plain HTML, CSS and JavaScript without a build step. Not here: what is shown (`daemon/`), the
//! pinning of the Host (`control/ops.rs`). `docs/dashboard.md` is for operators.

mod door;
mod gate;
mod pages;
mod overview;
mod sessions;
mod callbacks;
mod explained;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, header};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;

pub(crate) use door::{Door, DoorError, Ticket};

/// What a page may do: run and look as this program says, and speak to nobody else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// What the handlers need.
#[derive(Clone, Debug)]
struct Board {
    daemon: Arc<Daemon>,
    /// The listener is closed.
    stop: CancellationToken,
    upstreams: Arc<overview::Upstreams>,
    /// Streams and files that are being sent: health and metrics come over the same listener and need places, too.
    streams: Arc<Semaphore>,
    files: Arc<Semaphore>,
}

/// Pages that follow callbacks at the same time.
const STREAMS: usize = 24;
/// Files that are read out of the audit at the same time.
const FILES: usize = 2;

/// Everything under `/dashboard`.
pub(crate) fn router(daemon: Arc<Daemon>, stop: CancellationToken) -> Router {
    let board = Board {
        daemon,
        stop,
        upstreams: Arc::default(),
        streams: Arc::new(Semaphore::new(STREAMS)),
        files: Arc::new(Semaphore::new(FILES)),
    };
    let data = Router::new()
        .route("/me", get(pages::me))
        .route("/logout", post(pages::logout))
        .route("/overview", get(overview::overview))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}", get(sessions::show))
        .route("/sessions/{id}/revoke", post(sessions::revoke))
        .route("/sessions/{id}/round-trip", post(sessions::round_trip))
        .route("/sessions/{id}/har", get(callbacks::har))
        .route("/events", get(callbacks::events))
        .route("/explain", get(explained::explain))
        .fallback(pages::unknown)
        .layer(from_fn_with_state(board.clone(), gate::admitted));
    Router::new()
        .route("/dashboard", get(pages::to_page))
        .route("/dashboard/", get(pages::page))
        .route("/dashboard/login", get(pages::login_page).post(pages::login))
        .route("/dashboard/{asset}", get(pages::asset))
        .nest("/dashboard/api", data)
        .with_state(board)
        .layer(from_fn(guarded))
}

/// The same headers on every answer, whatever it is.
async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
