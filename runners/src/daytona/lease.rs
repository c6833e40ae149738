//! Leases: sandboxes made, resumed, kept alive, given back.
//!
//! Here: [`Daytona`], the provider. Not here: the calls themselves ([`super::control`]) and the running of commands
//! ([`super::runner`]).
//!
//! Creation is not repeatable, so the sandbox gets a name of ours: where nobody knows what became of the call, the
//! name is looked up for a while and what appears is deleted. What appears later still has our labels.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::api::{Api, Fault, jittered};
use super::config::DaytonaConfig;
use super::control::{Control, Phase, Sandbox, gone, own_labels};
use super::runner::DaytonaRunner;
use super::sentinel::{self, Match};
use super::toolbox::Toolbox;
use super::{API_KEY, DAYTONA, random_name, script};
use crate::CommandManagedRuntimeRunner;
use crate::provider::{
    ConfigError, Lease, LeaseScope, Provider, ProviderError, ProviderSettings, Released, SecretHandle,
};

/// How long a name is looked up after a creation of unknown outcome.
const LOOK_UP: Duration = Duration::from_secs(15);
/// Limit of deleting what a failed call left behind.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Limit of stopping, archiving or deleting.
const LET_GO: Duration = Duration::from_secs(120);

/// The label of the run that a sandbox is for.
const RUN_LABEL: &str = "paperclip-run-id";
/// The label that says whether a sandbox may be used again.
const REUSE_LABEL: &str = "paperclip-reuse-lease";

/// Sandboxes of one account, by one configuration.
#[derive(Debug)]
pub(super) struct Daytona {
    config: DaytonaConfig,
    control: Control,
}

impl Daytona {
    pub(super) fn new(config: DaytonaConfig, settings: &ProviderSettings) -> Result<Self, ConfigError> {
        let config = config.completed(settings.environment)?;
        let key = SecretHandle::required(DAYTONA.key, &API_KEY, config.api_key.clone(), settings)?;
        let api = Api::new(settings.http.clone(), key);
        let control = Control::new(api, config.base()?, config.liveness());
        Ok(Self { config, control })
    }

    async fn acquire(&self, scope: &LeaseScope) -> Result<Lease, ProviderError> {
        let attempt = random_name().map_err(ProviderError::Broken)?;
        let name = format!("paperclip-create-{attempt}");
        let sandbox = match self.control.create(self.request(&name, &attempt, scope)).await {
            Ok(sandbox) => sandbox,
            Err(fault) if fault.is_unknown() => return Err(self.undo(&name, &attempt, &fault).await),
            // Nothing of ours is there yet that could be lost.
            Err(fault) if fault.status() == Some(404) => {
                return Err(ProviderError::Refused(fault.to_string()));
            }
            Err(fault) => return Err(fault.of_change()),
        };
        match self.prepare(&sandbox, scope).await {
            Ok(lease) => Ok(lease),
            Err(error) => match self.control.delete(&sandbox.id, CLEAN_UP).await {
                // There is no lease yet that could be lost.
                Ok(()) if matches!(error, ProviderError::LeaseLost(_)) => {
                    Err(ProviderError::Unreachable(error.to_string()))
                }
                Ok(()) => Err(error),
                Err(left) => Err(ProviderError::Unknown(format!(
                    "{error}; and sandbox {} may still be there: {left}",
                    sandbox.id
                ))),
            },
        }
    }

    fn request(&self, name: &str, attempt: &str, scope: &LeaseScope) -> Value {
        let config = &self.config;
        let mut labels = own_labels();
        let mut label = |key: &str, value: Option<&str>| {
            if let (Some(value), Some(labels)) = (value, labels.as_object_mut()) {
                labels.insert(key.to_owned(), value.into());
            }
        };
        label("paperclip-provider", Some(DAYTONA.key));
        label(RUN_LABEL, Some(&scope.run_id));
        label("paperclip-environment-id", scope.environment_id.as_deref());
        label("paperclip-company-id", scope.company_id.as_deref());
        label("paperclip-issue-id", scope.issue_id.as_deref());
        label(
            REUSE_LABEL,
            Some(if config.reuse_lease { "true" } else { "false" }),
        );
        label("paperclip-create-attempt", Some(attempt));
        let build = config
            .image
            .as_ref()
            .map(|image| json!({"dockerfileContent": format!("FROM {image}\n")}));
        let mut request = json!({
            "name": name,
            "labels": labels,
            "snapshot": config.snapshot,
            "buildInfo": build,
            "user": config.user,
            "env": config.env,
            "target": config.target,
            "cpu": config.cpu,
            "memory": config.memory,
            "disk": config.disk,
            "gpu": config.gpu,
            "autoStopInterval": config.auto_stop_interval,
            "autoArchiveInterval": config.auto_archive_interval,
            "autoDeleteInterval": config.auto_delete_interval,
        });
        if let Some(request) = request.as_object_mut() {
            request.retain(|_, value| !value.is_null());
        }
        request
    }

    /// Nobody knows whether the sandbox was made: looks for it by the name that we gave it and deletes it.
    async fn undo(&self, name: &str, attempt: &str, fault: &Fault) -> ProviderError {
        let end = Instant::now() + LOOK_UP;
        let mut pause = Duration::from_millis(250);
        loop {
            let found = self.control.find(name).await;
            let ours = |sandbox: &Sandbox| sandbox.label("paperclip-create-attempt") == Some(attempt);
            match found {
                Ok(Some(sandbox)) if ours(&sandbox) => {
                    return match self.control.delete(&sandbox.id, CLEAN_UP).await {
                        Ok(()) => ProviderError::Unreachable(format!(
                            "{fault}; the sandbox that was made all the same has been deleted"
                        )),
                        Err(left) => ProviderError::Unknown(format!(
                            "{fault}; sandbox {} was made and may still be there: {left}",
                            sandbox.id
                        )),
                    };
                }
                // That it is not there yet does not prove that it never will be.
                Ok(_) | Err(_) if Instant::now() >= end => {
                    return ProviderError::Unknown(format!(
                        "{fault}; no sandbox named {name} appeared within {LOOK_UP:?}, but one may yet"
                    ));
                }
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Waits for a new sandbox and makes it ready for commands.
    async fn prepare(&self, sandbox: &Sandbox, scope: &LeaseScope) -> Result<Lease, ProviderError> {
        let limit = self.config.create_timeout();
        let sandbox = self.control.wait_started(&sandbox.id, limit).await?;
        let toolbox = self.control.toolbox(&sandbox).await.map_err(Fault::of_query)?;
        let places = Places::of(&toolbox, scope).await?;
        let shell = probe(&toolbox, &places).await?;
        let mut matched = None;
        if self.config.reuse_lease {
            let token = sentinel::token(&self.config, scope);
            let path = format!("{}/{}", places.workspace, sentinel::PATH);
            let text = sentinel::file(&token);
            let folder = format!("{}/.paperclip-runtime", places.workspace);
            toolbox.folder(&folder, "755").await.map_err(Fault::of_query)?;
            toolbox
                .upload(&[(&path, text.as_bytes())])
                .await
                .map_err(Fault::of_query)?;
            matched = Some(Match::Matched);
        }
        Ok(self.lease(&sandbox, &places, shell, None, matched))
    }

    async fn resume(
        &self,
        id: &str,
        metadata: &Map<String, Value>,
        scope: &LeaseScope,
    ) -> Result<Lease, ProviderError> {
        let sandbox = self.control.find(id).await.map_err(Fault::of_query)?;
        let sandbox = sandbox.ok_or_else(|| gone(id))?;
        let was = sandbox.state.clone();
        match sandbox.phase() {
            Phase::Gone => return Err(gone(id)),
            Phase::Resting => self
                .control
                .act(&sandbox.id, "start")
                .await
                .map_err(Fault::of_change)?,
            Phase::Started | Phase::Moving | Phase::Failed => {}
        }
        let limit = self.config.create_timeout();
        let sandbox = self.control.wait_started(&sandbox.id, limit).await?;
        let toolbox = self.control.toolbox(&sandbox).await.map_err(Fault::of_query)?;
        let mut places = Places::of(&toolbox, scope).await?;
        if let Some(workspace) = metadata.get("remoteCwd").and_then(Value::as_str)
            && scope.requested_cwd.is_none()
        {
            workspace.clone_into(&mut places.workspace);
        }
        let mut matched = None;
        if is_reusable(&sandbox) {
            let path = format!("{}/{}", places.workspace, sentinel::PATH);
            let found = toolbox
                .download(&path, sentinel::LIMIT_BYTES)
                .await
                .map_err(Fault::of_query)?;
            let compared = sentinel::compare(found.as_deref(), &sentinel::token(&self.config, scope));
            if compared != Match::Matched {
                return Err(ProviderError::LeaseLost(format!(
                    "sandbox {id} is not the one that was kept: its sentinel {path} is {}",
                    match compared {
                        Match::Missing => "not there",
                        Match::Matched | Match::Mismatch => "another's",
                    }
                )));
            }
            matched = Some(compared);
        }
        let shell = probe(&toolbox, &places).await?;
        Ok(self.lease(&sandbox, &places, shell, Some(was), matched))
    }

    fn lease(
        &self,
        sandbox: &Sandbox,
        places: &Places,
        shell: &str,
        resumed_from: Option<String>,
        sentinel: Option<Match>,
    ) -> Lease {
        let metadata = json!({
            "provider": DAYTONA.key,
            "shellCommand": shell,
            "sandboxId": sandbox.id,
            "sandboxName": sandbox.name,
            "sandboxState": sandbox.state,
            "image": self.config.image,
            "snapshot": self.config.snapshot,
            "target": self.config.target,
            "timeoutMs": self.config.timeout_ms,
            "reuseLease": self.config.reuse_lease,
            "remoteCwd": places.workspace,
            "runtimeDir": places.runtime,
            "resumedLease": resumed_from.is_some(),
            "resumedFromState": resumed_from,
            "workspaceSentinel": sentinel.map(Match::name),
        });
        Lease {
            id: sandbox.id.clone(),
            resumed: resumed_from.is_some(),
            metadata: metadata.as_object().cloned().unwrap_or_default(),
            remote_cwd: Some(places.workspace.clone()),
            expires_at: self.config.auto_stop().map(|idle| SystemTime::now() + idle),
        }
    }

    async fn release(&self, id: &str) -> Result<Released, ProviderError> {
        let Some(sandbox) = self.control.find(id).await.map_err(Fault::of_query)? else {
            return Ok(Released::Destroyed);
        };
        let keeps = self.config.reuse_lease && is_reusable(&sandbox);
        match sandbox.phase() {
            Phase::Gone => Ok(Released::Destroyed),
            // What has failed is of no use to the next run.
            Phase::Failed => self.destroy(id).await,
            Phase::Started | Phase::Resting | Phase::Moving if !keeps => self.destroy(id).await,
            Phase::Started | Phase::Resting | Phase::Moving => self.put_to_rest(&sandbox).await,
        }
    }

    /// Only where it was made to be kept: any other may be one that its owner has deleted as soon as it stops.
    async fn let_go(&self, id: &str) -> Result<(), ProviderError> {
        if !self.config.reuse_lease {
            return Ok(());
        }
        match self.control.find(id).await.map_err(Fault::of_query)? {
            Some(sandbox) if is_reusable(&sandbox) => match sandbox.phase() {
                Phase::Started | Phase::Resting | Phase::Moving => self.put_to_rest(&sandbox).await.map(drop),
                Phase::Gone | Phase::Failed => Ok(()),
            },
            Some(_) | None => Ok(()),
        }
    }

    async fn put_to_rest(&self, sandbox: &Sandbox) -> Result<Released, ProviderError> {
        if sandbox.phase() == Phase::Resting {
            return self.archive(sandbox).await;
        }
        let id = &sandbox.id;
        self.control.act(id, "stop").await.map_err(Fault::of_change)?;
        match self.control.wait_stopped(id, LET_GO).await {
            Ok(sandbox) if sandbox.phase() == Phase::Resting => self.archive(&sandbox).await,
            Ok(_) | Err(ProviderError::LeaseLost(_)) => Ok(Released::Destroyed),
            Err(other) => Err(other),
        }
    }

    async fn archive(&self, sandbox: &Sandbox) -> Result<Released, ProviderError> {
        if self.config.archive_on_release && sandbox.state == "stopped" {
            self.control
                .act(&sandbox.id, "archive")
                .await
                .map_err(Fault::of_change)?;
        }
        Ok(Released::Stopped)
    }

    async fn destroy(&self, id: &str) -> Result<Released, ProviderError> {
        self.control
            .delete(id, LET_GO)
            .await
            .map(|()| Released::Destroyed)
    }

    async fn keep_alive(&self, id: &str) -> Result<Option<Duration>, ProviderError> {
        let sandbox = self.control.find(id).await.map_err(Fault::of_query)?;
        let sandbox = sandbox.ok_or_else(|| gone(id))?;
        if sandbox.phase() != Phase::Started {
            return Err(ProviderError::LeaseLost(format!(
                "sandbox {id} is in state {}",
                sandbox.state
            )));
        }
        let toolbox = self.control.toolbox(&sandbox).await.map_err(Fault::of_query)?;
        // Only a toolbox call counts as activity.
        toolbox.version().await.map_err(Fault::of_query)?;
        Ok(self.config.auto_stop().map(|idle| idle / 3))
    }
}

fn is_reusable(sandbox: &Sandbox) -> bool {
    sandbox.label(REUSE_LABEL) == Some("true")
}

/// Where a lease's commands run, and where our own files are.
#[derive(Debug)]
struct Places {
    workspace: String,
    runtime: String,
}

impl Places {
    async fn of(toolbox: &Toolbox, scope: &LeaseScope) -> Result<Self, ProviderError> {
        let dir = toolbox.work_dir().await.map_err(Fault::of_query)?;
        let workspace = match &scope.requested_cwd {
            Some(cwd) if cwd.starts_with('/') && !cwd.contains('\0') => cwd.trim_end_matches('/').to_owned(),
            Some(cwd) => {
                return Err(ProviderError::Refused(format!(
                    "the requested working directory {cwd:?} is no absolute path"
                )));
            }
            None => format!("{dir}/paperclip-workspace"),
        };
        Ok(Self {
            workspace: if workspace.is_empty() {
                "/".to_owned()
            } else {
                workspace
            },
            runtime: format!("{dir}/.paperclip-bridge"),
        })
    }
}

/// Makes both folders and finds the shell: `bash` or `sh`.
async fn probe(toolbox: &Toolbox, places: &Places) -> Result<&'static str, ProviderError> {
    let ran = toolbox
        .script(&script::probe(&places.workspace, &places.runtime))
        .await
        .map_err(Fault::of_query)?;
    match ran.line(script::PROBED) {
        Some("bash") => Ok("bash"),
        Some("sh") => Ok("sh"),
        _ => Err(ProviderError::Refused(format!(
            "the folders {} and {} cannot be made in the sandbox: {}",
            places.workspace,
            places.runtime,
            ran.result.trim()
        ))),
    }
}

impl Provider for Daytona {
    /// Always a new sandbox: one is used again by who knows its id, through `resume`.
    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        Box::pin(self.acquire(scope))
    }

    fn resume<'a>(
        &'a self,
        id: &'a str,
        metadata: &'a Map<String, Value>,
        scope: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        Box::pin(self.resume(id, metadata, scope))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        Box::pin(self.release(&lease.id))
    }

    fn let_go<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.let_go(&lease.id))
    }

    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        Box::pin(self.destroy(&lease.id))
    }

    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>> {
        Box::pin(self.keep_alive(&lease.id))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        Box::pin(async {
            let found = self.control.list(&own_labels()).await;
            let found = found.map_err(Fault::of_query)?.into_iter();
            Ok(found.map(|sandbox| sandbox.id).collect())
        })
    }

    fn account(&self) -> String {
        self.control.address().to_owned()
    }

    /// Without those that rest and may be used again: they were had and kept, and are no acquire whose answer was lost.
    fn made_for<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        Box::pin(async move {
            let mut labels = own_labels();
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(RUN_LABEL.to_owned(), scope.run_id.as_str().into());
            }
            let found = self.control.list(&labels).await.map_err(Fault::of_query)?;
            let kept = |sandbox: &Sandbox| sandbox.phase() == Phase::Resting && is_reusable(sandbox);
            let left = found.into_iter().filter(|sandbox| !kept(sandbox));
            Ok(left.map(|sandbox| sandbox.id).collect())
        })
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        let runner = DaytonaRunner::new(self.control.clone(), lease, self.config.timeout())?;
        Ok(Arc::new(runner))
    }
}
