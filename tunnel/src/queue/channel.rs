//! How the host reaches a queue directory: the seam, and what passes it.
//!
//! Here: [`QueueChannel`], which opens an [`OpenQueue`]: a stream of what was [`Found`] and a queue of [`Order`]s.
//! Not here: the three kinds (`pump.rs`, `batch.rs`, `directory.rs`) and what is done with a request (`worker.rs`).

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use runners::{CommandManagedRuntimeRunner, RunnerError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::listing::{FileId, Found, ListingFault};

/// The script that all runs of a shell in a queue directory share.
const SCRIPT: &str = include_str!("host.sh");
/// What stands in argv: it reads the script from stdin. Without quotes, line ends and `!`, so that a login shell of
/// any family hands it on as it is.
const BOOT: &str = "n=$(echo; echo x); n=${n%x}; s=; while IFS= read -r l || exit 4; do \
                    case $l in \"#end\") break;; esac; s=$s$l$n; done; eval \"$s\"";
/// The gateway is told at least so often that its host lives.
pub(super) const TICK: Duration = Duration::from_secs(10);
/// Requests in memory between the channel and the worker.
pub(super) const FOUND_QUEUE: usize = 2;
/// Orders between the worker and the channel.
pub(super) const ORDER_QUEUE: usize = 16;
/// Characters of a line of base64 that a shell reads by itself.
const LINE_CHARS: usize = 1024;
/// No `head` reads further ahead of what it prints than this.
const READ_AHEAD_BYTES: usize = 16 * 1024;
/// Names in one order to forget.
pub(super) const NAMES_PER_ORDER: usize = 64;

/// Where a queue directory is, and what runs the host's script there.
#[derive(Clone, Debug)]
pub struct QueueAccess {
    /// Runs it.
    pub runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// By this shell.
    pub shell: String,
    /// The directory, as an absolute path on the target.
    pub directory: String,
    /// The file on the target that names the gateway's process, or empty.
    pub record: String,
    /// The fence under which the session is owned, where it is held in a store: once a later owner has been there, nothing
    /// is done any more.
    pub fence: Option<u64>,
    /// The longest request.
    pub limit_bytes: usize,
    /// Counts what is run.
    pub executions: Arc<AtomicU64>,
}

/// Reaches one queue directory.
pub trait QueueChannel: fmt::Debug + Send + Sync {
    /// Makes the directory where it is missing and begins to claim requests.
    ///
    /// What is claimed already, by a predecessor, is found again. Only one open channel of a directory claims.
    ///
    /// # Errors
    ///
    /// [`ChannelFault`] where the directory cannot be reached or is not acceptable.
    fn open(&self) -> BoxFuture<'_, Result<OpenQueue, ChannelFault>>;
}

/// An open queue directory. Dropping it ends the claiming; dropping `orders` first ends it in order.
#[derive(Debug)]
pub struct OpenQueue {
    /// What is found, in order; ends with the fault that ended the channel.
    pub found: mpsc::Receiver<Result<Found, ChannelFault>>,
    /// What is to be done.
    pub orders: mpsc::Sender<Order>,
    /// The target's clock in seconds since 1970 when it opened, where it told it.
    pub clock: Option<u64>,
    /// Owns the tasks of the channel.
    pub tasks: JoinSet<()>,
}

/// What the host has done in a queue directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Put an answer at its place and remove the claimed request; reported as written, gone or not written.
    Write {
        /// Its file's name.
        id: FileId,
        /// The response envelope.
        answer: Bytes,
    },
    /// Remove whatever is there of these callbacks; not reported.
    Forget {
        /// Their files' names.
        ids: Vec<FileId>,
    },
}

/// Why a channel could not be opened or has ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelFault {
    /// The runner failed.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// The queue's shell on the target ended.
    #[error("the queue's shell on the target ended: {0}")]
    Ended(String),
    /// It said nothing for too long.
    #[error("the queue's shell on the target said nothing for {0:?}")]
    Silent(Duration),
    /// It printed what is not understood.
    #[error(transparent)]
    Listing(#[from] ListingFault),
    /// A later owner of the session has been there; the queue is not ours any more.
    #[error("another host serves the queue by now, under the fence {0}")]
    Fenced(u64),
    /// A directory on this machine is not acceptable or failed.
    #[error("{action}")]
    Directory {
        /// What was tried.
        action: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// An order in the words of `host.sh`.
///
/// - `exact_head`: its `head -c` reads no further than it prints; else the shell reads line by line.
pub(super) fn encode(order: &Order, exact_head: bool) -> Vec<u8> {
    match order {
        Order::Write { id, answer } => {
            let text = STANDARD.encode(answer);
            if exact_head || text.len() > READ_AHEAD_BYTES {
                let mut line = format!("W {} {}\n", id.as_str(), text.len()).into_bytes();
                line.extend_from_slice(text.as_bytes());
                if !exact_head {
                    // Empty lines, which are no orders: what is read ahead of them is of no use to anybody.
                    line.resize(line.len() + READ_AHEAD_BYTES, b'\n');
                }
                return line;
            }
            let mut lines = format!("w {}\n", id.as_str()).into_bytes();
            for piece in text.as_bytes().chunks(LINE_CHARS) {
                lines.extend_from_slice(piece);
                lines.push(b'\n');
            }
            lines.extend_from_slice(b".\n");
            lines
        }
        Order::Forget { ids } => {
            let mut lines = String::new();
            for some in ids.chunks(NAMES_PER_ORDER) {
                lines.push('D');
                for id in some {
                    // Writing to a string cannot fail.
                    let _ = write!(lines, " {}", id.as_str());
                }
                lines.push('\n');
            }
            lines.into_bytes()
        }
    }
}

/// The arguments of the shell for one run of the script; [`script`] must be the first on its stdin.
pub(super) fn arguments(mode: &str, rest: [&str; 7]) -> Vec<String> {
    let fixed = ["-c", BOOT, "pcb-queue", mode];
    fixed.into_iter().chain(rest).map(str::to_owned).collect()
}

/// A fence in the words of `host.sh`.
pub(super) fn fence_word(fence: Option<u64>) -> String {
    fence.map(|fence| fence.to_string()).unwrap_or_default()
}

/// The script as it goes ahead of all orders.
pub(super) fn script() -> Vec<u8> {
    let mut text = String::with_capacity(SCRIPT.len());
    for line in SCRIPT.lines().filter(|line| !line.trim_start().starts_with('#')) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("#end\n");
    text.into_bytes()
}

/// A name for one run of the script that no other has.
pub(super) fn owner() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
