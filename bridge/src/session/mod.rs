//! A session: one agent run's bridge, with all that its callbacks are held against.
//!
//! Here: [`Session`] (token, policy, limits, budgets, ledger) and [`Session::callbacks`], by which a tunnel serves it.
//! Not here: how it is opened (`app/`), how a callback is answered (`callback/`), what a daemon keeps of it (`daemon/`).

pub mod budget;
pub mod ledger;
pub mod hold;
pub mod live;
pub mod rates;
pub(crate) mod target;
pub(crate) mod state;
pub(crate) mod identity;
pub(crate) mod observer;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderValue;
use policy::{Limits, RateLimit, TokenDigest};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel::{AgentMessage, AgentStream, Callbacks, MessageBody};
use uuid::Uuid;

use crate::audit::SessionAudit;
use crate::store::StoreError;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::Tracing;
use crate::upstream::Upstream;
use budget::Budget;
use hold::{Hold, NotServed};
use ledger::{Entry, Ledger, Outcome, TOLD};
use live::{InForce, LiveRules};
use observer::Observer;
use rates::SessionRates;

/// Callbacks of one session at the same time, unless somebody says otherwise.
pub const CONCURRENCY: usize = 64;
/// At the end of a session, answers that are made get so long to be taken.
const WRITING: Duration = Duration::from_secs(1);
/// Bytes of bodies that one session may hold, unless somebody says otherwise.
pub const SESSION_BODY_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of bodies that the process may hold, unless somebody says otherwise.
pub const PROCESS_BODY_BYTES: u64 = 256 * 1024 * 1024;

/// One agent run's bridge.
pub struct Session {
    /// Our name of it.
    pub id: Uuid,
    /// Sent as `x-paperclip-run-id`.
    pub run_id: HeaderValue,
    /// The tunnel that is tried or was taken.
    tunnel: Mutex<&'static str>,
    /// Compiled policy, as it is at the moment.
    pub rules: LiveRules,
    /// Sizes.
    pub limits: Limits,
    /// The Paperclip API.
    pub upstream: Upstream,
    /// What became of dispatched unsafe callbacks.
    pub ledger: Arc<Ledger>,
    /// By which this daemon may serve it; `None` where it is not kept in a store.
    pub(crate) hold: Option<Arc<Hold>>,
    /// Bytes of bodies held.
    pub bodies: Arc<Budget>,
    /// Places for callbacks under way.
    pub(crate) places: Arc<Semaphore>,
    /// So many are there in all.
    pub(crate) concurrency: u32,
    /// Calls per second; off by default.
    pub(crate) rate: Option<DefaultDirectRateLimiter>,
    /// Where its callbacks are counted beside others'.
    pub(crate) shared: Shared,
    /// `None` once it is void.
    token: ArcSwapOption<TokenDigest>,
    /// What each callback is written down in; `None` where there is no audit.
    pub(crate) audit: Option<Arc<SessionAudit>>,
    /// Cancelled once no new callback is taken.
    pub(crate) draining: CancellationToken,
    /// Cancelled when streams shall end once what they have to say is written.
    pub(crate) closing: CancellationToken,
    /// Cancelled to cut every stream.
    pub(crate) cut: CancellationToken,
    /// Streams that are being served.
    pub(crate) streams: TaskTracker,
    /// Dispatched unsafe callbacks run on here when their caller has gone; so does the dropping of unread bodies.
    pub(crate) tasks: TaskTracker,
}

/// What a session is made of.
#[derive(Debug)]
pub struct SessionParts {
    /// Sent as `x-paperclip-run-id`.
    pub run_id: HeaderValue,
    /// The tunnel's name, as far as it is known yet.
    pub tunnel: &'static str,
    /// Compiled policy.
    pub rules: LiveRules,
    /// Sizes.
    pub limits: Limits,
    /// Calls per second; `None` is no limit of rate.
    pub rate: Option<RateLimit>,
    /// The Paperclip API.
    pub upstream: Upstream,
    /// Digest of the agent's token.
    pub token: TokenDigest,
    /// What each callback is written down in, before it is dispatched; `None` where there is no audit.
    pub audit: Option<Arc<SessionAudit>>,
    /// The process's budget of body bytes.
    pub process_bodies: Arc<Budget>,
    /// What it shares with other sessions; nothing, in tests and where one session is all there is.
    pub shared: Shared,
}

/// What the sessions of one process have in common.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// Where callbacks are counted.
    pub metrics: Option<Arc<Metrics>>,
    /// Limits that count across sessions.
    pub rates: Option<SessionRates>,
    /// What holds for all of them at the moment.
    pub in_force: Arc<InForce>,
    /// Where the spans of callbacks go.
    pub tracing: Option<Arc<Tracing>>,
    /// Told of what happens in them, where somebody wants to know.
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// Which unsafe callbacks get an `Idempotency-Key` of ours where they bring none: those whose upstream honours it.
#[derive(Clone, Debug, Default)]
pub struct Minting {
    /// Templates of routes that get none, as packs and rules write them.
    pub except: Vec<String>,
}

impl Minting {
    /// Whether a callback on this route gets one.
    #[must_use]
    pub fn covers(&self, template: &str) -> bool {
        !self.except.iter().any(|except| except == template)
    }
}

impl Session {
    /// Callbacks that have a place now.
    pub(crate) fn under_way(&self) -> usize {
        let places = usize::try_from(self.concurrency).unwrap_or(usize::MAX);
        places.saturating_sub(self.places.available_permits())
    }

    /// Puts a session together; nothing runs yet.
    #[must_use]
    pub fn new(parts: SessionParts) -> Arc<Self> {
        Self::of(Uuid::now_v7(), parts, None)
    }

    /// The same under a name that it had before: a predecessor of this process began it.
    #[must_use]
    pub fn of(id: Uuid, parts: SessionParts, hold: Option<Arc<Hold>>) -> Arc<Self> {
        let (concurrency, body_bytes) = parts.shared.in_force.of_a_session();
        Arc::new(Self {
            id,
            run_id: parts.run_id,
            tunnel: Mutex::new(parts.tunnel),
            rules: parts.rules,
            limits: parts.limits,
            upstream: parts.upstream,
            ledger: Arc::default(),
            hold,
            bodies: Budget::within(parts.process_bodies, body_bytes),
            places: Arc::new(Semaphore::new(
                usize::try_from(concurrency).unwrap_or(CONCURRENCY),
            )),
            concurrency,
            rate: parts.rate.and_then(limiter),
            shared: parts.shared,
            token: ArcSwapOption::from_pointee(parts.token),
            audit: parts.audit,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            streams: TaskTracker::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// The name of the tunnel that was taken.
    #[must_use]
    pub fn tunnel(&self) -> &'static str {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ladder has come to a decision.
    pub fn takes_tunnel(&self, name: &'static str) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// Whether a presented bearer token is this session's. Constant time.
    #[must_use]
    pub fn owns_token(&self, presented: &[u8]) -> bool {
        self.token
            .load()
            .as_ref()
            .is_some_and(|digest| digest.matches(presented))
    }

    /// The digest of its token; `None` once that is void.
    pub(crate) fn token(&self) -> Option<TokenDigest> {
        self.token.load().as_deref().copied()
    }

    /// From now on another token is this session's; the one before is void, also on connections that stand.
    pub(crate) fn takes_token(&self, digest: TokenDigest) {
        self.token.store(Some(Arc::new(digest)));
    }

    /// Ends it for its agent at once: the token is void, new bytes are refused and every caller is cut. A dispatched
    /// unsafe callback runs on to its deadline, so that the ledger learns its outcome; [`Self::drain`] waits for it.
    pub(crate) fn revoke(&self) {
        self.token.store(None);
        self.draining.cancel();
        self.cut.cancel();
    }

    /// Whether this daemon may serve it now.
    pub(crate) fn is_ours(&self) -> Result<(), NotServed> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.check())
    }

    /// What became of a dispatched unsafe callback is known.
    pub(crate) fn settles(&self, request_id: Uuid, outcome: Outcome) {
        self.ledger.settle(request_id, outcome.clone());
        if let Some(hold) = &self.hold {
            // Its caller does not wait for the store.
            let hold = Arc::clone(hold);
            self.tasks
                .spawn(async move { hold.settle(request_id, outcome).await });
        }
    }

    /// Whether its answer reached the caller whole is known.
    pub(crate) fn delivers(&self, request_id: Uuid, whole: bool) {
        self.ledger.delivered(request_id, whole);
        if let Some(hold) = &self.hold {
            let hold = Arc::clone(hold);
            self.tasks
                .spawn(async move { hold.delivered(request_id, whole).await });
        }
    }

    /// What became of a callback, also of one that a predecessor of this process dispatched: its request id, or `key:`
    /// and the caller's own Idempotency-Key.
    ///
    /// # Errors
    ///
    /// It is not known here, and the store cannot be read.
    pub(crate) async fn outcome(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        match (self.ledger.look_up(id), &self.hold) {
            (None, Some(hold)) => hold.look_up(id).await,
            (known, _) => Ok(known),
        }
    }

    /// The newest dispatched unsafe callbacks, the newest first, also those of a predecessor of this process.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub(crate) async fn outcomes(&self) -> Result<Vec<Entry>, StoreError> {
        let Some(hold) = &self.hold else {
            return Ok(self.ledger.newest());
        };
        let stored = hold.newest().await?;
        // Asked for after the store: what was entered meanwhile is in both or in this one.
        let mut all = self.ledger.newest();
        let known: HashSet<_> = all.iter().map(|entry| entry.request_id).collect();
        all.extend(
            stored
                .into_iter()
                .filter(|entry| !known.contains(&entry.request_id)),
        );
        all.sort_by_key(|entry| std::cmp::Reverse(entry.dispatched_at));
        all.truncate(TOLD);
        Ok(all)
    }

    /// Who is told, if anybody is.
    pub(crate) fn observer(&self) -> Option<&dyn Observer> {
        self.shared.observer.as_deref()
    }

    /// What a tunnel calls for each stream of this session.
    #[must_use]
    pub fn callbacks(self: &Arc<Self>) -> Arc<dyn Callbacks> {
        Arc::new(SessionCallbacks(Arc::clone(self)))
    }

    /// Stops taking callbacks, lets those under way end for `patience`, then cuts what is left.
    ///
    /// Returns how many dispatched unsafe callbacks were given up while their outcome was still open.
    pub async fn drain(&self, patience: Duration) -> usize {
        self.draining.cancel();
        self.tasks.close();
        let settled = async {
            // Every place taken means that no callback is under way.
            let _idle = self.places.acquire_many(self.concurrency).await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(patience, settled).await.is_err() {
            tracing::debug!(session = %self.id, "callbacks were still under way at the end of the session");
        }
        // An answer that is made is not yet on its way.
        self.closing.cancel();
        self.streams.close();
        if tokio::time::timeout(WRITING, self.streams.wait()).await.is_err() {
            tracing::debug!(session = %self.id, "answers were still being written at the end of the session");
        }
        self.cut.cancel();
        self.ledger.open_count()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("tunnel", &self.tunnel())
            .finish_non_exhaustive()
    }
}

fn limiter(rate: RateLimit) -> Option<DefaultDirectRateLimiter> {
    Quota::with_period(rate.interval()).map(|quota| RateLimiter::direct(quota.allow_burst(rate.burst())))
}

#[derive(Debug)]
struct SessionCallbacks(Arc<Session>);

impl Callbacks for SessionCallbacks {
    fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()> {
        crate::callback::stream(stream, Arc::clone(&self.0)).boxed()
    }
    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, http::Response<MessageBody>> {
        crate::callback::message(message, Arc::clone(&self.0)).boxed()
    }
}
