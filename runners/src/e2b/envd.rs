//! Calls to the server inside a sandbox.
//!
//! Here: headers, deadlines, one renewal of the way in, and what a failure says of the call's effect. Not here: what
//! a process does after its start ([`super::follow`]).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::access::{Access, Door};
use super::config::ENVD_PORT;
use super::connect::{RpcFault, message};
use crate::RunnerError;
use crate::http::HttpFault;
use crate::provider::ProviderError;

/// For everything that the server answers at once.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);
/// No answer that is read whole is longer.
const ANSWER_LIMIT_BYTES: usize = 1024 * 1024;
/// How often the server is asked to say that it is there, in seconds.
pub(super) const KEEPALIVE_SECONDS: u64 = 20;
/// More digits than this are no time-out to the server.
const LONGEST_TIMEOUT_MS: u128 = 9_999_999_999;

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallFault {
    /// It was not done; trying again is safe.
    #[error("{0}")]
    NotDone(String),
    /// Nobody knows whether it was done.
    #[error("{0}")]
    Unknown(String),
    /// The server says why not.
    #[error("{0}")]
    Rpc(RpcFault),
    /// The way in could not be had.
    #[error("{0}")]
    Provider(#[from] ProviderError),
}

impl CallFault {
    /// For a call of the runner's own that has to succeed.
    pub(super) fn told(self, target: &str) -> RunnerError {
        let target = target.to_owned();
        match self {
            Self::NotDone(reason) => RunnerError::Unreachable { target, reason },
            Self::Unknown(_) => RunnerError::Lost { target },
            Self::Rpc(fault) => match fault.code.as_str() {
                "unauthenticated" | "permission_denied" | "invalid_argument" | "401" | "403" => {
                    RunnerError::Refused {
                        target,
                        reason: fault.to_string(),
                    }
                }
                _ => RunnerError::Unreachable {
                    target,
                    reason: fault.to_string(),
                },
            },
            Self::Provider(error) => RunnerError::from((target.as_str(), error)),
        }
    }
}

/// One call, kept so that it can be made again.
pub(super) struct Call<'a> {
    pub(super) path: &'a str,
    pub(super) content_type: &'static str,
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) body: Bytes,
    pub(super) limit: Duration,
}

/// The server inside one sandbox.
#[derive(Debug)]
pub(super) struct Envd {
    pub(super) access: Arc<Access>,
    /// The target in the operator's words.
    pub(super) target: String,
    authorization: Option<HeaderValue>,
}

impl Envd {
    pub(super) fn new(access: Arc<Access>) -> Self {
        let user = access.control.settings.user.as_deref();
        let authorization = user.and_then(|user| {
            let pair = STANDARD.encode(format!("{user}:"));
            HeaderValue::from_str(&format!("Basic {pair}")).ok()
        });
        Self {
            target: format!("e2b:{}", access.id),
            access,
            authorization,
        }
    }

    /// Starts a process and hands over its stream.
    ///
    /// - `limit`: after it the server kills the process, but not its children.
    pub(super) async fn start(
        &self,
        line: &str,
        tag: &str,
        stdin: bool,
        limit: Option<Duration>,
    ) -> Result<Incoming, CallFault> {
        let process = json!({"cmd": "/bin/sh", "args": ["-c", line]});
        let request = json!({"process": process, "stdin": stdin, "tag": tag});
        self.stream("Start", &request, limit).await
    }

    /// Follows a process again; what it wrote in between is lost.
    pub(super) async fn follow(&self, tag: &str) -> Result<Incoming, CallFault> {
        self.stream("Connect", &json!({"process": {"tag": tag}}), None)
            .await
    }

    async fn stream(
        &self,
        method: &str,
        request: &Value,
        limit: Option<Duration>,
    ) -> Result<Incoming, CallFault> {
        let mut headers = vec![("keepalive-ping-interval", KEEPALIVE_SECONDS.to_string())];
        let limit = limit.map(|limit| limit.as_millis());
        headers.extend(
            limit
                .filter(|limit| *limit <= LONGEST_TIMEOUT_MS)
                .map(|limit| ("connect-timeout-ms", limit.to_string())),
        );
        let answer = self
            .send(&Call {
                path: &format!("/process.Process/{method}"),
                content_type: "application/connect+json",
                headers: &headers,
                body: message(request),
                limit: CALL_LIMIT,
            })
            .await?;
        Ok(answer.into_body())
    }

    /// A call with one answer, of the service `process.Process`.
    pub(super) async fn process(
        &self,
        method: &str,
        request: &Value,
        limit: Duration,
    ) -> Result<(), CallFault> {
        self.unary(&format!("/process.Process/{method}"), request, limit)
            .await
    }

    /// A call with one answer, which nobody needs.
    pub(super) async fn unary(&self, path: &str, request: &Value, limit: Duration) -> Result<(), CallFault> {
        self.send(&Call {
            path,
            content_type: "application/json",
            headers: &[],
            body: Bytes::from(request.to_string()),
            limit,
        })
        .await
        .map(drop)
    }

    /// Makes a call. A sandbox that does not run, or a token that is refused, is asked for once more at the API.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response<Incoming>, CallFault> {
        let door = self.access.door().await?;
        match self.send_to(&door, call).await? {
            Tried::Answered(answer) => return Ok(answer),
            Tried::Stale(_) => {}
        }
        let door = self.access.renewed(&door).await?;
        match self.send_to(&door, call).await? {
            Tried::Answered(answer) => Ok(answer),
            Tried::Stale(reason) => Err(CallFault::NotDone(reason)),
        }
    }

    async fn send_to(&self, door: &Door, call: &Call<'_>) -> Result<Tried, CallFault> {
        let broken = |error: http::Error| CallFault::NotDone(error.to_string());
        let mut request = Request::post(door.url.join(call.path))
            .header("content-type", call.content_type)
            .header("connect-protocol-version", "1")
            .header("e2b-sandbox-id", self.access.id.as_str())
            .header("e2b-sandbox-port", ENVD_PORT);
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(token) = &door.token {
            let value = HeaderValue::from_str(token.expose());
            let mut value =
                value.map_err(|_| CallFault::NotDone("the access token is no header".to_owned()))?;
            value.set_sensitive(true);
            request = request.header("x-access-token", value);
        }
        let request = request.body(Full::new(call.body.clone())).map_err(broken)?;
        let answer = self.access.control.http.send(request, call.limit).await;
        let answer = answer.map_err(|fault| match fault {
            HttpFault::NotSent(reason) => CallFault::NotDone(reason),
            fault @ (HttpFault::Unknown(_) | HttpFault::TimedOut(_) | HttpFault::TooLarge(_)) => {
                CallFault::Unknown(fault.to_string())
            }
        })?;
        if answer.status().is_success() {
            return Ok(Tried::Answered(answer));
        }
        refused(answer).await
    }
}

enum Tried {
    Answered(Response<Incoming>),
    /// Nothing was done: the way in is not the right one any more.
    Stale(String),
}

/// What an answer that is no success means.
async fn refused(answer: Response<Incoming>) -> Result<Tried, CallFault> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect();
    let body = match tokio::time::timeout(CALL_LIMIT, body).await {
        Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null),
        Ok(Err(_)) | Err(_) => Value::Null,
    };
    let fault = RpcFault::read(&body).filter(|fault| !fault.code.is_empty());
    let told = fault
        .as_ref()
        .map_or_else(|| status.to_string(), ToString::to_string);
    match status {
        // The edge speaks of the sandbox; any other 502 is some proxy's.
        StatusCode::BAD_GATEWAY if body.get("sandboxId").is_some() => {
            Ok(Tried::Stale("the sandbox does not run".to_owned()))
        }
        StatusCode::UNAUTHORIZED if fault.as_ref().is_none_or(|fault| fault.code == "401") => Ok(
            Tried::Stale("the server inside the sandbox refuses our access token".to_owned()),
        ),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(CallFault::NotDone(told)),
        _ => Err(fault.map_or(CallFault::Unknown(told), CallFault::Rpc)),
    }
}
