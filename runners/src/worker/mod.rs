//! The provider `worker`: sandboxes behind a Cloudflare Worker that an operator deploys.
//!
//! Here: what it declares, and its leases. In `config` what an operator says of it, in `api` one call, with what its
//! answer must show (`demand`) and what a refusal says (`refusal`), in `exec` one command, with its script (`wrap`), its
//! output (`output`) and the events that carry it (`follow`, `stream`, `signed`, [`sse`]). Not here: the Worker itself, and the relay that carries callbacks; this says only where it is.

mod config;
mod api;
mod demand;
mod refusal;
mod exec;
mod sessions;
mod follow;
mod stream;
mod signed;
mod wrap;
mod output;
pub mod sse;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Method;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::provider::{
    ConfigError, Lease, LeaseScope, Provider, ProviderCapabilities, ProviderError, ProviderSettings,
    ProviderSpec, RelayRoute, Released, SecretField, SecretHandle, read, schema,
};
use crate::{CommandManagedRuntimeRunner, Shell};

use api::{Api, Call, CallFault, Context, Signing};
pub use config::{SessionStrategy, UnsignedReplies, WorkerConfig};
use exec::WorkerRunner;

const KEY: &str = "worker";
const SECRETS: &[SecretField] = &[config::AUTH_TOKEN, config::SIGNING_KEY];
/// Whom a lease is for stands in its metadata under this name, so that its calls say so after a restart, too.
const SCOPE: &str = "scope";
/// A sandbox that never sleeps is still looked after.
const LOOK_AFTER: Duration = Duration::from_secs(300);
/// A heartbeat is a command that does nothing.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What this provider declares.
pub static SPEC: ProviderSpec = ProviderSpec {
    key: KEY,
    about: "sandboxes behind a Cloudflare Worker that you deploy; callbacks come by its push relay",
    capabilities: ProviderCapabilities {
        duplex: false,
        file_transfer: false,
        streaming_output: true,
        reuse_leases: true,
        background: true,
    },
    shell: Some(Shell::Sh),
    schema: || schema::<WorkerConfig>(SECRETS),
    secrets: SECRETS,
    build,
};

fn build(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError> {
    let config: WorkerConfig = read(KEY, SECRETS, &settings.config)?;
    let (base, expected_host, relay_url) = config.check()?;
    let bearer = SecretHandle::required(KEY, &config::AUTH_TOKEN, config.auth_token.clone(), &settings)?;
    let key = SecretHandle::new(KEY, &config::SIGNING_KEY, config.signing_key.clone(), &settings)?;
    let signing = config
        .signing_key_id
        .clone()
        .zip(key)
        .map(|(key_id, key)| Signing {
            key_id,
            key,
            lenient: config.unsigned_replies == UnsignedReplies::Accept,
        });
    let api = Api {
        base,
        expected_host,
        bearer,
        signing,
        signer: settings.signer,
        http: settings.http,
        request_timeout: Duration::from_millis(config.bridge_request_timeout_ms),
        health: OnceCell::new(),
    };
    Ok(Arc::new(WorkerProvider {
        config: Arc::new(config),
        api: Arc::new(api),
        relay_url: relay_url.map(|url| url.as_str().to_owned()),
    }))
}

#[derive(Debug)]
struct WorkerProvider {
    config: Arc<WorkerConfig>,
    api: Arc<Api>,
    relay_url: Option<String>,
}

impl WorkerProvider {
    async fn acquire(&self, scope: &LeaseScope) -> Result<Lease, ProviderError> {
        self.api.health().await?;
        let environment = match &scope.environment_id {
            Some(environment) => environment.as_str(),
            None if self.config.reuse_lease => {
                return Err(ProviderError::Refused(
                    "reuseLease needs an environment whose sandbox is used again, and none is given"
                        .to_owned(),
                ));
            }
            None => scope.run_id.as_str(),
        };
        let mut body = self.config.wishes(scope.requested_cwd.as_deref());
        body.insert("environmentId".to_owned(), json!(environment));
        body.insert("runId".to_owned(), json!(scope.run_id));
        if let Some(issue) = &scope.issue_id {
            body.insert("issueId".to_owned(), json!(issue));
        }
        body.insert("reuseLease".to_owned(), json!(self.config.reuse_lease));
        if let Some(request) = &scope.request_id {
            body.insert("requestId".to_owned(), json!(request));
        }
        let context = Context::of(scope);
        let call = Call::post("/leases/acquire", body, &context);
        let reply = self.api.call(&call).await.map_err(|fault| match fault {
            // What this very request had was given back.
            CallFault::Lost(told) if scope.request_id.is_some() => ProviderError::LeaseLost(told),
            // There is none yet that could be lost.
            CallFault::Lost(told) => ProviderError::Refused(told),
            fault @ (CallFault::InProgress(_) | CallFault::Unproven(..) | CallFault::Other(_)) => {
                fault.into()
            }
        })?;
        lease(reply, scope)
    }

    async fn resume(
        &self,
        id: &str,
        metadata: &Map<String, Value>,
        scope: &LeaseScope,
    ) -> Result<Lease, ProviderError> {
        self.api.health().await?;
        // Its sentinel lies where it was acquired.
        let cwd = metadata
            .get("remoteCwd")
            .and_then(Value::as_str)
            .or(scope.requested_cwd.as_deref());
        let mut body = self.config.wishes(cwd);
        body.insert("providerLeaseId".to_owned(), json!(id));
        let context = Context::of(scope);
        let reply = self
            .api
            .call(&Call::post("/leases/resume", body, &context))
            .await?;
        let lease = lease(reply, scope)?;
        if lease.id != id {
            return Err(ProviderError::Broken(
                "the Worker resumed another lease than asked for".to_owned(),
            ));
        }
        Ok(lease)
    }

    /// Whether a released sandbox is there afterwards.
    fn keeps(&self) -> bool {
        self.config.reuse_lease && self.config.keep_alive
    }

    async fn release(&self, lease: &Lease) -> Result<Released, ProviderError> {
        let keep = self.keeps();
        let mut body = Map::new();
        body.insert("providerLeaseId".to_owned(), json!(lease.id));
        body.insert("reuseLease".to_owned(), json!(keep));
        body.insert("keepAlive".to_owned(), json!(self.config.keep_alive));
        let context = Context::of(&scope_of(lease));
        let call = Call::post("/leases/release", body, &context);
        match self.api.call(&call).await {
            Ok(_) if keep => Ok(Released::Stopped),
            Ok(_) | Err(CallFault::Lost(_)) => Ok(Released::Destroyed),
            Err(fault @ (CallFault::InProgress(_) | CallFault::Unproven(..) | CallFault::Other(_))) => {
                Err(fault.into())
            }
        }
    }

    async fn destroy(&self, lease: &Lease) -> Result<Released, ProviderError> {
        let path = format!("/leases/{}", encoded(&lease.id));
        let context = Context::of(&scope_of(lease));
        let call = Call {
            method: Method::DELETE,
            path: &path,
            body: Bytes::new(),
            context: &context,
        };
        match self.api.call(&call).await {
            Ok(_) | Err(CallFault::Lost(_)) => Ok(Released::Destroyed),
            Err(fault @ (CallFault::InProgress(_) | CallFault::Unproven(..) | CallFault::Other(_))) => {
                Err(fault.into())
            }
        }
    }

    /// Anything that is run there wakes the sandbox, and a lease that is lost says so.
    async fn keep_alive(&self, lease: &Lease) -> Result<Option<Duration>, ProviderError> {
        let mut body = Map::new();
        body.insert("providerLeaseId".to_owned(), json!(lease.id));
        body.insert("command".to_owned(), json!("true"));
        body.insert("timeoutMs".to_owned(), json!(HEARTBEAT.as_millis()));
        body.insert("sessionStrategy".to_owned(), json!("named"));
        body.insert("sessionId".to_owned(), json!(exec::control_session(&self.config)));
        let context = Context::of(&scope_of(lease));
        self.api.call(&Call::post("/exec", body, &context)).await?;
        let asleep = sleep_after(&self.config.sleep_after);
        Ok(Some(
            asleep.map_or(LOOK_AFTER, |asleep| (asleep / 3).min(LOOK_AFTER)),
        ))
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        if lease.id.is_empty() {
            return Err(ProviderError::Broken("a lease of a Worker has a name".to_owned()));
        }
        let context = Context::of(&scope_of(lease));
        Ok(Arc::new(WorkerRunner::new(
            Arc::clone(&self.api),
            Arc::clone(&self.config),
            lease,
            context,
        )))
    }
}

/// Reads the answer to acquire and resume.
fn lease(mut reply: Map<String, Value>, scope: &LeaseScope) -> Result<Lease, ProviderError> {
    let broken = |what: &str| ProviderError::Broken(format!("the Worker's lease {what}"));
    let Some(Value::String(id)) = reply.remove("providerLeaseId").filter(|id| *id != json!("")) else {
        return Err(broken("has no name"));
    };
    let Some(Value::Object(mut metadata)) = reply.remove("metadata") else {
        return Err(broken("has no metadata"));
    };
    let remote_cwd = metadata
        .get("remoteCwd")
        .and_then(Value::as_str)
        .filter(|cwd| cwd.starts_with('/'))
        .ok_or_else(|| broken("has no absolute working directory"))?
        .to_owned();
    let resumed = metadata.get("resumedLease") == Some(&Value::Bool(true));
    let scope = serde_json::to_value(scope).map_err(|_| broken("cannot be labelled"))?;
    metadata.insert(SCOPE.to_owned(), scope);
    Ok(Lease {
        id,
        metadata,
        remote_cwd: Some(remote_cwd),
        expires_at: None,
        resumed,
    })
}

fn scope_of(lease: &Lease) -> LeaseScope {
    let scope = lease.metadata.get(SCOPE).cloned().unwrap_or_default();
    serde_json::from_value(scope).unwrap_or_default()
}

/// Reads `90`, `90s`, `10m` and `2h`; anything else is the Worker's business.
fn sleep_after(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let count: u64 = digits.parse().ok().filter(|count| *count > 0)?;
    Some(Duration::from_secs(count.saturating_mul(unit)))
}

/// One segment of a path.
fn encoded(segment: &str) -> String {
    let mut path = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// The name of a lease's own relay: two leases never share one, since the later daemon supersedes the earlier.
fn bridge_id(prefix: &str, lease_id: &str) -> String {
    let digest = Sha256::digest(lease_id.as_bytes());
    digest.iter().take(8).fold(format!("{prefix}-"), |mut id, byte| {
        id.push_str(&format!("{byte:02x}"));
        id
    })
}

impl Provider for WorkerProvider {
    /// An environment's sandbox has its name from the environment, and is kept.
    fn repeats_acquire(&self) -> BoxFuture<'_, Result<bool, ProviderError>> {
        async {
            let health = self.api.health().await?;
            Ok(health.acquire_request_id && !self.config.reuse_lease)
        }
        .boxed()
    }

    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        self.acquire(scope).boxed()
    }

    fn resume<'a>(
        &'a self,
        id: &'a str,
        metadata: &'a Map<String, Value>,
        scope: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        self.resume(id, metadata, scope).boxed()
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.release(lease).boxed()
    }

    fn let_go<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            match self.keeps() {
                true => self.release(lease).await.map(drop),
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.destroy(lease).boxed()
    }

    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>> {
        self.keep_alive(lease).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        std::future::ready(Err(ProviderError::Unsupported("a list of sandboxes"))).boxed()
    }

    fn account(&self) -> String {
        self.api.base.as_str().to_owned()
    }

    /// A sandbox that is used again is the environment's and kept. The others are asked for again, where the Worker takes
    /// a request's name for that; else it draws their names and has no list: one whose name was lost goes to sleep by
    /// itself, unless `keepAlive` forbids that.
    fn made_for<'a>(&'a self, _: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        let made = if self.config.reuse_lease {
            Ok(vec![])
        } else {
            Err(ProviderError::Unsupported("finding the sandboxes of a run"))
        };
        std::future::ready(made).boxed()
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        self.runner(lease)
    }

    fn relay(&self, lease: &Lease) -> Option<RelayRoute> {
        let (signing, agent_url) = (self.api.signing.as_ref()?, self.relay_url.as_ref()?);
        Some(RelayRoute {
            base_url: self.api.base.as_str().to_owned(),
            agent_url: agent_url.clone(),
            bridge_id: bridge_id(&self.config.relay_bridge_id, &lease.id),
            agent_key_life: Duration::from_millis(self.config.relay_key_lifetime_ms),
            expected_host: self.api.expected_host.clone(),
            key_id: signing.key_id.clone(),
            key: signing.key.clone(),
            bearer: self.api.bearer.clone(),
        })
    }
}
