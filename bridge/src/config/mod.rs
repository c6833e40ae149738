//! What the daemon and its sessions are configured with: one file, the environment and the defaults.
//!
//! Here: the one place that reads our environment, and what the commands of one session take from it. In [`model`] the
//! configuration of the daemon as values, in [`spelled`] how amounts are written. Not here: the options themselves
//! (`cli/options.rs`) and secrets, whose references are resolved through [`environment`] (`secrets/`). Proxy variables
//! are never read: the upstream is spoken to directly.

pub mod model;
pub mod spelled;

mod reference;

use std::path::PathBuf;

use uuid::Uuid;

pub use model::Config;

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
    match environment("PAPERCLIP_API_URL").filter(|url| !url.is_empty()) {
        Some(url) => UpstreamChoice {
            url,
            said_by: "PAPERCLIP_API_URL",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_wins_over_the_variable_and_the_variable_over_the_default() {
        let set = |name: &str| (name == "PAPERCLIP_API_URL").then(|| "http://api:1".to_owned());

        assert_eq!(upstream(Some("http://x"), &set).url, "http://x");
        assert_eq!(upstream(None, &set).url, "http://api:1");
        assert_eq!(upstream(None, &|_| None).url, DEFAULT_UPSTREAM);
        assert_eq!(upstream(None, &|_| Some(String::new())).url, DEFAULT_UPSTREAM);
    }

    #[test]
    fn leases_are_written_down_below_the_operators_own_state() {
        let found = |set: &[(&str, &str)]| {
            let lookup = |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            state_folder(&lookup)
        };

        assert_eq!(
            found(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]),
            Some("/s/paperclip-bridge".into())
        );
        assert_eq!(
            found(&[("XDG_STATE_HOME", "s"), ("HOME", "/h")]),
            Some("/h/.local/state/paperclip-bridge".into())
        );
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn two_runs_never_share_a_run_id_by_default() {
        assert_ne!(run_id(None), run_id(None));
        assert_eq!(run_id(Some("r-1")), "r-1");
    }
}
