//! How long secrets of other machines are held, and the reading of a reference that an operator wrote.
//!
//! Here: the options and the first reading, which decides the exit code. Not here: references themselves (`secrets/`).

use std::time::Duration;

use clap::Args;

use crate::cli::exit::{Exit, Failure};
use crate::config;
use crate::secrets::{LiveSecret, SecretSettings, Secrets};

/// The options of secrets.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SecretOptions {
    /// A secret of another machine (aws-sm:) is read again after so long, such as 30s or 5m
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    secrets_cache_ttl: Duration,

    /// It serves so much longer while its place cannot be asked; then calls are refused with 503
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    secrets_max_stale: Duration,
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

/// Reads `500ms`, `30s`, `5m` or `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err("give a number with ms, s, m or h behind it, such as 30s or 5m".into()),
    };
    Some(digits)
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|count| count.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| "give a whole number of at most 24h, such as 30s, 5m or 2h".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_an_end() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("24h"), Ok(LONGEST));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in [
            "",
            "5",
            "m",
            "-1s",
            "1.5s",
            "5 m",
            "25h",
            "1d",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }
}
