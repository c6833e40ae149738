//! The configuration of Daytona, as an operator writes it.
//!
//! Here: its fields, their bounds and what may not stand together. Not here: what is done with them.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::config_error;
use crate::http::BaseUrl;
use crate::provider::ConfigError;

const DEFAULT_API_URL: &str = "https://app.daytona.io/api";

/// How sandboxes of Daytona are made and used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DaytonaConfig {
    /// The API key.
    pub api_key: Option<String>,
    /// Base URL of the control API. Absent: `DAYTONA_API_URL`, else `https://app.daytona.io/api`.
    #[schemars(length(min = 1, max = 2048))]
    pub api_url: Option<String>,
    /// Region in which sandboxes are made. Absent: `DAYTONA_TARGET`, else the organization's own.
    #[schemars(length(min = 1, max = 255))]
    pub target: Option<String>,
    /// Snapshot that sandboxes start from; not together with `image`. Absent: Daytona's own.
    #[schemars(length(min = 1, max = 1024))]
    pub snapshot: Option<String>,
    /// Container image that sandboxes are built from; not together with `snapshot`.
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// User that commands run as. Absent: the snapshot's own.
    #[schemars(length(min = 1, max = 255))]
    pub user: Option<String>,
    /// Variables of every process in the sandbox. They are stored at Daytona: no secrets here.
    pub env: BTreeMap<String, String>,
    /// Processor cores; only with `image`.
    #[schemars(range(min = 1, max = 1024))]
    pub cpu: Option<u32>,
    /// Memory in GiB; only with `image`.
    #[schemars(range(min = 1, max = 65536))]
    pub memory: Option<u32>,
    /// Disk in GiB; only with `image`.
    #[schemars(range(min = 1, max = 65536))]
    pub disk: Option<u32>,
    /// Graphics processors; only with `image`.
    #[schemars(range(min = 0, max = 64))]
    pub gpu: Option<u32>,
    /// Limit of one command that names none, in milliseconds.
    #[schemars(range(min = 1000, max = 86_400_000))]
    pub timeout_ms: u64,
    /// Limit of one call to Daytona that runs no command of the caller's, in milliseconds.
    #[schemars(range(min = 5000, max = 600_000))]
    pub liveness_timeout_ms: u64,
    /// Limit of making or starting a sandbox, in milliseconds.
    #[schemars(range(min = 1000, max = 3_600_000))]
    pub create_timeout_ms: u64,
    /// Minutes without a call after which Daytona stops the sandbox; 0 is never.
    #[schemars(range(min = 0, max = 525_600))]
    pub auto_stop_interval: u32,
    /// Minutes after which a stopped sandbox is archived; 0 is the longest that Daytona knows.
    #[schemars(range(min = 0, max = 525_600))]
    pub auto_archive_interval: u32,
    /// Minutes after which a stopped sandbox is deleted; 0 is at once, -1 never.
    #[schemars(range(min = -1, max = 525_600))]
    pub auto_delete_interval: i32,
    /// A released sandbox is stopped and kept for the next run of its environment, not deleted.
    pub reuse_lease: bool,
    /// A kept sandbox is archived once it has stopped; only with `reuseLease`.
    pub archive_on_release: bool,
}

impl Default for DaytonaConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            api_url: None,
            target: None,
            snapshot: None,
            image: None,
            user: None,
            env: BTreeMap::new(),
            cpu: None,
            memory: None,
            disk: None,
            gpu: None,
            timeout_ms: 300_000,
            liveness_timeout_ms: 30_000,
            create_timeout_ms: 300_000,
            auto_stop_interval: 15,
            auto_archive_interval: 60,
            auto_delete_interval: 10_080,
            reuse_lease: false,
            archive_on_release: false,
        }
    }
}

impl DaytonaConfig {
    /// Takes what is absent from the environment, and refuses what may not stand together.
    pub(super) fn completed(mut self, environment: fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |name| environment(name).filter(|value| !value.is_empty());
        self.api_url = self.api_url.or_else(|| set("DAYTONA_API_URL"));
        self.target = self.target.or_else(|| set("DAYTONA_TARGET"));
        if self.snapshot.is_some() && self.image.is_some() {
            return Err(config_error(
                "image",
                "stands beside `snapshot`: give one of the two",
            ));
        }
        let sizes = [
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("disk", self.disk),
            ("gpu", self.gpu),
        ];
        let sized = sizes.iter().find(|(_, size)| size.is_some());
        if let (Some((field, _)), None) = (sized, &self.image) {
            return Err(config_error(
                field,
                "needs `image`: a snapshot has a size of its own",
            ));
        }
        if self.image.as_ref().is_some_and(|image| {
            image
                .chars()
                .any(|sign| sign.is_whitespace() || sign.is_control())
        }) {
            return Err(config_error("image", "holds white space: give one image name"));
        }
        if self.archive_on_release && !self.reuse_lease {
            return Err(config_error(
                "archiveOnRelease",
                "needs `reuseLease`: without it nothing is kept",
            ));
        }
        if let Some(name) = self
            .env
            .keys()
            .find(|name| crate::shell::check_env_key(name).is_err())
        {
            return Err(config_error(
                &format!("env.{name}"),
                "is no name of a variable: use letters, digits and `_`, not starting with a digit",
            ));
        }
        Ok(self)
    }

    /// The control API.
    pub(super) fn base(&self) -> Result<BaseUrl, ConfigError> {
        let text = self.api_url.as_deref().unwrap_or(DEFAULT_API_URL);
        BaseUrl::parse(text).map_err(|problem| config_error("apiUrl", problem))
    }

    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(super) const fn liveness(&self) -> Duration {
        Duration::from_millis(self.liveness_timeout_ms)
    }

    pub(super) const fn create_timeout(&self) -> Duration {
        Duration::from_millis(self.create_timeout_ms)
    }

    /// How long a sandbox lives without a call; none where it is never stopped.
    pub(super) fn auto_stop(&self) -> Option<Duration> {
        (self.auto_stop_interval > 0).then(|| Duration::from_secs(u64::from(self.auto_stop_interval) * 60))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{API_KEY, DAYTONA};
    use super::*;
    use crate::provider::{read, schema};

    fn reading(config: &Value) -> Result<DaytonaConfig, ConfigError> {
        let config: DaytonaConfig = read(DAYTONA.key, &[API_KEY], config.as_object().unwrap())?;
        let config = config.completed(|name| (name == "DAYTONA_TARGET").then(|| "eu".to_owned()))?;
        config.base()?;
        Ok(config)
    }

    #[test]
    fn an_empty_configuration_takes_the_environment_and_the_defaults() {
        let config = reading(&json!({})).unwrap();

        assert_eq!(config.target.as_deref(), Some("eu"));
        assert_eq!(config.base().unwrap().as_str(), DEFAULT_API_URL);
        assert_eq!(config.timeout(), Duration::from_secs(300));
        assert_eq!(
            reading(&json!({"target": "us"})).unwrap().target.as_deref(),
            Some("us")
        );
    }

    #[test]
    fn what_may_not_stand_together_names_its_field() {
        for (config, field) in [
            (json!({"snapshot": "a", "image": "b"}), "image"),
            (json!({"cpu": 2}), "cpu"),
            (json!({"disk": 2, "snapshot": "a"}), "disk"),
            (json!({"image": "a\nRUN x"}), "image"),
            (json!({"archiveOnRelease": true}), "archiveOnRelease"),
            (json!({"apiUrl": "http://api.example.com"}), "apiUrl"),
            (json!({"env": {"A-B": "x"}}), "env.A-B"),
            (json!({"timeoutMs": 1}), "timeoutMs"),
        ] {
            assert_eq!(reading(&config).unwrap_err().field, field, "{config}");
        }
    }

    #[test]
    fn the_schema_names_every_field_with_a_description() {
        let schema = schema::<DaytonaConfig>(&[API_KEY]);

        let fields = schema["properties"].as_object().unwrap();
        assert_eq!(fields.len(), 19);
        assert!(
            fields.values().all(|field| field["description"].is_string()),
            "{schema}"
        );
    }
}
