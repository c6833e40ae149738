//! The daemon: many sessions in one process, from the request for one to a day after its end.
//!
//! Here: [`Daemon`], the registry that the control API asks. In `asked` what a session is asked to be, in `life` the
//! one task that each has, in `returning` how those of an earlier process come back, in `policies` what agents may ask
//! for, in `reloading` how settings change under it, in `state` the states it goes through, in `entry` what is kept of it,
//! in `holding` what is kept of it in the store, in `events` what is told of it, in `traffic` how much is going on. Not
//! here: how it is spoken to (`control/`), how one session is opened (`app/`), what outlives this process (`store/`).
//! Read next: `life`.

mod settings;
mod agents;
mod policies;
mod reloading;
mod state;
mod asked;
mod entry;
mod life;
mod returning;
mod table;
mod reaping;
mod events;
mod traffic;
mod shown;
mod holding;
mod elsewhere;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use policy::{Token, TokenDigest};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::{App, GivenToken, Named, SessionRequest};
use crate::audit::Audit;
use crate::dashboard::Door;
use crate::secrets::Secrets;
use crate::session::Shared;
use crate::session::identity::fresh_token;
use crate::session::live::InForce;
use crate::session::rates::{RateTable, Scope};
use crate::session::state::hex;
use crate::store::{DaemonPlace, Store};
use crate::telemetry::{self, metrics::Metrics};

pub use agents::AgentSockets;
pub(crate) use asked::NO_HEARTBEAT;
pub use asked::{Mistake, NewSession};
pub(crate) use entry::{Entry, RotateError};
pub use events::Event;
pub(crate) use events::Events;
pub(crate) use life::NotOpened;
pub use policies::ConfiguredPolicy;
pub use reloading::{Companion, PutInForce, ReloadRefused, Reloading, Source};
pub use settings::{AllowedUids, DaemonSettings};
pub(crate) use shown::time;
pub use shown::{
    Drained, EnvironmentShown, Opened, OwnerShown, Reaped, ReapedLease, Reloaded, Rotated, Rung,
    SessionShown, SessionsShown, StatusShown, Warning,
};
pub(crate) use state::Ending;
pub use state::SessionState;
pub(crate) use traffic::Watched;
pub use traffic::{Recent, Traffic};

use asked::{Around, Kept, Understood};
use holding::Holding;
use life::Life;
use policies::Policies;
use settings::LiveSettings;
use table::Table;

/// The disk gets so long to confirm the audit's last records.
const SIGNING: Duration = Duration::from_secs(5);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("the request is not acceptable")]
    Mistakes(Vec<Mistake>),
    #[error("only the daemon's own user may bring {}; name what the daemon's configuration has", .0.join(", "))]
    Reserved(Vec<&'static str>),
    #[error("the daemon is ending and takes no new sessions")]
    Draining,
    #[error("the daemon has {0} sessions, which is all it takes; end one, or try again later")]
    Full(usize),
    #[error("the session cannot be written down, so there is none: {0}")]
    Unwritten(String),
    #[error("{0}")]
    Failed(String),
}

/// A session that was taken on.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) entry: Arc<Entry>,
    /// As its agent shows it, unless a relay stands between.
    pub(crate) token: Option<String>,
    /// Told once it is open, or why it is not.
    pub(crate) opened: oneshot::Receiver<Result<Opened, NotOpened>>,
}

/// When whoever asks for a session is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// With its token, where that is known before it is open.
    AtOnce,
    /// Nobody knows its token before.
    OnceReady,
}

/// The registry of sessions.
#[derive(Debug)]
pub struct Daemon {
    settings: LiveSettings,
    app: Arc<App>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    /// Where every callback is written down, unless that is off.
    audit: Option<Arc<Audit>>,
    rates: Arc<RateTable>,
    /// `None`: nothing outlives this process.
    holding: Option<Holding>,
    policies: Arc<Policies>,
    in_force: Arc<InForce>,
    /// How its settings are read again, where they can be.
    reloading: OnceLock<Reloading>,
    secrets: Secrets,
    table: Mutex<Table>,
    lives: TaskTracker,
    draining: CancellationToken,
    /// Turns of sessions that come back.
    returning: Semaphore,
    started: SystemTime,
    /// Who may look at the dashboard.
    door: Door,
}

impl Daemon {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(
        mut settings: DaemonSettings,
        secrets: Secrets,
        audit: Option<Arc<Audit>>,
        store: Option<Arc<dyn Store>>,
    ) -> Arc<Self> {
        let events = Arc::new(Events::default());
        let figures = store.as_ref().map(|store| store.figures()).unwrap_or_default();
        let metrics = Arc::new(Metrics::counting(&figures));
        let in_force = Arc::new(InForce::default());
        let shared = Shared {
            metrics: settings.metrics.then(|| Arc::clone(&metrics)),
            observer: Some(Arc::clone(&events) as _),
            in_force: Arc::clone(&in_force),
            tracing: settings.tracing.clone(),
            rates: None,
        };
        let rates = RateTable::new([]);
        let mut app = App::default()
            .sharing(shared)
            .with_rates(Arc::clone(&rates))
            .with_journal_in(&settings.state_dir);
        if let Some(audit) = &audit {
            app = app.with_audit(Arc::clone(audit));
        }
        settings.keeps_sessions |= store.is_some();
        let keep = settings.keep_outcomes;
        let started = SystemTime::now();
        let place = settings.address.clone().map(|address| DaemonPlace {
            address,
            host: machine(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: started,
        });
        let holding = store.map(|store| Holding::new(store, keep, Arc::clone(&metrics), place));
        let policies = Policies::new(Arc::clone(&settings.policy));
        let daemon = Self {
            holding,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            app: Arc::new(app),
            audit,
            rates,
            policies: Arc::new(policies),
            in_force,
            reloading: OnceLock::new(),
            events,
            metrics,
            secrets,
            table: Mutex::default(),
            lives: TaskTracker::new(),
            draining: CancellationToken::new(),
            returning: Semaphore::new(returning::AT_ONCE),
            started,
            door: Door::default(),
        };
        daemon.put_in_force(&daemon.settings());
        Arc::new(daemon)
    }

    /// How it is set up at the moment.
    pub(crate) fn settings(&self) -> Arc<DaemonSettings> {
        self.settings.load_full()
    }

    /// Takes on a session, which is then opened by a task of its own.
    ///
    /// - `uid`: the user who asks; `own`: it is the daemon's.
    ///
    /// # Errors
    ///
    /// [`CreateError`]; nothing is left of it.
    pub(crate) async fn create(
        self: &Arc<Self>,
        asked: NewSession,
        uid: u32,
        own: bool,
        told: Told,
    ) -> Result<Created, CreateError> {
        let settings = self.settings();
        if !(own && settings.adhoc) {
            let reserved = asked.beyond(&settings);
            if !reserved.is_empty() {
                return Err(CreateError::Reserved(reserved));
            }
            asked.within(&settings).map_err(CreateError::Mistakes)?;
        }
        self.room()?;
        let Understood {
            mut request,
            check_upstream,
            ttl,
            heartbeat,
        } = self.understood(&asked).await?;
        let id = Uuid::now_v7();
        let token = fresh_token().map_err(CreateError::Failed)?;
        let (digest, shown) = (token.digest(), shown_at_once(&request, &token));
        request.named = Some(Named {
            id,
            token: GivenToken::Whole(token),
        });
        request.whose = asked.whose();
        let created = SystemTime::now();
        let kept = Kept {
            session: id,
            asked,
            uid,
            run_id: request.run_id.clone(),
            created,
            expires: created + ttl,
            heartbeat,
            token_sha256: hex(digest.to_bytes()),
            shown: told == Told::AtOnce && shown.is_some(),
            place: None,
        };
        let entry = self.written(kept, digest).await?;
        self.events.token_of(id, digest);
        request.hold = entry.hold().cloned();
        self.place_for_agent(id, &mut request);
        let (tell, opened) = oneshot::channel();
        let life = Life {
            app: Arc::clone(&self.app),
            entry: Arc::clone(&entry),
            events: Arc::clone(&self.events),
            metrics: Arc::clone(&self.metrics),
            leaves: self.settings().keeps_sessions,
            settings: Arc::clone(&self.settings),
            expires: Instant::now() + ttl,
        };
        let daemon = Arc::clone(self);
        let living = Box::pin(life.live(Box::new(request), check_upstream, None, tell));
        self.lives.spawn(async move {
            living.await;
            daemon.over(id);
        });
        Ok(Created {
            entry,
            token: shown,
            opened,
        })
    }

    /// Writes a session down and takes it into the table.
    async fn written(&self, kept: Kept, token: TokenDigest) -> Result<Arc<Entry>, CreateError> {
        let row = entry::row(&kept, token.to_bytes());
        let hold = match &self.holding {
            Some(holding) => {
                let begun = holding.begin(&row).await;
                Some(begun.map_err(|error| CreateError::Unwritten(error.to_string()))?)
            }
            None => None,
        };
        let placed = {
            let mut table = self.table();
            // Others may have come meanwhile.
            self.room_in(&table).map(|()| {
                let entry = Entry::new(kept, Arc::clone(&self.events), hold.clone(), token, None);
                table.living.insert(entry.id(), Arc::clone(&entry));
                entry
            })
        };
        match (&placed, &self.holding, &hold) {
            (Ok(entry), Some(holding), _) => holding.holds(entry),
            (Err(_), Some(holding), Some(hold)) => holding.gives_up(hold, row, "refused").await,
            (Ok(_) | Err(_), None, _) | (Err(_), Some(_), None) => {}
        }
        placed
    }

    /// Reading a policy and the files that a target names blocks on the disk.
    async fn understood(&self, asked: &NewSession) -> Result<Understood, CreateError> {
        let around = Around {
            secrets: self.secrets.clone(),
            settings: self.settings(),
            policies: Arc::clone(&self.policies),
        };
        let understood = if asked.names_files() {
            let asked = asked.clone();
            tokio::task::spawn_blocking(move || asked.understand(&around))
                .await
                .map_err(|error| CreateError::Failed(format!("the request could not be read: {error}")))?
        } else {
            // Without a thread: each that allocates costs a megabyte, for as long as what it made lives.
            asked.understand(&around)
        };
        let understood = understood.map_err(CreateError::Mistakes)?;
        self.app
            .check(&understood.request.target)
            .map_err(|error| CreateError::Mistakes(vec![Mistake::new("provider", error.to_string())]))?;
        Ok(understood)
    }

    fn room(&self) -> Result<(), CreateError> {
        self.room_in(&self.table())
    }

    fn room_in(&self, table: &Table) -> Result<(), CreateError> {
        if self.draining.is_cancelled() {
            return Err(CreateError::Draining);
        }
        let most = self.settings.load().most_sessions;
        if table.living.len() >= most {
            return Err(CreateError::Full(most));
        }
        Ok(())
    }

    /// A session's task has ended; it can be asked about for a while.
    fn over(&self, id: Uuid) {
        self.gives_place_back(id);
        let mut table = self.table();
        self.events.watched().is_over(id);
        if let Some(entry) = table.living.remove(&id) {
            table.ended.push_back((Instant::now(), entry));
        }
        table.forget_old(self.settings.load().keep_ended);
    }

    /// Every session, the oldest first; those that have ended come before those that live.
    pub(crate) fn sessions(&self) -> Vec<Arc<Entry>> {
        let mut table = self.table();
        table.forget_old(self.settings.load().keep_ended);
        let mut all: Vec<_> = table
            .ended
            .iter()
            .map(|(_, entry)| entry)
            .chain(table.living.values())
            .cloned()
            .collect();
        all.sort_by_key(|entry| entry.id());
        all
    }

    /// The session of this name.
    pub(crate) fn session(&self, id: Uuid) -> Option<Arc<Entry>> {
        let table = self.table();
        let ended = || table.ended.iter().find(|(_, entry)| entry.id() == id);
        table
            .living
            .get(&id)
            .or_else(|| ended().map(|(_, entry)| entry))
            .cloned()
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Who may look at the dashboard.
    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// Where every callback is written down, unless that is off.
    pub(crate) fn audit_folder(&self) -> Option<&Path> {
        self.audit.as_ref().map(|audit| audit.folder())
    }

    /// It takes no new sessions any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns when the daemon has been told to end. Cancel safe.
    pub async fn drain_asked(&self) {
        self.draining.cancelled().await;
    }

    /// From now on no session is taken on, and those that live are closed in order.
    pub fn begin_drain(&self) {
        self.draining.cancel();
        let living: Vec<_> = self.table().living.values().cloned().collect();
        for entry in living {
            entry.end(Ending::Drained);
        }
        self.lives.close();
    }

    /// Returns when every session is closed, after [`Self::begin_drain`]. Cancel safe.
    pub async fn drained(&self) {
        self.lives.wait().await;
    }

    /// Sessions that are not closed yet.
    pub(crate) fn living(&self) -> usize {
        self.table().living.len()
    }

    /// To be awaited before the process ends: leases that are being given back get half a minute.
    pub async fn settle(&self) {
        self.app.settle().await;
        if let Some(holding) = &self.holding {
            holding.flush().await;
        }
        self.close_audit().await;
    }

    /// Sends the last traces and signs the audit's last records; nothing is written to it afterwards. Where the process is
    /// forced to end, this is all there is time for: the disk gets a few seconds.
    pub async fn close_audit(&self) {
        if let Some(tracing) = self.settings().tracing.clone() {
            // It waits for a collector, by its own bound.
            let _ended = tokio::task::spawn_blocking(move || tracing.end()).await;
        }
        let Some(audit) = self.audit.clone() else { return };
        // It waits for the disk.
        let closed = tokio::task::spawn_blocking(move || audit.close());
        match tokio::time::timeout(SIGNING, closed).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(%error, "the audit's last records are not signed"),
            Ok(Err(_)) | Err(_) => tracing::error!("the audit's last records were not signed in time"),
        }
    }

    /// Whether callbacks can be written down, where they are to be.
    pub(crate) fn audit_fault(&self) -> Option<String> {
        let fault = self.audit.as_ref()?.health().err()?;
        Some(fault.to_string())
    }

    /// Whether what must outlive this process can be written down.
    pub(crate) async fn store_fault(&self) -> Option<String> {
        self.holding.as_ref()?.fault().await
    }

    /// Limits keep no key whose calls no longer count.
    pub fn forget_the_rested(&self) {
        self.rates.forget_the_rested();
    }

    /// The daemon as a whole.
    pub(crate) fn status(&self) -> StatusShown {
        let sessions = self.sessions();
        let mut states = BTreeMap::new();
        let mut open_outcomes = 0;
        for entry in &sessions {
            *states.entry(entry.state().name().to_owned()).or_insert(0) += 1;
            open_outcomes += entry.ledger().map_or(0, |ledger| count(ledger.open_count()));
        }
        let (callbacks, denied) = self.events.callbacks();
        let reported = self.events.reported();
        StatusShown {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: time(self.started),
            draining: self.is_draining(),
            sessions: states,
            callbacks,
            denied,
            recent: self.events.watched().recent(),
            reported,
            wrong_channel: self.events.wrong_channels(),
            open_outcomes,
            faults: BTreeMap::new(),
        }
    }

    /// What a scrape reads; `None`: nothing is counted.
    pub(crate) fn metrics_text(&self) -> Option<String> {
        if !self.settings.load().metrics {
            return None;
        }
        // Every state, so that one which nobody is in any more does not stay as it was.
        let sessions = self.sessions();
        let states = SessionState::ALL.map(|state| {
            let of_it = sessions.iter().filter(|entry| entry.state() == state);
            (state.name(), of_it.count())
        });
        self.metrics.sessions(states);
        if let Some(holding) = &self.holding {
            self.metrics.store_now(holding.now());
        }
        Some(self.metrics.text())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// What sessions read at each callback, and what is taken when one is opened.
    fn put_in_force(&self, settings: &DaemonSettings) {
        let from_rules = settings
            .policy
            .limits()
            .rate
            .map(|rate| (Scope::Session, None, rate));
        self.rates
            .follow(settings.rates.iter().copied().chain(from_rules));
        self.in_force.mints(settings.minting.clone());
        self.in_force
            .places(settings.concurrency.process, settings.concurrency.session);
        self.in_force.session_bytes(settings.bytes.session);
        self.app.bodies().resize(settings.bytes.process);
        if let Some(log) = settings.log {
            telemetry::follow(log);
        }
    }
}

/// A relay's bearer holds more than the token and is made once the relay is known.
fn shown_at_once(request: &SessionRequest, token: &Token) -> Option<String> {
    use crate::app::TargetSpec;

    match &request.target {
        TargetSpec::Local | TargetSpec::Ssh(_) => Some(token.expose().to_owned()),
        TargetSpec::Provider(_) => None,
    }
}

/// The name of this machine.
fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A count as JSON has it.
pub(crate) fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
