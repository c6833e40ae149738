//! Where the parts are put together: one call opens a session.
//!
//! Here: [`App`] and what comes back ([`OpenSession`]); in `request` what a session is asked to be ([`SessionRequest`]).
//! Not here: how a callback is answered (`callback/`), what an operator types (`cli/`).

mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use policy::Token;
use runners::CommandManagedRuntimeRunner;
use runners::ssh::{SshHost, SshPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::ladder::{Attempt, LadderReport};
use tunnel::queue::QueuePlace;
use tunnel::wire::names::variable;
use tunnel::{Listening, Status, StatusReporter, Tunnel, TunnelEnd};
use uuid::Uuid;

use crate::placing::{self, Placed};
use crate::session::budget::Budget;
use crate::session::identity::Identity;
use crate::session::state::{SessionRecord, StateFolder};
use crate::session::{PROCESS_BODY_BYTES, Session, SessionParts};
use crate::upstream::Upstream;

pub use request::{GatewayChoice, SessionRequest, SshTarget, TargetSpec, TunnelChoice};

/// From the first attempt to connect until an agent can call, at most; the ladder has a limit for each rung.
const OPENING: Duration = Duration::from_secs(160);
/// Callbacks under way get so long to end when a session is closed.
const DRAINING: Duration = Duration::from_secs(5);
/// The tunnel gets so long to take its listener down; it promises five seconds.
const TAKING_DOWN: Duration = Duration::from_secs(6);

/// A session that is ready, and everything its owner needs.
///
/// Dropped without [`Self::close`], its tunnel is cut off at once, without waiting for anything.
#[derive(Debug)]
pub struct OpenSession {
    /// Our name of it.
    pub id: Uuid,
    /// What the agent calls, such as `http://127.0.0.1:40123`, or `unix:PATH`.
    pub url: String,
    /// The agent's throw-away token; printed once. `None` where a predecessor of this process gave it out.
    pub token: Option<Token>,
    /// The tunnel that was taken, such as `ssh-reverse`.
    pub tunnel: &'static str,
    /// The better tunnels that were tried before, and why they were not taken.
    pub ladder: Vec<Attempt>,
    /// Where a `queue_v1` lies on the target.
    pub queue_directory: Option<String>,
    /// The run id that was taken.
    pub run_id: String,
    /// Runs commands on the target.
    pub runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// Told of every change of the tunnel.
    pub status: watch::Receiver<Status>,
    session: Arc<Session>,
    host: Option<Arc<SshHost>>,
    state: Option<StateFolder>,
    serving: Serving,
}

/// The tunnel at work; ends with its owner.
#[derive(Debug)]
struct Serving {
    task: JoinHandle<TunnelEnd>,
    stop: CancellationToken,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OpenSession {
    /// What the agent's process is given, all of it named `PAPERCLIP_*`. `PAPERCLIP_API_KEY` is the token, and left out
    /// where only the agent knows it; over `queue_v1` the queue's directory is among it, as Paperclip's own host has it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let key = self
            .token
            .as_ref()
            .map(|token| ("PAPERCLIP_API_KEY", token.expose()));
        let queue = self
            .queue_directory
            .as_ref()
            .map(|directory| (variable::QUEUE_DIR, directory.as_str()));
        [
            ("PAPERCLIP_API_URL", self.url.as_str()),
            ("PAPERCLIP_RUN_ID", self.run_id.as_str()),
            ("PAPERCLIP_API_BRIDGE_MODE", self.tunnel),
        ]
        .into_iter()
        .chain(key)
        .chain(queue)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    /// Ends the session in order: no new callbacks, those under way get five seconds, the listener on the target is
    /// taken down, which gets five more.
    ///
    /// # Errors
    ///
    /// One line saying what may be left on the target, or whose outcome was given up.
    pub async fn close(mut self) -> Result<(), String> {
        let open = self.session.drain(DRAINING).await;
        self.serving.stop.cancel();
        let ended = tokio::time::timeout(TAKING_DOWN, &mut self.serving.task).await;
        drop(self.runner);
        let alone = self.host.take().filter(|host| Arc::strong_count(host) == 1);
        let connection_ended = alone.is_some();
        if let Some(host) = alone {
            host.close().await;
        }
        match ended {
            // What a server will not take down by itself goes with its connection.
            Ok(Ok(TunnelEnd::StoppedUnclean(left))) if !connection_ended => return Err(left),
            Ok(Ok(
                TunnelEnd::Stopped
                | TunnelEnd::StoppedUnclean(_)
                | TunnelEnd::Refused { .. }
                | TunnelEnd::Unreachable(_),
            )) => {}
            Ok(Err(error)) => return Err(format!("the tunnel failed: {error}")),
            Err(_) => {
                return Err("the tunnel did not end in time; its listener may still be there".to_owned());
            }
        }
        if let Some(state) = &self.state {
            state.forget().map_err(|error| error.to_string())?;
        }
        if open > 0 {
            return Err(format!(
                "{open} callbacks were given up while their outcome was open"
            ));
        }
        Ok(())
    }
}

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
}

/// Everything that lives as long as the runtime it is used on: a connection, and all that it carries, stays there.
#[derive(Debug)]
pub struct App {
    ssh: SshPool,
    bodies: Arc<Budget>,
}

impl Default for App {
    fn default() -> Self {
        Self {
            ssh: SshPool::default(),
            bodies: Budget::new(PROCESS_BODY_BYTES),
        }
    }
}

impl App {
    /// Opens a session and waits until an agent can use it.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with nothing left on the target.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts what it had begun.
    pub async fn open(&self, request: SessionRequest) -> Result<OpenSession, OpenError> {
        let (runner, host) = placing::runner(&request, &self.ssh)?;
        let state = match &request.state_dir {
            Some(path) => Some(StateFolder::open(path).map_err(|error| configuration(&error))?),
            None => None,
        };
        let mut identity = Identity::choose(&request, state.as_ref(), runner.target())?;
        let ground = Ground {
            request,
            runner,
            host,
            state,
        };
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
                Err(error @ (OpenError::Configuration(_) | OpenError::Unreachable(_))) => return Err(error),
            }
        }
        placing::clear_predecessor(&ground.request, &ground.runner, &identity).await?;
        let begun = self.begin(&ground, &identity).await?;
        ground.opened(begun, identity)
    }

    /// Serves a session of this identity as soon as an agent can use it.
    async fn begin(&self, ground: &Ground, identity: &Identity) -> Result<Begun, OpenError> {
        let Ground {
            request,
            runner,
            host,
            state,
        } = ground;
        let upstream =
            Upstream::new(&request.upstream, &request.credential).map_err(|error| configuration(&error))?;
        let run_id = HeaderValue::from_str(identity.run_id(&request.run_id))
            .map_err(|_| OpenError::Configuration("the run id must be one line of visible ASCII".into()))?;
        let Placed { ladder, queue } =
            placing::ladder(request, runner, host.as_ref(), identity, state.as_ref())?;
        let report = ladder.report();
        let session = Session::of(
            identity.session,
            SessionParts {
                run_id,
                tunnel: ladder.name(),
                rules: Arc::clone(&request.rules),
                limits: request.limits,
                rate: request.rate,
                upstream,
                token: identity.digest,
                process_bodies: Arc::clone(&self.bodies),
            },
        );
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(Box::new(ladder).serve(session.callbacks(), reporter, stop.clone()));
        let mut serving = Serving { task, stop };
        let listening = wait_until_ready(&mut status, &mut serving.task).await?;
        let ladder = report.borrow().clone();
        session.takes_tunnel(ladder.current);
        Ok(Begun {
            session,
            listening,
            ladder,
            queue,
            status,
            serving,
        })
    }
}

/// What a session stands on, whoever it is.
struct Ground {
    request: SessionRequest,
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    host: Option<Arc<SshHost>>,
    state: Option<StateFolder>,
}

/// A tunnel that is ready.
struct Begun {
    session: Arc<Session>,
    listening: Listening,
    ladder: LadderReport,
    /// Where its queue lies on the target, if the taken tunnel has one.
    queue: QueuePlace,
    status: watch::Receiver<Status>,
    serving: Serving,
}

impl Ground {
    /// Writes the session down and hands it to its owner.
    fn opened(self, begun: Begun, identity: Identity) -> Result<OpenSession, OpenError> {
        let Begun {
            session,
            listening,
            ladder: LadderReport {
                attempts,
                current: tunnel,
            },
            queue,
            status,
            serving,
        } = begun;
        let run_id = identity.run_id(&self.request.run_id).to_owned();
        if let Some(state) = &self.state {
            let port = match &listening {
                Listening::Tcp { port } => Some(*port),
                Listening::Unix { .. } | Listening::Url { .. } => None,
            };
            let digest = identity.digest.to_bytes();
            let record = SessionRecord::new(session.id, self.runner.target(), tunnel, &run_id, digest);
            let record = record.on_port(port);
            state.record(&record).map_err(|error| configuration(&error))?;
        }
        Ok(OpenSession {
            id: session.id,
            url: match listening {
                Listening::Tcp { port } => format!("http://127.0.0.1:{port}"),
                Listening::Unix { path } => format!("unix:{}", path.display()),
                Listening::Url { url, .. } => url,
            },
            token: identity.token,
            tunnel,
            ladder: attempts,
            queue_directory: queue.get().filter(|_| tunnel == placing::QUEUE).cloned(),
            run_id,
            runner: self.runner,
            status,
            session,
            host: self.host,
            state: self.state,
            serving,
        })
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
