//! What happens in the daemon's sessions, for whoever listens at the moment.
//!
//! Here: [`Events`]: a bounded broadcast, whose slow readers lose the oldest and are told how many; and the index of
//! tokens, by which a token on the wrong channel is found. Not here: the audit, which loses nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use policy::TokenDigest;
use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;
use uuid::Uuid;

use super::shown::time;
use super::state::{SessionState, Standing};
use super::traffic::Watched;
use crate::session::observer::{Observer, Seen};

/// Events that wait for a slow reader.
const WAITING: usize = 1024;

/// One thing that happened.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A session is in another state.
    Session {
        /// Which.
        session: Uuid,
        /// When.
        at: String,
        /// What its agent and the upstream know it by.
        run_id: String,
        /// The state it is in now.
        state: SessionState,
        /// A stable reason.
        reason: Option<String>,
        /// One line.
        detail: Option<String>,
    },
    /// A callback has ended.
    Callback {
        /// Its session.
        session: Uuid,
        /// When it ended.
        at: String,
        /// The run that made it.
        run_id: String,
        /// By which the answer named it.
        request_id: Uuid,
        /// Its method.
        method: String,
        /// Its canonical path, without the query; empty where none could be read.
        path: String,
        /// The rule that allowed it; for `report` the one that denies it; empty where there is none.
        rule: String,
        /// `allow`, `deny`, `report` (denied and let through) or `own`.
        verdict: String,
        /// The answer's status; 0 where the caller had gone before.
        status: u16,
        /// The code of one of our own answers, else empty.
        code: String,
        /// Bytes of the answer's body.
        answer_bytes: u64,
        /// From its arrival to the end of its answer.
        duration_us: u64,
    },
    /// The token of one session was shown on the channel of another.
    WrongChannel {
        /// Where it was shown.
        session: Uuid,
        /// When.
        at: String,
        /// Whose it is.
        owner: Uuid,
    },
}

impl Event {
    /// The session it is about.
    #[must_use]
    pub const fn session(&self) -> Uuid {
        match self {
            Self::Session { session, .. }
            | Self::Callback { session, .. }
            | Self::WrongChannel { session, .. } => *session,
        }
    }

    /// The run it is about, where one is known.
    #[must_use]
    pub fn run_id(&self) -> Option<&str> {
        match self {
            Self::Session { run_id, .. } | Self::Callback { run_id, .. } => Some(run_id),
            Self::WrongChannel { .. } => None,
        }
    }

    /// Whether a caller was told no by us.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        match self {
            Self::Callback { verdict, .. } => verdict == "deny",
            Self::WrongChannel { .. } => true,
            Self::Session { .. } => false,
        }
    }

    /// Its name, as it stands in `event`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Session { .. } => "session",
            Self::Callback { .. } => "callback",
            Self::WrongChannel { .. } => "wrong_channel",
        }
    }
}

/// Tells whoever listens.
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    tokens: Mutex<HashMap<[u8; 32], Uuid>>,
    wrong_channel: AtomicU64,
    callbacks: AtomicU64,
    denied: AtomicU64,
    watched: Watched,
    reported: AtomicU64,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("listeners", &self.sender.receiver_count())
            .finish_non_exhaustive()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(WAITING).0,
            tokens: Mutex::default(),
            wrong_channel: AtomicU64::new(0),
            callbacks: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            watched: Watched::default(),
            reported: AtomicU64::new(0),
        }
    }
}

impl Events {
    /// From now on. A reader that is slower than what happens loses the oldest.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// How much is going on, and the newest callbacks.
    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    /// A token that is a session's from now on.
    pub(crate) fn token_of(&self, session: Uuid, digest: TokenDigest) {
        self.tokens().insert(digest.to_bytes(), session);
    }

    /// A token that is nobody's any more.
    pub(crate) fn forget_token(&self, digest: TokenDigest) {
        self.tokens().remove(&digest.to_bytes());
    }

    /// Tokens that were shown on the channel of another session so far.
    pub(crate) fn wrong_channels(&self) -> u64 {
        self.wrong_channel.load(Ordering::Relaxed)
    }

    /// Callbacks that have ended so far, and how many of them were denied.
    pub(crate) fn callbacks(&self) -> (u64, u64) {
        (
            self.callbacks.load(Ordering::Relaxed),
            self.denied.load(Ordering::Relaxed),
        )
    }

    /// Callbacks so far that were denied and let through.
    pub(crate) fn reported(&self) -> u64 {
        self.reported.load(Ordering::Relaxed)
    }

    /// A session is in another state.
    pub(super) fn stands(&self, session: Uuid, run_id: &str, standing: &Standing) {
        self.tell(|| Event::Session {
            session,
            at: time(standing.since),
            run_id: run_id.to_owned(),
            state: standing.state,
            reason: standing.reason.map(str::to_owned),
            detail: standing.detail.clone(),
        });
    }

    /// Made only where somebody listens.
    fn tell(&self, event: impl FnOnce() -> Event) {
        if self.sender.receiver_count() > 0 {
            // The last listener may have gone this moment.
            let _told = self.sender.send(Arc::new(event()));
        }
    }

    /// The same for what whoever looks later wants to see, too.
    fn tell_and_remember(&self, event: Event) {
        let event = Arc::new(event);
        self.watched.remember(&event);
        if self.sender.receiver_count() > 0 {
            let _told = self.sender.send(event);
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Uuid>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Events {
    fn callback(&self, seen: Seen<'_>) {
        self.callbacks.fetch_add(1, Ordering::Relaxed);
        match seen.verdict {
            "deny" => self.denied.fetch_add(1, Ordering::Relaxed),
            "report" => self.reported.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        self.watched.callback(&seen);
        self.tell_and_remember(Event::Callback {
            session: seen.session,
            at: time(SystemTime::now()),
            run_id: seen.run_id.to_owned(),
            request_id: seen.request_id,
            method: seen.method.to_owned(),
            path: seen.path.to_owned(),
            rule: seen.rule.to_owned(),
            verdict: seen.verdict.to_owned(),
            status: seen.status,
            code: seen.code.to_owned(),
            answer_bytes: seen.answer_bytes,
            duration_us: u64::try_from(seen.duration.as_micros()).unwrap_or(u64::MAX),
        });
    }

    fn wrong_token(&self, session: Uuid, presented: &[u8]) -> Option<Uuid> {
        let digest = TokenDigest::of(presented);
        let owner = self.tokens().get(&digest.to_bytes()).copied();
        let owner = owner.filter(|owner| *owner != session)?;
        self.wrong_channel.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%session, %owner, "a token was shown on the channel of another session");
        self.tell_and_remember(Event::WrongChannel {
            session,
            at: time(SystemTime::now()),
            owner,
        });
        Some(owner)
    }
}
