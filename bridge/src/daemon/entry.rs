//! One session as the daemon keeps it, from its beginning to a day after its end.
//!
//! Here: [`Entry`]: what it was asked to be, where it stands, and how its task is spoken to. Not here: the task
//! (`life.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use policy::TokenDigest;
use runners::CommandManagedRuntimeRunner;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tunnel::launch::ChangeFault;
use uuid::Uuid;

use super::asked::Kept;
use super::events::Events;
use super::shown::{Opened, Rung, SessionShown, Warning, time};
use super::state::{Ending, SessionState, Standing};
use super::traffic::Tally;
use crate::app::environment::of_record;
use crate::app::{Logins, OpenSession, SessionRecord};
use crate::session::Session;
use crate::session::hold::Hold;
use crate::session::ledger::Ledger;
use crate::store::{self, SessionRow};
use crate::upstream::UpstreamSettings;

/// The variable of the token, which is shown once.
const TOKEN_VARIABLE: &str = "PAPERCLIP_API_KEY";
/// The store gets so long before somebody is told of a session that is not written down.
const WRITING: Duration = Duration::from_secs(2);
/// Orders that wait for a session's task.
const ORDERS: usize = 4;

/// What a session's task can be asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Another token takes the place of the one that holds.
    Rotate(oneshot::Sender<Result<String, RotateError>>),
}

/// Why a session did not take another token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    /// It is being opened, or is over.
    #[error("a session that is {} has no token to change", .0.name())]
    NotOpen(SessionState),
    /// Its gateway is a script.
    #[error(
        "the gateway of this session over {0} is a script, which knows only the token that it was started with; revoke \
         the session and make a new one"
    )]
    Script(&'static str),
    /// Its gateway did not take it.
    #[error(transparent)]
    Gateway(#[from] ChangeFault),
    /// Another daemon may serve it.
    #[error("another daemon may have the session by now, so its token is not changed here")]
    NotOurs,
    /// There is none to be had.
    #[error("{0}")]
    Failed(String),
}

/// What is known once it is open.
#[derive(Debug)]
struct Facts {
    url: String,
    tunnel: String,
    lease: Option<String>,
    ladder: Vec<Rung>,
    /// Without the token.
    env: BTreeMap<String, String>,
    ledger: Arc<Ledger>,
}

/// What waits for a session's task. It is small: most sessions are never asked for anything.
#[derive(Debug)]
struct Orders {
    /// `None` once they are refused.
    waiting: Mutex<Option<Vec<Order>>>,
    rung: Notify,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kept: Kept,
    standing: watch::Sender<Standing>,
    /// What a successor needs; changes seldom.
    place: Mutex<Option<Box<SessionRecord>>>,
    ending: watch::Sender<Option<Ending>>,
    heard: Mutex<Instant>,
    facts: OnceLock<Facts>,
    orders: Orders,
    events: Arc<Events>,
    /// `None` where nothing is kept in a store.
    hold: Option<Arc<Hold>>,
    /// Of the token that holds.
    token_sha256: Mutex<[u8; 32]>,
    /// When it could be called first.
    ready: OnceLock<SystemTime>,
    tally: Arc<Tally>,
    /// What serves it, for as long as it does.
    serving: OnceLock<Serving>,
    /// Who else can log in where it listens.
    logins: OnceLock<Logins>,
}

/// What serves a session; held by its task, and gone with it.
#[derive(Debug)]
struct Serving {
    session: Weak<Session>,
    runner: Weak<dyn CommandManagedRuntimeRunner>,
    upstream: UpstreamSettings,
}

impl Orders {
    fn taking() -> Self {
        Self {
            waiting: Mutex::new(Some(Vec::new())),
            rung: Notify::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Order>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false`: it is refused.
    fn give(&self, order: Order) -> bool {
        match &mut *self.waiting() {
            Some(waiting) if waiting.len() < ORDERS => waiting.push(order),
            Some(_) | None => return false,
        }
        self.rung.notify_one();
        true
    }

    fn take(&self) -> Option<Order> {
        self.waiting()
            .as_mut()
            .filter(|waiting| !waiting.is_empty())
            .map(|waiting| waiting.remove(0))
    }
}

impl Entry {
    /// - `reason`: why it is starting, where an earlier process had it.
    pub(super) fn new(
        mut kept: Kept,
        events: Arc<Events>,
        hold: Option<Arc<Hold>>,
        token: TokenDigest,
        reason: Option<&'static str>,
    ) -> Arc<Self> {
        let place = kept.place.take().map(Box::new);
        let standing = Standing::new(SessionState::Starting, reason, None);
        let tally = events.watched().begins(kept.session);
        let entry = Arc::new(Self {
            tally,
            serving: OnceLock::new(),
            logins: OnceLock::new(),
            standing: watch::Sender::new(standing),
            place: Mutex::new(place),
            kept,
            ending: watch::Sender::new(None),
            heard: Mutex::new(Instant::now()),
            facts: OnceLock::new(),
            orders: Orders::taking(),
            events,
            hold,
            token_sha256: Mutex::new(token.to_bytes()),
            ready: OnceLock::new(),
        });
        entry.tell();
        entry
    }

    pub(crate) fn id(&self) -> Uuid {
        self.kept.session
    }

    pub(crate) fn state(&self) -> SessionState {
        self.standing.borrow().state
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Told of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// What is to be written down of it now.
    pub(crate) fn kept_now(&self) -> Kept {
        let place = self.place().as_deref().cloned();
        let token_sha256 = place.as_ref().map_or_else(
            || self.kept.token_sha256.clone(),
            |place| place.token_sha256.clone(),
        );
        Kept {
            place,
            token_sha256,
            ..self.kept.clone()
        }
    }

    /// A successor finds it there.
    pub(super) fn takes_place(&self, now: Option<SessionRecord>) {
        let Some(now) = now else { return };
        {
            let mut place = self.place();
            if place.as_deref() == Some(&now) {
                return;
            }
            *place = Some(Box::new(now));
        }
        self.changes();
    }

    fn place(&self) -> MutexGuard<'_, Option<Box<SessionRecord>>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing that its task is asked to do. Cancel safe.
    pub(super) async fn next_order(&self) -> Order {
        loop {
            if let Some(order) = self.orders.take() {
                return order;
            }
            self.orders.rung.notified().await;
        }
    }

    /// It does nothing any more that it is asked to; whoever waits hears that.
    pub(super) fn refuse_orders(&self) {
        *self.orders.waiting() = None;
    }

    /// Writes it down before anybody is told of it: who knows a URL must not lose it with this process. Where the store
    /// does not answer, that is done later.
    pub(super) async fn written_down(&self) {
        let Some(hold) = &self.hold else { return };
        // It stays marked as changed: whoever writes an older row just now writes this one afterwards.
        match tokio::time::timeout(WRITING, hold.save(&self.row())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(
                session = %self.id(),
                error = &error as &dyn std::error::Error,
                "a session is not written down yet"
            ),
            Err(_) => tracing::warn!(session = %self.id(), "a session is not written down yet"),
        }
    }

    /// Writes down that it is to end before anybody is told so: a process that is killed now must not bring it back.
    pub(super) async fn ends_for_good(&self) {
        let Some(hold) = &self.hold else { return };
        if !matches!(tokio::time::timeout(WRITING, hold.revoke()).await, Ok(Ok(_))) {
            tracing::warn!(session = %self.id(), "the end of a session is not written down yet");
        }
    }

    /// It stands elsewhere now; nothing happens where it stands so already, or has ended.
    pub(super) fn stands(&self, now: Standing) {
        let changed = self.standing.send_if_modified(|standing| {
            let same = standing.state == now.state && standing.reason == now.reason;
            let over = standing.state == SessionState::Ended;
            let back = standing.state == SessionState::Draining && now.state != SessionState::Ended;
            let changes = !same && !over && !back;
            if changes {
                *standing = now;
            }
            changes
        });
        if changed {
            self.tell();
        }
    }

    fn tell(&self) {
        let standing = self.standing();
        tracing::info!(
            session = %self.id(),
            run = self.kept.run_id,
            state = standing.state.name(),
            reason = standing.reason.unwrap_or_default(),
            detail = standing.detail.as_deref().unwrap_or_default(),
            "session"
        );
        self.events.stands(self.id(), &self.kept.run_id, &standing);
        self.changes();
    }

    /// It shall end. A wish that cuts wins over one that does not; otherwise the first one stays.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|wished| {
            let stronger = wished
                .as_ref()
                .is_none_or(|before| ending.cuts() && !before.cuts());
            if stronger {
                *wished = Some(ending);
            }
            stronger
        });
    }

    /// Told of the wish that it end.
    pub(super) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// Its owner was heard of.
    pub(crate) fn beat(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When its owner was heard of last.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is open.
    pub(super) fn opened(&self, opened: &Opened, ledger: Arc<Ledger>) {
        let mut env = opened.env.clone();
        env.remove(TOKEN_VARIABLE);
        // Once in its life.
        let _first = self.facts.set(Facts {
            url: opened.url.clone().unwrap_or_default(),
            tunnel: opened.tunnel.clone().unwrap_or_default(),
            lease: opened.lease.clone(),
            ladder: opened.ladder.clone(),
            env,
            ledger,
        });
        let _first = self.ready.set(SystemTime::now());
        self.changes();
    }

    /// By which it is served, where it is kept in a store.
    pub(crate) fn hold(&self) -> Option<&Arc<Hold>> {
        self.hold.as_ref()
    }

    /// Its row is to be written anew.
    fn changes(&self) {
        if let Some(hold) = &self.hold {
            hold.changes();
        }
    }

    /// Its agent shows another token from now on.
    pub(super) fn takes_token(&self, token: TokenDigest) {
        *self.token_sha256.lock().unwrap_or_else(PoisonError::into_inner) = token.to_bytes();
        self.changes();
    }

    /// As it is written down.
    pub(super) fn row(&self) -> SessionRow {
        let standing = self.standing();
        let token = *self.token_sha256.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.kept_now();
        let mut row = row(&kept, token);
        if let Some(place) = kept.place {
            row.tunnel = Some(place.tunnel);
            row.port = place.port;
            row.unix_path = place.unix_path.map(|path| path.display().to_string());
            row.url = place.url;
        }
        standing.state.name().clone_into(&mut row.state);
        row.reason = standing.reason.map(str::to_owned);
        row.ready_at = self.ready.get().copied();
        if standing.is_over_for_good() {
            row.ended_at = Some(standing.since);
        }
        row
    }

    /// This serves it from now on.
    pub(super) fn served_by(&self, open: &OpenSession) {
        // Once in its life.
        let _first = self.serving.set(Serving {
            session: Arc::downgrade(open.session()),
            runner: Arc::downgrade(&open.runner),
            upstream: open.upstream.clone(),
        });
    }

    /// Its host is asked who else can log in there.
    pub(super) fn shares_its_host(&self, logins: Option<Logins>) {
        if let Some(logins) = logins {
            // Once in its life.
            let _first = self.logins.set(logins);
        }
    }

    /// What an operator should know of it, although it works.
    fn warnings(&self) -> Vec<Warning> {
        let logins = self.logins.get().and_then(|logins| logins.get().copied());
        let logins = logins.filter(|logins| *logins > 0 && self.state() != SessionState::Ended);
        logins.map(Warning::other_logins).into_iter().collect()
    }

    /// What its callbacks are held against, while it is open.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.serving.get()?.session.upgrade()
    }

    /// The Paperclip API that it speaks to; `None` before it was open.
    pub(crate) fn upstream(&self) -> Option<&UpstreamSettings> {
        self.serving.get().map(|serving| &serving.upstream)
    }

    /// What runs commands on its target, while it is open.
    pub(crate) fn runner(&self) -> Option<Arc<dyn CommandManagedRuntimeRunner>> {
        self.serving.get()?.runner.upgrade()
    }

    /// What its agent's process is given, without the token; while it is not back yet, what that was before. `None` while
    /// it is being opened.
    pub(crate) fn environment(&self) -> Option<BTreeMap<String, String>> {
        if let Some(facts) = self.facts.get() {
            return Some(facts.env.clone());
        }
        let over = self.state() == SessionState::Ended;
        self.place().as_deref().filter(|_| !over).and_then(of_record)
    }

    /// What became of its dispatched unsafe callbacks; `None` while it is being opened.
    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.facts.get().map(|facts| facts.ledger.as_ref())
    }

    /// Gives it another token. What its agent shows from now on.
    ///
    /// # Errors
    ///
    /// [`RotateError`]; the token before holds on, unless [`ChangeFault::Uncertain`] says otherwise.
    pub(crate) async fn rotate(&self) -> Result<String, RotateError> {
        let over = || RotateError::NotOpen(self.state());
        if self.facts.get().is_none() {
            return Err(over());
        }
        let (answer, answered) = oneshot::channel();
        if !self.orders.give(Order::Rotate(answer)) {
            return Err(over());
        }
        answered.await.unwrap_or_else(|_| Err(over()))
    }

    pub(crate) fn shown(&self) -> SessionShown {
        let Standing {
            state,
            reason,
            detail,
            since,
            ..
        } = self.standing();
        let facts = self.facts.get();
        let asked = &self.kept.asked;
        let (traffic, last_callback_at) = self.tally.told();
        SessionShown {
            traffic,
            last_callback_at,
            session: self.id().to_string(),
            state,
            reason: reason.map(str::to_owned),
            detail,
            owner: None,
            since: time(since),
            target: asked.target.clone(),
            tunnel: facts
                .map(|facts| facts.tunnel.clone())
                .or_else(|| Some(self.place().as_ref()?.tunnel.clone())),
            url: facts
                .map(|facts| facts.url.clone())
                .or_else(|| self.place().as_ref()?.url.clone()),
            run_id: self.kept.run_id.clone(),
            agent_id: asked.agent_id.clone(),
            company_id: asked.company_id.clone(),
            issue_id: asked.issue_id.clone(),
            environment_id: asked.environment_id.clone(),
            lease: match facts {
                Some(facts) => facts.lease.clone(),
                None => self
                    .place()
                    .as_ref()
                    .and_then(|place| Some(place.lease.as_ref()?.id.clone())),
            },
            ladder: facts.map_or_else(Vec::new, |facts| facts.ladder.clone()),
            warnings: self.warnings(),
            uid: self.kept.uid,
            created_at: time(self.kept.created),
            expires_at: time(self.kept.expires),
            heartbeat_ms: self
                .kept
                .heartbeat
                .map(|heartbeat| u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX)),
            open_outcomes: self
                .ledger()
                .map_or(0, |ledger| u64::try_from(ledger.open_count()).unwrap_or(u64::MAX)),
        }
    }
}

/// Whether every daemon reaches the target, and owes nothing for it: an SSH host.
fn is_host(target: &str) -> bool {
    target != "local" && (target.starts_with("ssh://") || !target.contains(':'))
}

/// What is written down of a session when it is asked for.
pub(super) fn row(kept: &Kept, token_sha256: [u8; 32]) -> SessionRow {
    let asked = &kept.asked;
    SessionRow {
        id: kept.session,
        state: SessionState::Starting.name().to_owned(),
        reason: None,
        target: asked.target.clone(),
        // Plain values, which can always be written.
        request: serde_json::to_value(kept).unwrap_or_default(),
        // A lease stands in the book of the daemon that took it; nobody else can give it back.
        anywhere: is_host(&asked.target),
        tunnel: None,
        port: None,
        url: None,
        unix_path: None,
        token_sha256,
        run_id: kept.run_id.clone(),
        agent_id: asked.agent_id.clone(),
        company_id: asked.company_id.clone(),
        issue_id: asked.issue_id.clone(),
        environment_id: asked.environment_id.clone(),
        upstream: asked.upstream.clone().unwrap_or_default(),
        created_at: kept.created,
        ready_at: None,
        heartbeat_at: None,
        expires_at: Some(kept.expires),
        ended_at: None,
        revoked: false,
        hold: store::Hold::default(),
    }
}
