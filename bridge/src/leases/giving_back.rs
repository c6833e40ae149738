//! One lease given back: which call is made, and what its answer means for the record.
//!
//! Here: [`attempt`], used at a session's end and for what others left, and [`GaveBack`], what came of it. Not here:
//! when it is tried again (`record.rs`), who tries (`keeper.rs`, `reaper.rs`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use runners::provider::{Lease, Provider, ProviderError, Released};

use super::book::Entry;
use super::record::Stage;

/// One call of a provider's, which has shorter limits of its own.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(60);
/// A request for a sandbox that is younger may still be on its way at the provider.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GaveBack {
    /// The provider confirmed it.
    Confirmed(Released),
    /// It had ended the lease by itself, or never made one.
    Nothing(String),
    /// It is somebody else's, and was left as it is without a word to the provider.
    Borrowed,
    /// Not confirmed, and so still owed.
    Owed {
        /// Why.
        why: String,
        /// Trying again soon may help.
        soon: bool,
    },
}

impl GaveBack {
    /// Its stable word, and what there is to say.
    pub(crate) fn told(&self) -> (&'static str, String) {
        match self {
            Self::Confirmed(released) => ("released", format!("{released:?}").to_lowercase()),
            Self::Nothing(why) => ("lost", why.clone()),
            Self::Borrowed => ("left_alone", "it was borrowed and is left as it is".to_owned()),
            Self::Owed { why, .. } => ("owed", why.clone()),
        }
    }
}

/// Gives back what the entry's record speaks of. The record says that it is owed before the provider is asked.
pub(super) async fn attempt(entry: &mut Entry, provider: &Arc<dyn Provider>, now: SystemTime) -> GaveBack {
    if !entry.record.made {
        return GaveBack::Borrowed;
    }
    let Some(lease) = entry.record.lease.clone() else {
        return look_for(entry, provider, now).await;
    };
    let asked_before = entry.record.stage == Stage::Owed;
    let expired = entry.record.expired(now);
    if entry.record.stage != Stage::Owed {
        entry.record.stage = Stage::Owed;
        if let Err(error) = entry.write() {
            // The lease weighs more: at worst a successor asks once more.
            tracing::error!(%error, lease = lease.id, "what is owed cannot be written down");
        }
    }
    // An answer was lost, or a process killed before it: the provider is not asked twice for what it has done already.
    if asked_before && is_gone(provider, &lease).await {
        return GaveBack::Confirmed(Released::Destroyed);
    }
    let gave_back = confirmed(limited(provider.release(&lease)).await);
    match gave_back {
        GaveBack::Owed { why, .. } if expired => {
            GaveBack::Nothing(format!("it has expired; the provider was asked once more: {why}"))
        }
        GaveBack::Confirmed(_) | GaveBack::Nothing(_) | GaveBack::Borrowed | GaveBack::Owed { .. } => {
            gave_back
        }
    }
}

/// Ends a sandbox that nobody can use.
pub(super) async fn destroy(provider: &Arc<dyn Provider>, lease: &Lease) -> GaveBack {
    confirmed(limited(provider.destroy(lease)).await)
}

/// Finds what came of a request whose answer was lost, and ends it.
async fn look_for(entry: &Entry, provider: &Arc<dyn Provider>, now: SystemTime) -> GaveBack {
    if entry.record.scope.request_id.is_some() {
        // The same request has the same lease, or makes one now that ends here; after that it has none.
        let asked = async {
            match provider.repeats_acquire().await? {
                true => provider.acquire(&entry.record.scope).await.map(Some),
                false => Ok(None),
            }
        };
        match limited(asked).await {
            Ok(Some(lease)) => return destroy(provider, &lease).await,
            Ok(None) => {}
            Err(error) => return confirmed(Err(error)),
        }
    }
    let made = match limited(provider.made_for(&entry.record.scope)).await {
        Ok(made) => made,
        Err(ProviderError::Unsupported(_)) => {
            return GaveBack::Owed {
                why: "the provider's answer was lost and it cannot be asked what it made; look there for a sandbox of \
                      this run, then `leases forget` this entry"
                    .to_owned(),
                soon: false,
            };
        }
        Err(error) => return confirmed(Err(error)),
    };
    // Others may have leases for the same run; those stand in the book themselves.
    let known = match entry.book().known_ids(&entry.record).await {
        Ok(known) => known,
        Err(error) => {
            return GaveBack::Owed {
                why: error.to_string(),
                soon: true,
            };
        }
    };
    let mut ended = Vec::new();
    for id in made.into_iter().filter(|id| !known.contains(id)) {
        let lease = Lease {
            id,
            metadata: serde_json::Map::new(),
            remote_cwd: None,
            expires_at: None,
            resumed: true,
        };
        match destroy(provider, &lease).await {
            GaveBack::Confirmed(_) | GaveBack::Nothing(_) | GaveBack::Borrowed => ended.push(lease.id),
            owed @ GaveBack::Owed { .. } => return owed,
        }
    }
    let age = now.duration_since(entry.record.since).unwrap_or(ON_ITS_WAY);
    if ended.is_empty() && age < ON_ITS_WAY {
        return GaveBack::Owed {
            why: "the provider's answer was lost; nothing is there yet, and it is looked for again"
                .to_owned(),
            soon: false,
        };
    }
    if ended.is_empty() {
        return GaveBack::Nothing("the provider had made none".to_owned());
    }
    tracing::info!(
        leases = ended.join(" "),
        "sandboxes that nobody knew of were ended"
    );
    GaveBack::Confirmed(Released::Destroyed)
}

/// Whether the provider no longer lists it. Not to know is not to be gone.
async fn is_gone(provider: &Arc<dyn Provider>, lease: &Lease) -> bool {
    match limited(provider.list()).await {
        Ok(ids) => !ids.contains(&lease.id),
        Err(_) => false,
    }
}

fn confirmed(answer: Result<Released, ProviderError>) -> GaveBack {
    let error = match answer {
        Ok(released) => return GaveBack::Confirmed(released),
        Err(ProviderError::LeaseLost(why)) => return GaveBack::Nothing(why),
        Err(error) => error,
    };
    let soon = matches!(
        error,
        ProviderError::Unreachable(_)
            | ProviderError::Busy { .. }
            | ProviderError::Unknown(_)
            | ProviderError::Unproven(_)
    );
    GaveBack::Owed {
        why: error.to_string(),
        soon,
    }
}

/// A call that never ends has an unknown outcome.
pub(super) async fn limited<T>(
    call: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(ProviderError::Unknown(format!(
            "no answer within {} s",
            CALL_LIMIT.as_secs()
        ))),
    }
}
