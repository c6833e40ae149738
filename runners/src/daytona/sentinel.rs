//! The file that tells a kept sandbox's disk from any other: written when it is made, compared when it is resumed.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::config::DaytonaConfig;
use crate::provider::LeaseScope;

/// Where it is, below the workspace.
pub(super) const PATH: &str = ".paperclip-runtime/reusable-sandbox-lease.json";
/// Bytes read of it at most.
pub(super) const LIMIT_BYTES: usize = 16 * 1024;

/// How a sentinel compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Matched,
    Missing,
    Mismatch,
}

impl Match {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Missing => "missing",
            Self::Mismatch => "mismatch",
        }
    }
}

/// What must be equal for a sandbox to be used again: whose it is, and what it was made of.
pub(super) fn token(config: &DaytonaConfig, scope: &LeaseScope) -> String {
    let text = json!([
        "daytona",
        scope.company_id,
        scope.environment_id,
        config.target,
        config.snapshot,
        config.image,
        config.user,
        config.cpu,
        config.memory,
        config.disk,
        config.gpu,
    ]);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.to_string()) {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The file for a token.
pub(super) fn file(token: &str) -> String {
    json!({"version": 1, "token": token}).to_string()
}

/// Compares what was found with what should be.
pub(super) fn compare(found: Option<&[u8]>, token: &str) -> Match {
    #[derive(Deserialize)]
    struct Sentinel {
        version: u32,
        token: String,
    }
    let Some(found) = found else { return Match::Missing };
    match serde_json::from_slice::<Sentinel>(found) {
        Ok(sentinel) if sentinel.version == 1 && sentinel.token == token => Match::Matched,
        Ok(_) | Err(_) => Match::Mismatch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_owner_and_the_same_shape_match() {
        let scope = LeaseScope {
            run_id: "run-1".to_owned(),
            environment_id: Some("env-1".to_owned()),
            ..LeaseScope::default()
        };
        let token_of = |config: &DaytonaConfig, scope: &LeaseScope| token(config, scope);
        let config = DaytonaConfig::default();
        let own = token_of(&config, &scope);
        let later = LeaseScope {
            run_id: "run-2".to_owned(),
            ..scope.clone()
        };
        let other = LeaseScope {
            environment_id: Some("env-2".to_owned()),
            ..scope.clone()
        };
        let larger = DaytonaConfig {
            cpu: Some(2),
            ..DaytonaConfig::default()
        };

        assert_eq!(own, token_of(&config, &later));
        assert_ne!(own, token_of(&config, &other));
        assert_ne!(own, token_of(&larger, &scope));
        assert_eq!(compare(Some(file(&own).as_bytes()), &own), Match::Matched);
        assert_eq!(compare(None, &own), Match::Missing);
        assert_eq!(compare(Some(b"{}"), &own), Match::Mismatch);
        let newer = file(&own).replace("\"version\":1", "\"version\":2");
        assert_eq!(compare(Some(newer.as_bytes()), &own), Match::Mismatch);
    }
}
