//! What is done with leases: a lease is a sandbox, and its id the sandbox's.
//!
//! Here: the provider. Sandboxes are labelled, so that those we made can be found: all of them for reaping, and one
//! whose creation was never answered. Not here: the calls ([`super::control`]) and the commands ([`super::runner`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::KEY;
use super::access::Access;
use super::config::{OnRelease, Settings};
use super::control::{Control, Running, SandboxId};
use super::exec::tag;
use super::runner::E2bRunner;
use crate::provider::{ConfigError, Lease, LeaseScope, Provider, ProviderError, ProviderSettings, Released};
use crate::{CommandManagedRuntimeRunner, Execution, RunnerError};

/// The label of every sandbox that a host of this protocol makes.
const PROVIDER_LABEL: (&str, &str) = ("paperclipProvider", KEY);
/// The label of those that this daemon makes.
const BRIDGE_LABEL: (&str, &str) = ("paperclipBridge", "1");
/// The label of the run that a sandbox is for.
const RUN_LABEL: &str = "paperclipRunId";
/// The label of one creation.
const LEASE_LABEL: &str = "paperclipLease";
/// Pauses before each look for a sandbox whose creation was not answered.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];
/// For the script that makes the working folder.
const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// Tells the shell there is, then makes the folder `$1`, else one below where commands start, and tells it.
const SETUP: &str = "if command -v bash >/dev/null 2>&1; then echo bash; else echo sh; fi; \
                     f=${1:-$(pwd)/paperclip-workspace}; mkdir -p -- \"$f\" && cd -- \"$f\" && pwd";

/// Builds the provider.
pub(super) fn build(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError> {
    let checked = Arc::new(Settings::read(&settings)?);
    Ok(Arc::new(E2bProvider {
        control: Arc::new(Control::new(settings.http, Arc::clone(&checked))),
        settings: checked,
        ways: Mutex::default(),
    }))
}

/// The sandboxes of one account.
#[derive(Debug)]
struct E2bProvider {
    control: Arc<Control>,
    settings: Arc<Settings>,
    /// The way into each sandbox that is leased, shared by its runners.
    ways: Mutex<BTreeMap<SandboxId, Arc<Access>>>,
}

impl E2bProvider {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Arc<Access>>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self, id: &SandboxId) -> Arc<Access> {
        let new = || Arc::new(Access::new(Arc::clone(&self.control), id.clone()));
        Arc::clone(self.lock().entry(id.clone()).or_insert_with(new))
    }

    async fn make(&self, scope: &LeaseScope) -> Result<Lease, ProviderError> {
        let label = tag("lease-").map_err(|error| ProviderError::Broken(error.to_string()))?;
        let labels = labels(scope, &label);
        let running = match self.control.create(&labels).await {
            Err(ProviderError::Unknown(reason)) => self.look_for(&label, reason).await?,
            made => made?,
        };
        let id = running.id.clone();
        match self.open(running, scope, &Map::new(), false).await {
            Ok(lease) => Ok(lease),
            Err(error) => match self.end(&id).await {
                Ok(_) => Err(error),
                Err(left) => Err(ProviderError::Unknown(format!(
                    "{error}; and sandbox {id} is left behind: {left}"
                ))),
            },
        }
    }

    /// Finds the sandbox of a creation that was not answered.
    async fn look_for(&self, label: &str, reason: String) -> Result<Running, ProviderError> {
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            let found = self.control.list(&[BRIDGE_LABEL, (LEASE_LABEL, label)]).await;
            match found.as_deref() {
                Ok([one, ..]) => return self.control.connect(&one.id).await,
                Ok([]) => {}
                Err(error) => {
                    tracing::debug!(%error, "a sandbox whose creation was not answered is looked for")
                }
            }
        }
        Err(ProviderError::Unknown(reason))
    }

    /// The lease of a sandbox that runs.
    async fn open(
        &self,
        running: Running,
        scope: &LeaseScope,
        before: &Map<String, Value>,
        resumed: bool,
    ) -> Result<Lease, ProviderError> {
        let id = running.id.clone();
        let domain = running.domain.clone();
        let way = self.way(&id);
        way.opened(running).await?;
        let known = |name: &str| before.get(name).and_then(Value::as_str).map(str::to_owned);
        let wanted = scope
            .requested_cwd
            .clone()
            .or_else(|| self.settings.requested_cwd.clone());
        let (shell, cwd) = match (known("shellCommand"), known("remoteCwd")) {
            (Some(shell), Some(cwd)) if wanted.as_ref().is_none_or(|wanted| *wanted == cwd) => (shell, cwd),
            _ => set_up(way, wanted).await?,
        };
        let metadata = json!({
            "provider": KEY,
            "shellCommand": shell,
            "template": self.settings.template,
            "timeoutMs": self.settings.timeout_ms,
            "reuseLease": self.settings.reuse_lease,
            "sandboxId": id.as_str(),
            "sandboxDomain": domain,
            "remoteCwd": cwd,
            "resumedLease": resumed,
        });
        let lifetime = Duration::from_secs(self.settings.lifetime_seconds());
        Ok(Lease {
            id: id.as_str().to_owned(),
            metadata: metadata.as_object().cloned().unwrap_or_default(),
            remote_cwd: Some(cwd),
            expires_at: SystemTime::now().checked_add(lifetime),
            resumed,
        })
    }

    async fn end(&self, id: &SandboxId) -> Result<Released, ProviderError> {
        self.lock().remove(id);
        self.control.kill(id).await.map(|()| Released::Destroyed)
    }
}

impl Provider for E2bProvider {
    /// Always a new sandbox; one that was kept is used again by [`Provider::resume`].
    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        Box::pin(self.make(scope))
    }

    fn resume<'a>(
        &'a self,
        id: &'a str,
        metadata: &'a Map<String, Value>,
        scope: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        Box::pin(async move {
            let running = self.control.connect(&SandboxId::parse(id)?).await?;
            self.open(running, scope, metadata, true).await
        })
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        Box::pin(async move {
            let id = SandboxId::parse(&lease.id)?;
            if self.settings.on_release == OnRelease::Kill {
                return self.end(&id).await;
            }
            self.lock().remove(&id);
            match self.control.pause(&id).await {
                Ok(()) => Ok(Released::Stopped),
                Err(ProviderError::LeaseLost(_)) => Ok(Released::Destroyed),
                // One that cannot be kept must not run on.
                Err(ProviderError::Refused(reason)) => {
                    tracing::warn!(sandbox = %id, reason, "a sandbox cannot be paused and is ended");
                    self.end(&id).await
                }
                Err(error) => Err(error),
            }
        })
    }

    fn let_go<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let id = SandboxId::parse(&lease.id)?;
            self.lock().remove(&id);
            match self.settings.on_release {
                OnRelease::Pause => self.control.pause(&id).await,
                OnRelease::Kill => Ok(()),
            }
        })
    }

    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        Box::pin(async move { self.end(&SandboxId::parse(&lease.id)?).await })
    }

    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>> {
        Box::pin(async move {
            let id = SandboxId::parse(&lease.id)?;
            if lease.resumed {
                // It may be somebody else's, whose longer life must not be cut short.
                self.control.connect(&id).await?;
            } else {
                self.control.prolong(&id).await?;
            }
            Ok(Some(Duration::from_secs(self.settings.lifetime_seconds()) / 3))
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        Box::pin(async move {
            let found = self.control.list(&[PROVIDER_LABEL, BRIDGE_LABEL]).await?;
            Ok(found.iter().map(|one| one.id.as_str().to_owned()).collect())
        })
    }

    fn account(&self) -> String {
        self.settings.api.as_str().to_owned()
    }

    /// Only those that run: one that is paused was had and kept, and is no acquire whose answer was lost.
    fn made_for<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        Box::pin(async move {
            let labels = [PROVIDER_LABEL, BRIDGE_LABEL, (RUN_LABEL, scope.run_id.as_str())];
            let found = self.control.list(&labels).await?;
            let running = found.iter().filter(|one| !one.paused);
            Ok(running.map(|one| one.id.as_str().to_owned()).collect())
        })
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        let of = lease.metadata.get("provider").and_then(Value::as_str);
        if of.is_some_and(|of| of != KEY) {
            return Err(ProviderError::Broken(format!(
                "the lease {} is not of {KEY}",
                lease.id
            )));
        }
        let way = self.way(&SandboxId::parse(&lease.id)?);
        Ok(Arc::new(E2bRunner::new(way, lease.remote_cwd.clone())))
    }
}

fn labels<'a>(scope: &LeaseScope, label: &str) -> BTreeMap<&'a str, String> {
    let some = [
        (RUN_LABEL, Some(&scope.run_id)),
        ("paperclipEnvironmentId", scope.environment_id.as_ref()),
        ("paperclipIssueId", scope.issue_id.as_ref()),
        ("paperclipCompanyId", scope.company_id.as_ref()),
    ];
    let some = some
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?.clone())));
    let ours = [PROVIDER_LABEL, BRIDGE_LABEL, (LEASE_LABEL, label)];
    some.chain(ours.map(|(key, value)| (key, value.to_owned())))
        .collect()
}

/// Makes the working folder; tells the shell and the folder.
async fn set_up(way: Arc<Access>, wanted: Option<String>) -> Result<(String, String), ProviderError> {
    let mut execution = Execution::new("sh", ["-c", SETUP, "sh"]);
    execution.args.extend(wanted);
    execution.timeout = Some(SETUP_LIMIT);
    let result = match E2bRunner::new(way, None).execute(execution).await {
        Ok(result) => result,
        Err(RunnerError::LeaseLost { reason, .. }) => return Err(ProviderError::LeaseLost(reason)),
        Err(error) => {
            let reason = format!("the new sandbox runs no command: {error}");
            return Err(ProviderError::Unreachable(reason));
        }
    };
    let said = String::from_utf8_lossy(&result.stdout).into_owned();
    let told = said
        .split_once('\n')
        .and_then(|(shell, folder)| Some((shell, folder.strip_suffix('\n')?)));
    match told.filter(|(_, folder)| result.success() && folder.starts_with('/')) {
        Some((shell, folder)) => Ok((shell.to_owned(), folder.to_owned())),
        None => {
            let reason = String::from_utf8_lossy(&result.stderr).trim_end().to_owned();
            Err(ProviderError::Refused(format!(
                "the working folder could not be made: {reason}"
            )))
        }
    }
}
