//! A secret in use: read when it is used, and again when it has changed.
//!
//! Here: [`LiveSecret`]. A place on this machine is looked at at each use. A remote one is asked again after
//! `cache_ttl`, by one reading that all who wait share; while it cannot be asked, the old value serves for at most
//! `max_stale` beyond that. What an upstream or a provider rejected is read again, at most once in ten seconds. Not
//! here: the reading itself (`place.rs`).
//!
//! There is no task: a reading goes on while somebody waits for it, and its own deadline ends it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use crate::secrets::SecretSettings;
use crate::secrets::error::{Fault, SecretError};
use crate::secrets::place::{Mark, Surroundings};
use crate::secrets::reference::SecretRef;
use crate::secrets::value::Secret;

/// A remote place gets so long to give a value.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a rejection, the value is not read again for so long.
const BETWEEN_REJECTIONS: Duration = Duration::from_secs(10);
/// After a failed reading, the next one waits: at first so long, twice as long each time, and at most [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// A secret that is read when it is used. Clones share value and reading.
#[derive(Clone)]
pub struct LiveSecret(Arc<Inner>);

struct Inner {
    reference: SecretRef,
    around: Arc<Surroundings>,
    state: Mutex<State>,
}

/// A reading of a remote place, shared by all who wait for it.
type Reading = Shared<BoxFuture<'static, Result<Known, SecretError>>>;

/// The reading that is under way.
struct Underway {
    /// Tells it from an earlier one.
    number: u64,
    since: Instant,
    reading: Reading,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    underway: Option<Underway>,
    readings: u64,
    trouble: Option<Trouble>,
    /// Somebody would not take the value.
    due: bool,
    rejected: Option<Instant>,
}

#[derive(Clone)]
struct Known {
    secret: Arc<Secret>,
    since: Instant,
    mark: Option<Mark>,
}

/// The last reading failed.
struct Trouble {
    error: SecretError,
    pause: Duration,
    /// No reading before.
    until: Instant,
}

/// What is to be done for one use of a remote secret.
enum Step {
    Take(Arc<Secret>),
    Refuse(SecretError),
    Wait(u64, Reading),
}

impl LiveSecret {
    pub(crate) fn new(reference: SecretRef, around: Arc<Surroundings>) -> Self {
        Self(Arc::new(Inner {
            reference,
            around,
            state: Mutex::default(),
        }))
    }

    /// Where it is found.
    #[must_use]
    pub fn reference(&self) -> &SecretRef {
        &self.0.reference
    }

    /// The value that holds now. The same value is the same `Arc`.
    ///
    /// # Errors
    ///
    /// [`SecretError`], none of which repeats the value.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn get(&self) -> Result<Arc<Secret>, SecretError> {
        if self.0.reference.is_remote() {
            self.0.kept().await
        } else {
            self.0.looked_up().await
        }
    }

    /// `secret` was not taken where it was sent: the next use reads it again, unless that was done in the last ten
    /// seconds or another value has come since.
    pub fn rejected(&self, secret: &Arc<Secret>) {
        self.0.due(|known| Arc::ptr_eq(&known.secret, secret));
    }

    /// As [`Self::rejected`], for whatever value is known.
    pub(crate) fn look_again(&self) {
        self.0.due(|_| true);
    }
}

impl From<Secret> for LiveSecret {
    /// A value that never changes.
    fn from(secret: Secret) -> Self {
        let around = Surroundings::new(SecretSettings::default(), |_| None);
        Self::new(SecretRef::given(secret), Arc::new(around))
    }
}

impl fmt::Debug for LiveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveSecret({})", self.0.reference)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on this machine: looked at now, read if it has changed.
    async fn looked_up(&self) -> Result<Arc<Secret>, SecretError> {
        let mark = self.reference.mark(&self.around);
        {
            let state = self.state();
            if let Some(known) = &state.known
                && known.mark.is_some()
                && known.mark == mark
                && !state.due
            {
                return Ok(Arc::clone(&known.secret));
            }
        }
        let read = read(&self.reference, &self.around).await;
        let mut state = self.state();
        self.settle(&mut state, read.clone());
        if read.is_err() {
            // What is gone or open to others is not used any more.
            state.known = None;
        }
        read.map(|known| known.secret)
    }

    /// A remote place: the value that is kept, or one reading for all.
    async fn kept(&self) -> Result<Arc<Secret>, SecretError> {
        let (number, reading) = match self.next_step(Instant::now()) {
            Step::Take(secret) => return Ok(secret),
            Step::Refuse(error) => return Err(error),
            Step::Wait(number, reading) => (number, reading),
        };
        let read = reading.await;
        let mut state = self.state();
        // The first to come back of all who waited.
        if state
            .underway
            .take_if(|underway| underway.number == number)
            .is_some()
        {
            self.settle(&mut state, read.clone());
        }
        match read {
            Ok(known) => Ok(known.secret),
            Err(error) => self.stale(&state, &error, Instant::now()).ok_or(error),
        }
    }

    fn next_step(&self, now: Instant) -> Step {
        let mut state = self.state();
        let lifetime = self.around.settings.cache_ttl;
        if let Some(known) = &state.known
            && !state.due
            && now.duration_since(known.since) < lifetime
        {
            return Step::Take(Arc::clone(&known.secret));
        }
        // Whoever began a reading may have gone away; one that nobody drove to its end is over.
        state
            .underway
            .take_if(|underway| now.duration_since(underway.since) > DEADLINE);
        if let Some(trouble) = &state.trouble {
            // While a place is known to be in trouble, one caller at a time waits for it, not everybody.
            match self.stale(&state, &trouble.error, now) {
                Some(secret) if state.underway.is_some() || now < trouble.until => return Step::Take(secret),
                None if state.underway.is_none() && now < trouble.until => {
                    return Step::Refuse(trouble.error.clone());
                }
                Some(_) | None => {}
            }
        }
        if let Some(underway) = &state.underway {
            return Step::Wait(underway.number, underway.reading.clone());
        }
        let (reference, around) = (self.reference.clone(), Arc::clone(&self.around));
        let reading = async move { in_time(&reference, &around).await }.boxed().shared();
        state.readings += 1;
        let number = state.readings;
        state.underway = Some(Underway {
            number,
            since: now,
            reading: reading.clone(),
        });
        Step::Wait(number, reading)
    }

    /// The known value, where `error` does not speak against it and it is not too old.
    fn stale(&self, state: &State, error: &SecretError, now: Instant) -> Option<Arc<Secret>> {
        let SecretSettings { cache_ttl, max_stale } = self.around.settings;
        let usable = |known: &&Known| now.duration_since(known.since) < cache_ttl.saturating_add(max_stale);
        let known = state.known.as_ref().filter(|_| error.may_pass())?;
        Some(known).filter(usable).map(|known| Arc::clone(&known.secret))
    }

    /// Takes over what a reading brought, and tells of a change between working and not.
    fn settle(&self, state: &mut State, read: Result<Known, SecretError>) {
        let reference = self.reference.as_str();
        match read {
            Ok(known) => {
                if state.trouble.take().is_some() {
                    tracing::info!(reference, "the secret can be read again");
                }
                state.known = Some(known);
                state.due = false;
            }
            Err(error) => {
                let pause = state
                    .trouble
                    .as_ref()
                    .map_or(FIRST_PAUSE, |trouble| (trouble.pause * 2).min(LAST_PAUSE));
                // Nobody hears of a first reading by the log: whoever wanted it says so.
                if state.trouble.is_none() && state.known.is_some() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a secret cannot be read again"
                    );
                }
                state.trouble = Some(Trouble {
                    error,
                    pause,
                    until: Instant::now() + pause,
                });
            }
        }
    }

    fn due(&self, of: impl FnOnce(&Known) -> bool) {
        let now = Instant::now();
        let mut state = self.state();
        let recent = |at: Instant| now.duration_since(at) < BETWEEN_REJECTIONS;
        if state.known.as_ref().is_some_and(of) && !state.rejected.is_some_and(recent) {
            state.rejected = Some(now);
            state.due = true;
            tracing::debug!(
                reference = self.reference.as_str(),
                "the secret was not taken; reading it again"
            );
        }
    }
}

/// Reads a remote place within [`DEADLINE`].
async fn in_time(reference: &SecretRef, around: &Surroundings) -> Result<Known, SecretError> {
    let read = tokio::time::timeout(DEADLINE, read(reference, around)).await;
    read.unwrap_or_else(|_| {
        let why = format!("no value within {} s", DEADLINE.as_secs());
        Err(reference.error(Fault::Unavailable(why)))
    })
}

async fn read(reference: &SecretRef, around: &Surroundings) -> Result<Known, SecretError> {
    // Counted from before the question: the value is at least as old.
    let since = Instant::now();
    let (secret, mark) = reference.read(around).await?;
    Ok(Known {
        secret: Arc::new(secret),
        since,
        mark,
    })
}

#[cfg(test)]
mod tests;
