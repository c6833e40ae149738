//! A provider made of a list in memory, which fails as a test tells it to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use runners::local::{BaseEnvironment, LocalRunner};
use runners::provider::{
    ConfigError, Lease, LeaseScope, Provider, ProviderCapabilities, ProviderError, ProviderSettings,
    ProviderSpec, Released,
};
use runners::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult, RunnerError,
};
use serde_json::{Map, Value};

/// What stands in the place of a real provider's declaration.
pub(super) static SPEC: ProviderSpec = ProviderSpec {
    key: "cloud",
    about: "a list in memory",
    capabilities: ProviderCapabilities {
        duplex: true,
        file_transfer: false,
        streaming_output: true,
        reuse_leases: true,
        background: true,
    },
    shell: None,
    schema: || Value::Null,
    secrets: &[],
    build: no_build,
};

fn no_build(_: ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(ConfigError {
        provider: "cloud",
        field: "config".into(),
        problem: "is not read in these tests".into(),
    })
}

/// A call that takes no time, or never ends.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    /// Fails without an effect.
    Fail(ProviderError),
    /// Has its effect, and its answer is lost.
    LoseAnswer,
    /// Has no effect and never answers.
    Hang,
}

#[derive(Debug, Default)]
struct State {
    /// Id and run of what is there.
    sandboxes: BTreeMap<String, String>,
    log: Vec<String>,
    plans: BTreeMap<&'static str, VecDeque<Plan>>,
    metadata: Map<String, Value>,
    next: u32,
    expires_after: Option<Duration>,
    pace: Option<Duration>,
    next_id: Option<String>,
    commands_lose_the_lease: bool,
    finds_runs: bool,
    /// What each request has; nothing once that was given back.
    requests: Option<BTreeMap<String, String>>,
    account: String,
}

/// Clones are the same cloud.
#[derive(Clone, Debug, Default)]
pub(super) struct Cloud(Arc<Mutex<State>>);

impl Cloud {
    pub(super) fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The next calls of this kind go so, one after the other.
    pub(super) fn plan(&self, call: &'static str, plans: impl IntoIterator<Item = Plan>) {
        self.state().plans.entry(call).or_default().extend(plans);
    }

    pub(super) fn expires_after(&self, lifetime: Duration) {
        self.state().expires_after = Some(lifetime);
    }

    pub(super) fn wants_to_hear_every(&self, pace: Duration) {
        self.state().pace = Some(pace);
    }

    pub(super) fn shell(&self, shell: &str) {
        self.state().metadata.insert("shellCommand".into(), shell.into());
    }

    /// The id of what is acquired next, as a provider that hands out a sandbox again.
    pub(super) fn hands_out(&self, id: &str) {
        self.state().next_id = Some(id.to_owned());
    }

    pub(super) fn commands_lose_the_lease(&self) {
        self.state().commands_lose_the_lease = true;
    }

    pub(super) fn finds_runs(&self) {
        self.state().finds_runs = true;
    }

    pub(super) fn repeats_acquire(&self) {
        self.state().requests = Some(BTreeMap::new());
    }

    pub(super) fn account(&self, name: &str) {
        self.state().account = name.to_owned();
    }

    pub(super) fn add(&self, id: &str, run: &str) {
        self.state().sandboxes.insert(id.to_owned(), run.to_owned());
    }

    pub(super) fn remove(&self, id: &str) {
        self.state().sandboxes.remove(id);
    }

    pub(super) fn sandboxes(&self) -> Vec<String> {
        self.state().sandboxes.keys().cloned().collect()
    }

    /// The calls so far that begin with this word.
    pub(super) fn calls(&self, word: &str) -> Vec<String> {
        let state = self.state();
        state
            .log
            .iter()
            .filter(|line| line.starts_with(word))
            .cloned()
            .collect()
    }

    /// Notes the call and says how it shall go; no plan is that it goes well.
    fn note(&self, call: &'static str, about: &str) -> Option<Plan> {
        let mut state = self.state();
        state.log.push(format!("{call} {about}").trim_end().to_owned());
        state.plans.get_mut(call).and_then(VecDeque::pop_front)
    }

    /// Carries out a call as it is planned.
    async fn call<T>(
        &self,
        call: &'static str,
        about: &str,
        effect: impl FnOnce(&mut State) -> Result<T, ProviderError> + Send,
    ) -> Result<T, ProviderError> {
        match self.note(call, about) {
            None => effect(&mut self.state()),
            Some(Plan::Fail(error)) => Err(error),
            Some(Plan::LoseAnswer) => {
                effect(&mut self.state())?;
                Err(ProviderError::Unknown("the answer was lost".into()))
            }
            Some(Plan::Hang) => std::future::pending().await,
        }
    }
}

fn lost(id: &str) -> ProviderError {
    ProviderError::LeaseLost(format!("there is no {id}"))
}

fn lease(state: &State, id: &str, resumed: bool) -> Lease {
    Lease {
        id: id.to_owned(),
        metadata: state.metadata.clone(),
        remote_cwd: None,
        expires_at: state.expires_after.map(|lifetime| SystemTime::now() + lifetime),
        resumed,
    }
}

impl Provider for Cloud {
    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        self.call("acquire", &scope.run_id, |state| {
            state.next += 1;
            let mut id = state
                .next_id
                .clone()
                .unwrap_or_else(|| format!("s{}", state.next));
            if let (Some(requests), Some(request)) = (&mut state.requests, &scope.request_id) {
                match requests.get(request) {
                    Some(known) if !state.sandboxes.contains_key(known) => return Err(lost(known)),
                    Some(known) => id.clone_from(known),
                    None => drop(requests.insert(request.clone(), id.clone())),
                }
            }
            state.sandboxes.insert(id.clone(), scope.run_id.clone());
            Ok(lease(state, &id, false))
        })
        .boxed()
    }

    fn repeats_acquire(&self) -> BoxFuture<'_, Result<bool, ProviderError>> {
        std::future::ready(Ok(self.state().requests.is_some())).boxed()
    }

    fn resume<'a>(
        &'a self,
        id: &'a str,
        _: &'a Map<String, Value>,
        _: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>> {
        self.call("resume", id, |state| match state.sandboxes.contains_key(id) {
            true => Ok(lease(state, id, true)),
            false => Err(lost(id)),
        })
        .boxed()
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.call("release", &lease.id, |state| {
            state.sandboxes.remove(&lease.id);
            Ok(Released::Destroyed)
        })
        .boxed()
    }

    fn let_go<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.call("let_go", &lease.id, |_| Ok(())).boxed()
    }

    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>> {
        self.call("destroy", &lease.id, |state| {
            state.sandboxes.remove(&lease.id);
            Ok(Released::Destroyed)
        })
        .boxed()
    }

    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>> {
        self.call("keep_alive", &lease.id, |state| {
            match state.sandboxes.contains_key(&lease.id) {
                true => Ok(state.pace),
                false => Err(lost(&lease.id)),
            }
        })
        .boxed()
    }

    fn account(&self) -> String {
        self.state().account.clone()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        self.call("list", "", |state| Ok(state.sandboxes.keys().cloned().collect()))
            .boxed()
    }

    fn made_for<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        self.call("made_for", &scope.run_id, |state| {
            if !state.finds_runs {
                return Err(ProviderError::Unsupported("finding the sandboxes of a run"));
            }
            let of_run = state.sandboxes.iter().filter(|(_, run)| **run == scope.run_id);
            Ok(of_run.map(|(id, _)| id.clone()).collect())
        })
        .boxed()
    }

    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError> {
        Ok(Arc::new(CloudRunner {
            target: format!("cloud:{}", lease.id),
            cloud: self.clone(),
            local: LocalRunner::new(BaseEnvironment::default(), None),
        }))
    }
}

#[derive(Debug)]
struct CloudRunner {
    target: String,
    cloud: Cloud,
    local: LocalRunner,
}

impl CommandManagedRuntimeRunner for CloudRunner {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        if self.cloud.state().commands_lose_the_lease {
            return std::future::ready(Err(RunnerError::LeaseLost {
                target: self.target.clone(),
                reason: "the sandbox is gone".into(),
            }))
            .boxed();
        }
        self.local.execute(execution)
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.local.open_duplex(request)
    }

    fn capabilities(&self) -> Capabilities {
        self.local.capabilities()
    }

    fn target(&self) -> &str {
        &self.target
    }
}
