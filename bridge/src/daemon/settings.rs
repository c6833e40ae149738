//! How a daemon is set up: plain values, as the command line and the configuration fill them in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use policy::Limits;

use super::agents::AgentSockets;
use super::policies::ConfiguredPolicy;
use crate::app::ProviderConfig;
use crate::config::model::{AgentsAddress, ByteLimits, ConcurrencyLimits, TargetConfig, UpstreamConfig};
use crate::session::Minting;
use crate::session::rates::Rate;
use crate::telemetry::{self, otlp::Tracing};

/// A session ends after so long unless it says otherwise.
const TTL: Duration = Duration::from_hours(24);
/// How often an owner is heard of unless it says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Callbacks under way get so long when the daemon ends.
const DRAIN: Duration = Duration::from_secs(30);
/// What became of unsafe callbacks can be asked for so long.
const KEEP_OUTCOMES: Duration = Duration::from_hours(24);
/// A heartbeat may be late so often.
const MISSES: u32 = 3;
/// A session that has ended can be asked about for so long.
const KEEP_ENDED: Duration = Duration::from_hours(24);
/// Sessions that live at the same time.
const MOST_SESSIONS: usize = 4096;

/// How a daemon is set up at the moment.
pub(super) type LiveSettings = Arc<ArcSwap<DaemonSettings>>;

/// How the daemon is set up.
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// Where leases stand, and what else outlives the process.
    pub state_dir: PathBuf,
    /// Where health is asked for; port 0 takes a free one.
    pub ops: SocketAddr,
    /// Where others reach the control API, as `--control` takes it; told through a store that several daemons have.
    pub address: Option<String>,
    /// Show the dashboard there, where that is loopback.
    pub dashboard: bool,
    /// Users that may use the control API beside our own.
    pub allow_uids: AllowedUids,
    /// Our own user may bring an upstream, a credential, files and the target `local`.
    pub adhoc: bool,
    /// A session ends after so long unless it says otherwise.
    pub ttl: Duration,
    /// How often an owner is heard of unless it says otherwise.
    pub heartbeat: Duration,
    /// A session ends after so many heartbeats in a row were missed.
    pub misses: u32,
    /// Callbacks under way get so long when their session ends in order.
    pub session_drain: Duration,
    /// A session that has ended can be asked about for so long.
    pub keep_ended: Duration,
    /// Callbacks under way get so long when the daemon ends.
    pub drain: Duration,
    /// Sessions are written down, so that a successor of this process goes on with those that live at its planned end.
    pub keeps_sessions: bool,
    /// Sessions that live at the same time.
    pub most_sessions: usize,
    /// What became of unsafe callbacks can be asked for so long.
    pub keep_outcomes: Duration,
    /// What agents may ask for.
    pub policy: Arc<ConfiguredPolicy>,
    /// Sizes of a callback, unless a session asks for less.
    pub sizes: Limits,
    /// Callbacks at the same time.
    pub concurrency: ConcurrencyLimits,
    /// Bytes of bodies held in memory.
    pub bytes: ByteLimits,
    /// Limits that count across sessions.
    pub rates: Vec<Rate>,
    /// Which unsafe callbacks get an `Idempotency-Key` where they bring none; `None`: none does.
    pub minting: Option<Minting>,
    /// Places that a session may name as its target.
    pub targets: BTreeMap<String, TargetConfig>,
    /// Where a session of the target `local` listens unless it says otherwise.
    pub agents: AgentsAddress,
    /// Listeners for such sessions that were there before the daemon.
    pub agent_sockets: AgentSockets,
    /// The log of the process; `None`: it stays as it is.
    pub log: Option<telemetry::Settings>,
    /// Count, and answer `/metrics`.
    pub metrics: bool,
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
            address: None,
            dashboard: true,
            allow_uids: AllowedUids::default(),
            adhoc: true,
            ttl: TTL,
            heartbeat: HEARTBEAT,
            misses: MISSES,
            session_drain: DRAIN,
            keep_ended: KEEP_ENDED,
            drain: DRAIN,
            keeps_sessions: false,
            most_sessions: MOST_SESSIONS,
            keep_outcomes: KEEP_OUTCOMES,
            policy: Arc::default(),
            sizes: Limits::default(),
            concurrency: ConcurrencyLimits::default(),
            bytes: ByteLimits::default(),
            rates: Vec::new(),
            minting: None,
            targets: BTreeMap::new(),
            agents: AgentsAddress::default(),
            agent_sockets: AgentSockets::default(),
            log: None,
            metrics: true,
            tracing: None,
            upstreams: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    /// These settings where `new` says otherwise than `self` and it can be followed: places, and what is open already, stay.
    pub(super) fn followed(&self, new: Self) -> Self {
        let Self {
            state_dir,
            ops,
            address,
            dashboard,
            allow_uids,
            keeps_sessions,
            keep_outcomes,
            agent_sockets,
            metrics,
            tracing,
            ..
        } = self.clone();
        Self {
            state_dir,
            ops,
            address,
            dashboard,
            allow_uids,
            keeps_sessions,
            keep_outcomes,
            agent_sockets,
            metrics,
            tracing,
            ..new
        }
    }
}

/// Users that may use the control API beside our own, as they are at the moment; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct AllowedUids(Arc<ArcSwap<Vec<u32>>>);

impl AllowedUids {
    /// These, until somebody says otherwise.
    #[must_use]
    pub fn new(uids: Vec<u32>) -> Self {
        let allowed = Self::default();
        allowed.set(uids);
        allowed
    }

    /// From the next request on it is these.
    pub fn set(&self, uids: Vec<u32>) {
        self.0.store(Arc::new(uids));
    }

    /// Whether this user is among them now.
    #[must_use]
    pub fn has(&self, uid: u32) -> bool {
        self.0.load().contains(&uid)
    }

    /// Whether there is nobody now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Who they are now.
    #[must_use]
    pub fn all(&self) -> Vec<u32> {
        self.0.load().to_vec()
    }
}
