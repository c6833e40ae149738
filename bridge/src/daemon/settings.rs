//! How a daemon is set up: plain values, as the command line and the configuration fill them in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::app::ProviderConfig;
use crate::config::model::UpstreamConfig;
use crate::session::Minting;
use crate::session::rates::Rate;
use crate::telemetry::otlp::Tracing;

/// A session ends after so long unless it says otherwise.
const TTL: Duration = Duration::from_hours(24);
/// How often an owner is heard of unless it says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Callbacks under way get so long when the daemon ends.
const DRAIN: Duration = Duration::from_secs(30);
/// Sessions that live at the same time.
const MOST_SESSIONS: usize = 4096;

/// How the daemon is set up.
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// Where leases stand, and what else outlives the process.
    pub state_dir: PathBuf,
    /// Where health is asked for; port 0 takes a free one.
    pub ops: SocketAddr,
    /// Users that may use the control API beside our own.
    pub allow_uids: Vec<u32>,
    /// Our own user may bring an upstream, a credential, files and the target `local`.
    pub adhoc: bool,
    /// A session ends after so long unless it says otherwise.
    pub ttl: Duration,
    /// How often an owner is heard of unless it says otherwise.
    pub heartbeat: Duration,
    /// Callbacks under way get so long when the daemon ends.
    pub drain: Duration,
    /// Sessions that live at the same time.
    pub most_sessions: usize,
    /// Limits that count across sessions.
    pub rates: Vec<Rate>,
    /// Which unsafe callbacks get an `Idempotency-Key` where they bring none; `None`: none does.
    pub minting: Option<Minting>,
    /// Where the spans of callbacks go.
    pub tracing: Option<Arc<Tracing>>,
    /// The Paperclip APIs that a session may name.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// What the sandboxes of each provider are configured with, by its key.
    pub providers: BTreeMap<String, ProviderConfig>,
}

impl DaemonSettings {
    /// The defaults, around these places.
    #[must_use]
    pub fn new(state_dir: PathBuf, ops: SocketAddr) -> Self {
        Self {
            state_dir,
            ops,
            allow_uids: Vec::new(),
            adhoc: true,
            ttl: TTL,
            heartbeat: HEARTBEAT,
            drain: DRAIN,
            most_sessions: MOST_SESSIONS,
            rates: Vec::new(),
            minting: None,
            tracing: None,
            upstreams: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }
}
