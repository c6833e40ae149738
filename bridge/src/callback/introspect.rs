//! What an agent may ask of the bridge itself, below `/_bridge/`; none of it reaches the upstream.
//!
//! Here: whoami, routes, limits, health, outcome/ID and outcomes, each with GET and a valid token.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::answer::{self, AnswerBody};
use super::decide::now_unix;
use super::read::{BRIDGE_PREFIX, CallbackRequest};
use super::refusal::Refusal;
use crate::session::rates::SessionRates;
use crate::store::StoreError;

pub(crate) async fn answer(question: &CallbackRequest) -> Result<Response<AnswerBody>, Refusal> {
    let session = &question.session;
    let path = question.target.path();
    let asked = path
        .strip_prefix(BRIDGE_PREFIX)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or_default();
    if question.method != Method::GET {
        return Err(Refusal::UnknownBridgePath);
    }
    match asked {
        "whoami" => Ok(told(&json!({
            "session": session.id,
            "run_id": session.run_id.to_str().unwrap_or_default(),
            "tunnel": session.tunnel(),
            "bridge_version": env!("CARGO_PKG_VERSION"),
        }))),
        "routes" => Ok(told(
            &json!({ "routes": session.rules.load().rules.routes(now_unix()).collect::<Vec<_>>() }),
        )),
        "limits" => Ok(told(&json!({
            "max_body_bytes": session.limits.max_body,
            "max_head_bytes": session.limits.max_head,
            "max_headers": session.limits.max_headers,
            "max_target_bytes": session.limits.max_target,
            "concurrent_callbacks": session.concurrency,
            "session_body_bytes": session.bodies.limit(),
            "answer_seconds": session.upstream.deadlines.total.as_secs(),
            "rates": session.shared.rates.iter().flat_map(SessionRates::told).collect::<Vec<_>>(),
        }))),
        "health" => Ok(told(&json!({
            "status": if session.draining.is_cancelled() { "draining" } else { "ok" },
            "callbacks_under_way": session.under_way(),
        }))),
        "outcomes" => {
            let newest = session.outcomes().await.map_err(unread)?;
            Ok(told(&json!({ "outcomes": newest })))
        }
        _ => match asked.strip_prefix("outcome/") {
            Some(id) if !id.is_empty() => {
                let known = session.outcome(&decoded(id)).await.map_err(unread)?;
                Ok(told(&known.ok_or(Refusal::OutcomeUnknown)?))
            }
            Some(_) | None => Err(Refusal::UnknownBridgePath),
        },
    }
}

/// Not known is something else than not to be found out now.
fn unread(error: StoreError) -> Refusal {
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "the ledger cannot be read"
    );
    Refusal::Unavailable {
        why: "the bridge cannot read its ledger at the moment",
    }
}

/// An Idempotency-Key may hold characters that a path cannot hold plainly.
fn decoded(id: &str) -> String {
    let mut bytes = Vec::with_capacity(id.len());
    let mut rest = id.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

fn told(answer: &impl Serialize) -> Response<AnswerBody> {
    answer::json(
        StatusCode::OK,
        Bytes::from(serde_json::to_vec(answer).unwrap_or_default()),
        false,
    )
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn a_key_with_escapes_is_read_back_as_it_was_sent() {
        assert_eq!(decoded("key:a%20b%3F"), "key:a b?");
        assert_eq!(decoded("100%"), "100%");
    }
}
