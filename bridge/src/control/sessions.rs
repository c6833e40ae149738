//! Sessions over the control API: made, looked at and ended.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body;
use super::listener::Peer;
use super::problem::Problem;
use crate::daemon::{
    Created, Daemon, Ending, Entry, EnvironmentShown, NewSession, NotOpened, Opened, Rotated, SessionShown,
    SessionState, SessionsShown, Told,
};
use crate::store::StoreError;

/// Whether to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// `ready`: the answer comes once the agent can call, or why it never will; whoever stops waiting ends the session.
    #[param(inline)]
    wait: Option<WaitFor>,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum WaitFor {
    /// Until its agent can call.
    Ready,
}

/// Makes a session.
///
/// Its token is in the answer and is never shown again.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "sessions", params(Waiting), request_body = NewSession,
    responses(
        (status = 201, description = "It is made; with `wait=ready` its agent can call.", body = Opened),
        (status = "4XX", description = "What is wrong with the request.", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "It could not be opened.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create(
    State(daemon): State<Arc<Daemon>>,
    Extension(peer): Extension<Peer>,
    waiting: Result<Query<Waiting>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let waits = match query(waiting)?.wait {
        None => false,
        Some(WaitFor::Ready) => true,
    };
    let asked = body::of_object(&body::object(request).await?)?;
    let told = if waits { Told::OnceReady } else { Told::AtOnce };
    let Created { entry, token, opened } = daemon.create(asked, peer.uid, peer.own, told).await?;
    let made = if waits {
        let unless_told = EndUnlessTold(Some(Arc::clone(&entry)));
        let opened = opened.await.unwrap_or_else(|_| Err(lost()));
        let opened = opened.map_err(Problem::from)?;
        unless_told.told();
        opened
    } else {
        Opened {
            session: entry.id().to_string(),
            url: None,
            token,
            tunnel: None,
            lease: None,
            ladder: Vec::new(),
            env: std::collections::BTreeMap::new(),
        }
    };
    let mut response = (StatusCode::CREATED, Json(made)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/sessions/{}", entry.id())) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    // The token is in it.
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The task of a session has failed before it could say anything.
fn lost() -> NotOpened {
    NotOpened {
        reason: "failed",
        detail: "the session's task has failed; the log says why".to_owned(),
    }
}

/// Nobody would know the token of a session whose maker went away.
struct EndUnlessTold(Option<Arc<Entry>>);

impl EndUnlessTold {
    fn told(mut self) {
        self.0 = None;
    }
}

impl Drop for EndUnlessTold {
    fn drop(&mut self) {
        if let Some(entry) = &self.0 {
            entry.end(Ending::OwnerGone);
        }
    }
}

/// Lists sessions, also those that ended within the last day.
#[utoipa::path(
    get, path = "/v1/sessions", tag = "sessions",
    responses((status = 200, description = "The newest last.", body = SessionsShown))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Json<SessionsShown> {
    let sessions = daemon.sessions().iter().map(|entry| entry.shown()).collect();
    Json(SessionsShown { sessions })
}

/// Shows one session.
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "Without its token.", body = SessionShown),
        (status = 404, description = "There is none of this name.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Json<SessionShown>, Problem> {
    match named(&daemon, &id) {
        Ok(entry) => Ok(Json(entry.shown())),
        Err(unknown) => elsewhere(&id, unknown, |id| daemon.elsewhere(id)).await,
    }
}

/// Shows what the agent's process is given, without the token.
///
/// Of a session that is not back yet after a restart: what it was given before, which still holds.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/env", tag = "sessions", params(("id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "Without its token.", body = EnvironmentShown),
        (status = 404, description = "There is none of this name.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not open yet, or ended before it was open here.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn environment(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Json<EnvironmentShown>, Problem> {
    let entry = named(&daemon, &id)?;
    let env = entry.environment().ok_or_else(|| no_environment(&entry))?;
    Ok(Json(EnvironmentShown {
        session: entry.id().to_string(),
        env,
    }))
}

/// Ends a session at once.
///
/// When this answers, its token is void and its callers are cut. A dispatched unsafe callback runs on to its deadline, so
/// that its outcome becomes known; until then the session is `draining`.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/revoke", tag = "sessions", params(("id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "It ends, or has ended before.", body = SessionShown),
        (status = 404, description = "There is none of this name.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn revoke(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Json<SessionShown>, Problem> {
    let entry = match named(&daemon, &id) {
        Ok(entry) => entry,
        Err(unknown) => return elsewhere(&id, unknown, |id| daemon.revoke_elsewhere(id)).await,
    };
    Ok(Json(revoked(&daemon, &entry).await))
}

/// Ends a session, and shows it once its callers are cut.
pub(crate) async fn revoked(daemon: &Daemon, entry: &Entry) -> SessionShown {
    daemon.revoke(entry).await;
    // Its task cuts the callers before it says so.
    let mut standing = entry.watch();
    let cut =
        standing.wait_for(|standing| matches!(standing.state, SessionState::Draining | SessionState::Ended));
    // Its task needs no more than its turn; one that has failed is over, too.
    let _cut = tokio::time::timeout(CUTTING, cut).await;
    entry.shown()
}

/// Callers are cut within this time.
const CUTTING: std::time::Duration = std::time::Duration::from_secs(1);

/// Gives a session another token; the one before is void from now on.
///
/// Over `http2_v1` and `queue_v1` the gateway on the target is told first. Where it is not known whether it was, none of both
/// tokens may hold: rotate again.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/rotate", tag = "sessions", params(("id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "The new token, shown this once.", body = Rotated),
        (status = 404, description = "There is none of this name.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not open, its gateway knows the first token only (`token_kept_by_gateway`), or another daemon may have it; the token before holds on.", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The target did not answer. `target_unreachable`: the token before holds on. `token_uncertain`: it may be void, so rotate again.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn rotate(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let entry = named(&daemon, &id)?;
    let token = entry.rotate().await?;
    let rotated = Rotated {
        session: entry.id().to_string(),
        token,
    };
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(rotated)).into_response())
}

/// Says that the owner of a session is still there.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/heartbeat", tag = "sessions", params(("id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "Heard.", body = SessionShown),
        (status = 404, description = "There is none of this name.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended, or is ending.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn heartbeat(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Json<SessionShown>, Problem> {
    let entry = named(&daemon, &id)?;
    match entry.state() {
        SessionState::Draining | SessionState::Ended => Err(not_open(&entry)),
        SessionState::Starting
        | SessionState::Ready
        | SessionState::Degraded
        | SessionState::Reconnecting => {
            entry.beat();
            Ok(Json(entry.shown()))
        }
    }
}

/// A session that this daemon does not have, and the store may know.
async fn elsewhere<F>(
    id: &str,
    unknown: Problem,
    ask: impl FnOnce(Uuid) -> F,
) -> Result<Json<SessionShown>, Problem>
where
    F: Future<Output = Result<Option<SessionShown>, StoreError>>,
{
    let Ok(id) = Uuid::parse_str(id) else {
        return Err(unknown);
    };
    let shown = ask(id).await.map_err(|error| Problem::of_store(&error))?;
    shown.map(Json).ok_or(unknown)
}

fn named(daemon: &Daemon, id: &str) -> Result<Arc<Entry>, Problem> {
    Uuid::parse_str(id)
        .ok()
        .and_then(|id| daemon.session(id))
        .ok_or_else(Problem::unknown_session)
}

/// It is not known yet where its agent calls, or nobody will ever answer there.
fn no_environment(entry: &Entry) -> Problem {
    let what = match entry.state() {
        SessionState::Draining | SessionState::Ended => "make a new one",
        SessionState::Starting
        | SessionState::Ready
        | SessionState::Degraded
        | SessionState::Reconnecting => "its URL is known once it is ready, so ask again then",
    };
    let state = entry.state().name();
    Problem::new(
        StatusCode::CONFLICT,
        "session_not_open",
        format!("the session is {state}: {what}"),
    )
}

fn not_open(entry: &Entry) -> Problem {
    let state = entry.state().name();
    Problem::new(
        StatusCode::CONFLICT,
        "session_not_open",
        format!("the session is {state}"),
    )
}

/// The query of a request.
pub(crate) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query
        .map(|Query(query)| query)
        .map_err(|rejection| query_problem(&rejection.body_text()))
}

pub(super) fn query_problem(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
}
