//! Secrets: a type that cannot be printed, the references by which they enter, and their reading at each use.
//!
//! Here: the front page. [`SecretRef`] is what an operator writes, [`Secrets`] reads it, [`LiveSecret`] keeps one that
//! is in use and notices when it changes. Each kind of place is a file (`env`, `file`, `systemd`, `aws/`); a new one is
//! added to the list in `reference.rs` (docs/secrets.md). Not here: where secrets are used; a search for `.expose(` is
//! that list. Read next: `reference.rs`, then `live.rs`.

mod value;
mod error;
mod reference;
mod place;
mod env;
mod file;
mod systemd;
mod aws;
mod live;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use runners::SecretText;
use runners::provider::{SecretFault, SecretSource};
use zeroize::Zeroizing;

pub use error::{Fault, SecretError};
pub use live::LiveSecret;
pub use reference::SecretRef;
pub use value::Secret;

use place::Surroundings;

/// More references than an operator writes. Beyond them, each use reads anew.
const MOST_REFERENCES: usize = 256;

/// A place gets so long to give a document.
const DOCUMENT: Duration = Duration::from_secs(10);

/// How long a value of a remote place is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretSettings {
    /// It is read again after so long.
    pub cache_ttl: Duration,
    /// While its place cannot be reached, it serves so much longer; then what needs it is refused.
    pub max_stale: Duration,
}

impl Default for SecretSettings {
    fn default() -> Self {
        Self {
            cache_ttl: Duration::from_mins(5),
            max_stale: Duration::from_mins(15),
        }
    }
}

/// Reads secrets by reference. One for a process: whoever names the same reference shares the value and its reading.
#[derive(Clone)]
pub struct Secrets {
    around: Arc<Surroundings>,
    live: Arc<Mutex<HashMap<String, LiveSecret>>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Default for Secrets {
    /// With the usual lifetimes, and the daemon's own environment.
    fn default() -> Self {
        Self::new(SecretSettings::default(), crate::config::environment)
    }
}

impl Secrets {
    /// Reads nothing yet. `environment` looks a variable up (see `config::environment`).
    pub fn new(
        settings: SecretSettings,
        environment: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            around: Arc::new(Surroundings::new(settings, environment)),
            live: Arc::default(),
        }
    }

    /// The secret behind `reference`, read at its first use.
    #[must_use]
    pub fn live(&self, reference: &SecretRef) -> LiveSecret {
        let fresh = || LiveSecret::new(reference.clone(), Arc::clone(&self.around));
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        match live.get(reference.as_str()) {
            Some(known) => known.clone(),
            None if live.len() >= MOST_REFERENCES => fresh(),
            None => live
                .entry(reference.as_str().to_owned())
                .or_insert_with(fresh)
                .clone(),
        }
    }

    /// What stands behind `reference` with its lines, such as a key in PEM; read now and kept by nobody.
    pub(crate) async fn document(&self, reference: &SecretRef) -> Result<Zeroizing<String>, SecretError> {
        let read = tokio::time::timeout(DOCUMENT, reference.document(&self.around)).await;
        read.unwrap_or_else(|_| {
            let why = format!("no value within {} s", DOCUMENT.as_secs());
            Err(reference.error(Fault::Unavailable(why)))
        })
    }
}

impl SecretSource for Secrets {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        Box::pin(async move {
            let reference: SecretRef = reference.parse().map_err(fault)?;
            let secret = self.live(&reference).get().await.map_err(fault)?;
            Ok(SecretText::new(secret.expose()))
        })
    }

    fn rejected(&self, reference: &str) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = live.get(reference) {
            secret.look_again();
        }
    }
}

fn fault(error: SecretError) -> SecretFault {
    SecretFault(error.to_string())
}

#[cfg(test)]
mod tests;
