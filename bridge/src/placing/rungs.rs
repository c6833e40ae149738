//! The ladder of tunnels to a place, and the gateway's program that some of them need.
//!
//! Here: which tunnels a place has, in which order. Nothing is connected yet. Not here: the climbing
//! (`tunnel::ladder`), the place itself (`mod.rs`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use policy::Limits;
use runners::provider::RelayRoute;
use runners::ssh::SshHost;
use runners::{CommandManagedRuntimeRunner, SecretText, Shell};
use tokio_util::sync::CancellationToken;
use tunnel::http2::{Http2, Http2Options};
use tunnel::ladder::Ladder;
use tunnel::launch::{GatewayProgram, GatewayToken, Launcher, SessionName, SharedToken};
use tunnel::local::Local;
use tunnel::queue::{Bodies, Journal, LeaveQueue, Queue, QueueOptions, QueuePlace};
use tunnel::ssh_reverse::{Bind, EarlierLife, SshReverse, SshReverseOptions};
use tunnel::worker::Relay;
use tunnel::{Callbacks, ProcessPlace, StatusReporter, TargetProcess, Tunnel, TunnelEnd};

use super::Reach;
use crate::app::{GatewayChoice, OpenError, Providers, SessionRequest, TunnelChoice};
use crate::gateway;
use crate::session::identity::Identity;
use crate::session::state::{LeftGateway, SessionRecord};
use crate::signing::EnvelopeSigner;

/// Beyond the largest body and head, what an agent may have sent before anybody reads it.
const STREAM_SLACK_BYTES: usize = 256 * 1024;
/// Clearing away what a predecessor left; it ends by itself otherwise.
const CLEARING: Duration = Duration::from_secs(30);
/// A larger file is no gateway.
const GATEWAY_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// The name of the tunnel whose gateway outlives us.
pub(crate) const QUEUE: &str = "queue_v1";

/// Opens the journal of a queue, where there is one beside its memory.
pub(crate) type OpenJournal<'a> = dyn Fn() -> Result<Option<Journal>, OpenError> + Send + Sync + 'a;

/// Where a session will listen.
pub(crate) struct Placed {
    /// The tunnels that may be taken, best first.
    pub(crate) ladder: Ladder,
    /// Filled by the queue, where that is tried.
    pub(crate) queue: QueuePlace,
    /// Says to the queue that it is left for a successor.
    pub(crate) leave: LeaveQueue,
    /// Told what a successor would have to end on the target.
    pub(crate) process: ProcessPlace,
    /// What a gateway is started with, and can be changed while it runs.
    pub(crate) token: SharedToken,
}

/// The tunnels that may be taken, best first.
///
/// # Errors
///
/// [`OpenError::Configuration`] for what contradicts itself or cannot be read.
pub(crate) fn ladder(
    request: &SessionRequest,
    runner: &Arc<dyn CommandManagedRuntimeRunner>,
    reach: &Reach,
    identity: &Identity,
    journal: &OpenJournal<'_>,
    providers: &Providers,
) -> Result<Placed, OpenError> {
    let refused = |text: &str| Err(OpenError::Configuration(text.to_owned()));
    let tunnels = Tunnels::new(request, runner, reach, identity, journal);
    let relay = |route: &RelayRoute| -> Box<dyn Tunnel> {
        Box::new(Relay::new(
            route.clone(),
            Arc::new(EnvelopeSigner),
            providers.http(),
        ))
    };
    let taken = request.returns.as_ref().map(taken).transpose()?;
    let rungs = match (taken.as_ref().unwrap_or(&request.tunnel), reach) {
        // What a predecessor left is a queue; no other tunnel can go on with it.
        (TunnelChoice::Auto, _) if identity.resumes() => vec![tunnels.queue()?],
        (TunnelChoice::Auto | TunnelChoice::Local, Reach::Local) => vec![tunnels.local()?],
        // No other tunnel listens on a socket: there is nothing to fall back to.
        (TunnelChoice::Auto, Reach::Ssh(host)) if request.unix_socket.is_some() => {
            vec![tunnels.reverse(host)]
        }
        (TunnelChoice::Auto, Reach::Ssh(host)) => {
            vec![tunnels.reverse(host), tunnels.http2()?, tunnels.queue()?]
        }
        (TunnelChoice::Auto, Reach::Leased(held)) => {
            let mut rungs: Vec<_> = held.relay.iter().map(relay).collect();
            rungs.extend([tunnels.http2_by_duplex()?, tunnels.queue()?]);
            rungs
        }
        (TunnelChoice::SshReverse, Reach::Ssh(host)) => vec![tunnels.reverse(host)],
        (TunnelChoice::SshReverse, Reach::Local | Reach::Leased(_)) => {
            return refused("an ssh-reverse tunnel needs an SSH target");
        }
        (TunnelChoice::Local, Reach::Ssh(_) | Reach::Leased(_)) => {
            return refused("a local tunnel serves only the target `local`");
        }
        (TunnelChoice::Worker, Reach::Leased(held)) => match &held.relay {
            Some(route) => vec![relay(route)],
            None => return refused("the configuration of this target's provider names no relay"),
        },
        (TunnelChoice::Worker, Reach::Local | Reach::Ssh(_)) => {
            return refused("a worker tunnel needs a provider's target with a relay");
        }
        (TunnelChoice::Http2, _) => vec![tunnels.http2_by_duplex()?],
        (TunnelChoice::Queue, _) => vec![tunnels.queue()?],
    };
    Ok(Placed {
        ladder: Ladder::new(rungs),
        queue: tunnels.queue_place,
        leave: tunnels.leave,
        process: tunnels.process,
        token: tunnels.token,
    })
}

/// The tunnel that a session goes on with: the one that its agent was told of.
fn taken(record: &SessionRecord) -> Result<TunnelChoice, OpenError> {
    match record.tunnel.as_str() {
        "local" => Ok(TunnelChoice::Local),
        "ssh-reverse" => Ok(TunnelChoice::SshReverse),
        "http2_v1" => Ok(TunnelChoice::Http2),
        QUEUE => Ok(TunnelChoice::Queue),
        tunnel::worker::NAME => Ok(TunnelChoice::Worker),
        other => Err(OpenError::Configuration(format!(
            "the session was left with the tunnel {other}, which this version does not have"
        ))),
    }
}

/// Whether a gateway of that session may still be on its target although nobody is at the other end of its channel: that
/// of a queue stays on purpose, and a script listens on.
pub(crate) fn leaves_gateway(record: &SessionRecord) -> bool {
    record.tunnel == QUEUE || record.tunnel == "http2_v1" && record.gateway == Some(LeftGateway::Script)
}

/// Clears away what a predecessor left on the target, where its session is not gone on with.
///
/// # Errors
///
/// [`OpenError::Configuration`] for a gateway that cannot be read. What cannot be cleared away is told in the log: its
/// gateway ends by itself, and nothing serves its queue.
pub(crate) async fn clear_predecessor(
    request: &SessionRequest,
    runner: &Arc<dyn CommandManagedRuntimeRunner>,
    reach: &Reach,
    identity: &Identity,
) -> Result<(), OpenError> {
    if identity.resumes() {
        return Ok(());
    }
    let tunnels = Tunnels::new(request, runner, reach, identity, &|| Ok(None));
    let Some(clearing) = tunnels.left()? else {
        return Ok(());
    };
    match tokio::time::timeout(CLEARING, clearing).await {
        Ok(Ok(())) => tracing::info!("what an earlier process left on the target was cleared away"),
        Ok(Err(left)) => tracing::warn!(left, "what an earlier process left on the target ends by itself"),
        Err(_) => {
            tracing::warn!("what an earlier process left on the target could not be cleared away in time")
        }
    }
    Ok(())
}

/// Makes each tunnel for one session.
struct Tunnels<'a> {
    request: &'a SessionRequest,
    runner: &'a Arc<dyn CommandManagedRuntimeRunner>,
    shell: Shell,
    identity: &'a Identity,
    journal: &'a OpenJournal<'a>,
    queue_place: QueuePlace,
    leave: LeaveQueue,
    process: ProcessPlace,
    token: SharedToken,
}

impl<'a> Tunnels<'a> {
    fn new(
        request: &'a SessionRequest,
        runner: &'a Arc<dyn CommandManagedRuntimeRunner>,
        reach: &Reach,
        identity: &'a Identity,
        journal: &'a OpenJournal<'a>,
    ) -> Self {
        Self {
            request,
            runner,
            shell: reach.shell(),
            identity,
            journal,
            queue_place: QueuePlace::default(),
            leave: LeaveQueue::default(),
            process: ProcessPlace::default(),
            token: token(identity).into(),
        }
    }

    fn local(&self) -> Result<Box<dyn Tunnel>, OpenError> {
        if let Some(passed) = &self.request.passed {
            let place = passed.try_clone().and_then(|own| Ok((own.listening()?, own)));
            let (listening, own) = place.map_err(|error| {
                OpenError::Configuration(format!("a socket that was passed for agents: {error}"))
            })?;
            return Ok(Box::new(Local::passed(own, listening)));
        }
        let Some(record) = self.returns() else {
            return Ok(Box::new(match &self.request.unix_socket {
                Some(path) => Local::unix(path.clone()),
                None => Local::tcp(),
            }));
        };
        match (&record.unix_path, record.port) {
            (Some(path), _) => Ok(Box::new(Local::unix_again(path.clone()))),
            (None, Some(port)) => Ok(Box::new(Local::tcp_again(port))),
            (None, None) => Err(nowhere()),
        }
    }

    /// What an earlier process left of this very session.
    fn returns(&self) -> Option<&'a SessionRecord> {
        self.request.returns.as_ref()
    }

    fn reverse(&self, host: &Arc<SshHost>) -> Box<dyn Tunnel> {
        let earlier = self.returns();
        let socket = match earlier {
            Some(record) => record.unix_path.clone(),
            None => self.request.unix_socket.clone(),
        };
        let port = earlier.and_then(|record| record.port).unwrap_or(0);
        let options = SshReverseOptions {
            bind: socket.map_or(Bind::Tcp { port }, |path| Bind::Unix { path }),
            allow_exposed: self.request.allow_exposed_forward,
            stream_cap: stream_cap(&self.request.limits),
            earlier: earlier.map(|record| EarlierLife {
                sshd: record.process.as_ref().map(|process| TargetProcess {
                    pid: process.pid,
                    start: process.start.clone(),
                }),
            }),
            process: self.process.clone(),
        };
        Box::new(SshReverse::new(Arc::clone(host), options))
    }

    fn http2_by_duplex(&self) -> Result<Box<dyn Tunnel>, OpenError> {
        if self.runner.capabilities().duplex {
            return self.http2();
        }
        Ok(Box::new(NotHere {
            tunnel: "http2_v1",
            reason: "no_duplex",
            detail: "this target offers no byte stream to a running command",
        }))
    }

    fn http2(&self) -> Result<Box<dyn Tunnel>, OpenError> {
        let Some(launcher) = self.launcher()? else {
            return Ok(Box::new(no_gateway("http2_v1")));
        };
        let options = Http2Options {
            max_body: self.request.limits.max_body,
            streams: self.request.streams,
            // Its agent knows no other.
            port: self.identity.port(),
            ..Http2Options::new(self.name()?, self.token.clone())
        };
        Ok(Box::new(Http2::new(launcher, options)))
    }

    fn queue(&self) -> Result<Box<dyn Tunnel>, OpenError> {
        let Some(launcher) = self.launcher()? else {
            return Ok(Box::new(no_gateway(QUEUE)));
        };
        let max_body = usize::try_from(self.request.limits.max_body).unwrap_or(usize::MAX);
        let mut options = QueueOptions::new(self.name()?, self.token.clone(), max_body);
        options.place = Arc::clone(&self.queue_place);
        options.leave = Arc::clone(&self.leave);
        options.again = self.returns().is_some();
        options.fence = self.request.hold.as_ref().and_then(|hold| hold.fence());
        // Its agent knows no other.
        options.port = self.identity.port().unwrap_or(0);
        if let GatewayChoice::Script(path) = &self.request.gateway {
            options.bodies = bodies(&read(path)?);
        }
        if let Some(journal) = (self.journal)()? {
            options.journal = journal;
        }
        Ok(Box::new(Queue::new(launcher, options)))
    }

    /// Clears what a predecessor left that is not gone on with; nothing where its gateway ended with it.
    fn left(&self) -> Result<Option<BoxFuture<'static, Result<(), String>>>, OpenError> {
        let Some(record) = self
            .identity
            .predecessor
            .as_ref()
            .filter(|record| leaves_gateway(record))
        else {
            return Ok(None);
        };
        let Some((launcher, digest)) = self.launcher()?.zip(record.digest()) else {
            return Ok(None);
        };
        let name = SessionName::new(record.session.to_string())
            .map_err(|fault| OpenError::Configuration(fault.to_string()))?;
        let token = GatewayToken::from_digest(digest);
        Ok(Some(if record.tunnel == QUEUE {
            Queue::new(launcher, QueueOptions::new(name, token, 1))
                .clear()
                .boxed()
        } else {
            Http2::new(launcher, Http2Options::new(name, token))
                .clear()
                .boxed()
        }))
    }

    /// `None` where the built-in gateway is asked for and there is none.
    fn launcher(&self) -> Result<Option<Launcher>, OpenError> {
        let program = program(&self.request.gateway)?;
        Ok(program.map(|program| Launcher::new(Arc::clone(self.runner), self.shell, program)))
    }

    fn name(&self) -> Result<SessionName, OpenError> {
        SessionName::new(self.identity.session.to_string())
            .map_err(|fault| OpenError::Configuration(fault.to_string()))
    }
}

fn token(identity: &Identity) -> GatewayToken {
    match &identity.token {
        Some(token) => GatewayToken::from_text(SecretText::new(token.expose())),
        None => GatewayToken::from_digest(identity.digest.to_bytes()),
    }
}

fn nowhere() -> OpenError {
    OpenError::Configuration("it is not known where the session listened".to_owned())
}

/// An error and what was underneath, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Stands in the ladder for a tunnel that this target cannot have.
#[derive(Debug)]
struct NotHere {
    tunnel: &'static str,
    reason: &'static str,
    detail: &'static str,
}

const fn no_gateway(tunnel: &'static str) -> NotHere {
    NotHere {
        tunnel,
        reason: "no_gateway_for_platform",
        detail: "this daemon was built without a gateway; name one with --gateway PATH, or --gateway node:PATH",
    }
}

impl Tunnel for NotHere {
    fn serve(
        self: Box<Self>,
        _: Arc<dyn Callbacks>,
        _: StatusReporter,
        _: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        std::future::ready(TunnelEnd::Refused {
            reason: self.reason,
            detail: self.detail.to_owned(),
        })
        .boxed()
    }

    fn name(&self) -> &'static str {
        self.tunnel
    }
}

fn stream_cap(limits: &Limits) -> usize {
    let body = usize::try_from(limits.max_body).unwrap_or(usize::MAX);
    body.saturating_add(limits.max_head)
        .saturating_add(STREAM_SLACK_BYTES)
}

/// The program that the choice names; `None` where it is the built-in one and this daemon has none.
fn program(choice: &GatewayChoice) -> Result<Option<GatewayProgram>, OpenError> {
    Ok(match choice {
        GatewayChoice::Builtin => gateway::embedded().map(GatewayProgram::binary),
        GatewayChoice::Binary(path) => Some(GatewayProgram::binary(elf(path)?)),
        GatewayChoice::Script(path) => Some(GatewayProgram::script(read(path)?)),
    })
}

/// The script before 2026.824 knows answers as text only, and no word of how they are encoded.
fn bodies(script: &[u8]) -> Bodies {
    let word = b"bodyEncoding";
    if script.windows(word.len()).any(|window| window == word) {
        Bodies::Base64
    } else {
        Bodies::Text
    }
}

/// A shell would take anything else for a script and run it on the target.
fn elf(path: &Path) -> Result<Vec<u8>, OpenError> {
    let bytes = read(path)?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    Err(unusable(
        path,
        "it is no ELF program; a script for Node is given as node:PATH",
    ))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> OpenError {
    OpenError::Configuration(format!("cannot use the gateway {}: {why}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    let fault = |why: String| unusable(path, why);
    let length = std::fs::metadata(path)
        .map_err(|error| fault(error.to_string()))?
        .len();
    if length == 0 || length > GATEWAY_MAX_BYTES {
        return Err(fault(format!(
            "it has {length} bytes, and a gateway has 1 to {GATEWAY_MAX_BYTES}"
        )));
    }
    std::fs::read(path).map_err(|error| fault(error.to_string()))
}
