//! The control API: one sandbox made, asked for, moved to a state, deleted; all of ours listed.
//!
//! Here: the calls and the waiting for a state, by asking again. Not here: when which of them is made; see
//! [`super::lease`].

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{Api, Call, Fault, encoded, jittered};
use super::toolbox::Toolbox;
use crate::http::BaseUrl;
use crate::provider::ProviderError;

const FIRST_LOOK: Duration = Duration::from_millis(250);
const SLOWEST_LOOK: Duration = Duration::from_secs(2);
/// Sandboxes asked for at once.
const PAGE: usize = 100;
/// Pages asked for in one list.
const PAGES: usize = 100;

/// What is used of a sandbox's description.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sandbox {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) error_reason: Option<String>,
    #[serde(default)]
    recoverable: Option<bool>,
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    toolbox_proxy_url: Option<String>,
}

/// What a state means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Commands can run.
    Started,
    /// At rest, and can be started.
    Resting,
    /// Gone or going.
    Gone,
    /// It failed.
    Failed,
    /// On its way somewhere, or a state that is not known here.
    Moving,
}

impl Sandbox {
    pub(super) fn phase(&self) -> Phase {
        match self.state.as_str() {
            "started" => Phase::Started,
            "stopped" | "paused" | "archived" => Phase::Resting,
            "destroying" | "destroyed" => Phase::Gone,
            "error" | "build_failed" => Phase::Failed,
            _ => Phase::Moving,
        }
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    fn failure(&self) -> ProviderError {
        let reason = self.error_reason.as_deref().unwrap_or("no reason given");
        ProviderError::Refused(format!(
            "sandbox {} is in state {}: {reason}",
            self.id, self.state
        ))
    }
}

/// The control API of one account.
#[derive(Clone, Debug)]
pub(super) struct Control {
    pub(super) api: Api,
    base: BaseUrl,
    /// Limit of one call.
    liveness: Duration,
}

impl Control {
    pub(super) fn new(api: Api, base: BaseUrl, liveness: Duration) -> Self {
        Self { api, base, liveness }
    }

    /// Where the API is, which tells one installation from another.
    pub(super) fn address(&self) -> &str {
        self.base.as_str()
    }

    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, self.base.join(path), self.liveness)
    }

    fn one(&self, method: Method, key: &str, action: &str) -> Call {
        self.call(method, &format!("/sandbox/{}{action}", encoded(key)))
    }

    pub(super) async fn create(&self, request: Value) -> Result<Sandbox, Fault> {
        self.api
            .ask(self.call(Method::POST, "/sandbox").json(request))
            .await
    }

    /// By id or name; none where it is not there.
    pub(super) async fn find(&self, key: &str) -> Result<Option<Sandbox>, Fault> {
        match self.api.ask(self.one(Method::GET, key, "")).await {
            Err(fault) if fault.status() == Some(404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Starts, stops and the like: `action` is the last word of the path.
    pub(super) async fn act(&self, id: &str, action: &str) -> Result<(), Fault> {
        let call = self.one(Method::POST, id, &format!("/{action}"));
        self.api.send(call).await.map(drop)
    }

    /// Deletes it and waits until it is gone; that it is gone already is no fault.
    pub(super) async fn delete(&self, id: &str, limit: Duration) -> Result<(), ProviderError> {
        match self.api.send(self.one(Method::DELETE, id, "")).await {
            Ok(_) => {}
            Err(fault) if matches!(fault.status(), Some(404 | 410)) => return Ok(()),
            Err(fault) => return Err(fault.of_change()),
        }
        let gone = |sandbox: &Sandbox| sandbox.phase() == Phase::Gone;
        match self.wait(id, limit, gone).await {
            Ok(_) | Err(ProviderError::LeaseLost(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Waits until it has started. One that failed and says that it can recover is asked to, once.
    pub(super) async fn wait_started(&self, id: &str, limit: Duration) -> Result<Sandbox, ProviderError> {
        let settled =
            |sandbox: &Sandbox| matches!(sandbox.phase(), Phase::Started | Phase::Failed | Phase::Gone);
        let mut sandbox = self.wait(id, limit, settled).await?;
        if sandbox.phase() == Phase::Failed && sandbox.recoverable == Some(true) {
            self.act(id, "recover").await.map_err(Fault::of_change)?;
            sandbox = self.wait(id, limit, settled).await?;
        }
        match sandbox.phase() {
            Phase::Started => Ok(sandbox),
            Phase::Gone => Err(gone(id)),
            Phase::Failed | Phase::Resting | Phase::Moving => Err(sandbox.failure()),
        }
    }

    /// Waits until it is at rest or gone.
    pub(super) async fn wait_stopped(&self, id: &str, limit: Duration) -> Result<Sandbox, ProviderError> {
        let settled =
            |sandbox: &Sandbox| matches!(sandbox.phase(), Phase::Resting | Phase::Gone | Phase::Failed);
        let sandbox = self.wait(id, limit, settled).await?;
        match sandbox.phase() {
            Phase::Failed => Err(sandbox.failure()),
            Phase::Started | Phase::Resting | Phase::Gone | Phase::Moving => Ok(sandbox),
        }
    }

    /// Asks again and again until `settled`, each time a little later.
    async fn wait(
        &self,
        id: &str,
        limit: Duration,
        settled: impl Fn(&Sandbox) -> bool,
    ) -> Result<Sandbox, ProviderError> {
        let end = Instant::now() + limit;
        let mut pause = FIRST_LOOK;
        loop {
            let state = match self.find(id).await {
                Ok(None) => return Err(gone(id)),
                Ok(Some(sandbox)) if settled(&sandbox) => return Ok(sandbox),
                Ok(Some(sandbox)) => format!("it is in state {}", sandbox.state),
                // A call that failed may work next time; a refusal stays one.
                Err(fault) => {
                    let error = fault.of_query();
                    if !matches!(error, ProviderError::Unreachable(_) | ProviderError::Busy { .. }) {
                        return Err(error);
                    }
                    error.to_string()
                }
            };
            if Instant::now() + pause >= end {
                return Err(ProviderError::Unreachable(format!(
                    "sandbox {id} did not get where it should within {limit:?}: {state}"
                )));
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(SLOWEST_LOOK);
        }
    }

    /// All sandboxes with these labels that are not gone.
    pub(super) async fn list(&self, labels: &Value) -> Result<Vec<Sandbox>, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            items: Vec<Sandbox>,
            #[serde(default)]
            next_cursor: Option<String>,
        }
        let labels = encoded(&labels.to_string());
        let (mut found, mut cursor) = (vec![], None::<String>);
        for _ in 0..PAGES {
            let mut path = format!("/sandbox?limit={PAGE}&labels={labels}");
            if let Some(cursor) = &cursor {
                path.push_str(&format!("&cursor={}", encoded(cursor)));
            }
            let page: Page = self.api.ask(self.call(Method::GET, &path)).await?;
            let there = page.items.into_iter();
            found.extend(there.filter(|sandbox| sandbox.phase() != Phase::Gone));
            cursor = page.next_cursor.filter(|cursor| !cursor.is_empty());
            if cursor.is_none() {
                return Ok(found);
            }
        }
        Err(Fault::Broken(format!(
            "the list of sandboxes has no end within {PAGES} pages of {PAGE}"
        )))
    }

    /// The toolbox of a sandbox.
    pub(super) async fn toolbox(&self, sandbox: &Sandbox) -> Result<Toolbox, Fault> {
        #[derive(Deserialize)]
        struct Said {
            url: String,
        }
        let proxy = match &sandbox.toolbox_proxy_url {
            Some(url) if !url.is_empty() => url.clone(),
            _ => {
                let call = self.one(Method::GET, &sandbox.id, "/toolbox-proxy-url");
                self.api.ask::<Said>(call).await?.url
            }
        };
        Toolbox::new(self.api.clone(), &proxy, &sandbox.id, self.liveness)
    }
}

pub(super) fn gone(id: &str) -> ProviderError {
    ProviderError::LeaseLost(format!("Daytona has no sandbox {id} any more"))
}

/// Labels by which our sandboxes are found again.
pub(super) fn own_labels() -> Value {
    json!({"paperclip-managed-by": "paperclip-bridge"})
}
