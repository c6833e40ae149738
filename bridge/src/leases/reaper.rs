//! What processes that live no more have left: given back by any that comes later.
//!
//! Here: [`Reaper`], one pass over the book and the task that makes passes while a session lasts. Two at once do not
//! get in each other's way: whoever has an entry is alone with it. Not here: the call itself (`giving_back.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use runners::provider::Provider;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::book::{BookError, Entry, LeaseBook, Line};
use super::giving_back::{GaveBack, attempt};
use super::record::LeaseRecord;

/// How often the book is looked through while a session lasts.
const PASS_EVERY: Duration = Duration::from_secs(15);

/// Entries that are worked on at the same time.
const AT_ONCE: usize = 8;

/// Makes the provider that a record speaks of.
pub(crate) type Build = dyn Fn(&LeaseRecord) -> Result<Arc<dyn Provider>, String> + Send + Sync;

/// Leases that sessions of an earlier process stand on and that are about to be gone on with. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spared {
    leases: Arc<Mutex<BTreeSet<(String, String)>>>,
    /// Rung for each that is spared no more.
    fewer: Arc<Notify>,
}

impl Spared {
    /// This lease of this provider is not given back until [`Self::forget`].
    pub(crate) fn spare(&self, provider: &str, id: &str) {
        self.set().insert((provider.to_owned(), id.to_owned()));
    }

    /// Nobody is about to go on with it any more.
    pub(crate) fn forget(&self, provider: &str, id: &str) {
        self.set().remove(&(provider.to_owned(), id.to_owned()));
        self.fewer.notify_one();
    }

    fn holds(&self, line: &Line) -> bool {
        let lease = line
            .record
            .as_ref()
            .ok()
            .and_then(|record| Some((record.provider.clone(), record.id()?.to_owned())));
        lease.is_some_and(|lease| self.set().contains(&lease))
    }

    fn set(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back what others left.
pub(crate) struct Reaper {
    book: LeaseBook,
    build: Box<Build>,
    spared: Spared,
}

/// Which entries a pass takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    /// Those whose time has come.
    Due,
    /// All of one provider, or of every one: an operator asks for it.
    All {
        /// The provider's key.
        provider: Option<&'a str>,
    },
}

impl Which<'_> {
    fn takes(self, line: &Line, now: SystemTime) -> bool {
        let wanted = match (self, &line.record) {
            (Self::Due, Ok(record)) => record.debt.is_due(now),
            (Self::Due, Err(_)) => false,
            (Self::All { provider }, Ok(record)) => provider.is_none_or(|key| key == record.provider),
            (Self::All { provider }, Err(_)) => provider.is_none(),
        };
        wanted && !line.in_use
    }
}

/// What a pass made of one entry.
#[derive(Debug)]
pub(crate) struct Reaped {
    /// The entry's name.
    pub(crate) name: String,
    /// What was written down, where it could be read.
    pub(crate) record: Option<LeaseRecord>,
    /// How it ended.
    pub(crate) outcome: GaveBack,
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper")
            .field("book", &self.book)
            .finish_non_exhaustive()
    }
}

impl Reaper {
    pub(crate) fn new(book: LeaseBook, build: Box<Build>) -> Self {
        Self {
            book,
            build,
            spared: Spared::default(),
        }
    }

    /// The same, leaving alone what sessions are about to go on with.
    pub(crate) fn sparing(self, spared: Spared) -> Self {
        Self { spared, ..self }
    }

    /// Makes a pass now and then until told to stop; what is under way is brought to its end.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.pass(Which::Due, &stop).await {
                tracing::warn!(%error, "the book of leases cannot be looked through");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.spared.fewer.notified() => {}
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
        }
    }

    /// The book that it looks through.
    pub(super) fn book(&self) -> &LeaseBook {
        &self.book
    }

    /// Goes through the book once, several entries at a time; once `stop` is cancelled, none is begun.
    ///
    /// # Errors
    ///
    /// [`BookError`] where the book itself cannot be read. One entry that cannot be is told in its own outcome.
    pub(crate) async fn pass(
        &self,
        which: Which<'_>,
        stop: &CancellationToken,
    ) -> Result<Vec<Reaped>, BookError> {
        let now = SystemTime::now();
        let lines = self
            .book
            .lines()
            .await?
            .into_iter()
            .filter(|line| which.takes(line, now) && !self.spared.holds(line));
        let reaped = stream::iter(lines)
            .map(|line| async move {
                if stop.is_cancelled() {
                    return None;
                }
                match self.book.take(&line.name).await {
                    // Nobody, where somebody else was faster.
                    Ok(entry) => Some(self.one(entry?, now).await),
                    Err(error) => Some(Reaped {
                        name: line.name,
                        record: None,
                        outcome: GaveBack::Owed {
                            why: error.to_string(),
                            soon: false,
                        },
                    }),
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        Ok(reaped.into_iter().flatten().collect())
    }

    async fn one(&self, mut entry: Entry, now: SystemTime) -> Reaped {
        let outcome = match (self.build)(&entry.record) {
            Ok(provider) => attempt(&mut entry, &provider, now).await,
            Err(why) => GaveBack::Owed { why, soon: false },
        };
        let (name, record) = (entry.name().to_owned(), entry.record.clone());
        let (provider, lease) = (record.provider.as_str(), record.id().unwrap_or("unknown"));
        let written = match &outcome {
            GaveBack::Confirmed(released) => {
                tracing::info!(
                    provider,
                    lease,
                    ?released,
                    "a lease of an earlier process was given back"
                );
                entry.strike().await
            }
            GaveBack::Nothing(why) => {
                tracing::warn!(
                    provider,
                    lease,
                    why,
                    "a lease of an earlier process is lost, so nothing is owed"
                );
                entry.strike().await
            }
            GaveBack::Borrowed => {
                tracing::info!(
                    provider,
                    lease,
                    "a lease that an earlier process had borrowed is left as it is"
                );
                entry.strike().await
            }
            GaveBack::Owed { why, .. } => {
                tracing::warn!(
                    provider,
                    lease,
                    why,
                    "a lease of an earlier process is still owed"
                );
                let random = getrandom::u32().unwrap_or_default();
                entry.record.debt.failed(why, now, random);
                entry.write()
            }
        };
        if let Err(error) = written {
            tracing::error!(%error, lease, "the book of leases is not in order");
        }
        Reaped {
            name,
            record: Some(record),
            outcome,
        }
    }
}
