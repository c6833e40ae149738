//! Sessions on the dashboard: listed, one of them at length, and ended.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use futures_util::FutureExt as _;
use http::StatusCode;
use runners::Execution;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Board;
use crate::control::{Problem, query, revoked};
use crate::daemon::{Daemon, Entry, SessionShown, SessionState};
use crate::session::Session;
use crate::session::rates::SessionRates;

/// Sessions in one list; a filter finds the others.
const MOST: usize = 200;
/// A command that does nothing takes no longer on a target that is well.
const ROUND_TRIP: Duration = Duration::from_secs(10);

/// Which sessions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// Those with this in one of their ids, their target, tunnel or state.
    find: String,
    /// Also those that have ended.
    ended: bool,
}

impl Wanted {
    fn takes(&self, shown: &SessionShown) -> bool {
        if shown.state == SessionState::Ended && !self.ended {
            return false;
        }
        let ids = [
            &shown.agent_id,
            &shown.company_id,
            &shown.issue_id,
            &shown.tunnel,
            &shown.reason,
        ];
        let texts = [
            shown.session.as_str(),
            &shown.run_id,
            &shown.target,
            shown.state.name(),
        ];
        let mut texts = texts
            .into_iter()
            .chain(ids.into_iter().filter_map(Option::as_deref));
        let find = self.find.trim().to_ascii_lowercase();
        texts.any(|text| text.to_ascii_lowercase().contains(&find))
    }
}

/// The newest first.
pub(super) async fn list(
    State(board): State<Board>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let wanted = query(wanted)?;
    let entries = board.daemon.sessions();
    let mut found: Vec<_> = entries
        .iter()
        .rev()
        .map(|entry| entry.shown())
        .filter(|shown| wanted.takes(shown))
        .collect();
    let more = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    Ok(Json(json!({ "sessions": found, "more": more })))
}

pub(super) async fn show(State(board): State<Board>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let entry = named(&board.daemon, &id)?;
    let session = entry.session();
    Ok(Json(json!({
        "session": entry.shown(),
        "used": session.as_deref().map(used),
        "upstream": entry.upstream().map(crate::upstream::UpstreamSettings::origin),
        "heard_seconds": entry.kept.heartbeat.map(|_| entry.heard().elapsed().as_secs()),
        "seconds_left": entry.kept.expires.duration_since(SystemTime::now()).ok().map(|left| left.as_secs()),
        "audit": board.daemon.audit_folder().is_some(),
    })))
}

/// How much of its limits is taken at this moment.
fn used(session: &Session) -> Value {
    json!({
        "under_way": session.under_way(),
        "most_under_way": session.concurrency,
        "body_bytes": session.bodies.held(),
        "most_body_bytes": session.bodies.limit(),
        "max_body_bytes": session.limits.max_body,
        "rates": session.shared.rates.iter().flat_map(SessionRates::told).collect::<Vec<_>>(),
    })
}

/// Ends it at once, as `sessions revoke` does.
pub(super) async fn revoke(
    State(board): State<Board>,
    Path(id): Path<String>,
) -> Result<Json<SessionShown>, Problem> {
    let entry = named(&board.daemon, &id)?;
    tracing::info!(session = %entry.id(), "revoked from the dashboard");
    Ok(Json(revoked(&board.daemon, &entry).await))
}

/// How long it takes to have a command that does nothing run on its target, over the channel that it has.
pub(super) async fn round_trip(
    State(board): State<Board>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let entry = named(&board.daemon, &id)?;
    let not_open = || {
        Problem::new(
            StatusCode::CONFLICT,
            "session_not_open",
            format!("the session is {}", entry.state().name()),
        )
    };
    let runner = entry.runner().ok_or_else(not_open)?;
    let mut nothing = Execution::new("true", std::iter::empty::<String>());
    nothing.timeout = Some(ROUND_TRIP);
    let began = Instant::now();
    let ended = tokio::time::timeout(ROUND_TRIP * 2, runner.execute(nothing).boxed()).await;
    let failed = |why: String| Problem::new(StatusCode::BAD_GATEWAY, "no_round_trip", why);
    match ended {
        Ok(Ok(result)) if result.success() => Ok(Json(json!({
            "us": u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        }))),
        Ok(Ok(result)) if result.timed_out => {
            Err(failed(format!("no answer within {} s", ROUND_TRIP.as_secs())))
        }
        Ok(Ok(_)) => Err(failed("`true` failed on the target".to_owned())),
        Ok(Err(error)) => Err(failed(crate::placing::with_causes(&error))),
        Err(_) => Err(failed("the target does not answer".to_owned())),
    }
}

pub(super) fn named(daemon: &Daemon, id: &str) -> Result<Arc<Entry>, Problem> {
    Uuid::parse_str(id)
        .ok()
        .and_then(|id| daemon.session(id))
        .ok_or_else(Problem::unknown_session)
}
