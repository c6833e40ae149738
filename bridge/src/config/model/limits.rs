//! `[limits]`: how much, how large and how often.

use policy::RateLimit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::spelled::{RateText, SizeText, rate_as_text, size_as_text};
use crate::session::{CONCURRENCY, PROCESS_BODY_BYTES, SESSION_BODY_BYTES};

/// How much, how large and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Largest body of a callback, each way.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "1B", "x-most" = "64MiB"))]
    pub max_body: u64,
    /// Largest head of a request.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "1KiB", "x-most" = "256KiB"))]
    pub max_head: u64,
    /// Callbacks at the same time.
    pub concurrency: ConcurrencyLimits,
    /// Bytes of bodies held in memory.
    pub bytes: ByteLimits,
    /// Callbacks over time.
    pub rate: RateLimits,
}

/// Callbacks at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConcurrencyLimits {
    /// Of one session.
    #[schemars(range(min = 1, max = 1024))]
    pub session: u32,
    /// Of the whole process.
    #[schemars(range(min = 1, max = 65536))]
    pub process: u32,
}

/// Bytes of bodies held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ByteLimits {
    /// Of one session; at least `limits.max_body`.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "1MiB", "x-most" = "1GiB"))]
    pub session: u64,
    /// Of the whole process; at least that of one session.
    #[serde(with = "size_as_text")]
    #[schemars(with = "SizeText", extend("x-least" = "1MiB", "x-most" = "16GiB"))]
    pub process: u64,
}

/// Callbacks over time: `COUNT/UNIT[:BURST]`, such as `20/s:40`, or `off`. A callback must be within all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Of one session.
    pub session: ScopeRates,
    /// Of all sessions of one agent.
    pub agent: ScopeRates,
    /// Of all sessions of one company.
    pub company: ScopeRates,
    /// Of all sessions on one issue.
    pub issue: ScopeRates,
    /// Comments on one issue, by all sessions: breaks a loop of agents that answer each other.
    #[serde(with = "rate_as_text")]
    #[schemars(with = "RateText")]
    pub comments: Option<RateLimit>,
}

/// Rates by the class of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScopeRates {
    /// Every callback.
    #[serde(with = "rate_as_text")]
    #[schemars(with = "RateText")]
    pub all: Option<RateLimit>,
    /// Callbacks that change nothing.
    #[serde(with = "rate_as_text")]
    #[schemars(with = "RateText")]
    pub read: Option<RateLimit>,
    /// Callbacks that change something.
    #[serde(with = "rate_as_text")]
    #[schemars(with = "RateText")]
    pub write: Option<RateLimit>,
    /// Uploads of files.
    #[serde(with = "rate_as_text")]
    #[schemars(with = "RateText")]
    pub upload: Option<RateLimit>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let sizes = policy::Limits::default();
        Self {
            max_body: sizes.max_body,
            max_head: u64::try_from(sizes.max_head).unwrap_or(u64::MAX),
            concurrency: ConcurrencyLimits::default(),
            bytes: ByteLimits::default(),
            rate: RateLimits::default(),
        }
    }
}

impl Default for ConcurrencyLimits {
    fn default() -> Self {
        Self {
            session: u32::try_from(CONCURRENCY).unwrap_or(u32::MAX),
            process: 4096,
        }
    }
}

impl Default for ByteLimits {
    fn default() -> Self {
        Self {
            session: SESSION_BODY_BYTES,
            process: PROCESS_BODY_BYTES,
        }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            session: ScopeRates::default(),
            agent: ScopeRates::default(),
            company: ScopeRates::default(),
            issue: ScopeRates::default(),
            comments: RateLimit::parse("30/m:30").ok(),
        }
    }
}
