//! `[policy]`: what agents may ask for.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What agents may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// `enforce`: what is not allowed is refused; `report`: it is let through, and the verdict is recorded.
    pub mode: PolicyMode,
    /// Routes of Paperclip releases to start from; an empty list is none; absent: those that the file or the rules ask
    /// for, else the newest.
    #[schemars(length(max = 16))]
    pub packs: Option<Vec<String>>,
    /// File with rules, in the language of `policy check`.
    pub file: Option<PathBuf>,
    /// The same rules as text, in place of a file.
    #[schemars(length(max = 1_048_576))]
    pub rules: Option<String>,
}

/// What becomes of a callback that is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum PolicyMode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let through and recorded.
    Report,
}
