//! The daemon as a whole over the control API: status, outcomes, cleaning up and its end.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;
use uuid::Uuid;

use super::ops::faults;
use super::problem::Problem;
use super::sessions::{query, query_problem};
use crate::daemon::{Daemon, Drained, Reaped, StatusShown, count};
use crate::dashboard::{DoorError, Ticket};

/// Where to look for an outcome.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Where {
    /// Only in this session; needed for `key:`, which callers of two sessions may share.
    session: Option<Uuid>,
}

/// Whether to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitingForEnd {
    /// The answer comes once every session is closed.
    #[serde(default)]
    wait: bool,
}

/// Shows the daemon as a whole.
#[utoipa::path(
    get, path = "/v1/status", tag = "daemon",
    responses((status = 200, description = "The daemon.", body = StatusShown))
)]
pub(super) async fn status(State(daemon): State<Arc<Daemon>>) -> Json<StatusShown> {
    Json(StatusShown {
        faults: faults(&daemon).await,
        ..daemon.status()
    })
}

/// Says what became of a dispatched unsafe callback.
#[utoipa::path(
    get, path = "/v1/outcomes/{id}", tag = "daemon",
    params(("id" = String, Path, description = "The request id of an answer, or `key:` and the caller's Idempotency-Key."), Where),
    responses(
        (status = 200, description = "As `/_bridge/outcome/ID` tells it, with the session.", body = Object),
        (status = 400, description = "`key:` without a session.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The store cannot be read.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of it.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn outcome(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
    place: Result<Query<Where>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let place = query(place)?;
    if id.starts_with("key:") && place.session.is_none() {
        return Err(query_problem(
            "session: name the session as well; callers of two sessions may have used one key",
        ));
    }
    let found = daemon.outcome(place.session, &id).await;
    let found = found.map_err(|error| Problem::of_store(&error))?;
    let unknown = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "outcome_unknown",
            "nothing is known of such a callback; only unsafe ones that were dispatched are written down",
        )
    };
    let (session, entry) = found.ok_or_else(unknown)?;
    let mut told = serde_json::to_value(entry).map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            format!("the outcome cannot be written: {error}"),
        )
    })?;
    if let Value::Object(fields) = &mut told {
        fields.insert("session".to_owned(), Value::String(session.to_string()));
    }
    Ok(Json(told))
}

/// Forgets sessions that have ended, and tries now to give back what earlier processes left at providers.
#[utoipa::path(
    post, path = "/v1/reap", tag = "daemon",
    responses(
        (status = 200, description = "What was cleaned up.", body = Reaped),
        (status = 500, description = "The book of leases cannot be used.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn reap(State(daemon): State<Arc<Daemon>>) -> Result<Json<Reaped>, Problem> {
    let failed = |why: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "book_unusable", why);
    daemon.reap().await.map(Json).map_err(failed)
}

/// Ends the daemon in order, as SIGTERM does: no new sessions, callbacks under way may end, sessions are closed.
#[utoipa::path(
    post, path = "/v1/drain", tag = "daemon", params(WaitingForEnd),
    responses(
        (status = 202, description = "It ends.", body = Drained),
        (status = 400, description = "The query is not understood.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drain(
    State(daemon): State<Arc<Daemon>>,
    waiting: Result<Query<WaitingForEnd>, QueryRejection>,
) -> Result<Response, Problem> {
    let waiting = query(waiting)?;
    daemon.begin_drain();
    if waiting.wait {
        daemon.drained().await;
    }
    let left = count(daemon.living());
    Ok((StatusCode::ACCEPTED, Json(Drained { left })).into_response())
}

/// Makes a way into the dashboard: a login that is good once.
#[utoipa::path(
    post, path = "/v1/dashboard/login", tag = "daemon",
    responses(
        (status = 200, description = "Shown this once.", body = Ticket),
        (status = 409, description = "There is no dashboard.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn dashboard_login(State(daemon): State<Arc<Daemon>>) -> Result<Response, Problem> {
    let ticket = daemon.door().ticket(Instant::now()).map_err(|error| {
        let (status, code) = match error {
            DoorError::Closed => (StatusCode::CONFLICT, "no_dashboard"),
            DoorError::NoRandomness(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        Problem::new(status, code, error.to_string())
    })?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(ticket)).into_response())
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object))
)]
pub(super) async fn document() -> Result<Response, Problem> {
    let text = super::openapi_text().map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            format!("the document cannot be written: {error}"),
        )
    })?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, text).into_response())
}
