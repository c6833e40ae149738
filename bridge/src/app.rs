//! Where the parts are put together: one call opens a session.
//!
//! Here: [`App`], what a session is asked to be ([`SessionRequest`]) and what comes back ([`OpenSession`]).
//! Not here: how a callback is answered (`callback/`), what an operator types (`cli/`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use policy::{Limits, RateLimit, Rules, Token};
use runners::CommandManagedRuntimeRunner;
use runners::local::{BaseEnvironment, LocalRunner};
use runners::ssh::{SshHost, SshPool, SshRunner};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::ssh_reverse::{Bind, SshReverse, SshReverseOptions};
use tunnel::{Listening, Status, StatusReporter, Tunnel, TunnelEnd};
use uuid::Uuid;

use crate::config::environment;
use crate::secrets::Secret;
use crate::session::budget::Budget;
use crate::session::{PROCESS_BODY_BYTES, Session, SessionParts, target};
use crate::upstream::{Upstream, UpstreamSettings};

/// From the first attempt to connect until an agent can call, at most.
const OPENING: Duration = Duration::from_secs(60);
/// Callbacks under way get so long to end when a session is closed.
const DRAINING: Duration = Duration::from_secs(5);
/// The tunnel gets so long to take its listener down; it promises five seconds.
const TAKING_DOWN: Duration = Duration::from_secs(6);
/// Beyond the largest body and head, what an agent may have sent before anybody reads it.
const STREAM_SLACK_BYTES: usize = 256 * 1024;

/// Where the agent runs, as parsed from the operator's words.
#[derive(Clone, Debug)]
pub enum TargetSpec {
    /// This machine.
    Local,
    /// An SSH host.
    Ssh(SshTarget),
}

/// An SSH target before ssh_config is applied.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// Host name or ssh_config alias.
    pub host: String,
    /// User given in the target; wins over ssh_config.
    pub user: Option<String>,
    /// Port given in the target; wins over ssh_config.
    pub port: Option<u16>,
    /// Directory given in the target: where COMMAND runs.
    pub directory: Option<String>,
    /// `--identity`: used instead of those of ssh_config.
    pub identities: Vec<PathBuf>,
    /// `--known-hosts`: used instead of those of ssh_config.
    pub known_hosts: Option<PathBuf>,
    /// Apply ssh_config; without it, what stands here is all there is.
    pub ssh_config: bool,
}

/// Which tunnel to take.
#[derive(Clone, Debug, Default)]
pub enum TunnelChoice {
    /// The best that works on the target.
    #[default]
    Auto,
    /// Only `ssh-reverse`.
    SshReverse,
    /// Only `local`.
    Local,
}

/// What a session shall be.
#[derive(Debug)]
pub struct SessionRequest {
    /// Where the agent runs.
    pub target: TargetSpec,
    /// The Paperclip API.
    pub upstream: UpstreamSettings,
    /// The real credential.
    pub credential: Secret,
    /// Sent as `x-paperclip-run-id`; one line of visible ASCII.
    pub run_id: String,
    /// Compiled policy.
    pub rules: Arc<Rules>,
    /// Sizes.
    pub limits: Limits,
    /// Calls per second; `None` is no limit of rate.
    pub rate: Option<RateLimit>,
    /// Which tunnel.
    pub tunnel: TunnelChoice,
    /// Listen on a unix socket of this path on the target instead of a port.
    pub unix_socket: Option<PathBuf>,
    /// Go on although the listener is not on loopback.
    pub allow_exposed_forward: bool,
}

/// A session that is ready, and everything its owner needs.
///
/// Dropped without [`Self::close`], its tunnel is cut off at once, without waiting for anything.
#[derive(Debug)]
pub struct OpenSession {
    /// Our name of it.
    pub id: Uuid,
    /// What the agent calls, such as `http://127.0.0.1:40123`, or `unix:PATH`.
    pub url: String,
    /// The agent's throw-away token; printed once.
    pub token: Token,
    /// The tunnel that was taken, such as `ssh-reverse`.
    pub tunnel: &'static str,
    /// The run id that was taken.
    pub run_id: String,
    /// Runs commands on the target.
    pub runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// Told of every change of the tunnel.
    pub status: watch::Receiver<Status>,
    session: Arc<Session>,
    host: Option<Arc<SshHost>>,
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
    /// What the agent's process is given: the four `PAPERCLIP_*` variables. `PAPERCLIP_API_KEY` is the token.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        [
            ("PAPERCLIP_API_URL", self.url.as_str()),
            ("PAPERCLIP_API_KEY", self.token.expose()),
            ("PAPERCLIP_RUN_ID", self.run_id.as_str()),
            ("PAPERCLIP_API_BRIDGE_MODE", self.tunnel),
        ]
        .into_iter()
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

/// What one target needs, before anything is connected.
struct Placed {
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    tunnel: Box<dyn Tunnel>,
    host: Option<Arc<SshHost>>,
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
        let configuration = |error: &dyn std::fmt::Display| OpenError::Configuration(error.to_string());
        let run_id = HeaderValue::from_str(&request.run_id)
            .map_err(|_| OpenError::Configuration("the run id must be one line of visible ASCII".into()))?;
        let upstream =
            Upstream::new(&request.upstream, &request.credential).map_err(|error| configuration(&error))?;
        let placed = self.place(&request)?;
        let name = placed.tunnel.name();
        let mut random = [0_u8; 24];
        getrandom::fill(&mut random)
            .map_err(|error| OpenError::Configuration(format!("no randomness for a token: {error}")))?;
        let token = Token::from_random(random);
        let session = Session::new(SessionParts {
            run_id,
            tunnel: name,
            rules: request.rules,
            limits: request.limits,
            rate: request.rate,
            upstream,
            token: token.digest(),
            process_bodies: Arc::clone(&self.bodies),
        });
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(placed.tunnel.serve(session.callbacks(), reporter, stop.clone()));
        let mut serving = Serving { task, stop };
        let listening = wait_until_ready(&mut status, &mut serving.task).await?;
        Ok(OpenSession {
            id: session.id,
            url: match listening {
                Listening::Tcp { port } => format!("http://127.0.0.1:{port}"),
                Listening::Unix { path } => format!("unix:{}", path.display()),
            },
            token,
            tunnel: name,
            run_id: request.run_id,
            runner: placed.runner,
            status,
            session,
            host: placed.host,
            serving,
        })
    }

    fn place(&self, request: &SessionRequest) -> Result<Placed, OpenError> {
        match (&request.target, &request.tunnel) {
            (TargetSpec::Local, TunnelChoice::Auto | TunnelChoice::Local) => {
                let base = BaseEnvironment {
                    home: environment("HOME").unwrap_or_else(|| "/".into()),
                    user: environment("USER").unwrap_or_default(),
                    lang: environment("LANG").unwrap_or_else(|| "C.UTF-8".into()),
                };
                let tunnel = match &request.unix_socket {
                    Some(path) => tunnel::local::Local::unix(path.clone()),
                    None => tunnel::local::Local::tcp(),
                };
                Ok(Placed {
                    runner: Arc::new(LocalRunner::new(base, None)),
                    tunnel: Box::new(tunnel),
                    host: None,
                })
            }
            (TargetSpec::Ssh(ssh), TunnelChoice::Auto | TunnelChoice::SshReverse) => {
                let (settings, notes) = target::ssh_settings(ssh).map_err(OpenError::Configuration)?;
                for note in notes {
                    tracing::debug!(note, "ssh_config is not followed in one point");
                }
                let host = self.ssh.host(settings);
                let options = SshReverseOptions {
                    bind: request
                        .unix_socket
                        .clone()
                        .map_or(Bind::Tcp { port: 0 }, |path| Bind::Unix { path }),
                    allow_exposed: request.allow_exposed_forward,
                    stream_cap: stream_cap(&request.limits),
                };
                Ok(Placed {
                    runner: Arc::new(SshRunner::new(Arc::clone(&host))),
                    tunnel: Box::new(SshReverse::new(Arc::clone(&host), options)),
                    host: Some(host),
                })
            }
            (TargetSpec::Local, TunnelChoice::SshReverse) => Err(OpenError::Configuration(
                "the target `local` takes no ssh-reverse tunnel".into(),
            )),
            (TargetSpec::Ssh(_), TunnelChoice::Local) => Err(OpenError::Configuration(
                "an SSH target takes no local tunnel".into(),
            )),
        }
    }
}

fn stream_cap(limits: &Limits) -> usize {
    let body = usize::try_from(limits.max_body).unwrap_or(usize::MAX);
    body.saturating_add(limits.max_head)
        .saturating_add(STREAM_SLACK_BYTES)
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
