//! Errors of the control API: problem details (RFC 9457).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tunnel::launch::ChangeFault;
use utoipa::ToSchema;

use crate::daemon::{CreateError, Mistake, NotOpened, RotateError};
use crate::store::StoreError;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem: `urn:paperclip-bridge:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>,
    /// The status in words.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
    /// Stable.
    pub code: String,
    /// What is wrong with each field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:paperclip-bridge:problem:{code}").into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            mistakes: Vec::new(),
        }
    }

    /// The request was read, and these fields are wrong.
    pub(crate) fn of_mistakes(mistakes: Vec<Mistake>) -> Self {
        let lines: Vec<_> = mistakes
            .iter()
            .map(|mistake| match mistake.field.as_str() {
                "" => mistake.detail.clone(),
                field => format!("{field}: {}", mistake.detail),
            })
            .collect();
        Self {
            mistakes,
            ..Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_request",
                lines.join("; "),
            )
        }
    }

    /// The store did not do what it was asked.
    pub(crate) fn of_store(error: &StoreError) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_unavailable",
            crate::placing::with_causes(error),
        )
    }

    pub(crate) fn unknown_session() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "session_unknown",
            "there is no session of this name; `sessions ls` lists them",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        let detail = error.to_string();
        match error {
            CreateError::Mistakes(mistakes) => Self::of_mistakes(mistakes),
            CreateError::Reserved(fields) => Self {
                mistakes: fields
                    .into_iter()
                    .map(|field| Mistake::new(field, "only the daemon's own user may bring it"))
                    .collect(),
                ..Self::new(StatusCode::FORBIDDEN, "adhoc_refused", detail)
            },
            CreateError::Draining => Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail),
            CreateError::Full(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", detail),
            CreateError::Unwritten(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
            }
            CreateError::Failed(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail),
        }
    }
}

impl From<NotOpened> for Problem {
    fn from(why: NotOpened) -> Self {
        let status = match why.reason {
            "configuration" => StatusCode::UNPROCESSABLE_ENTITY,
            "revoked" | "owner_gone" | "expired" | "drained" => StatusCode::CONFLICT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, why.reason, why.detail)
    }
}

impl From<RotateError> for Problem {
    fn from(error: RotateError) -> Self {
        let (status, code) = match &error {
            RotateError::NotOpen(_) => (StatusCode::CONFLICT, "session_not_open"),
            RotateError::Script(_) | RotateError::Gateway(ChangeFault::NotFollowed) => {
                (StatusCode::CONFLICT, "token_kept_by_gateway")
            }
            RotateError::NotOurs | RotateError::Gateway(ChangeFault::TakenOver(_)) => {
                (StatusCode::CONFLICT, "taken_over")
            }
            RotateError::Gateway(ChangeFault::Unchanged(_)) => {
                (StatusCode::BAD_GATEWAY, "target_unreachable")
            }
            RotateError::Gateway(_) => (StatusCode::BAD_GATEWAY, "token_uncertain"),
            RotateError::Failed(_) => (StatusCode::CONFLICT, "failed"),
        };
        Self::new(status, code, error.to_string())
    }
}
