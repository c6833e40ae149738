//! The configuration as values: one struct a section, each key with its type, default and bounds.
//!
//! Here: plain data. A doc comment is the key's description in the schema and in `docs/config.md`; a bound is said once,
//! as an attribute. Secrets stand here as references. Not here: where a value comes from (`layers`), and what must hold
//! between keys (`rules`). A new key is a field here and nothing else.

mod upstreams;
mod listeners;
mod targets;
mod policy;
mod limits;
mod sessions;
mod keeping;
mod telemetry;
mod control;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::app::ProviderConfig;

pub use control::{ControlConfig, DrainConfig, Idempotency, MutationsConfig};
pub use keeping::{AuditConfig, BodyDigest, Durability, OnFailure, SecretsConfig, StoreConfig};
pub use limits::{ByteLimits, ConcurrencyLimits, LimitsConfig, RateLimits, ScopeRates};
pub use listeners::{
    AgentsAddress, AgentsListener, ControlAddress, ControlListener, ListenersConfig, OpsListener,
};
pub use policy::{PolicyConfig, PolicyMode};
pub use sessions::SessionsConfig;
pub use targets::{GatewayName, TargetConfig, TunnelName};
pub use telemetry::{LogForm, LogLevel, TelemetryConfig};
pub use upstreams::{UpstreamConfig, UpstreamDeadlines};

/// Configuration of paperclip-bridge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The Paperclip APIs that a session may name. Without any there is `default`: `PAPERCLIP_API_URL`, else
    /// http://127.0.0.1:3100, with the credential of env:PAPERCLIP_API_KEY.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// Where the daemon listens.
    pub listeners: ListenersConfig,
    /// Places where agents run, by the name that a session gives.
    pub targets: BTreeMap<String, TargetConfig>,
    /// Sandbox providers by their key: the fields that `providers KEY` lists.
    #[schemars(with = "BTreeMap<String, serde_json::Map<String, serde_json::Value>>")]
    pub providers: BTreeMap<String, ProviderConfig>,
    /// What agents may ask for.
    pub policy: PolicyConfig,
    /// How much, how large and how often.
    pub limits: LimitsConfig,
    /// The life of sessions.
    pub sessions: SessionsConfig,
    /// Secrets that live on other machines.
    pub secrets: SecretsConfig,
    /// Where sessions and outcomes are kept.
    pub store: StoreConfig,
    /// The record of every callback.
    pub audit: AuditConfig,
    /// Logs, metrics and traces.
    pub telemetry: TelemetryConfig,
    /// Calls that change something.
    pub mutations: MutationsConfig,
    /// Who may ask the daemon for what.
    pub control: ControlConfig,
    /// The end of the daemon.
    pub drain: DrainConfig,
}
