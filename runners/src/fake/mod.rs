//! A provider for tests: its sandboxes are folders with real processes on this machine, its cloud is a folder too.
//!
//! Here: what it declares, and its calls. In `config` the faults that a test can order, in `cloud` the log that is the
//! whole state, in `sandbox` a lease's folder and processes, in `runner` its executions. It is never taken by accident:
//! without `cloud` it refuses. Read next: `cloud`.

mod config;
mod cloud;
mod sandbox;
mod runner;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::provider::{
    ConfigError, Lease, LeaseScope, Provider, ProviderCapabilities, ProviderError, ProviderSettings,
    ProviderSpec, Released, read, schema,
};
use crate::{CommandManagedRuntimeRunner, Shell};

pub use cloud::{Cloud, Entry, LeaseState};
pub use config::{Call, Failure, FakeConfig, How, Latency};

use cloud::Effect;
use runner::FakeRunner;
use sandbox::Sandbox;

const KEY: &str = "fake";

/// What this provider declares.
pub static SPEC: ProviderSpec = ProviderSpec {
    key: KEY,
    about: "for tests: sandboxes are folders and processes on this machine, with faults on order",
    capabilities: ProviderCapabilities {
        duplex: true,
        file_transfer: true,
        streaming_output: true,
        reuse_leases: true,
        background: true,
    },
    shell: Some(Shell::Sh),
    schema: || schema::<FakeConfig>(&[]),
    secrets: &[],
    build,
};

fn build(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError> {
    let config: FakeConfig = read(KEY, &[], &settings.config)?;
    let cloud = config.cloud()?;
    Ok(Arc::new(FakeProvider {
        part: Arc::new(Part { config, cloud }),
    }))
}

/// The provider, as one configuration sees it.
#[derive(Debug)]
struct FakeProvider {
    part: Arc<Part>,
}

/// What the provider and its runners share.
#[derive(Debug)]
struct Part {
    config: FakeConfig,
    cloud: Cloud,
}

impl Part {
    /// One call: its latency, its fault if one is ordered, its effect, its line in the log.
    ///
    /// - `effect`: what it does to the cloud, given the state of `lease`; run under the cloud's lock.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        call: Call,
        lease: Option<&str>,
        effect: impl FnOnce(&Cloud, &mut Effect) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let latency = self.config.latency_ms.of(call);
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        let part = Arc::clone(self);
        let lease = lease.map(str::to_owned);
        let done =
            tokio::task::spawn_blocking(move || part.cloud.call(call, lease, &part.config.fail, effect));
        done.await
            .map_err(|error| ProviderError::Unknown(format!("the call broke off: {error}")))?
    }

    /// When a lease that is used now would end by itself.
    fn expiry(&self) -> Option<SystemTime> {
        let after = Duration::from_millis(self.config.expires_after_ms?);
        SystemTime::now().checked_add(after)
    }

    fn lease(&self, id: &str, expires_at: Option<SystemTime>, resumed: bool) -> Lease {
        let shell = self
            .config
            .shell_command
            .clone()
            .map_or(Value::Null, Value::String);
        Lease {
            id: id.to_owned(),
            metadata: Map::from_iter([("shellCommand".to_owned(), shell)]),
            remote_cwd: Some(Sandbox::of(&self.cloud, id).home_text()),
            expires_at,
            resumed,
        }
    }

    async fn give_up(self: &Arc<Self>, call: Call, lease: &Lease) -> Result<Released, ProviderError> {
        let keep = call == Call::Release && self.config.reuse_lease;
        let sandbox = Sandbox::of(&self.cloud, &lease.id);
        self.call(call, Some(&lease.id), move |_, effect| {
            match (effect.state(), keep) {
                (Some(LeaseState::Held), true) => {
                    sandbox.stop();
                    effect.becomes(LeaseState::Stopped);
                    Ok(Released::Stopped)
                }
                (Some(LeaseState::Stopped), true) => Ok(Released::Stopped),
                (Some(LeaseState::Held | LeaseState::Stopped), false) => {
                    effect.becomes(LeaseState::Gone);
                    Ok(Released::Destroyed)
                }
                // Gone already, or never there: the log shows that it was asked, and that nothing changed.
                (Some(LeaseState::Gone) | None, _) => {
                    sandbox.remove()?;
                    Ok(Released::Destroyed)
                }
            }
        })
        .await
    }
}

impl Provider for FakeProvider {
    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        async move {
            let part = Arc::clone(&self.part);
            let scope = scope.clone();
            let effect = move |cloud: &Cloud, effect: &mut Effect| {
                let again = if part.config.reuse_lease {
                    effect.stopped_lease_of(scope.environment_id.as_deref())
                } else {
                    None
                };
                let resumed = again.is_some();
                let id = again.unwrap_or_else(|| effect.new_id());
                Sandbox::of(cloud, &id).make()?;
                let expires_at = part.expiry();
                effect.takes(&id, scope, expires_at);
                Ok(part.lease(&id, expires_at, resumed))
            };
            self.part.call(Call::Acquire, None, effect).await
        }
        .boxed()
    }

    fn resume<'a>(
        &'a self,
        id: &'a str,
        _metadata: &'a Map<String, Value>,
        _scope: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        async move {
            let part = Arc::clone(&self.part);
            let effect = move |_: &Cloud, effect: &mut Effect| {
                let id = effect.present()?;
                let expires_at = part.expiry();
                effect.becomes(LeaseState::Held);
                effect.expires(expires_at);
                Ok(part.lease(&id, expires_at, true))
            };
            self.part.call(Call::Resume, Some(id), effect).await
        }
        .boxed()
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.part.give_up(Call::Release, lease).boxed()
    }

    fn let_go<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            match self.part.config.reuse_lease {
                true => self.part.give_up(Call::Release, lease).await.map(drop),
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.part.give_up(Call::Destroy, lease).boxed()
    }

    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>> {
        async move {
            let part = Arc::clone(&self.part);
            let effect = move |_: &Cloud, effect: &mut Effect| {
                effect.held()?;
                effect.expires(part.expiry());
                Ok(part
                    .config
                    .expires_after_ms
                    .map(|after| Duration::from_millis(after / 3)))
            };
            self.part.call(Call::KeepAlive, Some(&lease.id), effect).await
        }
        .boxed()
    }

    fn account(&self) -> String {
        self.part.cloud.folder().display().to_string()
    }

    fn made_for<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        let run = scope.run_id.clone();
        self.part
            .call(Call::List, None, move |_, effect| Ok(effect.present_of_run(&run)))
            .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        self.part
            .call(Call::List, None, |_, effect| Ok(effect.all_present()))
            .boxed()
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        let well_formed = lease
            .id
            .strip_prefix("fake-")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if !well_formed {
            return Err(ProviderError::Broken(format!(
                "{:?} is no lease of this provider: they are called fake-1, fake-2, ...",
                lease.id
            )));
        }
        Ok(Arc::new(FakeRunner::new(Arc::clone(&self.part), &lease.id)))
    }
}

/// Whole milliseconds since 1970; zero for times before.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
