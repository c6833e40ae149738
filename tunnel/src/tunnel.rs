//! The seam between what carries callbacks and what answers them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Carries callbacks from one target until it ends, and says why it ended.
pub trait Tunnel: fmt::Debug + Send {
    /// Serves every stream with `callbacks` until `stop` is cancelled or the tunnel cannot go on.
    ///
    /// `status` is told of every change: where the listener is, what is wrong, that it works again. Once it has
    /// been `Ready`, a tunnel that loses its channel brings the same listener back by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener as far as the channel still allows; cancelling `stop` does so in
    /// order and waits for it, five seconds at most.
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd>;

    /// A short stable name for status, logs and metrics, such as `ssh-reverse`.
    fn name(&self) -> &'static str;
}

/// Answers what an agent sends; made by the daemon, one per session.
pub trait Callbacks: fmt::Debug + Send + Sync {
    /// Serves one byte stream of HTTP/1 to its end.
    ///
    /// The future owns the stream. It ends when either side has closed; the tunnel drops it to cut the stream.
    fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()>;
}

/// One connection that an agent opened.
pub struct AgentStream {
    /// Its bytes.
    pub bytes: Box<dyn ByteStream>,
    /// The listener it came in on, as the agent sees it.
    pub listening: Listening,
}

impl fmt::Debug for AgentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentStream")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

/// Both directions in one object.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Where an agent reaches the bridge, on its own machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// A loopback TCP port.
    Tcp {
        /// The port, never 0.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Its path on the target.
        path: PathBuf,
    },
}

/// What a session's status says of its tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not listening yet.
    Starting,
    /// Listening and able to serve.
    Ready {
        /// Where.
        listening: Listening,
        /// The address that listens was read on the target and is loopback; `None` where it could not be read.
        verified_loopback: Option<bool>,
    },
    /// The channel is gone and is being brought back.
    Reconnecting {
        /// A stable reason, such as `connection_lost`.
        reason: &'static str,
        /// One line for the operator.
        detail: String,
    },
    /// Connected, but the same listener could not be had yet; retried, never moved elsewhere.
    Degraded {
        /// A stable reason, such as `port_taken`.
        reason: &'static str,
        /// One line for the operator.
        detail: String,
    },
}

/// The writing end of a tunnel's status.
#[derive(Clone, Debug)]
pub struct StatusReporter {
    sender: watch::Sender<Status>,
}

impl StatusReporter {
    /// A reporter and what watches it; starts as [`Status::Starting`].
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Status>) {
        let (sender, receiver) = watch::channel(Status::Starting);
        (Self { sender }, receiver)
    }

    /// Says what is so now.
    pub fn set(&self, status: Status) {
        tracing::debug!(?status, "tunnel status");
        self.sender.send_replace(status);
    }
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum TunnelEnd {
    /// It was asked to stop and has cleaned up.
    Stopped,
    /// It was asked to stop and something may be left; one line for the operator.
    StoppedUnclean(String),
    /// It cannot work on this target: a stable reason, such as `forwarding_refused`, and what to do.
    Refused {
        /// Stable reason.
        reason: &'static str,
        /// What is in the way and how to change it.
        detail: String,
    },
    /// The target could not be reached at the start.
    Unreachable(String),
}
