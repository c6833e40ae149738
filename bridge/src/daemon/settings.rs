//! How a daemon is set up: plain values, as the command line and the configuration fill them in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::app::ProviderConfig;
use crate::config::model::UpstreamConfig;
use crate::session::Minting;
use crate::session::rates::Rate;

/// A session ends after so long unless it says otherwise.
const TTL: Duration = Duration::from_hours(24);
/// How often an owner is heard of unless it says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Callbacks under way get so long when the daemon ends.
const DRAIN: Duration = Duration::from_secs(30);
/// What became of unsafe callbacks can be asked for so long.
const KEEP_OUTCOMES: Duration = Duration::from_hours(24);
/// Sessions that live at the same time.
const MOST_SESSIONS: usize = 4096;

/// How the daemon is set up.
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// Where leases stand, and what else outlives the process.
    pub state_dir: PathBuf,
    /// Where the control API listens.
    pub control: PathBuf,
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
    /// Sessions are written down, so that a successor of this process goes on with those that live at its planned end.
    pub keeps_sessions: bool,
    /// Sessions that live at the same time.
    pub most_sessions: usize,
    /// What became of unsafe callbacks can be asked for so long.
    pub keep_outcomes: Duration,
    /// Limits that count across sessions.
    pub rates: Vec<Rate>,
    /// Which unsafe callbacks get an `Idempotency-Key` where they bring none; `None`: none does.
    pub minting: Option<Minting>,
    /// The Paperclip APIs that a session may name.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// What the sandboxes of each provider are configured with, by its key.
    pub providers: BTreeMap<String, ProviderConfig>,
}

impl DaemonSettings {
    /// The defaults, around these places.
    #[must_use]
    pub fn new(state_dir: PathBuf, control: PathBuf, ops: SocketAddr) -> Self {
        Self {
            state_dir,
            control,
            ops,
            allow_uids: Vec::new(),
            adhoc: true,
            ttl: TTL,
            heartbeat: HEARTBEAT,
            drain: DRAIN,
            keeps_sessions: false,
            most_sessions: MOST_SESSIONS,
            keep_outcomes: KEEP_OUTCOMES,
            rates: Vec::new(),
            minting: None,
            upstreams: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }
}
