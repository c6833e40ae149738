//! Calls to Daytona, control API and toolbox alike: header fields, deadlines, what is tried again, errors.
//!
//! Here: [`Api`] and [`Fault`]. Not here: any path; those are in [`super::control`] and [`super::toolbox`].

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::SecretText;
use crate::http::{HttpClient, HttpFault};
use crate::provider::{ProviderError, SecretFault, SecretHandle};

/// The client version whose protocol is spoken; servers choose the form of their answers by it.
const PROTOCOL_VERSION: &str = "0.218.0";
/// Calls after the first one.
const RETRIES: u32 = 2;
/// Bytes of an error's text that are shown.
const SHOWN_BYTES: usize = 400;

/// Why a call did not do what was asked.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No answer.
    Http(HttpFault),
    /// An answer that is an error.
    Status(StatusFault),
    /// An answer that makes no sense.
    Broken(String),
    /// There is no key.
    Secret(SecretFault),
}

/// An error as Daytona words it.
#[derive(Clone, Debug)]
pub(super) struct StatusFault {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Fault {
    /// The status of the answer; none where there was no answer.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(fault) => Some(fault.status),
            Self::Http(_) | Self::Broken(_) | Self::Secret(_) => None,
        }
    }

    /// Whether the call may have had its effect without anybody knowing.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            Self::Http(HttpFault::NotSent(_)) | Self::Secret(_) => false,
            Self::Http(_) | Self::Broken(_) => true,
            Self::Status(fault) => fault.status >= 500,
        }
    }

    /// As a provider's error, for a call that changes something.
    pub(super) fn of_change(self) -> ProviderError {
        if self.is_unknown() {
            return ProviderError::Unknown(self.to_string());
        }
        self.of_query()
    }

    /// As a provider's error, for a call that changes nothing.
    pub(super) fn of_query(self) -> ProviderError {
        let text = self.to_string();
        match self {
            Self::Http(_) => ProviderError::Unreachable(text),
            Self::Broken(_) => ProviderError::Broken(text),
            Self::Secret(fault) => ProviderError::Secret(fault),
            Self::Status(fault) => match fault.status {
                404 | 410 => ProviderError::LeaseLost(text),
                409 | 423 | 429 => ProviderError::Busy {
                    reason: text,
                    retry_after: fault.retry_after,
                },
                408 | 500.. => ProviderError::Unreachable(text),
                _ => ProviderError::Refused(text),
            },
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(fault) => write!(f, "{fault}"),
            Self::Broken(text) => f.write_str(text),
            Self::Secret(fault) => write!(f, "{fault}"),
            Self::Status(fault) => {
                write!(f, "{} {} {}", fault.status, fault.code, fault.message)?;
                match fault.status {
                    401 => f.write_str(": check the API key behind `apiKey`"),
                    403 => f.write_str(": the API key does not allow this"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// What a call carries.
#[derive(Clone, Debug, Default)]
pub(super) enum Body {
    #[default]
    None,
    Json(Value),
    /// Content type and bytes.
    Form(String, Bytes),
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) body: Body,
    pub(super) deadline: Duration,
    /// Longest answer in bytes.
    pub(super) limit: usize,
    /// Doing it twice is as good as once.
    pub(super) repeatable: bool,
}

impl Call {
    pub(super) fn new(method: Method, url: String, deadline: Duration) -> Self {
        let repeatable = method == Method::GET || method == Method::DELETE;
        Self {
            method,
            url,
            body: Body::None,
            deadline,
            limit: 4 * 1024 * 1024,
            repeatable,
        }
    }

    pub(super) fn json(mut self, body: Value) -> Self {
        self.body = Body::Json(body);
        self
    }
}

/// The client of one account.
#[derive(Clone, Debug)]
pub(super) struct Api {
    pub(super) http: HttpClient,
    key: SecretHandle,
}

impl Api {
    pub(super) fn new(http: HttpClient, key: SecretHandle) -> Self {
        Self { http, key }
    }

    /// Makes a call and reads its answer as JSON.
    pub(super) async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, Fault> {
        let body = self.send(call).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Fault::Broken(format!("an answer is not as documented: {error}")))
    }

    /// Makes a call; the bytes of a successful answer.
    pub(super) async fn send(&self, call: Call) -> Result<Bytes, Fault> {
        let mut attempt = 0;
        let mut key = self.key().await?;
        let mut renewed = false;
        loop {
            let fault = match self.once(&call, &key).await {
                Ok(body) => return Ok(body),
                Err(fault) => fault,
            };
            // A call with a key that is refused has done nothing.
            if fault.status() == Some(401)
                && !renewed
                && let Some(other) = self.renewed(&key).await
            {
                (key, renewed) = (other, true);
                continue;
            }
            let again = match &fault {
                Fault::Http(HttpFault::NotSent(_)) => true,
                Fault::Http(HttpFault::Unknown(_)) => call.repeatable,
                Fault::Http(_) | Fault::Status(_) | Fault::Broken(_) | Fault::Secret(_) => false,
            };
            if !again || attempt == RETRIES {
                return Err(fault);
            }
            attempt += 1;
            tokio::time::sleep(jittered(Duration::from_millis(250) * attempt)).await;
        }
    }

    async fn once(&self, call: &Call, key: &SecretText) -> Result<Bytes, Fault> {
        let mut request = Request::builder().method(call.method.clone()).uri(&call.url);
        let body = match &call.body {
            Body::None => Bytes::new(),
            Body::Json(value) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(value.to_string())
            }
            Body::Form(content_type, bytes) => {
                request = request.header(CONTENT_TYPE, content_type);
                bytes.clone()
            }
        };
        let mut request = request
            .body(Full::new(body))
            .map_err(|error| Fault::Broken(format!("a call cannot be written: {error}")))?;
        self.sign(request.headers_mut(), key)?;
        let (parts, body) = self
            .http
            .fetch(request, call.deadline, call.limit)
            .await
            .map_err(Fault::Http)?;
        if parts.status.is_success() {
            return Ok(body);
        }
        let retry_after = parts.headers.get(RETRY_AFTER);
        let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        Err(Fault::Status(error(
            parts.status.as_u16(),
            &body,
            seconds.map(Duration::from_secs),
        )))
    }

    /// The key as it is now.
    pub(super) async fn key(&self) -> Result<SecretText, Fault> {
        self.key.get().await.map_err(Fault::Secret)
    }

    /// Another key than the one that was refused, if there is one by now.
    pub(super) async fn renewed(&self, refused: &SecretText) -> Option<SecretText> {
        self.key.renewed(refused).await
    }

    /// The header fields of every call, WebSockets too.
    pub(super) fn sign(&self, headers: &mut http::HeaderMap, key: &SecretText) -> Result<(), Fault> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose().trim())).map_err(|_| {
            Fault::Secret(SecretFault(format!(
                "the secret behind {} holds characters that no header field can carry",
                self.key.reference()
            )))
        })?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
        headers.insert(USER_AGENT, HeaderValue::from_static("paperclip-bridge"));
        headers.insert("x-daytona-source", HeaderValue::from_static("paperclip-bridge"));
        headers.insert(
            "x-daytona-sdk-version",
            HeaderValue::from_static(PROTOCOL_VERSION),
        );
        Ok(())
    }
}

fn error(status: u16, body: &[u8], retry_after: Option<Duration>) -> StatusFault {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        code: String,
        message: Value,
    }
    let said: Said = serde_json::from_slice(body).unwrap_or_default();
    let message = match said.message {
        Value::String(text) => text,
        Value::Null => String::from_utf8_lossy(body).into_owned(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    };
    let shown = message
        .chars()
        .map(|sign| if sign.is_control() { ' ' } else { sign });
    StatusFault {
        status,
        code: said.code,
        message: shown.take(SHOWN_BYTES).collect(),
        retry_after,
    }
}

/// A wait between three quarters and five quarters of `wait`.
pub(super) fn jittered(wait: Duration) -> Duration {
    let mut byte = [128_u8];
    // Without randomness the wait is the plain one.
    let _ = getrandom::fill(&mut byte);
    let [byte] = byte;
    wait.mul_f64(0.75 + f64::from(byte) / 512.0)
}

/// `text` as one segment of a path or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_in_one_line_and_not_at_length() {
        let body = format!("{{\"message\": \"a\\nb{}\", \"code\": \"X\"}}", "c".repeat(1000));

        let fault = error(400, body.as_bytes(), None);

        assert_eq!((fault.code.as_str(), fault.message.len()), ("X", SHOWN_BYTES));
        assert!(fault.message.starts_with("a bc"));
        assert_eq!(error(502, b"<html>", None).message, "<html>");
        assert_eq!(error(400, b"{\"message\": [\"one\"]}", None).message, "[\"one\"]");
    }

    #[test]
    fn what_a_failed_call_may_have_done_is_told_apart() {
        let status = |status| Fault::Status(error(status, b"{}", Some(Duration::from_secs(3))));
        let unsent = Fault::Http(HttpFault::NotSent(String::new()));
        let cut = Fault::Http(HttpFault::Unknown(String::new()));

        assert!(matches!(unsent.of_change(), ProviderError::Unreachable(_)));
        assert!(matches!(cut.clone().of_change(), ProviderError::Unknown(_)));
        assert!(matches!(cut.of_query(), ProviderError::Unreachable(_)));
        assert!(matches!(status(404).of_change(), ProviderError::LeaseLost(_)));
        assert!(matches!(status(401).of_change(), ProviderError::Refused(_)));
        assert!(matches!(status(502).of_change(), ProviderError::Unknown(_)));
        let Fault::Status(limited) = status(429) else {
            panic!()
        };
        let busy = Fault::Status(limited).of_change();
        assert!(matches!(busy, ProviderError::Busy { retry_after: Some(wait), .. } if wait.as_secs() == 3));
    }

    #[test]
    fn a_path_of_any_signs_is_one_value() {
        assert_eq!(encoded("/a b?&#%41é"), "%2Fa%20b%3F%26%23%2541%C3%A9");
    }
}
