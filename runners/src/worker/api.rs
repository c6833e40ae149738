//! The calls of a Worker's bridge API, each signed and sent to one host only.
//!
//! Here: one request and what its answer means: refused, lost, busy, unknown. Not here: which calls there are for a
//! lease (`mod`) and for a command (`exec`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use super::demand::Demand;
use super::refusal::{Said, is_of, retry_after, skew};
use crate::SecretText;
use crate::http::{BaseUrl, HttpClient, HttpFault};
use crate::provider::{LeaseScope, ProviderError, RequestSigner, SecretHandle, UnsignedRequest};

/// In front of every path.
const PREFIX: &str = "/api/paperclip-sandbox/v1";
/// An answer that is no command's output.
const ANSWER_LIMIT_BYTES: usize = 1024 * 1024;
/// Attempts in all, where nothing was sent.
const ATTEMPTS: u32 = 3;
/// Before the second attempt; doubled before the third.
const PAUSE: Duration = Duration::from_millis(200);
const JSON: &str = "application/json";

/// A key that signs, and its name.
#[derive(Clone, Debug)]
pub(super) struct Signing {
    pub(super) key_id: String,
    pub(super) key: SecretHandle,
    /// Answers without a signature count.
    pub(super) lenient: bool,
}

/// The head of a good answer, and what the whole of it must show.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) demand: Option<Demand>,
}

/// The secrets of one call.
struct Keys {
    bearer: SecretText,
    /// Present where requests are signed.
    signing: Option<SecretText>,
}

/// One Worker's bridge API.
pub(super) struct Api {
    pub(super) base: BaseUrl,
    /// The only host that anything is sent to.
    pub(super) expected_host: String,
    pub(super) bearer: SecretHandle,
    pub(super) signing: Option<Signing>,
    pub(super) signer: Arc<dyn RequestSigner>,
    pub(super) http: HttpClient,
    /// Of every call but a command's.
    pub(super) request_timeout: Duration,
    pub(super) health: OnceCell<Health>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("base", &self.base)
            .field("expected_host", &self.expected_host)
            .field("signing", &self.signing)
            .finish_non_exhaustive()
    }
}

/// What the Worker says that it can do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    /// It decodes a command's standard input.
    pub(super) stdin_base64: bool,
    /// It keeps a command's result for a repeated request.
    pub(super) request_id: bool,
    /// An acquire under a name of its own has the same lease each time.
    pub(super) acquire_request_id: bool,
}

#[derive(Deserialize)]
struct HealthReply {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    capabilities: BTreeMap<String, Value>,
    #[serde(default)]
    auth: Vec<String>,
}

/// Whose call it is; travels in header fields, and under the signature.
#[derive(Clone, Debug, Default)]
pub(super) struct Context(Vec<(&'static str, String)>);

impl Context {
    pub(super) fn of(scope: &LeaseScope) -> Self {
        let present = [
            ("environment-id", scope.environment_id.as_deref()),
            ("issue-id", scope.issue_id.as_deref()),
            ("run-id", Some(scope.run_id.as_str())),
        ];
        let present = present
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?.to_owned())));
        Self(present.collect())
    }
}

/// Why a call has no answer that can be used, before it is known what that means for the call.
#[derive(Debug)]
pub(super) enum CallFault {
    /// The Worker answered 404 or 409: the lease is lost, where the call was about one.
    Lost(String),
    /// The command of this request still runs.
    InProgress(Option<Duration>),
    /// Who answered has not shown that it is the Worker; the status is only what it claims.
    Unproven(StatusCode, String),
    /// Everything else.
    Other(ProviderError),
}

impl From<ProviderError> for CallFault {
    fn from(error: ProviderError) -> Self {
        Self::Other(error)
    }
}

impl From<CallFault> for ProviderError {
    /// For a call about a lease.
    fn from(fault: CallFault) -> Self {
        match fault {
            CallFault::Lost(reason) => Self::LeaseLost(reason),
            CallFault::InProgress(retry_after) => Self::Busy {
                reason: "the same request is still served".to_owned(),
                retry_after,
            },
            CallFault::Unproven(_, told) => Self::Unproven(told),
            CallFault::Other(error) => error,
        }
    }
}

/// One request, before it is signed.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Below the prefix; encoded.
    pub(super) path: &'a str,
    /// JSON, or nothing.
    pub(super) body: Bytes,
    pub(super) context: &'a Context,
}

impl<'a> Call<'a> {
    pub(super) fn post(path: &'a str, body: Map<String, Value>, context: &'a Context) -> Self {
        Self {
            method: Method::POST,
            path,
            body: Value::Object(body).to_string().into(),
            context,
        }
    }
}

impl Api {
    /// Sends a call and reads its JSON.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Map<String, Value>, CallFault> {
        self.call_within(call, self.request_timeout).await
    }

    /// As [`Self::call`] within another time.
    pub(super) async fn call_within(
        &self,
        call: &Call<'_>,
        limit: Duration,
    ) -> Result<Map<String, Value>, CallFault> {
        let end = tokio::time::Instant::now() + limit;
        let Answer { response, demand } = self.send(call, limit).await?;
        let (head, body) = response.into_parts();
        let is_json = is_of(&head.headers, JSON);
        let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect();
        let body = tokio::time::timeout_at(end, body)
            .await
            .map_err(|_| fault(HttpFault::TimedOut(limit)))?
            .map_err(|error| ProviderError::Unknown(format!("the answer broke off: {error}")))?
            .to_bytes();
        if let Some(demand) = demand {
            demand
                .check(&head, &body)
                .map_err(|told| CallFault::Unproven(head.status, told))?;
        }
        let value = is_json
            .then(|| serde_json::from_slice::<Map<String, Value>>(&body).ok())
            .flatten();
        value.ok_or_else(|| {
            ProviderError::Broken("what answers there is no bridge: its answer is not JSON".to_owned()).into()
        })
    }

    /// Sends a call and returns once the head of a good answer is there, whose body has yet to show whose it is. What was
    /// not sent is tried again, signed anew.
    pub(super) async fn send(&self, call: &Call<'_>, limit: Duration) -> Result<Answer, CallFault> {
        let end = tokio::time::Instant::now() + limit;
        let mut attempt = 1;
        let mut keys = self.keys().await?;
        let mut renewed = false;
        loop {
            let (request, demand) = self.request(call, &keys)?;
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            match self.http.send(request, left).await {
                Ok(response) if response.status() == StatusCode::OK => {
                    return Ok(Answer { response, demand });
                }
                // A request that is refused has done nothing.
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED
                        && !renewed
                        && self.renew(&mut keys).await =>
                {
                    renewed = true;
                }
                Ok(response) => return Err(self.refusal(response, demand, left).await),
                Err(HttpFault::NotSent(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                Err(HttpFault::TimedOut(_)) => return Err(fault(HttpFault::TimedOut(limit)).into()),
                Err(error) => return Err(fault(error).into()),
            }
        }
    }

    /// The secrets as they are now.
    async fn keys(&self) -> Result<Keys, ProviderError> {
        let host = self.base.host_header();
        // Before any secret is looked up: what is signed for another host must not exist.
        if host != self.expected_host {
            return Err(ProviderError::Refused(format!(
                "host_header_mismatch: bridgeBaseUrl leads to {host}, and expectedHostHeader is {}; nothing was sent",
                self.expected_host
            )));
        }
        Ok(Keys {
            bearer: self.bearer.get().await?,
            signing: match &self.signing {
                Some(signing) => Some(signing.key.get().await?),
                None => None,
            },
        })
    }

    /// Whether one of the secrets is another by now; the Worker does not say which of them it refused.
    async fn renew(&self, keys: &mut Keys) -> bool {
        let bearer = self.bearer.renewed(&keys.bearer).await;
        let signing = match (&self.signing, &keys.signing) {
            (Some(signing), Some(refused)) => signing.key.renewed(refused).await,
            (Some(_) | None, _) => None,
        };
        let changed = bearer.is_some() || signing.is_some();
        if let Some(bearer) = bearer {
            keys.bearer = bearer;
        }
        if signing.is_some() {
            keys.signing = signing;
        }
        changed
    }

    fn request(
        &self,
        call: &Call<'_>,
        keys: &Keys,
    ) -> Result<(Request<Full<Bytes>>, Option<Demand>), ProviderError> {
        let host = self.base.host_header();
        let url = self.base.join(&format!("{PREFIX}{}", call.path));
        let uri: http::Uri = url
            .parse()
            .map_err(|_| ProviderError::Refused(format!("{PREFIX}{} is no path", call.path)))?;
        let content_type = if call.body.is_empty() { "" } else { JSON };
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", keys.bearer.expose()))
            .map_err(|_| ProviderError::Refused("authToken holds what no header can".to_owned()))?;
        authorization.set_sensitive(true);
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri.clone())
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, authorization);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        for (name, value) in &call.context.0 {
            request = request.header(format!("x-paperclip-{name}"), value.as_str());
        }
        let mut demand = None;
        if let (Some(signing), Some(key)) = (&self.signing, &keys.signing) {
            let context: Vec<(&str, &str)> = call
                .context
                .0
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let unsigned = UnsignedRequest {
                method: call.method.as_str(),
                target: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
                host,
                content_type,
                context: &context,
                body: &call.body,
            };
            let signed = self.signer.sign(&signing.key_id, key, &unsigned);
            let signed = signed.map_err(ProviderError::Refused)?;
            for (name, value) in &signed {
                request = request.header(*name, value);
            }
            demand = Some(Demand {
                signer: Arc::clone(&self.signer),
                key: key.clone(),
                request: signed,
                lenient: signing.lenient,
            });
        }
        request
            .body(Full::new(call.body.clone()))
            .map(|request| (request, demand))
            .map_err(|_| ProviderError::Refused("an id of the run holds what no header can".to_owned()))
    }

    /// What an answer other than 200 means.
    async fn refusal(
        &self,
        response: Response<Incoming>,
        demand: Option<Demand>,
        left: Duration,
    ) -> CallFault {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect();
        let body = match tokio::time::timeout(left, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        if let Some(Err(told)) = demand.map(|demand| demand.check(&parts, &body)) {
            return CallFault::Unproven(parts.status, told);
        }
        let body = if is_of(&parts.headers, JSON) {
            body
        } else {
            Bytes::new()
        };
        let said = Said::read(&body);
        let status = parts.status.as_u16();
        let told = format!("the Worker answered {status}{said}");
        match status {
            404 | 409 => CallFault::Lost(told),
            425 => CallFault::InProgress(retry_after(&parts.headers)),
            300..=399 => ProviderError::Refused(format!(
                "{told}, a redirect, which is never followed: give the Worker's own URL as bridgeBaseUrl"
            ))
            .into(),
            401 => {
                let clocks = skew(&parts.headers, SystemTime::now());
                let joint = if clocks.is_empty() { "" } else { "; " };
                ProviderError::Refused(format!("{told}{joint}{clocks}")).into()
            }
            429 | 503 => ProviderError::Busy {
                reason: told,
                retry_after: retry_after(&parts.headers),
            }
            .into(),
            400..=499 if status != 410 => ProviderError::Refused(told).into(),
            _ => ProviderError::Unknown(told).into(),
        }
    }

    /// What the Worker can do, asked once.
    ///
    /// A Worker that does not check signatures is refused where this side signs: whoever has its bearer could be it.
    pub(super) async fn health(&self) -> Result<Health, ProviderError> {
        let health = self.health.get_or_try_init(|| async {
            let context = Context::default();
            let call = Call {
                method: Method::GET,
                path: "/health",
                body: Bytes::new(),
                context: &context,
            };
            let reply = self.call(&call).await.map_err(|fault| match fault {
                CallFault::Lost(told) => {
                    ProviderError::Refused(format!("{told}: there is no bridge API under bridgeBaseUrl"))
                }
                // Nothing was asked for yet, so that nothing can be left of it.
                CallFault::Unproven(status, told) if status.is_server_error() => {
                    ProviderError::Unreachable(told)
                }
                CallFault::Unproven(_, told) => ProviderError::Refused(told),
                fault @ (CallFault::InProgress(_) | CallFault::Other(_)) => fault.into(),
            })?;
            let reply: HealthReply = serde_json::from_value(Value::Object(reply))
                .ok()
                .filter(|reply: &HealthReply| reply.ok)
                .ok_or_else(|| {
                    ProviderError::Broken("the Worker does not say that it is well: see its log".to_owned())
                })?;
            if self.signing.is_some() && !reply.auth.iter().any(|way| way == "pcs1") {
                return Err(ProviderError::Refused(
                    "the Worker does not check signatures, and signingKey is given: deploy the Worker with \
                     BRIDGE_AUTH_MODE=signed, or either"
                        .to_owned(),
                ));
            }
            let can = |name: &str| reply.capabilities.get(name) == Some(&Value::Bool(true));
            Ok(Health {
                stdin_base64: can("stdinBase64"),
                request_id: can("requestId"),
                acquire_request_id: can("acquireRequestId"),
            })
        });
        health.await.copied()
    }
}

/// What a call without an answer did.
pub(super) fn fault(fault: HttpFault) -> ProviderError {
    match fault {
        HttpFault::NotSent(text) => ProviderError::Unreachable(text),
        HttpFault::Unknown(_) | HttpFault::TimedOut(_) | HttpFault::TooLarge(_) => {
            ProviderError::Unknown(fault.to_string())
        }
    }
}
