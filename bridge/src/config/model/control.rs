//! `[mutations]`, `[control]` and `[drain]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::spelled::{DurationText, duration_as_text};

/// Calls that change something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MutationsConfig {
    /// `forward`: the caller's `Idempotency-Key` goes upstream; `mint`: one is made for calls that lack it.
    pub idempotency: Idempotency,
    /// Route templates for which none is made, such as `/api/issues/{id}/comments`.
    #[schemars(length(max = 256))]
    pub mint_except: Vec<String>,
}

/// Where the `Idempotency-Key` of a call comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Idempotency {
    /// From the caller, or there is none.
    #[default]
    Forward,
    /// From the caller, else from us.
    Mint,
}

/// Who may ask the daemon for what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// A request by the daemon's own user may bring its own upstream, credential reference and identity file, and may ask
    /// for the target `local`; absent: only where there is no configuration file.
    pub adhoc: Option<bool>,
    /// Users beside the daemon's own that may use the control API.
    #[schemars(length(max = 256))]
    pub allow_uids: Vec<u32>,
}

/// The end of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Callbacks under way at the end of the daemon get so long to finish.
    #[serde(with = "duration_as_text")]
    #[schemars(with = "DurationText", extend("x-least" = "0s", "x-most" = "1h"))]
    pub timeout: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
        }
    }
}
