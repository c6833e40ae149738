//! Which callbacks came before, so that one that comes again is not sent to the upstream twice.
//!
//! Here: [`Seen`], kept over reconnects, and what is answered to one that came before. A caller, or the Worker, that lost an answer sends the same request id again. Not
//! here: whether the first one had an effect; the bridge's ledger knows that, and the answer names its request id.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;
use wire::names;

use crate::MessageBody;

/// So long a callback is remembered.
const KEPT: Duration = Duration::from_secs(600);
/// So many at most; the oldest is forgotten first.
const MOST: usize = 4096;
/// A longer one is no request id.
const LONGEST_ID: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BRIDGE_REQUEST_ID: HeaderName = HeaderName::from_static(names::header::REQUEST_ID);
const OUTCOME: HeaderName = HeaderName::from_static("x-paperclip-bridge-outcome");

/// What tells one callback from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    id: Bytes,
    method: Method,
    target: Bytes,
}

impl Key {
    /// `None` for a callback that may come twice: a safe one, and one without a request id.
    pub(super) fn of(method: &Method, target: &Bytes, headers: &HeaderMap) -> Option<Self> {
        let id = headers
            .get(&REQUEST_ID)
            .filter(|id| !id.is_empty() && id.len() <= LONGEST_ID)?;
        (!method.is_safe()).then(|| Self {
            id: Bytes::copy_from_slice(id.as_bytes()),
            method: method.clone(),
            target: target.clone(),
        })
    }
}

/// The callbacks of the last ten minutes that may have had an effect.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// With the request id of the bridge's answer, once there was one.
    known: HashMap<Key, Option<String>>,
    order: VecDeque<(Instant, Key)>,
}

/// It came before; what the bridge called it, if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Before(pub(super) Option<String>);

impl Before {
    /// What is said of a callback that may have had its effect already.
    pub(super) fn answer(self) -> Response<MessageBody> {
        let request_id = self.0.unwrap_or_else(|| Uuid::now_v7().to_string());
        let body = json!({
            "error": "This request came before under the same X-Request-Id, and was not sent again.",
            "code": "outcome_indeterminate",
            "decided_by": "bridge",
            "retryable": false,
            "hint": format!("ask /_bridge/outcome/{request_id}, or send a request of another X-Request-Id"),
            "request_id": request_id,
        });
        let body = Full::new(Bytes::from(body.to_string()));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::CONFLICT;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(OUTCOME, HeaderValue::from_static("indeterminate"));
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            headers.insert(BRIDGE_REQUEST_ID, value);
        }
        response
    }
}

impl Seen {
    /// Notes a callback that is about to be served.
    pub(super) fn note(&mut self, key: &Key, now: Instant) -> Result<(), Before> {
        while let Some((at, oldest)) = self.order.front() {
            if self.order.len() < MOST && now.saturating_duration_since(*at) < KEPT {
                break;
            }
            self.known.remove(oldest);
            self.order.pop_front();
        }
        if let Some(answered) = self.known.get(key) {
            return Err(Before(answered.clone()));
        }
        self.known.insert(key.clone(), None);
        self.order.push_back((now, key.clone()));
        Ok(())
    }

    /// Notes what the bridge called it.
    pub(super) fn answered(&mut self, key: &Key, request_id: &str) {
        if let Some(known) = self.known.get_mut(key) {
            *known = Some(request_id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(method: &Method, target: &str, id: Option<&str>) -> Option<Key> {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
        }
        Key::of(method, &Bytes::copy_from_slice(target.as_bytes()), &headers)
    }

    #[test]
    fn only_what_may_have_an_effect_and_names_itself_is_remembered() {
        assert!(key(&Method::POST, "/a", Some("1")).is_some());
        assert!(key(&Method::GET, "/a", Some("1")).is_none());
        assert!(key(&Method::POST, "/a", None).is_none());
        assert!(key(&Method::POST, "/a", Some(&"x".repeat(129))).is_none());
    }

    #[test]
    fn the_same_callback_is_known_for_ten_minutes_and_another_is_not() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let first = key(&Method::POST, "/a", Some("1")).unwrap();

        assert_eq!(seen.note(&first, now), Ok(()));
        assert_eq!(seen.note(&first, now), Err(Before(None)));
        seen.answered(&first, "r-1");
        assert_eq!(seen.note(&first, now), Err(Before(Some("r-1".into()))));
        let other = key(&Method::POST, "/b", Some("1")).unwrap();
        assert_eq!(seen.note(&other, now), Ok(()));
        assert_eq!(seen.note(&first, now + KEPT), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        for number in 0..3 * MOST {
            let key = key(&Method::POST, "/a", Some(&number.to_string())).unwrap();
            assert_eq!(seen.note(&key, now), Ok(()));
        }

        assert!(seen.known.len() <= MOST && seen.order.len() <= MOST);
    }
}
