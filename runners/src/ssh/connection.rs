//! One SSH connection.
//!
//! Here: opening it (TCP or through another connection, host key, login), opening channels on it, asking for forwards,
//! and its end. Not here: when to open another one ([`super::pool`]), and what runs on it ([`super::exec`],
//! [`super::forward`]).
//!
//! Everything of a connection runs on the tokio runtime where it was opened. Dropping the last reference ends the
//! session task, and with it every channel and forward at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use russh::client::{Handle, Msg};
use russh::{Channel, Disconnect};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::auth;
use super::channel::ChannelIo;
use super::dispatch::{Dispatcher, SessionError};
use super::forward::ForwardError;
use super::settings::{ConnectionLimits, ConnectionSettings, client_config};
use super::shared::{Farewell, ForwardKey, Shared};
use super::socket::{Controls, Socket};
use crate::RunnerError;

/// How often overdue channels are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that is logged in.
pub struct Connection {
    shared: Arc<Shared>,
    handle: Arc<Handle<Dispatcher>>,
    /// Session channels in use, against the server's `MaxSessions`.
    sessions: Arc<AtomicUsize>,
    _sweeper: AbortOnDropHandle<()>,
    /// The hop before this one lives as long as we do.
    _via: Option<Arc<Connection>>,
}

/// Why a channel was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The server said no: for a session channel, `MaxSessions` is the usual reason.
    Refused(String),
    /// The connection is gone or did not answer; nothing was started.
    Lost(String),
}

/// The address that forwards are asked for on.
const LOOPBACK: &str = "127.0.0.1";

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Unreachable`] with what failed and what to do.
    pub async fn open(settings: &ConnectionSettings) -> Result<Arc<Self>, RunnerError> {
        open_boxed(settings)
            .await
            .map_err(|reason| RunnerError::Unreachable {
                target: settings.target.clone(),
                reason,
            })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The target in the operator's words.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.shared.target
    }

    /// Deadlines and sizes that it was opened with.
    #[must_use]
    pub fn limits(&self) -> ConnectionLimits {
        self.shared.limits
    }

    /// Why it ended; `None` while it lives.
    #[must_use]
    pub fn end_reason(&self) -> Option<Arc<str>> {
        self.shared.ended()
    }

    /// Waits for its end and says why.
    pub async fn closed(&self) -> Arc<str> {
        self.shared.wait_ended().await
    }

    /// Session channels in use.
    #[must_use]
    pub fn sessions_in_use(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Channels of any kind that are open or linger.
    #[must_use]
    pub fn open_channels(&self) -> usize {
        self.shared.open_channels()
    }

    /// Channels that the server opened and nobody had asked for; all were refused.
    #[must_use]
    pub fn unsolicited_channels(&self) -> u64 {
        self.shared.refused()
    }

    /// Channels that we had to close first; russh keeps about 3.5 KB of each.
    #[must_use]
    pub fn channels_closed_by_us(&self) -> u64 {
        self.shared.closed_by_us()
    }

    /// Whether a new connection should take over; this one still works.
    #[must_use]
    pub fn is_worn_out(&self) -> bool {
        self.shared.closed_by_us() >= self.shared.limits.worn_out_after
    }

    /// Says that sshd has turned Nagle off, so that reads need no immediate acknowledgement any more.
    pub(super) fn no_more_quick_ack(&self) {
        self.shared.controls.set_quick_ack(false);
    }

    /// Ends the connection in order: tells the server, and waits a second for it to go.
    pub async fn close(&self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            if goodbye.await.is_ok() {
                self.closed().await;
            }
        })
        .await;
        self.shared.end("closed by us");
    }

    /// Takes room for one command against the server's `MaxSessions`, until the guard is dropped.
    pub(super) fn reserve(&self) -> SessionGuard {
        SessionGuard::new(&self.sessions)
    }

    /// Opens a channel for one command.
    pub(super) async fn open_session(&self) -> Result<ChannelIo, OpenError> {
        let handle = Arc::clone(&self.handle);
        let io = self
            .open_channel(async move { handle.channel_open_session().await })
            .await?;
        io.inbox().set_cap(self.shared.limits.output_cap);
        Ok(io)
    }

    /// Opens a TCP connection from the server to `host`.
    pub(super) async fn open_direct(&self, host: &str, port: u16) -> Result<ChannelIo, OpenError> {
        let (handle, host) = (Arc::clone(&self.handle), host.to_owned());
        let open = async move {
            handle
                .channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0)
                .await
        };
        let io = self.open_channel(open).await?;
        io.inbox().set_cap(self.shared.limits.output_cap);
        Ok(io)
    }

    async fn open_channel(
        &self,
        open: impl Future<Output = Result<Channel<Msg>, russh::Error>> + Send + 'static,
    ) -> Result<ChannelIo, OpenError> {
        let shared = Arc::clone(&self.shared);
        let (done, opened) = oneshot::channel();
        let limit = self.shared.limits.request;
        // A task of its own: when the caller gives up, the channel that still opens must be let go of again.
        let task = async move {
            let opened = match tokio::time::timeout(limit * 2, open).await {
                Ok(Ok(channel)) => match shared.inbox(channel.id()) {
                    Some(inbox) => {
                        let (_, writer) = channel.split();
                        Ok(ChannelIo::new(Arc::clone(&shared), inbox, writer))
                    }
                    None => Err(OpenError::Lost("the channel closed while it opened".to_owned())),
                },
                Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                    Err(OpenError::Refused(reason.description().to_owned()))
                }
                Ok(Err(error)) => Err(OpenError::Lost(lost(&shared, &error.to_string()))),
                Err(_) => Err(OpenError::Lost("the server does not answer".to_owned())),
            };
            // Without a receiver the channel is dropped here, which ends it.
            let _ = done.send(opened);
        };
        let opener = tokio::spawn(task);
        let answer = tokio::time::timeout(limit, opened).await;
        drop(opener);
        match answer {
            Ok(Ok(opened)) => opened,
            Ok(Err(_)) => Err(OpenError::Lost(lost(&self.shared, "gone"))),
            Err(_) => Err(OpenError::Lost(format!(
                "the server did not open a channel within {limit:?}"
            ))),
        }
    }

    pub(super) async fn request_tcp_forward(
        &self,
        bind_address: &str,
        port: u16,
    ) -> Result<u16, ForwardError> {
        let answer = self
            .answered(self.handle.tcpip_forward(bind_address, u32::from(port)))
            .await?;
        match answer {
            Ok(_) if port != 0 => Ok(port),
            Ok(granted) => match u16::try_from(granted) {
                Ok(granted) if granted != 0 => Ok(granted),
                Ok(_) | Err(_) => Err(ForwardError::Nonsense(format!("port {granted}"))),
            },
            Err(russh::Error::RequestDenied) if port == 0 => Err(ForwardError::Refused),
            Err(russh::Error::RequestDenied) => Err(ForwardError::PortRefused { port }),
            Err(error) => Err(ForwardError::Lost(lost(&self.shared, &error.to_string()))),
        }
    }

    pub(super) async fn request_unix_forward(&self, path: &str) -> Result<(), ForwardError> {
        match self.answered(self.handle.streamlocal_forward(path)).await? {
            Ok(()) => Ok(()),
            Err(russh::Error::RequestDenied) => Err(ForwardError::UnixRefused {
                path: path.to_owned(),
            }),
            Err(error) => Err(ForwardError::Lost(lost(&self.shared, &error.to_string()))),
        }
    }

    pub(super) async fn cancel_forward(
        &self,
        key: &ForwardKey,
        bind_address: &str,
    ) -> Result<(), ForwardError> {
        let mut answer = self.answered(cancel(&self.handle, key, bind_address)).await?;
        if matches!(answer, Err(russh::Error::RequestDenied)) && bind_address == LOOPBACK {
            // Dropbear files a loopback listener under this name, whatever name it was asked for by.
            answer = self.answered(cancel(&self.handle, key, "localhost")).await?;
        }
        match answer {
            Ok(()) => Ok(()),
            Err(russh::Error::RequestDenied) => {
                Err(ForwardError::Nonsense("a refusal to stop listening".to_owned()))
            }
            Err(error) => Err(ForwardError::Lost(lost(&self.shared, &error.to_string()))),
        }
    }

    /// russh answers a request when the server does, which may be never.
    async fn answered<T>(&self, request: impl Future<Output = T>) -> Result<T, ForwardError> {
        let limit = self.shared.limits.request;
        tokio::select! {
            answer = tokio::time::timeout(limit, request) => {
                answer.map_err(|_| ForwardError::Lost(format!("no answer within {limit:?}")))
            }
            reason = self.shared.wait_ended() => Err(ForwardError::Lost(reason.to_string())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.end("closed by us");
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("target", &self.shared.target)
            .field("sessions", &self.sessions_in_use())
            .field("ended", &self.end_reason())
            .finish_non_exhaustive()
    }
}

/// One session channel in use.
#[derive(Debug)]
pub(super) struct SessionGuard(Arc<AtomicUsize>);

impl SessionGuard {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn cancel(
    handle: &Handle<Dispatcher>,
    key: &ForwardKey,
    bind_address: &str,
) -> Result<(), russh::Error> {
    match key {
        ForwardKey::Tcp { port } => handle.cancel_tcpip_forward(bind_address, *port).await,
        ForwardKey::Unix { path } => handle.cancel_streamlocal_forward(path).await,
    }
}

fn lost(shared: &Shared, otherwise: &str) -> String {
    shared
        .ended()
        .map_or_else(|| otherwise.to_owned(), |reason| reason.to_string())
}

/// Boxed because a hop opens the hop before it.
fn open_boxed(settings: &ConnectionSettings) -> BoxFuture<'_, Result<Arc<Connection>, String>> {
    Box::pin(open(settings))
}

async fn open(settings: &ConnectionSettings) -> Result<Arc<Connection>, String> {
    let limits = settings.limits;
    let via = match &settings.via {
        Some(hop) => Some(
            open_boxed(hop)
                .await
                .map_err(|reason| format!("through {}: {reason}", hop.target))?,
        ),
        None => None,
    };
    let controls = Arc::new(Controls::default());
    let shared = Arc::new(Shared::new(
        settings.target.clone(),
        Arc::clone(&controls),
        limits,
    ));
    // Whatever fails from here on: the session task that russh may have spawned must end.
    let mut unfinished = EndUnlessKept(Some(Arc::clone(&shared)));
    let socket = dial(settings, via.as_deref(), &controls).await?;
    controls.set_quick_ack(true);
    let shake = async {
        let dispatcher = Dispatcher::new(
            Arc::clone(&shared),
            settings.host_keys.clone(),
            settings.host.clone(),
            settings.port,
        );
        let config = Arc::new(client_config(settings));
        let mut handle = russh::client::connect_stream(config, socket, dispatcher)
            .await
            .map_err(|error| handshake_fault(&error))?;
        auth::log_in(&mut handle, &settings.user, &settings.identities).await?;
        Ok::<_, String>(handle)
    };
    let handle = match tokio::time::timeout(limits.handshake, shake).await {
        Ok(shaken) => Arc::new(shaken?),
        Err(_) => {
            return Err(format!(
                "no login within {:?}; is this an SSH server?",
                limits.handshake
            ));
        }
    };
    let sweeper = tokio::spawn(sweep(Arc::clone(&shared), Arc::clone(&handle)));
    unfinished.0 = None;
    Ok(Arc::new(Connection {
        shared,
        handle,
        sessions: Arc::default(),
        _sweeper: AbortOnDropHandle::new(sweeper),
        _via: via,
    }))
}

struct EndUnlessKept(Option<Arc<Shared>>);

impl Drop for EndUnlessKept {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.end("not completed");
        }
    }
}

async fn dial(
    settings: &ConnectionSettings,
    via: Option<&Connection>,
    controls: &Arc<Controls>,
) -> Result<Socket, String> {
    let limits = settings.limits;
    // A server that reads nothing for as long as it may stay silent is gone.
    let stall = limits.silence();
    let (host, port) = (&settings.host, settings.port);
    if let Some(hop) = via {
        return match hop.open_direct(host, port).await {
            Ok(channel) => Ok(Socket::over(channel, Arc::clone(controls), stall)),
            Err(OpenError::Refused(reason)) => Err(format!(
                "{} does not connect to {host}:{port}: {reason}; look for `AllowTcpForwarding` and `PermitOpen` there",
                hop.shared.target
            )),
            Err(OpenError::Lost(reason)) => Err(format!("through {}: {reason}", hop.shared.target)),
        };
    }
    match tokio::time::timeout(
        limits.connect,
        Socket::connect(host, port, Arc::clone(controls), stall),
    )
    .await
    {
        Ok(Ok((socket, peer))) => {
            tracing::debug!(%peer, "TCP connection to SSH server");
            Ok(socket)
        }
        Ok(Err(error)) => Err(format!("no TCP connection to {host}:{port}: {error}")),
        Err(_) => Err(format!(
            "no TCP connection to {host}:{port} within {:?}",
            limits.connect
        )),
    }
}

fn handshake_fault(error: &SessionError) -> String {
    match error {
        SessionError::HostKey(text) => text.clone(),
        SessionError::Ssh(russh::Error::NoCommonAlgo { kind, theirs, .. }) => {
            format!(
                "no {kind:?} algorithm in common; the server offers {}",
                theirs.join(", ")
            )
        }
        SessionError::Ssh(russh::Error::Version) => "what answers there is not an SSH server".to_owned(),
        SessionError::Ssh(error) => format!("the SSH handshake failed: {error}"),
    }
}

/// Says what did not fit into russh's queues, and closes what the server should have closed.
async fn sweep(shared: Arc<Shared>, handle: Arc<Handle<Dispatcher>>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.farewell_due.notified() => {}
        }
        for farewell in shared.take_farewells() {
            let said = match &farewell {
                Farewell::Eof(writer) => writer.eof().await,
                Farewell::Close(writer) => writer.close().await,
                Farewell::CancelForward(key, bind_address) => {
                    let answer =
                        tokio::time::timeout(Duration::from_secs(5), cancel(&handle, key, bind_address))
                            .await;
                    answer.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = said {
                tracing::trace!(%error, "a last word was not said");
            }
        }
        for writer in shared.take_overdue(Instant::now()) {
            tracing::debug!(target_host = %shared.target, "the server did not close a channel in time; closed by us");
            let _ = writer.close().await;
        }
    }
}
