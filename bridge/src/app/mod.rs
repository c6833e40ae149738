//! Where the parts are put together: one call opens a session.
//!
//! Here: [`App`]; in `request` what a session is asked to be ([`SessionRequest`]), in `opened` what comes back
//! ([`OpenSession`]), in `environment` what its agent is told, in `standing` a target whose tunnels are tried, in
//! `providers` what every provider is built from. Not here: how a callback is answered (`callback/`), what an operator
//! types (`cli/`).

mod request;
mod providers;
pub(crate) mod environment;
mod opened;
mod standing;
mod neighbours;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use policy::Token;
use runners::provider::RelayRoute;
use runners::ssh::SshPool;
use runners::{CommandManagedRuntimeRunner, SecretText};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::ladder::LadderReport;
use tunnel::launch::SharedToken;
use tunnel::queue::{Journal, LeaveQueue, QueuePlace};
use tunnel::{Listening, ProcessPlace, Status, StatusReporter, Tunnel, TunnelEnd};

use crate::audit::{Audit, SessionAudit};
use crate::leases::{Leases, Reaper};
use crate::placing::{self, Place, Placed, Reach};
use crate::secrets::Secrets;
use crate::session::budget::Budget;
use crate::session::identity::Identity;
use crate::session::rates::{RateTable, SessionRates};
use crate::session::state::{LeftGateway, LeftLease, StateFolder};
use crate::session::{PROCESS_BODY_BYTES, Session, SessionParts, Shared};
use crate::signing;
use crate::upstream::{Upstream, Upstreams};

pub use crate::session::state::SessionRecord;
pub use opened::{Left, OpenSession};
pub(crate) use providers::Providers;
pub use request::{
    GatewayChoice, GivenToken, Named, ProviderConfig, ProviderTarget, SessionRequest, SshTarget, TargetSpec,
    TunnelChoice,
};
pub(crate) use standing::{Standing, Tried};

use neighbours::Neighbours;
pub(crate) use neighbours::{Logins, logins};
use opened::{Serving, WhatIsLeft};

/// From the first attempt to connect until an agent can call, at most; the ladder has a limit for each rung.
const OPENING: Duration = Duration::from_secs(160);

/// Why a session could not be opened; the command line maps each to its exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Exit code 3.
    #[error("{0}")]
    Configuration(String),
    /// Exit code 4.
    #[error("{0}")]
    Unreachable(String),
    /// The target is reachable and refuses what is needed. Exit code 4.
    #[error("{detail}")]
    Refused {
        /// Stable reason, such as `forwarding_refused`.
        reason: &'static str,
        /// What is in the way and how to change it.
        detail: String,
    },
    /// The provider's hold on the sandbox is gone. Exit code 4.
    #[error("the lease is lost (lease_lost): {0}")]
    LeaseLost(String),
}

/// Everything that lives as long as the runtime it is used on: a connection, and all that it carries, stays there.
#[derive(Debug)]
pub struct App {
    pub(crate) ssh: SshPool,
    pub(crate) providers: Providers,
    pub(crate) leases: Leases,
    pub(crate) neighbours: Neighbours,
    upstreams: Upstreams,
    bodies: Arc<Budget>,
    shared: Shared,
    audit: Option<Arc<Audit>>,
    rates: Option<Arc<RateTable>>,
    journal: QueueJournal,
}

/// Where the queues of sessions without a folder of their own write down what they send; opened by the first.
#[derive(Debug, Default)]
struct QueueJournal {
    path: Option<PathBuf>,
    opened: Mutex<Option<Journal>>,
}

impl QueueJournal {
    fn open(&self) -> Result<Option<Journal>, OpenError> {
        let Some(path) = &self.path else { return Ok(None) };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.is_none() {
            let journal = Journal::open(path.clone());
            *opened = Some(journal.map_err(|fault| OpenError::Configuration(placing::with_causes(&fault)))?);
        }
        Ok(opened.clone())
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            ssh: SshPool::default(),
            providers: Providers::default(),
            leases: Leases::default(),
            neighbours: Neighbours::default(),
            upstreams: Upstreams::default(),
            bodies: Budget::new(PROCESS_BODY_BYTES),
            shared: Shared::default(),
            audit: None,
            rates: None,
            journal: QueueJournal::default(),
        }
    }
}

impl App {
    /// The same, with what its sessions have in common.
    pub(crate) fn sharing(self, shared: Shared) -> Self {
        Self { shared, ..self }
    }

    /// What queues send is written down in a file of this folder, for all sessions without a folder of their own.
    pub(crate) fn with_journal_in(mut self, folder: &Path) -> Self {
        self.journal.path = Some(folder.join("queue.journal"));
        self
    }

    /// Every session opened from now on is written down there, and each of its callbacks before it is dispatched.
    #[must_use]
    pub fn with_audit(mut self, audit: Arc<Audit>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// The calls of every session opened from now on are held to these limits, too.
    #[must_use]
    pub fn with_rates(mut self, rates: Arc<RateTable>) -> Self {
        self.rates = Some(rates);
        self
    }

    /// Bytes of bodies that the process may hold.
    pub(crate) fn bodies(&self) -> &Budget {
        &self.bodies
    }

    /// Checks what can be checked of a target before anything is connected to.
    ///
    /// # Errors
    ///
    /// [`OpenError::Configuration`], which names the field of a provider's configuration.
    pub fn check(&self, target: &TargetSpec) -> Result<(), OpenError> {
        match target {
            TargetSpec::Local | TargetSpec::Ssh(_) => Ok(()),
            TargetSpec::Provider(target) => self
                .providers
                .build(target.spec, &target.config, &target.secrets)
                .map(drop)
                .map_err(|error| configuration(&error)),
        }
    }

    /// Opens a session and waits until an agent can use it.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with nothing left on the target; a lease is given back by [`Self::settle`] at the latest.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts what it had begun; the same holds for its lease.
    pub async fn open(&self, request: SessionRequest) -> Result<OpenSession, OpenError> {
        let place = placing::place(&request, self).await?;
        let loss = place.reach.lease().map(crate::leases::HeldLease::loss_heard);
        let opened = self.open_at(request, place).await;
        match (opened, loss.and_then(|heard| heard.borrow().clone())) {
            (Err(_), Some(why)) => Err(OpenError::LeaseLost(why)),
            (Ok(opened), _) => {
                opened
                    .reach
                    .lease()
                    .into_iter()
                    .for_each(crate::leases::HeldLease::is_used);
                Ok(opened)
            }
            (opened, _) => opened,
        }
    }

    /// Clears away what a session of an earlier process left on its target and that is not gone on with.
    ///
    /// What cannot be reached now ends by itself, and a lease is given back by whoever looks through the book.
    pub(crate) async fn clear_left(&self, request: SessionRequest, record: &SessionRecord) {
        if let (Some(lease), TargetSpec::Provider(target)) = (&record.lease, &request.target) {
            self.leases.spared.forget(&lease.provider, &lease.id);
            match crate::leases::LeaseBook::existing(&target.leases) {
                Ok(Some(book)) => self.reap(&book, &target.secrets),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the book of leases cannot be looked through"),
            }
            return;
        }
        if !placing::leaves_gateway(record) {
            return;
        }
        let cleared = async {
            let Place { runner, reach } = placing::place(&request, self).await?;
            let identity = Identity::after(record)?;
            placing::clear_predecessor(&request, &runner, &reach, &identity).await
        };
        if let Err(error) = cleared.await {
            tracing::warn!(session = %record.session, %error, "what a session left on its target ends by itself");
        }
    }

    /// To be awaited before the process ends: leases that are being given back get half a minute.
    pub async fn settle(&self) {
        self.leases.settle().await;
    }

    async fn open_at(&self, mut request: SessionRequest, place: Place) -> Result<OpenSession, OpenError> {
        let Place { runner, reach } = place;
        let folder = match &reach {
            Reach::Local | Reach::Ssh(_) => request.state_dir.clone(),
            // Many sessions may share the folder that their leases stand in.
            Reach::Leased(held) => request.state_dir.as_ref().map(|_| held.session_folder.clone()),
        };
        let state = match folder {
            Some(path) => Some(StateFolder::open(&path).map_err(|error| configuration(&error))?),
            None => None,
        };
        let named = request.named.take();
        let mut identity = Identity::choose(&request, named, state.as_ref(), runner.target())?;
        let ground = Ground {
            request,
            runner,
            reach,
            state,
        };
        if ground.request.returns.is_some() {
            let begun = self.begin(&ground, &identity).await?;
            return ground.opened(begun, identity);
        }
        if identity.resumes() {
            match self.begin(&ground, &identity).await {
                Ok(begun) => return ground.opened(begun, identity),
                Err(OpenError::Refused { reason, detail }) => {
                    tracing::warn!(
                        reason,
                        detail,
                        session = %identity.session,
                        "the session of an earlier process cannot be gone on with, so a new one is opened"
                    );
                    identity = identity.anew()?;
                }
                Err(
                    error @ (OpenError::Configuration(_)
                    | OpenError::Unreachable(_)
                    | OpenError::LeaseLost(_)),
                ) => return Err(error),
            }
        }
        placing::clear_predecessor(&ground.request, &ground.runner, &ground.reach, &identity).await?;
        let begun = self.begin(&ground, &identity).await?;
        ground.opened(begun, identity)
    }

    /// Starts giving back what earlier processes left in this folder, once for each folder.
    pub(crate) fn reap(&self, book: &crate::leases::LeaseBook, secrets: &Secrets) {
        let (providers, secrets) = (self.providers.clone(), secrets.clone());
        let reaper = Reaper::new(
            book.clone(),
            Box::new(move |record| providers.of_record(record, &secrets)),
        );
        self.leases.reap(reaper.sparing(self.leases.spared.clone()));
    }

    /// Serves a session of this identity as soon as an agent can use it.
    async fn begin(&self, ground: &Ground, identity: &Identity) -> Result<Begun, OpenError> {
        let Ground {
            request,
            runner,
            reach,
            state,
        } = ground;
        let upstream = Upstream::of(&request.upstream, request.credential.clone(), &self.upstreams)
            .map_err(|error| configuration(&error))?;
        let run_id = HeaderValue::from_str(identity.run_id(&request.run_id))
            .map_err(|_| OpenError::Configuration("the run id must be one line of visible ASCII".into()))?;
        // Opened only where a queue may be taken.
        let journal = || match state {
            Some(state) => Journal::open(state.journal())
                .map(Some)
                .map_err(|fault| OpenError::Configuration(placing::with_causes(&fault))),
            None => self.journal.open(),
        };
        let Placed {
            ladder,
            queue,
            leave,
            process,
            token: gateway_token,
        } = placing::ladder(request, runner, reach, identity, &journal, &self.providers)?;
        let report = ladder.report();
        let identities = request.identities(identity.run_id(&request.run_id));
        let audit = match &self.audit {
            Some(audit) => SessionAudit::begin(audit, identity.session, &identities, runner.target())
                .map(Some)
                .map_err(|error| configuration(&error))?,
            None => None,
        };
        let session = Session::of(
            identity.session,
            SessionParts {
                run_id,
                tunnel: ladder.name(),
                rules: request.rules.clone(),
                limits: request.limits,
                rate: request.rate,
                upstream,
                token: identity.digest,
                audit,
                process_bodies: Arc::clone(&self.bodies),
                shared: Shared {
                    rates: self.rates.as_ref().map(|table| {
                        let ids = [&identities.agent, &identities.issue, &identities.company];
                        SessionRates::new(Arc::clone(table), identity.session, ids.map(Option::as_deref))
                    }),
                    ..self.shared.clone()
                },
            },
            request.hold.clone(),
        );
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(Box::new(ladder).serve(session.callbacks(), reporter, stop.clone()));
        let mut serving = Serving { task, stop };
        let listening = wait_until_ready(&mut status, &mut serving.task).await?;
        let token = agent_token(&listening, reach, identity).await?;
        let ladder = report.borrow().clone();
        session.takes_tunnel(ladder.current);
        if let Some(audit) = &session.audit {
            audit.ready(ladder.current);
        }
        Ok(Begun {
            session,
            listening,
            token,
            ladder,
            queue,
            leave,
            process,
            gateway_token,
            status,
            serving,
        })
    }
}

/// What a session stands on, whoever it is.
struct Ground {
    request: SessionRequest,
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    reach: Reach,
    state: Option<StateFolder>,
}

/// A tunnel that is ready.
struct Begun {
    session: Arc<Session>,
    listening: Listening,
    /// As its agent shows it, unless only the agent knows it.
    token: Option<SecretText>,
    ladder: LadderReport,
    /// Where its queue lies on the target, if the taken tunnel has one.
    queue: QueuePlace,
    /// Says that the queue is left for a successor.
    leave: LeaveQueue,
    /// What a successor would have to end there.
    process: ProcessPlace,
    /// What its gateway holds, where it has one.
    gateway_token: SharedToken,
    status: watch::Receiver<Status>,
    serving: Serving,
}

impl Ground {
    /// Writes the session down and hands it to its owner.
    fn opened(self, begun: Begun, identity: Identity) -> Result<OpenSession, OpenError> {
        let Begun {
            session,
            listening,
            token,
            ladder: LadderReport {
                attempts,
                current: tunnel,
            },
            queue,
            leave,
            process,
            gateway_token,
            status,
            serving,
        } = begun;
        let gateway = match (tunnel, &self.request.gateway) {
            ("http2_v1" | placing::QUEUE, GatewayChoice::Script(_)) => Some(LeftGateway::Script),
            ("http2_v1" | placing::QUEUE, GatewayChoice::Builtin | GatewayChoice::Binary(_)) => {
                Some(LeftGateway::Own)
            }
            _ => None,
        };
        let lease = match &self.request.target {
            TargetSpec::Local | TargetSpec::Ssh(_) => None,
            TargetSpec::Provider(target) => self.reach.lease().map(|held| LeftLease {
                provider: target.spec.key.to_owned(),
                id: held.lease.id.clone(),
            }),
        };
        let run_id = identity.run_id(&self.request.run_id).to_owned();
        let opened = OpenSession {
            id: session.id,
            url: url(&listening),
            token,
            tunnel,
            ladder: attempts,
            queue_directory: queue.get().filter(|_| tunnel == placing::QUEUE).cloned(),
            run_id,
            upstream: self.request.upstream.clone(),
            runner: self.runner,
            status,
            left: WhatIsLeft {
                listening,
                process,
                gateway,
                lease,
                leave,
            },
            gateway_token,
            session,
            reach: self.reach,
            state: self.state,
            serving,
        };
        if let Some(state) = &opened.state {
            let record = opened.record_of(identity.digest);
            state.record(&record).map_err(|error| configuration(&error))?;
        }
        Ok(opened)
    }
}

/// What an agent on the target calls.
fn url(listening: &Listening) -> String {
    match listening {
        Listening::Tcp { port } => format!("http://127.0.0.1:{port}"),
        Listening::Unix { path } => format!("unix:{}", path.display()),
        Listening::Url { url, .. } => url.clone(),
    }
}

/// The session's token in the form that stands before the agent's listener.
async fn agent_token(
    listening: &Listening,
    reach: &Reach,
    identity: &Identity,
) -> Result<Option<SecretText>, OpenError> {
    let Some(token) = &identity.token else {
        return Ok(None);
    };
    let relay = match listening {
        Listening::Url { .. } => reach.lease().and_then(|held| held.relay.as_ref()),
        Listening::Tcp { .. } | Listening::Unix { .. } => None,
    };
    shown(relay, token).await.map(Some)
}

/// A token as it stands before the listener of a session, which may be a relay's.
async fn shown(relay: Option<&RelayRoute>, token: &Token) -> Result<SecretText, OpenError> {
    match relay {
        Some(route) => signing::agent_key(route, token)
            .await
            .map_err(|why| configuration(&why)),
        None => Ok(SecretText::new(token.expose())),
    }
}

fn configuration(error: &dyn std::fmt::Display) -> OpenError {
    OpenError::Configuration(error.to_string())
}

async fn wait_until_ready(
    status: &mut watch::Receiver<Status>,
    task: &mut JoinHandle<TunnelEnd>,
) -> Result<Listening, OpenError> {
    let ready = async {
        loop {
            if let Status::Ready { listening, .. } = &*status.borrow_and_update() {
                return Some(listening.clone());
            }
            if status.changed().await.is_err() {
                return None;
            }
        }
    };
    tokio::select! {
        biased;
        ended = &mut *task => Err(match ended {
            Ok(TunnelEnd::Refused { reason, detail }) => OpenError::Refused { reason, detail },
            Ok(TunnelEnd::Unreachable(detail) | TunnelEnd::StoppedUnclean(detail)) => OpenError::Unreachable(detail),
            Ok(TunnelEnd::Stopped) => OpenError::Unreachable("the tunnel ended before it was ready".into()),
            Err(error) => OpenError::Unreachable(format!("the tunnel failed: {error}")),
        }),
        listening = tokio::time::timeout(OPENING, ready) => match listening {
            Ok(Some(listening)) => Ok(listening),
            Ok(None) => Err(OpenError::Unreachable("the tunnel ended before it was ready".into())),
            Err(_) => Err(OpenError::Unreachable(format!("the tunnel was not ready within {} s", OPENING.as_secs()))),
        },
    }
}
