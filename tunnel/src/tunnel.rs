//! The seam between what carries callbacks and what answers them.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

    /// Answers one callback that a gateway has already taken apart. Never fails: what is refused is answered, too.
    ///
    /// Dropping the future means that the caller has gone; a dispatched unsafe callback runs on to its deadline all
    /// the same, so that its outcome becomes known.
    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, http::Response<MessageBody>>;
}

/// Why a body broke off; the text is for the log.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way, either way. An error in it means: cut, never whole.
pub type MessageBody = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BodyError>;

/// One callback that came as a message: an HTTP/2 stream of a gateway, or a file of a queue.
///
/// Nothing of it has been judged but its framing.
#[derive(Debug)]
pub struct AgentMessage {
    /// As the caller wrote it.
    pub method: http::Method,
    /// The request target byte for byte: path and query, or whatever else stood there.
    pub target: bytes::Bytes,
    /// The caller's headers, without `Host`; with `authorization` where the gateway passes it on.
    pub headers: http::HeaderMap,
    /// The caller's `Host`; `None` where the gateway does not tell it, which then is no fault of the caller's.
    pub host: Option<bytes::Bytes>,
    /// What shows that the caller belongs to the session.
    pub proof: CallerProof,
    /// Its size hint is exact where the caller declared a length.
    pub body: MessageBody,
    /// The listener it came in on, as the agent sees it.
    pub listening: Listening,
}

/// What shows that a message's caller belongs to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerProof {
    /// The token in `authorization`, to be checked here.
    Token,
    /// The session's own channel: its gateway has checked the token and does not pass it on (a queue file).
    Channel,
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

/// Where an agent reaches the bridge.
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
    /// A name of a relay, which is no address of the target's own.
    Url {
        /// Scheme and host, without a path.
        url: String,
        /// The relay takes a session's token only behind a prefix that is made for this id with the relay's key.
        bridge_id: String,
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
    /// A watch keeps the latest only, so that a short moment of it could be missed there.
    was_ready: Arc<AtomicBool>,
}

impl StatusReporter {
    /// A reporter and what watches it; starts as [`Status::Starting`].
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Status>) {
        let (sender, receiver) = watch::channel(Status::Starting);
        let reporter = Self {
            sender,
            was_ready: Arc::default(),
        };
        (reporter, receiver)
    }

    /// Says what is so now.
    pub fn set(&self, status: Status) {
        tracing::debug!(?status, "tunnel status");
        if matches!(status, Status::Ready { .. }) {
            self.was_ready.store(true, Ordering::Release);
        }
        self.sender.send_replace(status);
    }

    /// Whether it has ever been [`Status::Ready`], by this reporter or a clone of it.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Acquire)
    }

    /// Returns once it has been [`Status::Ready`]. Cancel safe.
    pub(crate) async fn until_ready(&self) {
        let mut status = self.sender.subscribe();
        while !self.was_ready() {
            if status.changed().await.is_err() {
                // Not while this reporter lives.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A process on a target, known well enough to end that very one and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetProcess {
    /// Its process id there.
    pub pid: u32,
    /// When it started, in the target's own words: field 22 of `/proc/PID/stat`.
    pub start: String,
}

/// What a successor of this process would have to end on the target, as far as it is known now. A clone is the same
/// place.
#[derive(Clone, Debug, Default)]
pub struct ProcessPlace(Arc<Mutex<Option<TargetProcess>>>);

impl ProcessPlace {
    /// The process that is known now.
    #[must_use]
    pub fn process(&self) -> Option<TargetProcess> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is this one from now on.
    pub(crate) fn set(&self, process: TargetProcess) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
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
