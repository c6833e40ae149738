//! Secrets that are kept once they were read, as those of a remote place are: only a rejection has them read anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use runners::SecretText;
use runners::provider::{RequestSigner, SecretFault, SecretSource, UnsignedRequest};

/// A place with secrets, and what is known of them.
#[derive(Debug, Default)]
pub struct Rotating(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    there: BTreeMap<String, String>,
    known: BTreeMap<String, String>,
    rejected: Vec<String>,
}

impl Rotating {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The secret at the place; whoever knows an earlier one goes on with that.
    pub fn put(&self, reference: &str, value: &str) {
        self.state().there.insert(reference.to_owned(), value.to_owned());
    }

    /// References whose values were rejected, in order.
    pub fn rejected(&self) -> Vec<String> {
        self.state().rejected.clone()
    }
}

impl SecretSource for Rotating {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        let mut state = self.state();
        let there = state.there.get(reference).cloned();
        let value = match there {
            Some(value) => Ok(state.known.entry(reference.to_owned()).or_insert(value).clone()),
            None => Err(SecretFault(format!("{reference} is not set"))),
        };
        Box::pin(std::future::ready(value.map(SecretText::new)))
    }

    fn rejected(&self, reference: &str) {
        let mut state = self.state();
        state.known.remove(reference);
        state.rejected.push(reference.to_owned());
    }
}

impl RequestSigner for Rotating {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("nothing is signed here".to_owned())
    }
}
