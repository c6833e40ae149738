//! `[secrets]`, `[store]` and `[audit]`: what is read from elsewhere, and what is kept.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::spelled::{DurationText, SizeText, duration_as_text, size_as_text};
use crate::secrets::{SecretRef, SecretSettings};

/// Secrets that live on other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecretsConfig {
    /// A secret of another machine is read again after so long.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "24h"))]
    pub cache_ttl: Duration,
    /// It serves so much longer while its place cannot be asked; then calls are refused.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "24h"))]
    pub max_stale: Duration,
}

/// Where sessions and outcomes are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `postgres://user@host/database`, without a password; absent: `store.db` in the state folder, with SQLite.
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// Where the password of a PostgreSQL store is found.
    pub password: Option<SecretRef>,
    /// Most connections to a PostgreSQL store.
    #[schemars(range(min = 1, max = 256))]
    pub connections: u32,
    /// What became of a call that changes something can be asked for so long.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "1h", "x-most" = "90d"))]
    pub keep_outcomes: Duration,
}

/// The record of every callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Write it.
    pub enabled: bool,
    /// What survives: `write` a killed daemon, `fsync` also a power cut for calls that change something, `fsync-all` for
    /// every call. The ledger follows.
    pub durability: Durability,
    /// Of which bodies the digest is recorded: `off` none, `unsafe` those of calls that change something, `all` every.
    pub body_digest: BodyDigest,
    /// Largest body of which a digest is made.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "1B", "x-most" = "64MiB"))]
    pub body_digest_max: u64,
    /// What becomes of a callback that cannot be recorded: `refuse`, or `allow`, which only counts it.
    pub on_failure: OnFailure,
    /// Where the key is found that signs the record; absent: one is made in the state folder.
    pub key: Option<SecretRef>,
    /// A segment of this size is closed.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "64KiB", "x-most" = "4GiB"))]
    pub rotate_bytes: u64,
    /// A segment of this age is closed.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "1m", "x-most" = "90d"))]
    pub rotate_age: Duration,
    /// Closed segments are removed after so long; `0s` keeps them for ever.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "3650d"))]
    pub retention: Duration,
}

/// What a record survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Durability {
    /// A killed daemon; a power cut may lose 200 ms.
    #[default]
    Write,
    /// A power cut, before each call that changes something.
    Fsync,
    /// A power cut, before each call.
    FsyncAll,
}

/// Of which bodies the digest is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum BodyDigest {
    /// Of none.
    Off,
    /// Of calls that change something.
    #[default]
    Unsafe,
    /// Of every call.
    All,
}

/// What becomes of a callback that cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Refuse,
    /// It is let through and counted.
    Allow,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        let SecretSettings { cache_ttl, max_stale } = SecretSettings::default();
        Self { cache_ttl, max_stale }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: None,
            password: None,
            connections: 8,
            keep_outcomes: Duration::from_hours(24),
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            durability: Durability::default(),
            body_digest: BodyDigest::default(),
            body_digest_max: 64 * 1024,
            on_failure: OnFailure::default(),
            key: None,
            rotate_bytes: 64 * 1024 * 1024,
            rotate_age: Duration::from_hours(24),
            retention: Duration::from_hours(90 * 24),
        }
    }
}
