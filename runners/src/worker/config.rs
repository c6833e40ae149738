//! What an operator says of a Worker.
//!
//! Here: the fields, their bounds, and what they mean together. Not here: the calls (`api`).

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::KEY;
use crate::http::BaseUrl;
use crate::provider::{ConfigError, SecretField};

/// Where the bearer of the bridge API is looked up.
pub(super) const AUTH_TOKEN: SecretField = SecretField {
    name: "authToken",
    fallback_env: None,
};
/// Where the signing key is looked up.
pub(super) const SIGNING_KEY: SecretField = SecretField {
    name: "signingKey",
    fallback_env: None,
};

/// Whose shell runs a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionStrategy {
    /// Sessions of their own, several at a time.
    #[default]
    Named,
    /// The sandbox's only one.
    Default,
}

/// What becomes of the Worker's replies that bear no signature, where requests are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnsignedReplies {
    /// Nothing of them counts.
    #[default]
    Refuse,
    /// They count, for as long as a Worker is deployed that signs none. A wrong signature is refused all the same.
    Accept,
}

/// The configuration of the provider `worker`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerConfig {
    /// Where the Worker's bridge API is: https://, host, and a path where it has one. Required.
    #[schemars(length(max = 2048))]
    pub bridge_base_url: String,
    /// The only host, and port where it is not the scheme's own, that requests may go to. Absent: that of
    /// bridgeBaseUrl.
    #[schemars(length(min = 1, max = 255))]
    pub expected_host_header: Option<String>,
    /// Bearer of the bridge API.
    pub auth_token: Option<String>,
    /// Name of the key that signs requests; needs signingKey.
    #[schemars(length(min = 1, max = 64))]
    pub signing_key_id: Option<String>,
    /// Key that signs requests, 32 bytes or more in base64; needs signingKeyId. A Worker that does not check signatures
    /// is then refused.
    pub signing_key: Option<String>,
    /// What becomes of replies without a signature where requests are signed. Only while a Worker is replaced that signs
    /// none: accept.
    pub unsigned_replies: UnsignedReplies,
    /// What agents call: scheme and host of a name in the Worker's BRIDGE_RELAY_HOSTS. Absent: no push relay. Needs
    /// signing.
    #[schemars(length(min = 1, max = 2048))]
    pub relay_url: Option<String>,
    /// Begin of the names under which this daemon's relays are known to the Worker; each lease has one of its own.
    #[schemars(length(min = 1, max = 40))]
    pub relay_bridge_id: String,
    /// How long an agent's PAPERCLIP_API_KEY is good behind the relay, in milliseconds from the opening of its session:
    /// as long as sessions may last.
    #[schemars(range(min = 60_000, max = 2_592_000_000_u64))]
    pub relay_key_lifetime_ms: u64,
    /// Where commands run; absolute. Absent: the Worker's own.
    #[schemars(length(min = 1, max = 4096))]
    pub requested_cwd: Option<String>,
    /// The sandbox never goes to sleep by itself.
    pub keep_alive: bool,
    /// Idle time after which it does, such as 10m.
    #[schemars(length(min = 1, max = 32))]
    pub sleep_after: String,
    /// Sandbox names are made to fit the platform's rules.
    pub normalize_id: bool,
    /// Whose shell runs a command.
    pub session_strategy: SessionStrategy,
    /// Begin of the names of the sessions.
    #[schemars(length(min = 1, max = 64))]
    pub session_id: String,
    /// The environment's sandbox is kept when it is released, and taken again. Needs keepAlive.
    pub reuse_lease: bool,
    /// Limit of one execution that names none, in milliseconds.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: u64,
    /// Limit of every other call, in milliseconds.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub bridge_request_timeout_ms: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            bridge_base_url: String::new(),
            expected_host_header: None,
            auth_token: None,
            signing_key_id: None,
            signing_key: None,
            unsigned_replies: UnsignedReplies::Refuse,
            relay_url: None,
            relay_bridge_id: "pcb".to_owned(),
            relay_key_lifetime_ms: 86_400_000,
            requested_cwd: None,
            keep_alive: false,
            sleep_after: "10m".to_owned(),
            normalize_id: true,
            session_strategy: SessionStrategy::Named,
            session_id: "paperclip".to_owned(),
            reuse_lease: false,
            timeout_ms: 300_000,
            bridge_request_timeout_ms: 30_000,
        }
    }
}

impl WorkerConfig {
    /// Checks what no single field can say, and reads the two URLs.
    pub(super) fn check(&self) -> Result<(BaseUrl, String, Option<BaseUrl>), ConfigError> {
        let fault = |field: &str, problem: String| ConfigError {
            provider: KEY,
            field: field.to_owned(),
            problem,
        };
        if self.bridge_base_url.is_empty() {
            return Err(fault(
                "bridgeBaseUrl",
                "is missing: give the Worker's URL".to_owned(),
            ));
        }
        let base =
            BaseUrl::parse(&self.bridge_base_url).map_err(|why| fault("bridgeBaseUrl", why.to_owned()))?;
        let expected = match &self.expected_host_header {
            None => base.host_header().to_owned(),
            Some(host) => host.to_ascii_lowercase(),
        };
        if self.signing_key_id.is_some() != self.signing_key.is_some() {
            let (there, missing) = if self.signing_key.is_some() {
                ("signingKey", "signingKeyId")
            } else {
                ("signingKeyId", "signingKey")
            };
            return Err(fault(
                missing,
                format!("is missing: {there} does nothing without it"),
            ));
        }
        if self.reuse_lease && !self.keep_alive {
            return Err(fault(
                "reuseLease",
                "needs keepAlive: a sandbox that sleeps loses its files".to_owned(),
            ));
        }
        if self
            .requested_cwd
            .as_ref()
            .is_some_and(|cwd| !cwd.starts_with('/'))
        {
            return Err(fault("requestedCwd", "must be an absolute path".to_owned()));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !self.relay_bridge_id.bytes().all(plain) {
            return Err(fault(
                "relayBridgeId",
                "may hold letters, digits, `-` and `_` only".to_owned(),
            ));
        }
        let relay = match &self.relay_url {
            None => None,
            Some(url) => {
                let url = BaseUrl::parse(url).map_err(|why| fault("relayUrl", why.to_owned()))?;
                if self.signing_key.is_none() {
                    return Err(fault("relayUrl", "needs signingKeyId and signingKey".to_owned()));
                }
                // Many clients of agents lose a path.
                if url
                    .as_str()
                    .split_once("://")
                    .is_some_and(|(_, rest)| rest.contains('/'))
                {
                    return Err(fault("relayUrl", "must have no path: agents lose it".to_owned()));
                }
                Some(url)
            }
        };
        Ok((base, expected, relay))
    }

    /// The fields that probe, acquire and resume share.
    pub(super) fn wishes(&self, requested_cwd: Option<&str>) -> Map<String, Value> {
        let mut wishes = Map::new();
        if let Some(cwd) = requested_cwd.or(self.requested_cwd.as_deref()) {
            wishes.insert("requestedCwd".to_owned(), json!(cwd));
        }
        wishes.insert("keepAlive".to_owned(), json!(self.keep_alive));
        wishes.insert("sleepAfter".to_owned(), json!(self.sleep_after));
        wishes.insert("normalizeId".to_owned(), json!(self.normalize_id));
        wishes.insert("sessionStrategy".to_owned(), json!(self.strategy()));
        wishes.insert("sessionId".to_owned(), json!(self.session_id));
        wishes.insert("timeoutMs".to_owned(), json!(self.timeout_ms));
        wishes
    }

    pub(super) const fn strategy(&self) -> &'static str {
        match self.session_strategy {
            SessionStrategy::Named => "named",
            SessionStrategy::Default => "default",
        }
    }
}
