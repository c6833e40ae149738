//! `[sessions]`: the life of sessions.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::spelled::{DurationText, duration_as_text};

/// The life of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SessionsConfig {
    /// A session ends after so long, unless it was asked for with less.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "1s", "x-most" = "30d"))]
    pub ttl: Duration,
    /// The owner of a session says so often that it is still there.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "1s", "x-most" = "1h"))]
    pub heartbeat: Duration,
    /// So many heartbeats missed in a row end a session.
    #[schemars(range(min = 1, max = 100))]
    pub misses: u32,
    /// The callbacks under way at the end of a session get so long to finish.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "1h"))]
    pub drain_timeout: Duration,
    /// Most sessions at the same time.
    #[schemars(range(min = 1, max = 100_000))]
    pub max: u32,
    /// What became of an ended session can be asked for so long.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "30d"))]
    pub keep_ended: Duration,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_hours(24),
            heartbeat: Duration::from_secs(30),
            misses: 3,
            drain_timeout: Duration::from_secs(30),
            max: 2_000,
            keep_ended: Duration::from_hours(24),
        }
    }
}
