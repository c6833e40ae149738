//! What an operator may set for this provider, and where its two planes are.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::KEY;
use super::control::SandboxId;
use crate::http::BaseUrl;
use crate::provider::{ConfigError, ProviderSettings, SecretField, SecretHandle, read};

/// Which fields hold references.
pub(super) const SECRETS: &[SecretField] = &[API_KEY];
const API_KEY: SecretField = SecretField {
    name: "apiKey",
    fallback_env: Some("E2B_API_KEY"),
};
/// The provider's own.
const DOMAIN: &str = "e2b.app";
/// Domains whose sandboxes share one host.
const SHARED: [&str; 4] = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];
/// The port of the server inside.
pub(super) const ENVD_PORT: u16 = 49983;

/// What becomes of a sandbox whose lease is released.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnRelease {
    /// It is paused with its memory and can be resumed.
    Pause,
    /// It is gone.
    Kill,
}

/// The configuration as it is written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    /// Template that sandboxes are made from: its name or id.
    #[schemars(length(min = 1, max = 200))]
    pub(super) template: String,
    /// The API key.
    pub(super) api_key: Option<String>,
    /// How long a sandbox lives without a word of the daemon, in milliseconds; it is prolonged while its lease is held.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub(super) timeout_ms: u64,
    /// Limit of a command that has none of its own, in milliseconds. Absent: none.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub(super) execution_timeout_ms: Option<u64>,
    /// Keep sandboxes for use again.
    pub(super) reuse_lease: bool,
    /// What becomes of a sandbox whose lease is released. Absent: `pause` with `reuseLease`, else `kill`.
    pub(super) on_release: Option<OnRelease>,
    /// Domain of a provider of one's own. Absent: `E2B_DOMAIN`, else `e2b.app`.
    #[schemars(length(min = 1, max = 253))]
    pub(super) domain: Option<String>,
    /// Base URL of the API. Absent: `E2B_API_URL`, else `https://api.` and the domain.
    #[schemars(length(min = 1, max = 2000))]
    pub(super) api_url: Option<String>,
    /// Base URL of every sandbox. Absent: `E2B_SANDBOX_URL`, else a host below the sandbox's domain.
    #[schemars(length(min = 1, max = 2000))]
    pub(super) sandbox_url: Option<String>,
    /// User that commands run as. Absent: the template's own.
    #[schemars(length(min = 1, max = 64))]
    pub(super) user: Option<String>,
    /// Working folder, made if it is not there; absolute. Absent: `paperclip-workspace` in the user's home.
    #[schemars(length(min = 1, max = 1024))]
    pub(super) requested_cwd: Option<String>,
    /// Variables that every command in a sandbox finds. They stand in the provider's records: no secrets.
    pub(super) envs: BTreeMap<String, String>,
    /// Whether sandboxes may reach the internet.
    pub(super) allow_internet_access: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            template: "base".to_owned(),
            api_key: None,
            timeout_ms: 3_600_000,
            execution_timeout_ms: None,
            reuse_lease: false,
            on_release: None,
            domain: None,
            api_url: None,
            sandbox_url: None,
            user: None,
            requested_cwd: None,
            envs: BTreeMap::new(),
            allow_internet_access: true,
        }
    }
}

/// The configuration, checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) template: String,
    pub(super) key: SecretHandle,
    pub(super) timeout_ms: u64,
    pub(super) execution_limit: Option<Duration>,
    pub(super) reuse_lease: bool,
    pub(super) on_release: OnRelease,
    pub(super) api: BaseUrl,
    pub(super) sandboxes: Place,
    pub(super) user: Option<String>,
    pub(super) requested_cwd: Option<String>,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) allow_internet_access: bool,
}

/// Where the servers inside sandboxes are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// All behind one URL.
    One(BaseUrl),
    /// Below the sandbox's own domain, or this one.
    Below(String),
}

impl Settings {
    pub(super) fn read(settings: &ProviderSettings) -> Result<Self, ConfigError> {
        let config: Config = read(KEY, SECRETS, &settings.config)?;
        let environment = |name: &str| (settings.environment)(name).filter(|value| !value.is_empty());
        let key = SecretHandle::required(KEY, &API_KEY, config.api_key, settings)?;
        let url = |field: &str, text: &str| BaseUrl::parse(text).map_err(|problem| fault(field, problem));
        let domain = config.domain.or_else(|| environment("E2B_DOMAIN"));
        let domain = domain.unwrap_or_else(|| DOMAIN.to_owned());
        let api = match config.api_url.or_else(|| environment("E2B_API_URL")) {
            Some(text) => url("apiUrl", &text)?,
            None => url("domain", &format!("https://api.{domain}"))?,
        };
        let sandboxes = match config.sandbox_url.or_else(|| environment("E2B_SANDBOX_URL")) {
            Some(text) => Place::One(url("sandboxUrl", &text)?),
            None => Place::Below(domain),
        };
        if config.user.as_ref().is_some_and(|user| user.contains(':')) {
            return Err(fault(
                "user",
                "holds a colon: give the name alone, there is no password",
            ));
        }
        if config
            .requested_cwd
            .as_ref()
            .is_some_and(|cwd| !cwd.starts_with('/'))
        {
            return Err(fault("requestedCwd", "is not absolute: start it with `/`"));
        }
        for (name, value) in &config.envs {
            let checked = crate::shell::check_env_key(name)
                .and_then(|()| crate::shell::check_text(&format!("the value of {name}"), value));
            checked.map_err(|error| fault("envs", &error.to_string()))?;
        }
        let released = if config.reuse_lease {
            OnRelease::Pause
        } else {
            OnRelease::Kill
        };
        Ok(Self {
            template: config.template,
            key,
            timeout_ms: config.timeout_ms,
            execution_limit: config.execution_timeout_ms.map(Duration::from_millis),
            reuse_lease: config.reuse_lease,
            on_release: config.on_release.unwrap_or(released),
            api,
            sandboxes,
            user: config.user,
            requested_cwd: config.requested_cwd,
            envs: config.envs,
            allow_internet_access: config.allow_internet_access,
        })
    }

    /// How long a sandbox lives, in the whole seconds that the API takes.
    pub(super) fn lifetime_seconds(&self) -> u64 {
        self.timeout_ms.div_ceil(1000)
    }
}

fn fault(field: &str, problem: &str) -> ConfigError {
    ConfigError {
        provider: KEY,
        field: field.to_owned(),
        problem: problem.to_owned(),
    }
}

impl Place {
    /// Base URL of the server inside one sandbox.
    ///
    /// - `domain`: what the API said of this sandbox, if it said anything.
    pub(super) fn url(&self, id: &SandboxId, domain: Option<&str>) -> Result<BaseUrl, &'static str> {
        let own = match self {
            Self::One(url) => return Ok(url.clone()),
            Self::Below(own) => own,
        };
        let domain = domain.unwrap_or(own);
        if SHARED.contains(&domain) {
            return BaseUrl::parse(&format!("https://sandbox.{domain}"));
        }
        BaseUrl::parse(&format!("https://{ENVD_PORT}-{id}.{domain}"))
    }
}
