//! How a provider is configured on the command line, and whom its lease is for.
//!
//! Here: each option once, and the one configuration that they make. Not here: what a provider makes of it
//! (`runners::provider`), which provider it is (`target.rs`).

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use crate::app::ProviderConfig;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::run_id;
use crate::config;

/// A larger file is no configuration.
const FILE_MAX_BYTES: u64 = 256 * 1024;

/// What a provider is configured with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Providers")]
pub(crate) struct ProviderOptions {
    /// TOML file with the fields of the target's provider
    #[arg(long, value_name = "FILE")]
    pub(crate) provider_config: Option<PathBuf>,

    /// One field of it, over what the file says: JSON or text; may be repeated, `TABLE.KEY` names one of a table.
    /// Secrets are given as references, such as apiKey=env:NAME
    #[arg(long, value_name = "KEY=VALUE", value_parser = field)]
    pub(crate) provider: Vec<Field>,
}

/// Whom a lease is for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Providers")]
pub(crate) struct ScopeOptions {
    /// Environment that the lease belongs to
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) environment_id: Option<String>,

    /// Issue that the run works on
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) issue_id: Option<String>,

    /// Company that owns them
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) company_id: Option<String>,
}

/// One field; the value may be a secret that stands where a reference belongs, so it has no `Debug` of its own.
#[derive(Clone)]
pub(crate) struct Field {
    path: Vec<String>,
    value: Value,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Field({})", self.path.join("."))
    }
}

impl ScopeOptions {
    pub(crate) fn are_given(&self) -> bool {
        self.environment_id.is_some() || self.issue_id.is_some() || self.company_id.is_some()
    }
}

impl ProviderOptions {
    /// Nothing at all.
    pub(crate) const fn none() -> Self {
        Self {
            provider_config: None,
            provider: Vec::new(),
        }
    }

    /// Fields that have been put together already.
    pub(crate) fn of_fields(fields: &Map<String, Value>) -> Self {
        Self {
            provider_config: None,
            provider: fields
                .iter()
                .map(|(key, value)| Field {
                    path: vec![key.clone()],
                    value: value.clone(),
                })
                .collect(),
        }
    }

    pub(crate) fn are_given(&self) -> bool {
        self.provider_config.is_some() || !self.provider.is_empty()
    }

    /// The file with the single fields over it.
    ///
    /// # Errors
    ///
    /// Code 3 for a file that cannot be read or a field that is no table.
    pub(crate) fn config(&self) -> Result<ProviderConfig, Failure> {
        self.over(ProviderConfig::default())
    }

    /// The same over another configuration, which gives way field by field.
    ///
    /// # Errors
    ///
    /// As [`Self::config`].
    pub(crate) fn over(&self, below: ProviderConfig) -> Result<ProviderConfig, Failure> {
        let mut config = below.0;
        if let Some(path) = &self.provider_config {
            config.extend(read(path)?);
        }
        for Field { path, value } in &self.provider {
            set(&mut config, path, value.clone()).map_err(|table| {
                Failure::new(
                    Exit::Configuration,
                    format!("--provider {}: `{table}` is no table", path.join(".")),
                )
            })?;
        }
        Ok(ProviderConfig(config))
    }
}

/// Where leases are written down: the folder that was named, else the operator's own.
///
/// # Errors
///
/// Code 3 where there is neither.
pub(crate) fn state_folder(named: Option<&Path>) -> Result<PathBuf, Failure> {
    named
        .map(Path::to_owned)
        .or_else(|| config::state_folder(&config::environment))
        .ok_or_else(|| {
            Failure::new(
                Exit::Configuration,
                "there is no folder to write leases down in: neither XDG_STATE_HOME nor HOME is an absolute path",
            )
            .hint("name one with --state-dir DIR")
        })
}

fn read(path: &Path) -> Result<Map<String, Value>, Failure> {
    let unreadable = || {
        Failure::new(
            Exit::Configuration,
            format!("cannot read the file of --provider-config, {}", path.display()),
        )
    };
    let length = std::fs::metadata(path)
        .map_err(|error| unreadable().because(error))?
        .len();
    if length > FILE_MAX_BYTES {
        return Err(unreadable().hint(format!(
            "it has {length} bytes, and a configuration at most {FILE_MAX_BYTES}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable().because(error))?;
    toml::from_str(&text).map_err(|error| {
        // Without the line itself, which may hold a secret.
        let line = error
            .span()
            .map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        let place = line.map(|line| format!(", line {line}")).unwrap_or_default();
        Failure::new(
            Exit::Configuration,
            format!("{}{place}: {}", path.display(), error.message()),
        )
    })
}

fn set(config: &mut Map<String, Value>, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [key] => {
            config.insert(key.clone(), value);
            Ok(())
        }
        [table, rest @ ..] => match config.entry(table.clone()).or_insert_with(|| Map::new().into()) {
            Value::Object(inner) => set(inner, rest, value),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(table.clone())
            }
        },
    }
}

fn field(text: &str) -> Result<Field, String> {
    // The text is not repeated: it may hold a secret.
    let (key, value) = text
        .split_once('=')
        .ok_or("give KEY=VALUE, such as timeoutMs=60000")?;
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    let plain = |part: &String| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    if !path.iter().all(plain) {
        return Err("the KEY of KEY=VALUE is a field's name, such as timeoutMs".into());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok(Field { path, value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(file: Option<PathBuf>, fields: &[&str]) -> ProviderOptions {
        ProviderOptions {
            provider_config: file,
            provider: fields.iter().map(|text| field(text).unwrap()).collect(),
        }
    }

    #[test]
    fn a_single_field_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("provider.toml");
        std::fs::write(
            &path,
            "timeoutMs = 1\ntemplate = 'base'\n[relay]\nbridgeId = 'b'\n",
        )
        .unwrap();

        let config = options(
            Some(path),
            &[
                "timeoutMs=2",
                "reuseLease=true",
                "apiKey=env:KEY",
                "relay.relayUrl=https://x",
                "name=a=b",
            ],
        )
        .config()
        .unwrap();

        assert_eq!(
            Value::Object(config.0),
            json!({
                "timeoutMs": 2, "template": "base", "reuseLease": true, "apiKey": "env:KEY", "name": "a=b",
                "relay": { "bridgeId": "b", "relayUrl": "https://x" },
            })
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("provider.toml");
        std::fs::write(&path, "a = 1\napiKey = pk_live_1\n").unwrap();

        let error = options(Some(path), &[]).config().unwrap_err().to_string();

        assert!(
            error.contains("line 2") && !error.contains("pk_live_1"),
            "{error}"
        );
    }

    #[test]
    fn a_field_has_a_name_and_only_a_table_has_fields() {
        for text in ["", "timeoutMs", "=1", "a b=1", "a..b=1"] {
            assert!(field(text).is_err(), "{text:?} was taken");
        }
        assert!(options(None, &["a=1", "a.b=2"]).config().is_err());
        assert_eq!(
            format!("{:?}", field("apiKey=pk_live_1").unwrap()),
            "Field(apiKey)"
        );
    }
}
