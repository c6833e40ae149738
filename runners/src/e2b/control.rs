//! The API that makes, prolongs, pauses and ends sandboxes.
//!
//! Here: one method a call, and what an answer means. Not here: which of them a lease needs ([`super::leases`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::Settings;
use crate::SecretText;
use crate::http::{HttpClient, HttpFault};
use crate::provider::ProviderError;

/// Making a sandbox takes seconds where its template is cold.
const CREATE_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// A page of the list is the longest answer.
const ANSWER_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// Sandboxes a page, and pages of a list.
const PAGE: usize = 100;
const PAGES: usize = 100;

/// A sandbox's id, safe in a path and in a host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SandboxId(String);

impl SandboxId {
    pub(super) fn parse(text: &str) -> Result<Self, ProviderError> {
        let fits = (1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(ProviderError::Broken(format!("{text:?} is no sandbox id")))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running sandbox, and how to get into it.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) id: SandboxId,
    pub(super) token: Option<SecretText>,
    pub(super) domain: Option<String>,
}

/// A sandbox as the list tells of it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) id: SandboxId,
    pub(super) paused: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    #[serde(rename = "sandboxID")]
    id: String,
    envd_access_token: Option<String>,
    domain: Option<String>,
}

impl Told {
    fn running(self) -> Result<Running, ProviderError> {
        Ok(Running {
            id: SandboxId::parse(&self.id)?,
            token: self.envd_access_token.map(SecretText::new),
            domain: self.domain.filter(|domain| !domain.is_empty()),
        })
    }
}

/// One answer of the API.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The API with one account's key.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) http: HttpClient,
    pub(super) settings: Arc<Settings>,
    /// The server knows no `/v2/`.
    old: AtomicBool,
}

impl Control {
    pub(super) fn new(http: HttpClient, settings: Arc<Settings>) -> Self {
        Self {
            http,
            settings,
            old: AtomicBool::new(false),
        }
    }

    /// Makes a sandbox. A failure that leaves open whether there is one now is [`ProviderError::Unknown`].
    pub(super) async fn create(&self, labels: &BTreeMap<&str, String>) -> Result<Running, ProviderError> {
        let body = json!({
            "templateID": self.settings.template,
            "timeout": self.settings.lifetime_seconds(),
            "metadata": labels,
            "envVars": self.settings.envs,
            // Without it the server inside would take commands from anybody; the newer call has no choice.
            "secure": true,
            "allow_internet_access": self.settings.allow_internet_access,
        });
        let answer = self
            .versioned(Method::POST, "/sandboxes", Some(&body), CREATE_LIMIT)
            .await;
        let answer = answer.map_err(|fault| self.failed("create a sandbox", &fault))?;
        match answer.status.as_u16() {
            200..=299 => told::<Told>(&answer)?.running(),
            404 => Err(ProviderError::Refused(format!(
                "there is no template {:?} for this key",
                self.settings.template
            ))),
            // It may have been made all the same.
            500..=599 if answer.status != StatusCode::SERVICE_UNAVAILABLE => Err(ProviderError::Unknown(
                format!("create a sandbox: {}", words(&answer)),
            )),
            _ => Err(refusal("create a sandbox", &answer)),
        }
    }

    /// The way into a sandbox, which is resumed if it was paused. Its life is prolonged, never shortened.
    pub(super) async fn connect(&self, id: &SandboxId) -> Result<Running, ProviderError> {
        let body = json!({"timeout": self.settings.lifetime_seconds()});
        let path = format!("/sandboxes/{id}/connect");
        let answer = self
            .versioned(Method::POST, &path, Some(&body), CREATE_LIMIT)
            .await;
        told::<Told>(&self.done("connect to the sandbox", answer)?)?.running()
    }

    /// Lets it live for the configured time from now.
    pub(super) async fn prolong(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let body = json!({"timeout": self.settings.lifetime_seconds()});
        let path = format!("/sandboxes/{id}/timeout");
        let answer = self.call(Method::POST, &path, Some(&body), CALL_LIMIT).await;
        self.done("prolong the sandbox", answer).map(drop)
    }

    /// Stops it with its memory; that it is stopped already is no fault.
    pub(super) async fn pause(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let path = format!("/sandboxes/{id}/pause");
        let answer = self
            .call(Method::POST, &path, Some(&json!({})), CREATE_LIMIT)
            .await;
        let answer = answer.map_err(|fault| self.failed("pause the sandbox", &fault))?;
        if answer.status == StatusCode::CONFLICT {
            return Ok(());
        }
        self.done("pause the sandbox", Ok(answer)).map(drop)
    }

    /// Ends it; that it is gone already is no fault.
    pub(super) async fn kill(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let answer = self
            .call(Method::DELETE, &format!("/sandboxes/{id}"), None, CALL_LIMIT)
            .await;
        match self.done("end the sandbox", answer) {
            Ok(_) | Err(ProviderError::LeaseLost(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The sandboxes that carry these labels, paused ones too.
    pub(super) async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<Listed>, ProviderError> {
        #[derive(Deserialize)]
        struct One {
            #[serde(rename = "sandboxID")]
            id: String,
            state: Option<String>,
        }
        let pairs: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect();
        let mut found = vec![];
        let mut next = String::new();
        for _ in 0..PAGES {
            let query = format!("metadata={}&limit={PAGE}{next}", encode(&pairs.join("&")));
            let answer = self
                .versioned(Method::GET, &format!("/sandboxes?{query}"), None, CALL_LIMIT)
                .await;
            let answer = self.done("list the sandboxes", answer)?;
            for one in told::<Vec<One>>(&answer)? {
                found.push(Listed {
                    id: SandboxId::parse(&one.id)?,
                    paused: one.state.as_deref() == Some("paused"),
                });
            }
            match answer
                .headers
                .get("x-next-token")
                .and_then(|token| token.to_str().ok())
            {
                Some(token) if !token.is_empty() => next = format!("&nextToken={}", encode(token)),
                _ => return Ok(found),
            }
        }
        Err(ProviderError::Broken(format!(
            "the list of sandboxes has more than {PAGES} pages"
        )))
    }

    /// A call that newer servers have below `/v2`. Which kind this one is, is asked once.
    async fn versioned(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, CallFault> {
        if !self.old.load(Ordering::Relaxed) {
            let answer = self
                .call(method.clone(), &format!("/v2{path}"), body, limit)
                .await?;
            let unknown_path = answer.status == StatusCode::METHOD_NOT_ALLOWED
                || (answer.status == StatusCode::NOT_FOUND && error_of(&answer).is_none());
            if !unknown_path {
                return Ok(answer);
            }
            self.old.store(true, Ordering::Relaxed);
        }
        self.call(method, path, body, limit).await
    }

    /// A key that is refused is read anew, and the call made once more with another one: a 401 says that nothing was done.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, CallFault> {
        let key = self.settings.key.get().await.map_err(ProviderError::Secret)?;
        let answer = self.call_with(&key, method.clone(), path, body, limit).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match self.settings.key.renewed(&key).await {
            Some(key) => self.call_with(&key, method, path, body, limit).await,
            None => Ok(answer),
        }
    }

    async fn call_with(
        &self,
        key: &SecretText,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, CallFault> {
        let mut key = HeaderValue::from_str(key.expose().trim()).map_err(|_| {
            let reference = self.settings.key.reference();
            ProviderError::Refused(format!("the API key of {reference} holds what no header can"))
        })?;
        key.set_sensitive(true);
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(self.settings.api.join(path))
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|error| ProviderError::Broken(error.to_string()))?;
        let (parts, body) = self.http.fetch(request, limit, ANSWER_LIMIT_BYTES).await?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// An answer that says that it was done.
    fn done(&self, action: &str, answer: Result<Answer, CallFault>) -> Result<Answer, ProviderError> {
        let answer = answer.map_err(|fault| self.failed(action, &fault))?;
        match answer.status.as_u16() {
            200..=299 => Ok(answer),
            404 => Err(ProviderError::LeaseLost(words(&answer))),
            _ => Err(refusal(action, &answer)),
        }
    }

    fn failed(&self, action: &str, fault: &CallFault) -> ProviderError {
        let place = &self.settings.api;
        match fault {
            CallFault::Provider(error) => error.clone(),
            CallFault::Http(HttpFault::NotSent(reason)) => {
                ProviderError::Unreachable(format!("cannot {action} at {place}: {reason}"))
            }
            CallFault::Http(fault) => ProviderError::Unknown(format!("cannot {action} at {place}: {fault}")),
        }
    }
}

enum CallFault {
    Http(HttpFault),
    Provider(ProviderError),
}

impl From<HttpFault> for CallFault {
    fn from(fault: HttpFault) -> Self {
        Self::Http(fault)
    }
}

impl From<ProviderError> for CallFault {
    fn from(error: ProviderError) -> Self {
        Self::Provider(error)
    }
}

/// What an answer that is no success means.
fn refusal(action: &str, answer: &Answer) -> ProviderError {
    let text = format!("cannot {action}: {}", words(answer));
    match answer.status.as_u16() {
        401 | 403 => ProviderError::Refused(format!("{text}: check the API key and what its account may do")),
        409 | 429 | 502..=504 => ProviderError::Busy {
            reason: text,
            retry_after: retry_after(&answer.headers),
        },
        500..=599 => ProviderError::Unknown(text),
        _ => ProviderError::Refused(text),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The server's own error, if the body holds one.
fn error_of(answer: &Answer) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(&answer.body).ok()?;
    body.get("code")?.as_i64()?;
    body.get("message")?.as_str().map(str::to_owned)
}

/// An answer in one line.
fn words(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    match error_of(answer) {
        // At most a line of it, without what could play with a terminal.
        Some(message) => {
            let message: String = message
                .chars()
                .filter(|one| !one.is_control())
                .take(300)
                .collect();
            format!("{status} {message}")
        }
        None => status.to_string(),
    }
}

fn told<T: for<'de> Deserialize<'de>>(answer: &Answer) -> Result<T, ProviderError> {
    // Serde's words may repeat a value, and a token is one.
    serde_json::from_slice(&answer.body).map_err(|error| {
        ProviderError::Broken(format!(
            "not as agreed, at line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

/// `text` as it may stand in a query.
pub(super) fn encode(text: &str) -> String {
    use fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
