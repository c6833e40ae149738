//! What the daemon and its sessions are configured with: one file, the environment and the defaults.
//!
//! Here: the one place that reads our environment, and what the commands of one session take from it. In [`model`] the
//! configuration of the daemon as values, in `load` how its layers become one, in `schema` and `rules` what is accepted,
//! in [`spelled`] how amounts are written. Not here: the options themselves
//! (`cli/options.rs`) and secrets, whose references are resolved through [`environment`] (`secrets/`). Proxy variables
//! are never read: the upstream is spoken to directly.

pub mod model;
pub mod spelled;

mod reference;
mod schema;
mod origin;
mod mistake;
mod document;
mod load;
mod rules;
mod page;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use uuid::Uuid;

pub use load::{Effective, Flag, LoadOptions};
pub use mistake::{ConfigErrors, ConfigMistake};
pub use model::Config;
pub use origin::{Leaf, Origin, Origins, leaves};
pub use page::page;
pub use schema::schema;

/// Where the Paperclip API listens when nobody says otherwise.
pub const DEFAULT_UPSTREAM: &str = "http://127.0.0.1:3100";

/// Where the credential is found when nobody says otherwise.
pub const DEFAULT_CREDENTIAL: &str = "env:PAPERCLIP_API_KEY";

/// One variable of our own environment; `None` where it is not set.
///
/// A value that is not UTF-8 comes back with replacement characters, so that the caller's own check refuses it
/// instead of taking it for unset.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the environment"
)]
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// What the variables of the configuration begin with: `PCBRIDGE_SECTION__KEY`.
pub const VARIABLE_PREFIX: &str = "PCBRIDGE_";

/// Paperclip's own name for the API's URL.
const UPSTREAM_VARIABLE: &str = "PAPERCLIP_API_URL";

/// The variables of our own environment that belong to the configuration; see [`LoadOptions::environment`].
///
/// A value that is not UTF-8 comes back as from [`environment`].
#[must_use]
pub fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) || name == UPSTREAM_VARIABLE)
        .collect()
}

/// The upstream URL in force and where it was said, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamChoice {
    /// The URL, not yet parsed.
    pub url: String,
    /// Where it comes from: an option, a variable or the default.
    pub said_by: &'static str,
}

/// Chooses the upstream: the option, else `PAPERCLIP_API_URL`, else [`DEFAULT_UPSTREAM`].
///
/// An empty variable counts as unset.
#[must_use]
pub fn upstream(option: Option<&str>, environment: &dyn Fn(&str) -> Option<String>) -> UpstreamChoice {
    if let Some(url) = option {
        return UpstreamChoice {
            url: url.to_owned(),
            said_by: "--upstream",
        };
    }
    match environment(UPSTREAM_VARIABLE).filter(|url| !url.is_empty()) {
        Some(url) => UpstreamChoice {
            url,
            said_by: UPSTREAM_VARIABLE,
        },
        None => UpstreamChoice {
            url: DEFAULT_UPSTREAM.to_owned(),
            said_by: "the default",
        },
    }
}

/// The run id in force: the option, else a fresh UUIDv7. Our own `PAPERCLIP_RUN_ID` is not taken over: it would be
/// that of another run.
#[must_use]
pub fn run_id(option: Option<&str>) -> String {
    option.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// The operator's home folder.
#[must_use]
pub fn home() -> Option<PathBuf> {
    environment("HOME")
        .filter(|home| home.starts_with('/'))
        .map(PathBuf::from)
}

/// Where leases are written down when nobody says otherwise: `paperclip-bridge` below `XDG_STATE_HOME`, else below
/// `~/.local/state`. `None` where neither is an absolute path.
#[must_use]
pub fn state_folder(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        environment(name)
            .filter(|path| path.starts_with('/'))
            .map(PathBuf::from)
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|state| state.join("paperclip-bridge"))
}

/// The operator asked for no colours: <https://no-color.org>.
#[must_use]
pub fn no_colour() -> bool {
    environment("NO_COLOR").is_some_and(|value| !value.is_empty())
}
