//! Bodies of the control API: read within a bound and a deadline, and taken apart with every mistake told.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::daemon::{Mistake, NewSession};

/// A longer body is refused.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// A body that is not whole by then is given up.
const READING: Duration = Duration::from_secs(10);

/// The body of a request as a JSON object.
///
/// # Errors
///
/// [`Problem`], which says what the body is instead.
pub(super) async fn object(request: Request) -> Result<Map<String, Value>, Problem> {
    let (head, body) = request.into_parts();
    let json = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if !json {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "send the body as application/json",
        ));
    }
    parse(&bytes(body).await?)
}

async fn bytes(body: Body) -> Result<bytes::Bytes, Problem> {
    let whole = tokio::time::timeout(READING, Limited::new(body, MAX_BODY_BYTES).collect())
        .await
        .map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "the body was not whole within 10 s",
            )
        })?;
    whole.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body has more than {MAX_BODY_BYTES} bytes"),
            )
        } else {
            Problem::new(StatusCode::BAD_REQUEST, "malformed_body", "the body broke off")
        }
    })
}

/// The body of `POST /v1/sessions`.
///
/// # Errors
///
/// [`Problem`] with every mistake at its field. No value is repeated: it may be a secret.
pub fn new_session(body: &[u8]) -> Result<NewSession, Problem> {
    of_object(&parse(body)?)
}

pub(super) fn of_object(fields: &Map<String, Value>) -> Result<NewSession, Problem> {
    let mut mistakes = Vec::new();
    if !fields.contains_key("target") {
        mistakes.push(Mistake::new(
            "target",
            "it is missing; give where the agent runs, such as `local` or `ssh://user@host`",
        ));
    }
    match NewSession::read(fields) {
        Ok(asked) if mistakes.is_empty() => Ok(asked),
        Ok(_) => Err(Problem::of_mistakes(mistakes)),
        Err(more) => {
            mistakes.extend(more);
            Err(Problem::of_mistakes(mistakes))
        }
    }
}

fn parse(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    let malformed = |why: String| Problem::new(StatusCode::BAD_REQUEST, "malformed_body", why);
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(malformed("the body is JSON, but no object".to_owned())),
        // serde_json tells the place and never the text there.
        Err(error) => Err(malformed(format!("the body is not JSON: {error}"))),
    }
}
