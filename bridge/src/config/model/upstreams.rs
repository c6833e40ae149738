//! `[upstreams.NAME]`: the Paperclip APIs.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::spelled::{DurationText, duration_as_text};
use crate::secrets::SecretRef;

/// One Paperclip API, with what proves us to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Its `http://` or `https://` origin, perhaps with a base path.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Where the API credential is found.
    pub credential: SecretRef,
    /// Trust the certificates in this PEM file instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Time limits of every call.
    #[serde(default)]
    pub deadlines: UpstreamDeadlines,
}

/// Time limits of every call to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamDeadlines {
    /// Name look-up, TCP connect and TLS handshake together.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "10ms", "x-most" = "5m"))]
    pub connect: Duration,
    /// From dispatch to the head of the answer.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "10ms", "x-most" = "1h"))]
    pub head: Duration,
    /// From dispatch to the end of the answer.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "10ms", "x-most" = "1h"))]
    pub total: Duration,
}

impl Default for UpstreamDeadlines {
    fn default() -> Self {
        let crate::upstream::Deadlines { connect, head, total } = crate::upstream::Deadlines::default();
        Self { connect, head, total }
    }
}
