//! The tunnel `http2_v1`: HTTP/2 over the stdin and stdout of a gateway in the sandbox.
//!
//! Here: the life of one session's gateway: started, served, brought back on the same port after a loss, never on
//! another one, and ended. In `handshake` (with `ready` and `preface`) how a byte stream becomes a connection, in
//! `serve` the connection, in `message` one stream of it. Not here: how the gateway gets onto the target
//! ([`crate::launch`]).

mod answer;
mod body;
mod channel;
mod given;
mod handshake;
mod message;
pub mod preface;
pub mod ready;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use runners::ssh::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::launch::{
    Ended, Following, GatewayEnvironment, GatewayKind, Installed, LaunchFault, Launcher, SessionName,
    SharedToken, random_name,
};
use crate::listeners::Exposure;
use crate::{Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};
use channel::Channel;
use handshake::{Established, HandshakeFault, establish};
use serve::{Limits, ServeEnd};
use wire::names::variable;

pub(crate) use body::TimedBody;
pub use given::{GivenHttp2, GivenOptions};
pub(crate) use message::malformed;
pub use message::{Addressed, Malformed, address};

/// Cleaning up at the end takes no longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// What of it the streams may have to finish.
const DRAIN_LIMIT: Duration = Duration::from_millis(3500);
/// A gateway at the end of its input has that long before it is killed.
const END_GRACE: Duration = Duration::from_millis(300);
/// Clearing away a gateway that never became ready.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(2);
/// Looking at where the gateway listens; it may stay unknown.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// A connection that lived that long was a good one: the next attempt follows at once.
const GOOD_LIFE: Duration = Duration::from_secs(10);
/// Ports tried at the start; somebody else may have one.
const PORT_ATTEMPTS: u32 = 3;
/// Ports to choose from: below those that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What a session asks of its tunnel.
#[derive(Clone, Debug)]
pub struct Http2Options {
    /// The session's name on the target.
    pub session: SessionName,
    /// What agents must show.
    pub token: SharedToken,
    /// Largest body in bytes; told to the gateway.
    pub max_body: u64,
    /// Streams at the same time; `None`: 256 for our own gateway and 4 for a script.
    pub streams: Option<u32>,
    /// How long the gateway may take to become ready, and then to speak HTTP/2.
    pub ready_timeout: Duration,
    /// The port of an earlier life of the session; `None`: any that is free.
    pub port: Option<u16>,
}

impl Http2Options {
    /// The usual limits: bodies of 10 MiB and 64 KiB, ten seconds to become ready, any port.
    #[must_use]
    pub fn new(session: SessionName, token: impl Into<SharedToken>) -> Self {
        Self {
            session,
            token: token.into(),
            max_body: wire::limits::DEFAULT_MAX_BODY,
            streams: None,
            ready_timeout: Duration::from_secs(10),
            port: None,
        }
    }
}

/// One session's gateway on a byte stream.
#[derive(Debug)]
pub struct Http2 {
    launcher: Launcher,
    options: Http2Options,
    /// The port of the first success; the same is asked for ever after.
    kept: Option<u16>,
}

impl Http2 {
    /// A tunnel that starts its gateway once it is served.
    #[must_use]
    pub fn new(launcher: Launcher, options: Http2Options) -> Self {
        Self {
            launcher,
            options,
            kept: None,
        }
    }

    /// Ends the gateway that an earlier host of this session may have left on the target: a script does not end with its
    /// channel. Takes a second at most beyond the installation of the gateway.
    ///
    /// # Errors
    ///
    /// One line saying what is left.
    pub async fn clear(self) -> Result<(), String> {
        let installed = self.launcher.install().await.map_err(|fault| fault.to_string())?;
        match self.stop(&installed, STOP_LIMIT).await {
            TunnelEnd::StoppedUnclean(left) => Err(left),
            TunnelEnd::Stopped | TunnelEnd::Refused { .. } | TunnelEnd::Unreachable(_) => Ok(()),
        }
    }
}

impl Tunnel for Http2 {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        let mut this = *self;
        Box::pin(async move { this.run(&callbacks, &status, &stop).await })
    }

    fn name(&self) -> &'static str {
        "http2_v1"
    }
}

/// Serves a byte stream at whose other end a test plays the gateway, and says in a line how it ended.
#[doc(hidden)]
pub async fn serve_stream(
    stream: Box<dyn runners::runner::DuplexStream>,
    kind: GatewayKind,
    nonce: &str,
    listening: Listening,
    callbacks: Arc<dyn Callbacks>,
    stop: CancellationToken,
) -> String {
    let limit = Duration::from_secs(10);
    let established = match establish(stream, nonce, Instant::now(), limit).await {
        Ok(established) => established,
        Err(fault) => return fault.to_string(),
    };
    let (channel, limits) = (Channel::new(established), Limits::of(kind, None));
    let end = serve::serve(channel, kind, limits, &listening, &callbacks, &stop, DRAIN_LIMIT).await;
    format!("{end:?}")
}

/// Why there is no connection.
enum OpenFault {
    Launch(LaunchFault),
    Handshake(HandshakeFault),
    /// The very port that we need is somebody else's.
    PortTaken(u16),
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(fault) => fault.fmt(f),
            Self::Handshake(fault) => fault.fmt(f),
            Self::PortTaken(port) => write!(
                f,
                "another program listens on port {port} of the target; it is waited for, because the agent knows no \
                 other port"
            ),
        }
    }
}

impl OpenFault {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Launch(fault) => fault.reason(),
            Self::Handshake(fault) => fault.reason(),
            Self::PortTaken(_) => "port_taken",
        }
    }

    fn into_end(self) -> TunnelEnd {
        if let Self::Launch(fault) = self {
            return fault.into_end();
        }
        TunnelEnd::Refused {
            reason: self.reason(),
            detail: self.to_string(),
        }
    }
}

impl Http2 {
    async fn run(
        &mut self,
        callbacks: &Arc<dyn Callbacks>,
        status: &StatusReporter,
        stop: &CancellationToken,
    ) -> TunnelEnd {
        let installed = tokio::select! {
            installed = self.launcher.install() => installed,
            () = stop.cancelled() => return TunnelEnd::Stopped,
        };
        let mut installed = match installed {
            Ok(installed) => installed,
            Err(fault) => return fault.into_end(),
        };
        let mut backoff = Backoff::default();
        loop {
            let opened = tokio::select! {
                opened = self.open(&mut installed) => opened,
                () = stop.cancelled() => return self.stop(&installed, STOP_LIMIT).await,
            };
            match opened {
                Ok((established, port)) => {
                    self.kept = Some(port);
                    let began = Instant::now();
                    match self.serve_one(established, port, callbacks, status, stop).await {
                        ServeEnd::Stopped { drained } => {
                            return self.stop(&installed, STOP_LIMIT.saturating_sub(drained)).await;
                        }
                        ServeEnd::Lost(detail) => {
                            tracing::info!(target_host = %self.launcher.runner().target(), detail, "gateway lost");
                            status.set(Status::Reconnecting {
                                reason: "connection_lost",
                                detail,
                            });
                        }
                    }
                    if began.elapsed() >= GOOD_LIFE {
                        backoff.reset();
                        continue;
                    }
                }
                Err(fault) if self.kept.is_none() => {
                    if matches!(fault, OpenFault::Handshake(_)) {
                        // Whatever runs there must not stand in the way of the next tunnel.
                        let _ = self.stop(&installed, GIVE_UP_LIMIT).await;
                    }
                    return fault.into_end();
                }
                Err(fault) => self.report(&fault, status),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_jittered()) => {}
                () = stop.cancelled() => return self.stop(&installed, STOP_LIMIT).await,
            }
        }
    }

    fn report(&self, fault: &OpenFault, status: &StatusReporter) {
        let (reason, detail) = (fault.reason(), fault.to_string());
        tracing::debug!(target_host = %self.launcher.runner().target(), reason, detail, "gateway not back yet");
        status.set(match fault {
            OpenFault::PortTaken(_) => Status::Degraded { reason, detail },
            OpenFault::Launch(_) | OpenFault::Handshake(_) => Status::Reconnecting { reason, detail },
        });
    }

    /// Starts the gateway on the port that it must have, or at first on any that is free.
    async fn open(&self, installed: &mut Installed) -> Result<(Established, u16), OpenFault> {
        if let Some(port) = self.kept.or(self.options.port) {
            return match self.start(installed, port).await {
                Ok(established) => Ok((established, port)),
                Err(OpenFault::Handshake(HandshakeFault::Exited)) => {
                    Err(self.why_exited(installed, port).await)
                }
                Err(fault) => Err(fault),
            };
        }
        let mut attempts = 1;
        loop {
            let port = random_port();
            match self.start(installed, port).await {
                Ok(established) => return Ok((established, port)),
                // It says why on its stderr, which no channel carries: the port may be taken, so another one.
                Err(OpenFault::Handshake(HandshakeFault::Exited)) if attempts < PORT_ATTEMPTS => {
                    attempts += 1
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    async fn start(&self, installed: &Installed, port: u16) -> Result<Established, OpenFault> {
        let options = &self.options;
        let nonce = random_name().map_err(OpenFault::Launch)?;
        let kind = self.launcher.kind();
        // Until it is ready: another token meanwhile would be taken by neither this gateway nor the one before.
        let mut held = options.token.held().await;
        let mut environment = GatewayEnvironment::http2(kind, &held.token, port, &nonce, options.max_body)
            .map_err(OpenFault::Launch)?;
        held.gateway = None;
        if kind == GatewayKind::Binary {
            let file = installed.token_file(&options.session);
            environment
                .set(variable::TOKEN_FILE, file.as_str())
                .map_err(OpenFault::Launch)?;
            held.gateway = Some(Following {
                launcher: self.launcher.clone(),
                file,
                start: Some(nonce.clone()),
                fence: None,
            });
        }
        let duplex = self
            .launcher
            .open(installed, &options.session, &environment)
            .await
            .map_err(OpenFault::Launch)?;
        establish(duplex.stream, &nonce, Instant::now(), options.ready_timeout)
            .await
            .map_err(OpenFault::Handshake)
    }

    /// A gateway that ended on the port that it must have: it is taken, or the program is gone from its folder.
    async fn why_exited(&self, installed: &mut Installed, port: u16) -> OpenFault {
        if let Ok(Exposure::Loopback | Exposure::Beyond(_)) = self.launcher.listener(port).await {
            return OpenFault::PortTaken(port);
        }
        match self.launcher.install().await {
            Ok(found) => {
                *installed = found;
                OpenFault::Handshake(HandshakeFault::Exited)
            }
            Err(fault) => OpenFault::Launch(fault),
        }
    }

    async fn serve_one(
        &self,
        established: Established,
        port: u16,
        callbacks: &Arc<dyn Callbacks>,
        status: &StatusReporter,
        stop: &CancellationToken,
    ) -> ServeEnd {
        let listening = Listening::Tcp { port };
        let look = tokio::time::timeout(LOOK_LIMIT, self.launcher.listener(port)).await;
        let verified_loopback = match look {
            Ok(Ok(Exposure::Loopback)) => Some(true),
            Ok(Ok(Exposure::Beyond(_))) => Some(false),
            Ok(Ok(Exposure::Unknown) | Err(_)) | Err(_) => None,
        };
        status.set(Status::Ready {
            listening: listening.clone(),
            verified_loopback,
        });
        let kind = self.launcher.kind();
        let limits = Limits::of(kind, self.options.streams);
        let channel = Channel::new(established);
        serve::serve(channel, kind, limits, &listening, callbacks, stop, DRAIN_LIMIT).await
    }

    /// Makes sure that the gateway is gone, and its record with it.
    async fn stop(&self, installed: &Installed, limit: Duration) -> TunnelEnd {
        let ended = self.launcher.end(installed, &self.options.session, END_GRACE);
        let unclean = |why: String| {
            TunnelEnd::StoppedUnclean(format!(
                "the gateway may still be there, although it ends itself at the end of its input: {why}"
            ))
        };
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(Ended::WasGone | Ended::Now)) => TunnelEnd::Stopped,
            Ok(Ok(Ended::StillThere)) => unclean("it could not be killed".to_owned()),
            Ok(Err(fault)) => unclean(fault.to_string()),
            Err(_) => unclean(format!("the target did not answer within {limit:?}")),
        }
    }
}

fn random_port() -> u16 {
    let random = getrandom::u32().unwrap_or_default();
    let span = u32::from(PORTS.end - PORTS.start);
    PORTS.start + u16::try_from(random % span).unwrap_or_default()
}
