//! Reading the configuration again over the control API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;

use super::problem::Problem;
use crate::daemon::{Daemon, ReloadRefused, Reloaded};

/// Reads the configuration again, as SIGHUP does: checked, then in force at once for every session.
#[utoipa::path(
    post, path = "/v1/reload", tag = "daemon",
    responses(
        (status = 200, description = "It is in force, but for what needs a restart.", body = Reloaded),
        (status = 422, description = "It is refused, and the one before still holds.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn reload(State(daemon): State<Arc<Daemon>>) -> Result<Json<Reloaded>, Problem> {
    // Whoever asked may go away; what was begun is ended.
    let reloaded = tokio::spawn(async move { daemon.reload().await }).await;
    match reloaded {
        Ok(reloaded) => Ok(Json(reloaded?)),
        Err(error) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            format!("the configuration could not be read again: {error}"),
        )),
    }
}

impl From<ReloadRefused> for Problem {
    fn from(refused: ReloadRefused) -> Self {
        let lines: Vec<_> = refused
            .mistakes
            .iter()
            .map(|mistake| mistake.detail.as_str())
            .collect();
        let detail = format!("{refused}: {}", lines.join("; "));
        Self {
            mistakes: refused.mistakes,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration_refused", detail)
        }
    }
}
