//! How long secrets of other machines are held, and the reading of a reference that an operator wrote.
//!
//! Here: the options and the first reading, which decides the exit code. Not here: references themselves (`secrets/`).

use std::time::Duration;

use clap::Args;

use crate::cli::exit::{Exit, Failure};
use crate::config::{self, spelled::duration};
use crate::secrets::{LiveSecret, SecretSettings, Secrets};

/// The options of secrets.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecretOptions {
    /// A secret of another machine (aws-sm:) is read again after so long, such as 30s or 5m
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = lifetime)]
    secrets_cache_ttl: Duration,

    /// It serves so much longer while its place cannot be asked; then calls are refused with 503
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = lifetime)]
    secrets_max_stale: Duration,
}

impl Default for SecretOptions {
    fn default() -> Self {
        let SecretSettings { cache_ttl, max_stale } = SecretSettings::default();
        Self {
            secrets_cache_ttl: cache_ttl,
            secrets_max_stale: max_stale,
        }
    }
}

impl SecretOptions {
    /// What reads every secret of this process.
    pub(crate) fn secrets(self) -> Secrets {
        let settings = SecretSettings {
            cache_ttl: self.secrets_cache_ttl,
            max_stale: self.secrets_max_stale,
        };
        Secrets::new(settings, config::environment)
    }
}

/// Reads the credential for the first time, so that a missing one is told before anything is opened.
///
/// # Errors
///
/// Code 3 where it is missing or must not be used, 4 where its place cannot be asked.
pub(crate) async fn check_credential(credential: &LiveSecret) -> Result<(), Failure> {
    let read = credential.get().await;
    read.map(drop).map_err(|error| {
        let exit = if error.may_pass() { Exit::Unreachable } else { Exit::Configuration };
        Failure::new(exit, "no credential for the Paperclip API").because(error).hint(
            "export PAPERCLIP_API_KEY, or name where it is found: --credential env:NAME, file:PATH, cred:NAME or \
             aws-sm:REGION/NAME[#json-key]",
        )
    })
}

/// Longest duration that makes sense for a secret.
const LONGEST: Duration = Duration::from_hours(24);

fn lifetime(text: &str) -> Result<Duration, String> {
    let read = duration(text)?;
    if read > LONGEST {
        return Err("must be 24h at most".into());
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_has_a_unit_and_an_end() {
        assert_eq!(lifetime("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(lifetime("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(lifetime("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(lifetime("24h"), Ok(LONGEST));
        assert_eq!(lifetime("0s"), Ok(Duration::ZERO));
        for text in [
            "",
            "5",
            "m",
            "-1s",
            "1.5s",
            "5 m",
            "25h",
            "2d",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(lifetime(text).is_err(), "{text:?} was taken");
        }
    }
}
