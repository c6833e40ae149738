//! The reverse tunnel over SSH: the target's own sshd listens, and nothing of ours runs there.
//!
//! Here: the life of one session's listener: asking for it, checking where it really listens, handing its connections
//! over, and bringing the same port back after a lost connection, never another one. Not here: SSH itself
//! (`runners::ssh`), and what the connections say. Read next: `check`, which is all that runs on the target.

mod check;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use runners::RunnerError;
use runners::shell::{Scope, StartedProcess};
use runners::ssh::{Backoff, Connection, Forward, ForwardError, SshHost};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::listeners::Exposure;
use crate::{
    AgentStream, Callbacks, Listening, ProcessPlace, Status, StatusReporter, TargetProcess, Tunnel, TunnelEnd,
};
use check::Finding;

/// Connections of one session served at a time; further ones wait in the listener's queue, and beyond it are refused.
const STREAM_LIMIT: usize = 512;
/// Cleaning up at the end takes no longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A half-dead sshd that holds our port gets so long after `TERM`; a stopped one never reacts to that.
const HALF_DEAD_GRACE: Duration = Duration::from_millis(300);
/// An earlier life's port that is not free yet is asked for so often before it is told that it is taken.
const RETURN_ATTEMPTS: u32 = 6;
/// Unread bytes that one connection may hold: a body of 10 MiB and 64 KiB, a head, and 256 KiB.
pub const DEFAULT_STREAM_CAP: usize = (10 * 1024 + 64 + 32 + 256) * 1024;

/// Where the target's sshd shall listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// On 127.0.0.1; port 0 lets the server choose, and the choice is kept for the life of the session.
    Tcp {
        /// The port.
        port: u16,
    },
    /// On a unix socket, which only the login's own user can open.
    Unix {
        /// Its absolute path on the target; what lies there must be ours or nothing.
        path: PathBuf,
    },
}

/// What a session asks of its tunnel.
#[derive(Clone, Debug)]
pub struct SshReverseOptions {
    /// Where to listen.
    pub bind: Bind,
    /// Accept a listener that more than the target itself can reach.
    pub allow_exposed: bool,
    /// Unread bytes that one connection may hold before it is cut (`channel_overrun`).
    pub stream_cap: usize,
    /// What an earlier life of the session left; `bind` is then what its agent knows.
    pub earlier: Option<EarlierLife>,
    /// Told which process serves the listener there.
    pub process: ProcessPlace,
}

/// What an earlier life of a session left on its target.
#[derive(Clone, Debug, Default)]
pub struct EarlierLife {
    /// The sshd process that served it; `None` where the target has no `/proc`.
    pub sshd: Option<TargetProcess>,
}

impl Default for SshReverseOptions {
    fn default() -> Self {
        Self {
            bind: Bind::Tcp { port: 0 },
            allow_exposed: false,
            stream_cap: DEFAULT_STREAM_CAP,
            earlier: None,
            process: ProcessPlace::default(),
        }
    }
}

/// One session's reverse tunnel on a shared connection.
#[derive(Debug)]
pub struct SshReverse {
    host: Arc<SshHost>,
    options: SshReverseOptions,
    /// What the first success was given; the same is asked for ever after.
    kept: Option<Listening>,
    /// The sshd process that serves our connection, should it stay behind half dead.
    sshd: Option<StartedProcess>,
    /// Attempts to have an earlier life's port again.
    attempts: u32,
}

impl SshReverse {
    /// A tunnel that listens once it is served.
    #[must_use]
    pub fn new(host: Arc<SshHost>, options: SshReverseOptions) -> Self {
        let earlier = options.earlier.as_ref().and_then(|earlier| earlier.sshd.clone());
        Self {
            host,
            options,
            kept: None,
            sshd: earlier.map(|sshd| StartedProcess {
                pid: sshd.pid,
                scope: Scope::LeaderOnly,
                start: Some(sshd.start),
            }),
            attempts: 0,
        }
    }
}

impl Tunnel for SshReverse {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        Box::pin(async move {
            let mut this = *self;
            let mut streams = JoinSet::new();
            let end = this.run(&callbacks, &status, &stop, &mut streams).await;
            streams.shutdown().await;
            end
        })
    }

    fn name(&self) -> &'static str {
        "ssh-reverse"
    }
}

/// A live listener.
struct Listener {
    connection: Arc<Connection>,
    forward: Forward,
    listening: Listening,
    verified: Option<bool>,
}

/// Why there is no listener.
enum ListenFault {
    Unreachable(String),
    /// The very port that we had; perhaps held by what is left of our own last connection.
    PortTaken(String),
    Refused {
        reason: &'static str,
        detail: String,
    },
    /// The connection went away in between.
    Lost(String),
}

/// Why a listener is served no more.
enum ServeEnd {
    Stopped,
    Lost(String),
    /// The connection is worn out: another one takes over.
    Renew,
}

impl SshReverse {
    async fn run(
        &mut self,
        callbacks: &Arc<dyn Callbacks>,
        status: &StatusReporter,
        stop: &CancellationToken,
        streams: &mut JoinSet<()>,
    ) -> TunnelEnd {
        let mut backoff = Backoff::default();
        loop {
            let listened = tokio::select! {
                listened = self.listen() => listened,
                () = stop.cancelled() => return TunnelEnd::Stopped,
            };
            match listened {
                Ok(mut listener) => {
                    backoff.reset();
                    status.set(Status::Ready {
                        listening: listener.listening.clone(),
                        verified_loopback: listener.verified,
                    });
                    self.kept = Some(listener.listening.clone());
                    match serve(&mut listener, callbacks, stop, streams).await {
                        ServeEnd::Stopped => return self.stop(listener).await,
                        ServeEnd::Lost(detail) => {
                            tracing::info!(target_host = %self.host.target(), detail, "reverse tunnel lost its connection");
                            status.set(Status::Reconnecting {
                                reason: "connection_lost",
                                detail,
                            });
                        }
                        ServeEnd::Renew => self.retire(listener, streams).await,
                    }
                    continue;
                }
                Err(fault) => {
                    if let Some(end) = self.judge(fault, status).await {
                        return end;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_jittered()) => {}
                () = stop.cancelled() => return TunnelEnd::Stopped,
            }
        }
    }

    /// Says what a failure means: the end, or another attempt.
    async fn judge(&mut self, fault: ListenFault, status: &StatusReporter) -> Option<TunnelEnd> {
        let has_listened = self.kept.is_some();
        match fault {
            ListenFault::Refused { reason, detail } => Some(TunnelEnd::Refused { reason, detail }),
            ListenFault::Unreachable(detail) | ListenFault::Lost(detail) if !has_listened => {
                Some(TunnelEnd::Unreachable(detail))
            }
            ListenFault::PortTaken(detail) if !has_listened => {
                self.attempts += 1;
                if self.options.earlier.is_some() && self.attempts < RETURN_ATTEMPTS {
                    // What served the earlier life may just be ending.
                    self.end_half_dead().await;
                    return None;
                }
                Some(TunnelEnd::Refused {
                    reason: self.taken(),
                    detail,
                })
            }
            ListenFault::Unreachable(detail) => {
                status.set(Status::Reconnecting {
                    reason: "unreachable",
                    detail,
                });
                None
            }
            ListenFault::Lost(detail) => {
                status.set(Status::Reconnecting {
                    reason: "connection_lost",
                    detail,
                });
                None
            }
            ListenFault::PortTaken(detail) => {
                status.set(Status::Degraded {
                    reason: "port_taken",
                    detail,
                });
                self.end_half_dead().await;
                None
            }
        }
    }

    /// Who has the port: without the process of the earlier life nobody can tell it from somebody else's.
    fn taken(&self) -> &'static str {
        match &self.options.earlier {
            Some(EarlierLife { sshd: None }) => "port_held",
            Some(EarlierLife { sshd: Some(_) }) | None => "port_taken",
        }
    }

    /// Ends what is left of the sshd that served our last connection, if it is still that very process.
    async fn end_half_dead(&mut self) {
        let Some(sshd) = self.sshd.take() else { return };
        match self.host.end_process(&sshd, HALF_DEAD_GRACE).await {
            Ok(outcome) => {
                tracing::info!(target_host = %self.host.target(), pid = sshd.pid, ?outcome, "ended what was left of our last connection");
            }
            Err(error) => {
                tracing::debug!(target_host = %self.host.target(), %error, "what is left of our last connection could not be ended");
                self.sshd = Some(sshd);
            }
        }
    }

    async fn listen(&mut self) -> Result<Listener, ListenFault> {
        let connection = self
            .host
            .connection()
            .await
            .map_err(|error| ListenFault::Unreachable(error.to_string()))?;
        if self.kept.is_none() && self.options.earlier.is_some() {
            // Before anything of ours is opened: it may still serve what nobody may serve any more.
            self.end_half_dead().await;
        }
        let cap = self.options.stream_cap;
        let (forward, listening) = match self
            .kept
            .as_ref()
            .map_or_else(|| self.options.bind.clone(), bind_again)
        {
            Bind::Tcp { port } => {
                let forward = connection
                    .forward_tcp("127.0.0.1", port, cap)
                    .await
                    .map_err(forward_fault)?;
                let listening = Listening::Tcp { port: forward.port() };
                (forward, listening)
            }
            Bind::Unix { path } => (
                self.listen_unix(&connection, &path).await?,
                Listening::Unix { path },
            ),
        };
        let port = forward.port();
        let finding = check::inspect(&self.host, &connection, port).await;
        let Finding { sshd, exposure } = finding;
        if let Some(sshd) = sshd {
            if let Some(start) = &sshd.start {
                self.options.process.set(TargetProcess {
                    pid: sshd.pid,
                    start: start.clone(),
                });
            }
            self.sshd = Some(sshd);
        }
        let verified = match (&listening, exposure) {
            // No other machine reaches a unix socket.
            (Listening::Unix { .. }, _) | (Listening::Tcp { .. }, Exposure::Loopback) => Some(true),
            (Listening::Tcp { .. }, Exposure::Unknown) | (Listening::Url { .. }, _) => None,
            (Listening::Tcp { .. }, Exposure::Beyond(_)) if self.options.allow_exposed => Some(false),
            (Listening::Tcp { .. }, Exposure::Beyond(addresses)) => {
                let _ = tokio::time::timeout(STOP_LIMIT, forward.cancel(&connection)).await;
                return Err(not_loopback(port, &addresses));
            }
        };
        if let Some(reason) = connection.end_reason() {
            return Err(ListenFault::Lost(reason.to_string()));
        }
        Ok(Listener {
            connection,
            forward,
            listening,
            verified,
        })
    }

    /// A socket file outlives the sshd that made it, and sshd binds over it only with `StreamLocalBindUnlink yes`.
    async fn listen_unix(&self, connection: &Arc<Connection>, path: &Path) -> Result<Forward, ListenFault> {
        let text = path
            .to_str()
            .filter(|text| text.starts_with('/'))
            .ok_or_else(|| ListenFault::Refused {
                reason: "bad_socket_path",
                detail: format!("{} is not an absolute path in UTF-8", path.display()),
            })?;
        let cap = self.options.stream_cap;
        match connection.forward_unix(text, cap).await {
            Err(ForwardError::UnixRefused { .. })
                if self.kept.is_some() || self.options.earlier.is_some() =>
            {
                check::remove_socket(connection, text).await;
                connection.forward_unix(text, cap).await.map_err(forward_fault)
            }
            other => other.map_err(forward_fault),
        }
    }

    /// Takes the listener off a worn-out connection, which stays until its last stream has ended.
    async fn retire(&mut self, listener: Listener, streams: &mut JoinSet<()>) {
        let Listener {
            connection, forward, ..
        } = listener;
        // The other connection first: between the two answers the port is gone for one round trip.
        if let Err(error) = self.host.connection().await {
            tracing::warn!(target_host = %self.host.target(), %error, "no fresh connection; the worn-out one goes on");
        }
        let _ = tokio::time::timeout(STOP_LIMIT, forward.cancel(&connection)).await;
        streams.spawn(async move {
            while connection.open_channels() > 0 && connection.end_reason().is_none() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    async fn stop(&self, listener: Listener) -> TunnelEnd {
        let Listener {
            connection,
            forward,
            listening,
            ..
        } = listener;
        let clean = async {
            forward
                .cancel(&connection)
                .await
                .map_err(|error| error.to_string())?;
            if let Listening::Unix { path } = &listening
                && let Some(text) = path.to_str()
            {
                check::remove_socket(&connection, text).await;
            }
            Ok::<(), String>(())
        };
        match tokio::time::timeout(STOP_LIMIT, clean).await {
            Ok(Ok(())) => TunnelEnd::Stopped,
            // With the connection gone the server has stopped listening by itself.
            Ok(Err(_)) if connection.end_reason().is_some() => TunnelEnd::Stopped,
            Ok(Err(reason)) => {
                TunnelEnd::StoppedUnclean(format!("the listener may still be there: {reason}"))
            }
            Err(_) => TunnelEnd::StoppedUnclean(format!(
                "the server did not say within {STOP_LIMIT:?} that it stopped listening"
            )),
        }
    }
}

fn bind_again(listening: &Listening) -> Bind {
    match listening {
        Listening::Tcp { port } => Bind::Tcp { port: *port },
        // Never one of ours.
        Listening::Url { .. } => Bind::Tcp { port: 0 },
        Listening::Unix { path } => Bind::Unix { path: path.clone() },
    }
}

fn forward_fault(error: ForwardError) -> ListenFault {
    let detail = error.to_string();
    match error {
        ForwardError::Refused | ForwardError::UnixRefused { .. } => ListenFault::Refused {
            reason: "forwarding_refused",
            detail,
        },
        ForwardError::PortRefused { .. } => ListenFault::PortTaken(detail),
        ForwardError::Lost(_) => ListenFault::Lost(detail),
        // The enum may grow; what is not known is not worked around.
        ForwardError::Nonsense(_) | _ => ListenFault::Refused {
            reason: "forwarding_failed",
            detail,
        },
    }
}

fn not_loopback(port: u16, addresses: &[String]) -> ListenFault {
    ListenFault::Refused {
        reason: "forward_not_loopback",
        detail: format!(
            "the SSH server listens on {} at port {port} although 127.0.0.1 was asked for, so other machines could \
             reach the session; set `GatewayPorts no` (or `clientspecified`) in its sshd_config, or accept that with \
             --allow-exposed-forward",
            addresses.join(" and ")
        ),
    }
}

/// Hands connections over until something ends.
async fn serve(
    listener: &mut Listener,
    callbacks: &Arc<dyn Callbacks>,
    stop: &CancellationToken,
    streams: &mut JoinSet<()>,
) -> ServeEnd {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return ServeEnd::Stopped,
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "serving a stream panicked");
                }
            }
            accepted = listener.forward.accept(), if streams.len() < STREAM_LIMIT => match accepted {
                Some(channel) => {
                    let stream = AgentStream { bytes: Box::new(channel), listening: listener.listening.clone() };
                    streams.spawn(callbacks.serve_stream(stream));
                    if listener.connection.is_worn_out() {
                        return ServeEnd::Renew;
                    }
                }
                None => return ServeEnd::Lost(listener.connection.closed().await.to_string()),
            },
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl From<RunnerError> for ListenFault {
    fn from(error: RunnerError) -> Self {
        Self::Unreachable(error.to_string())
    }
}
