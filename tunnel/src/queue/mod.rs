//! The tunnel `queue_v1`: callbacks as files, for targets where nothing but commands can be run.
//!
//! Here: [`Queue`], which starts a gateway on the target and serves its directory, and [`HostedQueue`], which serves a
//! directory on this machine for a gateway that somebody else started. [`channel`] is how the host reaches a directory
//! (`pump`, `batch`, `directory`), `worker` what it does with requests. Not here: HTTP and rules; the wire is
//! `wire::envelope`.

pub mod channel;
pub mod listing;
pub mod journal;
pub mod pump;
pub mod batch;
pub mod directory;
mod either;
mod stamp;
mod desk;
mod worker;
mod gateway;
mod named;
mod serve;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::launch::{Launcher, SessionName, SharedToken};
use crate::{Callbacks, StatusReporter, Tunnel, TunnelEnd};

pub use desk::Bodies;
pub use journal::{Journal, JournalFault};

/// Filled with the directory of a queue on its target, once that is known.
pub type QueuePlace = Arc<OnceLock<String>>;

/// Says that a queue that is stopped is left for a successor, and how long callbacks under way may take to end.
pub type LeaveQueue = Arc<OnceLock<Duration>>;

/// The reason of a queue's end where a later owner of its session has been there.
pub const TAKEN_OVER: &str = "taken_over";

/// What a queue needs to know, whoever started its gateway.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Names the queue's directory, the gateway's record and the entries in the journal.
    pub session: SessionName,
    /// What the gateway checks callers against.
    pub token: SharedToken,
    /// Where unsafe callbacks are written down before they are sent.
    pub journal: Journal,
    /// Largest body in bytes, either way.
    pub max_body: usize,
    /// How long the gateway waits for an answer; the same for us.
    pub response_timeout: Duration,
    /// How often the gateway looks for an answer.
    pub poll: Duration,
    /// Requests that may wait in the directory.
    pub depth: usize,
    /// How long our gateway stays without a sign of life from us.
    pub linger: Duration,
    /// How bodies stand in responses.
    pub bodies: Bodies,
    /// No duplex even where the runner has one.
    pub batch_only: bool,
    /// The port that a gateway must listen on, because an agent was told so before; 0 lets the system choose.
    pub port: u16,
    /// A queue that an earlier host of this session served: what fails at the start is tried again by the caller, so
    /// nothing on the target is cleared away then.
    pub again: bool,
    /// Set before `stop` is cancelled: a successor takes the queue up, so that its gateway and what waits in it stay.
    pub leave: LeaveQueue,
    /// The fence under which this host owns the session, where it is held in a store that other hosts may have: it does
    /// nothing in the queue any more once a later owner has been there, and ends as [`TAKEN_OVER`].
    pub fence: Option<u64>,
    /// Told where the queue lies.
    pub place: QueuePlace,
    /// Counts what is run on the target.
    pub executions: Arc<AtomicU64>,
}

impl QueueOptions {
    /// The defaults: 30 s for an answer, 64 requests, ten minutes of lingering, a journal in memory.
    #[must_use]
    pub fn new(session: SessionName, token: impl Into<SharedToken>, max_body: usize) -> Self {
        Self {
            session,
            token: token.into(),
            journal: Journal::in_memory(),
            max_body,
            response_timeout: Duration::from_secs(30),
            poll: Duration::from_millis(50),
            depth: 64,
            linger: Duration::from_secs(600),
            bodies: Bodies::default(),
            batch_only: false,
            port: 0,
            again: false,
            leave: LeaveQueue::default(),
            fence: None,
            place: QueuePlace::default(),
            executions: Arc::default(),
        }
    }
}

/// Starts a gateway on the target, or finds the one of an earlier host of this session, and serves its queue.
#[derive(Debug)]
pub struct Queue {
    launcher: Launcher,
    options: QueueOptions,
}

impl Queue {
    /// Nothing is done on the target yet.
    #[must_use]
    pub fn new(launcher: Launcher, options: QueueOptions) -> Self {
        Self { launcher, options }
    }

    /// Ends what an earlier host of this session may have left on the target, and removes its directory: nothing in it
    /// is served any more. Takes five seconds at most beyond the installation of the gateway.
    ///
    /// # Errors
    ///
    /// One line saying what is left; a gateway of ours ends itself after its lingering.
    pub async fn clear(self) -> Result<(), String> {
        serve::clear(self.launcher, &self.options).await
    }
}

impl Tunnel for Queue {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        serve::on_target(self.launcher, self.options, callbacks, status, stop).boxed()
    }

    fn name(&self) -> &'static str {
        "queue_v1"
    }
}

/// Serves a queue directory of this machine for a gateway that somebody else started and ends.
#[derive(Debug)]
pub struct HostedQueue {
    directory: PathBuf,
    options: QueueOptions,
}

impl HostedQueue {
    /// For the queue at `directory`, made where it is missing. Of the options the token, the poll, the depth and the
    /// lingering are the gateway's business.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, options: QueueOptions) -> Self {
        Self {
            directory: directory.into(),
            options,
        }
    }
}

impl Tunnel for HostedQueue {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        serve::in_directory(self.directory, self.options, callbacks, status, stop).boxed()
    }

    fn name(&self) -> &'static str {
        "queue_v1"
    }
}
