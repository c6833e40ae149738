//! The seam by which a kind of place is added.
//!
//! Here: [`Place`], what it is given ([`Surroundings`]) and how it tells that nothing has changed ([`Mark`]). Not here:
//! the list of kinds (`reference.rs`), the keeping of values (`live.rs`).

use std::fmt;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::SecretSettings;
use super::aws::Caller;
use super::error::Fault;

/// What a place gives: its text as it is, and the mark that was seen before it was read.
pub(crate) type Reading<'a> = BoxFuture<'a, Result<(Zeroizing<String>, Option<Mark>), Fault>>;

/// Where one secret is kept. Holds what the reference says, never a value.
///
/// A place on this machine gives a [`Mark`], is looked at at each use, and its `read` resolves at once. Any other is
/// remote: its value is kept for `cache_ttl`, and its `read` is given up after ten seconds.
pub(crate) trait Place: fmt::Debug + Send + Sync {
    /// Whether reading means to ask another machine.
    fn is_remote(&self) -> bool {
        false
    }

    /// What stays the same while the value does; `None` where only reading tells.
    fn mark(&self, around: &Surroundings) -> Option<Mark>;

    /// Reads the value.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing but that the value is not read.
    fn read<'a>(&'a self, around: &'a Surroundings) -> Reading<'a>;
}

/// What stays the same while a value does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// For as long as this process lives.
    Unchanging,
    /// Device, inode, length; then when content and inode were changed.
    File { identity: [u64; 3], times: [i64; 4] },
}

/// Looks a variable up.
type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// What places may use.
pub(crate) struct Surroundings {
    pub(crate) settings: SecretSettings,
    environment: Box<Lookup>,
    /// What all references to AWS share.
    pub(crate) aws: Caller,
}

impl Surroundings {
    pub(crate) fn new(
        settings: SecretSettings,
        environment: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            settings,
            environment: Box::new(environment),
            aws: Caller::default(),
        }
    }

    /// One variable of the daemon's environment; an empty one counts as not set.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }
}
