//! The life of one lease in this process: acquired, kept alive, given back.
//!
//! Here: the task that owns a lease from before it is asked for until the provider has confirmed its end or it stands
//! in the book as owed. The task lives on when the session's own future is dropped, so that every end of a session is
//! an end of its lease. Not here: the session's side of it (`held.rs`), what is owed from before (`reaper.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use runners::provider::{Lease, Provider, ProviderError, ProviderSpec};
use runners::ssh::Backoff;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LeaseError;
use super::book::{BookError, Entry, Found};
use super::giving_back::{GaveBack, attempt, destroy, limited};
use super::held::{Fate, HeldLease};
use super::runner::Listening;

/// A sandbox that is not there by then is given up.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(600);
/// An acquire that nobody waits for any more may take so long to end; then it is looked for later.
const ABANDONED: Duration = Duration::from_secs(10);
/// At a session's end its lease is tried to be given back for so long; then it is owed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A provider may put a borrowed sandbox to rest for so long.
const LETTING_GO: Duration = Duration::from_secs(20);
/// No provider wants to hear of a lease more often.
const SHORTEST_PACE: Duration = Duration::from_millis(100);
/// A lease that expires and has no heartbeat is asked for so often afterwards.
const AFTER_EXPIRY: Duration = Duration::from_secs(30);

/// What shall be held.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) spec: &'static ProviderSpec,
    pub(super) provider: Arc<dyn Provider>,
    /// Written down before the provider is asked for anything.
    pub(super) entry: Entry,
    /// A lease that is there already.
    pub(super) resume: Option<Resume>,
    /// It is only looked at.
    pub(super) probed: bool,
    /// What stands on it is being brought back.
    pub(super) returns: bool,
}

/// A lease that is there already.
#[derive(Debug)]
pub(super) struct Resume {
    pub(super) id: String,
    /// Whether a killed process had left it in the book.
    pub(super) found: Found,
}

/// What becomes of a lease at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is given back, until the provider confirms.
    GiveBack,
    /// It was there before us: the provider is told that we are through with it, and nothing ends it.
    LetGo,
    /// The provider hears nothing.
    Leave,
    /// The provider hears nothing, and the entry stays as it was: a reaper's business.
    LeaveInTheBook,
}

impl End {
    fn of(wanted: &Wanted) -> Self {
        let Some(resume) = &wanted.resume else {
            return Self::GiveBack;
        };
        match (wanted.probed, resume.found) {
            (true, Found::Left) => Self::LeaveInTheBook,
            (true, Found::Nothing) => Self::Leave,
            (false, _) if wanted.entry.record.made => Self::GiveBack,
            (false, _) => Self::LetGo,
        }
    }
}

/// Owns a lease to its end; to be spawned. `taker` is given it once it can be used.
pub(super) async fn keep(wanted: Wanted, taker: oneshot::Sender<Result<HeldLease, LeaseError>>) {
    let end = End::of(&wanted);
    let Wanted {
        spec,
        provider,
        mut entry,
        resume,
        returns,
        ..
    } = wanted;
    let mut taker = taker;
    let got = get(&mut entry, &provider, resume.as_ref(), &mut taker).await;
    let lease = match got {
        Ok(lease) => lease,
        Err(not_had) => {
            let error = match end {
                // Tried again, on this lease and no other.
                _ if returns && !not_had.is_lost() => not_had.error,
                End::GiveBack => leave(not_had, entry, &provider).await,
                End::LetGo | End::Leave => {
                    strike(entry).await;
                    not_had.error
                }
                End::LeaveInTheBook => not_had.error,
            };
            // Nobody may be there any more to hear it.
            let _ = taker.send(Err(error));
            return;
        }
    };
    let asked = CancellationToken::new();
    let (fate_sender, fate) = watch::channel(Fate::Held);
    let (lost_sender, lost) = watch::channel(None);
    let left = Arc::new(AtomicBool::new(returns));
    let held = held(
        spec,
        &provider,
        &lease,
        &entry,
        lost_sender,
        fate,
        (asked.clone(), Arc::clone(&left)),
    );
    match held {
        Ok(held) => {
            tracing::info!(
                provider = spec.key,
                lease = lease.id,
                resumed = lease.resumed,
                "lease held"
            );
            // Dropped where nobody takes it, which asks for its end.
            let _ = taker.send(Ok(held));
            if let Some(why) = watch_over(&mut entry, &provider, lost, &asked).await {
                tracing::warn!(
                    provider = spec.key,
                    lease = lease.id,
                    reason = "lease_lost",
                    why,
                    "the lease is lost"
                );
                fate_sender.send_replace(Fate::Lost(why));
                asked.cancelled().await;
            }
        }
        Err(error) => {
            let _ = taker.send(Err(error));
        }
    }
    let end = if left.load(Ordering::Acquire) {
        End::LeaveInTheBook
    } else {
        end
    };
    let outcome = match end {
        End::GiveBack => give_back(entry, &provider).await,
        End::LetGo => {
            let_go(&provider, &lease).await;
            strike(entry).await;
            Ok(())
        }
        End::Leave => {
            strike(entry).await;
            Ok(())
        }
        End::LeaveInTheBook => {
            drop(entry);
            Ok(())
        }
    };
    fate_sender.send_replace(Fate::Ended(outcome));
}

/// The lease as a session sees it; its metadata are checked here, before anything runs in it.
fn held(
    spec: &'static ProviderSpec,
    provider: &Arc<dyn Provider>,
    lease: &Lease,
    entry: &Entry,
    lost: watch::Sender<Option<String>>,
    fate: watch::Receiver<Fate>,
    (asked, left): (CancellationToken, Arc<AtomicBool>),
) -> Result<HeldLease, LeaseError> {
    let fault = |error| LeaseError::provider(spec.key, "use the lease", error);
    Ok(HeldLease {
        shell: lease.shell(spec).map_err(fault)?,
        heard: lost.subscribe(),
        runner: Arc::new(Listening::new(provider.runner(lease).map_err(fault)?, lost)),
        relay: provider.relay(lease),
        session_folder: entry.session_folder(),
        lease: lease.clone(),
        fate,
        give_back: asked.drop_guard(),
        left,
    })
}

/// Why there is no lease, and what that leaves.
struct NotHad {
    error: LeaseError,
    left: Left,
}

impl NotHad {
    fn is_lost(&self) -> bool {
        matches!(
            self.error,
            LeaseError::Provider {
                error: ProviderError::LeaseLost(_),
                ..
            }
        )
    }
}

enum Left {
    /// There is nothing to give back.
    Nothing,
    /// There may be something.
    Perhaps,
    /// There is this sandbox, and no record of it can be written.
    Unrecorded(Lease),
}

async fn get(
    entry: &mut Entry,
    provider: &Arc<dyn Provider>,
    resume: Option<&Resume>,
    taker: &mut oneshot::Sender<Result<HeldLease, LeaseError>>,
) -> Result<Lease, NotHad> {
    let key = entry.record.provider.clone();
    if resume.is_none() {
        name_request(entry, provider).await?;
    }
    let scope = entry.record.scope.clone();
    let metadata = entry
        .record
        .lease
        .as_ref()
        .map(|lease| lease.metadata.clone())
        .unwrap_or_default();
    let call = async {
        match resume {
            Some(resume) => provider.resume(&resume.id, &metadata, &scope).await,
            None => provider.acquire(&scope).await,
        }
    };
    let nobody_waits = async {
        taker.closed().await;
        tokio::time::sleep(ABANDONED).await;
    };
    let answer = tokio::select! {
        answer = call => answer,
        () = nobody_waits => Err(ProviderError::Unknown("nobody waits for it any more".to_owned())),
        () = tokio::time::sleep(ACQUIRE_LIMIT) => {
            Err(ProviderError::Unknown(format!("no answer within {} s", ACQUIRE_LIMIT.as_secs())))
        }
    };
    match answer {
        Ok(lease) => entry
            .named(lease.clone())
            .await
            .map(|()| lease.clone())
            .map_err(|error| {
                let left = match &error {
                    // It is the other session's to give back.
                    BookError::Taken { .. } => Left::Nothing,
                    BookError::State(_) | BookError::Busy(_) => Left::Unrecorded(lease),
                };
                NotHad {
                    error: LeaseError::Book(error),
                    left,
                }
            }),
        Err(error) => {
            let left = match (&error, resume) {
                // An id that only the operator named was never ours, unless the call may have woken it.
                (ProviderError::LeaseLost(_), Some(_)) => Left::Nothing,
                (ProviderError::Unknown(_) | ProviderError::Broken(_) | ProviderError::Unproven(_), _) => {
                    Left::Perhaps
                }
                (_, Some(resume)) if resume.found == Found::Left => Left::Perhaps,
                (_, _) => Left::Nothing,
            };
            let doing = if resume.is_some() {
                "resume the lease"
            } else {
                "acquire a lease"
            };
            Err(NotHad {
                error: LeaseError::provider(&key, doing, error),
                left,
            })
        }
    }
}

/// Gives the acquire a name where its provider knows it again by that, and writes it down: a later process can then ask
/// again for a lease whose answer was lost.
async fn name_request(entry: &mut Entry, provider: &Arc<dyn Provider>) -> Result<(), NotHad> {
    let nothing = |error| NotHad {
        error,
        left: Left::Nothing,
    };
    let fault = |error| {
        nothing(LeaseError::provider(
            &entry.record.provider,
            "acquire a lease",
            error,
        ))
    };
    if !limited(provider.repeats_acquire()).await.map_err(fault)? {
        return Ok(());
    }
    let name = crate::signing::fresh_nonce()
        .map_err(ProviderError::Refused)
        .map_err(fault)?;
    entry.record.scope.request_id = Some(name.to_string());
    entry.write().map_err(|error| nothing(LeaseError::Book(error)))
}

/// Takes out of the book what is not ours to give back.
async fn strike(entry: Entry) {
    if let Err(error) = entry.strike().await {
        tracing::error!(%error, "the book of leases is not in order");
    }
}

/// Tells the provider that we are through with a borrowed lease. What it does not do then is not owed: nobody but the
/// owner has a say in that sandbox.
async fn let_go(provider: &Arc<dyn Provider>, lease: &Lease) {
    let answer = tokio::time::timeout(LETTING_GO, provider.let_go(lease)).await;
    let answer = answer.unwrap_or_else(|_| {
        let limit = LETTING_GO.as_secs();
        Err(ProviderError::Unknown(format!("no answer within {limit} s")))
    });
    match answer {
        Ok(()) => tracing::info!(lease = lease.id, "a borrowed lease is let go of"),
        Err(ProviderError::LeaseLost(_)) => {}
        Err(error) => {
            tracing::warn!(lease = lease.id, %error, "a borrowed sandbox could not be put to rest and is left as it is");
        }
    }
}

/// Puts the book in order where no lease was had.
async fn leave(not_had: NotHad, mut entry: Entry, provider: &Arc<dyn Provider>) -> LeaseError {
    let told = match not_had.left {
        Left::Nothing => entry.strike().await.map_err(|error| error.to_string()),
        Left::Perhaps => {
            // Stays in the book, to be looked for.
            let why = not_had.error.to_string();
            entry
                .record
                .debt
                .failed(&why, SystemTime::now(), getrandom::u32().unwrap_or_default());
            entry.write().map_err(|error| error.to_string())
        }
        Left::Unrecorded(lease) => match destroy(provider, &lease).await {
            GaveBack::Confirmed(_) | GaveBack::Nothing(_) | GaveBack::Borrowed => {
                entry.strike().await.map_err(|error| error.to_string())
            }
            GaveBack::Owed { why, .. } => Err(format!(
                "the sandbox {} could be neither written down nor ended, so end it at the provider: {why}",
                lease.id
            )),
        },
    };
    if let Err(left) = told {
        tracing::error!(left, "the book of leases is not in order");
    }
    not_had.error
}

/// Keeps the lease alive until its session is over; returns why it is lost, if it is.
async fn watch_over(
    entry: &mut Entry,
    provider: &Arc<dyn Provider>,
    mut lost: watch::Receiver<Option<String>>,
    asked: &CancellationToken,
) -> Option<String> {
    let mut backoff = Backoff::default();
    let lease = entry.record.lease.clone()?;
    let heard = async move {
        let why = lost
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // No runner is left that could tell.
            None => std::future::pending().await,
        }
    };
    tokio::pin!(heard);
    loop {
        let beaten = tokio::select! {
            biased;
            () = asked.cancelled() => return None,
            why = &mut heard => return Some(why),
            beaten = limited(provider.keep_alive(&lease)) => beaten,
        };
        let now = SystemTime::now();
        let wait = match beaten {
            Ok(Some(pace)) => {
                backoff.reset();
                entry.record.kept_alive(now);
                if let Err(error) = entry.write() {
                    tracing::warn!(%error, "a heartbeat cannot be written down");
                }
                (pace / 2).max(SHORTEST_PACE)
            }
            Ok(None) => until_expiry(entry, now),
            Err(ProviderError::LeaseLost(why)) => return Some(why),
            Err(error) if entry.record.expired(now) => {
                return Some(format!(
                    "it has expired, and the provider says nothing else: {error}"
                ));
            }
            Err(error) => {
                tracing::warn!(%error, lease = lease.id, "the provider did not take a heartbeat; it is tried again");
                backoff.next_jittered()
            }
        };
        tokio::select! {
            biased;
            () = asked.cancelled() => return None,
            why = &mut heard => return Some(why),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// A provider that wants no heartbeat is asked again when the lease should have ended by itself.
fn until_expiry(entry: &Entry, now: SystemTime) -> Duration {
    let end = entry.record.lease.as_ref().and_then(|lease| lease.expires_at);
    end.map_or(Duration::MAX, |end| {
        end.duration_since(now)
            .ok()
            .filter(|left| !left.is_zero())
            .unwrap_or(AFTER_EXPIRY)
    })
}

/// Tries for a while; what the provider does not confirm stays in the book.
async fn give_back(mut entry: Entry, provider: &Arc<dyn Provider>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let mut backoff = Backoff::default();
    let (key, id) = (
        entry.record.provider.clone(),
        entry.record.id().unwrap_or_default().to_owned(),
    );
    loop {
        let (why, soon) = match attempt(&mut entry, provider, SystemTime::now()).await {
            GaveBack::Confirmed(released) => {
                tracing::info!(provider = key, lease = id, ?released, "lease given back");
                return entry.strike().await.map_err(|error| error.to_string());
            }
            GaveBack::Nothing(why) => {
                tracing::info!(provider = key, lease = id, why, "there is no lease to give back");
                return entry.strike().await.map_err(|error| error.to_string());
            }
            GaveBack::Borrowed => return entry.strike().await.map_err(|error| error.to_string()),
            GaveBack::Owed { why, soon } => (why, soon),
        };
        let wait = backoff.next_jittered();
        if soon && Instant::now() + wait < end {
            tokio::time::sleep(wait).await;
            continue;
        }
        let random = getrandom::u32().unwrap_or_default();
        entry.record.debt.failed(&why, SystemTime::now(), random);
        entry.write().map_err(|error| error.to_string())?;
        tracing::warn!(
            provider = key,
            lease = id,
            why,
            "the lease is owed; it is given back later"
        );
        return Err(format!(
            "the lease {id} of {key} is owed: {why}; `paperclip-bridge leases reap` tries again, and so does every later \
             session with this state folder"
        ));
    }
}
