//! The control API: how operators and other programs speak to a running daemon.
//!
//! Here: `router` and [`openapi`], both out of the handlers' own definitions. In `sessions`, `whole`, `reload` and `live` the
//! handlers, in `body` how a body is read, in `problem` how an error is told, in `listener` the unix socket and who may
//! use it, in `tcp` and `tls` the same over TCP, in `client` the other side, in `ops` the listener for health. Not here: what a session is (`daemon/`).
//! `docs/openapi.json` is this module's contract; a test holds them equal.

mod body;
mod problem;
mod sessions;
mod whole;
mod reload;
mod live;
mod listener;
mod tls;
mod tcp;
mod client;
mod ops;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use http::StatusCode;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::{Companion, Daemon};

pub use body::{MAX_BODY_BYTES, new_session};
pub(crate) use client::{Client, ClientError, Remote};
pub(crate) use listener::Control;
pub(crate) use ops::Ops;
pub use problem::Problem;
pub(crate) use sessions::{query, revoked};
pub(crate) use tcp::{TcpControl, TcpSettings};

/// The control API where it listens.
pub(crate) enum Listening {
    /// On this machine only.
    Unix(Control),
    /// For others as well.
    Tcp(TcpControl),
}

impl Listening {
    /// Where it listens, as `--control` takes it.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Unix(control) => control.address(),
            Self::Tcp(control) => control.address(),
        }
    }

    /// What of it is read again with the configuration.
    pub(crate) fn companion(&self) -> Option<Companion> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(control) => Some(control.companion()),
        }
    }

    /// Answers until `stop`, and lets answers under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        match self {
            Self::Unix(control) => control.serve(router, stop).await,
            Self::Tcp(control) => control.serve(router, stop).await,
        }
    }
}

/// Every operation, with what answers it.
fn operations() -> OpenApiRouter<Arc<Daemon>> {
    let document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("paperclip-bridge control API")
                .version("1")
                .description(Some(
                    "How a running `paperclip-bridge serve` is spoken to. Errors are problem details (RFC 9457).",
                ))
                .build(),
        )
        .build();
    OpenApiRouter::with_openapi(document)
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::environment))
        .routes(routes!(sessions::revoke))
        .routes(routes!(sessions::rotate))
        .routes(routes!(sessions::heartbeat))
        .routes(routes!(whole::reap))
        .routes(routes!(whole::outcome))
        .routes(routes!(whole::status))
        .routes(routes!(whole::drain))
        .routes(routes!(whole::dashboard_login))
        .routes(routes!(reload::reload))
        .routes(routes!(live::events))
        .routes(routes!(whole::document))
}

/// What answers the control API.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    Router::from(operations())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(daemon)
}

/// The control API as an OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> OpenApi {
    operations().into_openapi()
}

/// The same as text, as it stands in `docs/openapi.json`.
///
/// # Errors
///
/// Where it is no JSON, which a test rules out.
pub fn openapi_text() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&openapi()).map(|text| text + "\n")
}

async fn unknown(request: Request) -> axum::response::Response {
    let path = request.uri().path();
    let detail = format!("there is nothing at {path:?}; /v1/openapi.json says what there is");
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into_response()
}

async fn wrong_method(request: Request) -> axum::response::Response {
    let (method, path) = (request.method(), request.uri().path());
    let detail = format!("{method} is no way to speak to {path:?}; /v1/openapi.json says which is");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).into_response()
}
