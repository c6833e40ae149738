//! Daytona: sandboxes made over its control API, commands run by the toolbox daemon inside.
//!
//! Here: what the provider declares of itself. In [`config`] its configuration, in `lease` what it does with
//! sandboxes, over `control`; in `runner` how a command is run, over `toolbox` with the texts of `script`, after `staging`
//! and perhaps to an `ending` by force; in `duplex` the byte stream over a terminal. Not here: when a lease is taken or given back. Read next: [`config`], `lease`.

pub mod config;
mod lease;
mod sentinel;
mod control;
mod staging;
mod ending;
mod runner;
mod output;
mod script;
mod duplex;
mod channel;
mod toolbox;
mod multipart;
mod api;

use std::sync::Arc;

use crate::provider::{
    ConfigError, Provider, ProviderCapabilities, ProviderSettings, ProviderSpec, SecretField, read, schema,
};
use config::DaytonaConfig;

const API_KEY: SecretField = SecretField {
    name: "apiKey",
    fallback_env: Some("DAYTONA_API_KEY"),
};

/// The provider whose targets are `daytona:ID`.
pub static DAYTONA: ProviderSpec = ProviderSpec {
    key: "daytona",
    about: "Daytona sandboxes, in the cloud or on one's own servers",
    capabilities: ProviderCapabilities {
        duplex: true,
        file_transfer: true,
        streaming_output: true,
        reuse_leases: true,
        background: true,
    },
    shell: None,
    schema: || schema::<DaytonaConfig>(&[API_KEY]),
    secrets: &[API_KEY],
    build,
};

fn build(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError> {
    let config: DaytonaConfig = read(DAYTONA.key, DAYTONA.secrets, &settings.config)?;
    Ok(Arc::new(lease::Daytona::new(config, &settings)?))
}

/// What a fault of the configuration looks like.
fn config_error(field: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError {
        provider: DAYTONA.key,
        field: field.to_owned(),
        problem: problem.into(),
    }
}

/// A name nobody can guess: 32 hex digits.
fn random_name() -> Result<String, String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
