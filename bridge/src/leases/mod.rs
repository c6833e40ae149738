//! Leases: a provider's sandbox is ours from the moment it is written down until its provider says that it is not.
//!
//! Here: [`Leases`], which a session asks for one. In `record` what is written down and in `book` where, in `keeper` a
//! lease's life in this process and in `held` its session's side, in `reaper` what earlier processes left, in
//! `giving_back` the one call that both make, in `runner` how a lost lease is heard of. Not here: any provider
//! (`runners::provider`), the session on a lease (`app/`). Read next: `record`, then `keeper`.

mod record;
mod book;
mod giving_back;
mod runner;
mod held;
mod keeper;
mod reaper;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use runners::provider::{Lease, LeaseScope, Provider, ProviderError, ProviderSpec};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::ProviderConfig;

pub(crate) use book::{BookError, LeaseBook, Line};
pub(crate) use giving_back::GaveBack;
pub(crate) use held::HeldLease;
pub(crate) use reaper::{Reaped, Reaper, Spared, Which};
pub(crate) use record::{LeaseRecord, Stage};

use book::Found;
use keeper::{Resume, Wanted, keep};

/// At the process's end, leases still being given back have so long.
const SETTLING: Duration = Duration::from_secs(30);

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// It cannot be written down, or another session has it.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The provider did not do what was asked.
    #[error("{provider} cannot {doing}: {error}")]
    Provider {
        /// Its key.
        provider: String,
        /// What was asked of it.
        doing: &'static str,
        /// What it said.
        error: ProviderError,
    },
    /// The task that owns it has failed.
    #[error("the task that keeps the lease has failed; what it left stands in `leases ls`")]
    Keeper,
}

impl LeaseError {
    fn provider(provider: &str, doing: &'static str, error: ProviderError) -> Self {
        Self::Provider {
            provider: provider.to_owned(),
            doing,
            error,
        }
    }
}

/// What a lease is wanted for.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) spec: &'static ProviderSpec,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) config: &'a ProviderConfig,
    pub(crate) scope: LeaseScope,
    /// The lease of this id, and no other.
    pub(crate) id: Option<&'a str>,
    /// It is only looked at: at the end the provider hears nothing, and what stood in the book stays there.
    pub(crate) probed: bool,
    /// A killed process's lease for the same run may be gone on with, if a session on it was written down.
    pub(crate) go_on: bool,
    /// A session of an earlier process stands on it and is brought back: until that has succeeded it stays in the book
    /// whatever happens, to be tried again.
    pub(crate) returns: bool,
}

/// Every lease of this process, and what gives back those that others left.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Books that a task of ours looks through.
    reaped: Mutex<BTreeSet<PathBuf>>,
    /// What a reaper of this process leaves alone.
    pub(crate) spared: Spared,
}

impl Leases {
    /// Acquires or resumes a lease. It is given back when the result is dropped.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]; what the provider may have made all the same stands in the book.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the lease: it is given back as soon as it is there.
    pub(crate) async fn hold(&self, book: &LeaseBook, wish: Wish<'_>) -> Result<HeldLease, LeaseError> {
        if wish.go_on
            && wish.id.is_none()
            && let Some(wanted) = left_of_run(book, &wish).await?
        {
            match self.kept(wanted).await {
                Err(LeaseError::Provider {
                    error: ProviderError::LeaseLost(why),
                    ..
                }) => {
                    tracing::warn!(
                        why,
                        run = wish.scope.run_id,
                        "this run's earlier lease is lost, so a new one is acquired"
                    );
                }
                other => return other,
            }
        }
        let now = SystemTime::now();
        let mut record = LeaseRecord::new(
            wish.spec.key,
            wish.provider.account(),
            wish.config.clone(),
            wish.scope,
            now,
        );
        let (entry, resume) = match wish.id {
            None => (book.begin(record).await?, None),
            Some(id) => {
                record.stage = Stage::Held;
                // Borrowed, unless this book knows better.
                record.made = false;
                record.lease = Some(only_the_id(id));
                let (mut entry, found) = book.claim(record.clone(), id).await?;
                if found == Found::Left {
                    // The run that asks for it now is the one it is for.
                    entry.record.scope = record.scope;
                    entry.record.config = record.config;
                    entry.write()?;
                }
                let id = id.to_owned();
                (entry, Some(Resume { id, found }))
            }
        };
        self.kept(Wanted {
            spec: wish.spec,
            provider: wish.provider,
            entry,
            resume,
            probed: wish.probed,
            returns: wish.returns,
        })
        .await
    }

    /// Gives back what earlier processes left, for as long as this one lives; one task for each book.
    pub(crate) fn reap(&self, reaper: Reaper) {
        let folder = reaper.book().folder().to_owned();
        if !self
            .reaped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(folder)
        {
            return;
        }
        self.tasks.spawn(reaper.run(self.stop.clone()));
    }

    /// Waits at the process's end for leases that are being given back; what is not done then is owed.
    pub(crate) async fn settle(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SETTLING, self.tasks.wait()).await.is_err() {
            tracing::warn!("leases were still being given back at the end of the process; they are owed");
        }
    }

    async fn kept(&self, wanted: Wanted) -> Result<HeldLease, LeaseError> {
        let (taker, taken) = oneshot::channel();
        self.tasks.spawn(keep(wanted, taker));
        taken.await.map_err(|_| LeaseError::Keeper)?
    }
}

/// The lease of the same run that a killed process left with a session on it.
async fn left_of_run(book: &LeaseBook, wish: &Wish<'_>) -> Result<Option<Wanted>, BookError> {
    for line in book.lines().await? {
        let Ok(record) = line.record else { continue };
        let same = record.provider == wish.spec.key
            && record.account == wish.provider.account()
            && record.stage == Stage::Held
            && record.scope.run_id == wish.scope.run_id;
        let (Some(lease), true, false) = (record.lease, same, line.in_use) else {
            continue;
        };
        let Some(entry) = book.take(&line.name).await? else {
            continue;
        };
        if !entry.session_folder().join("session.json").exists() {
            continue;
        }
        return Ok(Some(Wanted {
            spec: wish.spec,
            provider: Arc::clone(&wish.provider),
            entry,
            resume: Some(Resume {
                id: lease.id,
                found: Found::Left,
            }),
            probed: false,
            returns: false,
        }));
    }
    Ok(None)
}

fn only_the_id(id: &str) -> Lease {
    Lease {
        id: id.to_owned(),
        metadata: serde_json::Map::new(),
        remote_cwd: None,
        expires_at: None,
        resumed: true,
    }
}
