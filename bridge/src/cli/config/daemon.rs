//! `config check --config FILE`: is everything there that the daemon would be made of?
//!
//! Here: the configuration with all its mistakes; then each file, secret and provider that it names, without a
//! connection to anything. Not here: what a configuration is (`crate::config`).

use std::path::Path;

use super::check::Check;
use crate::app::{App, ProviderConfig, TargetSpec};
use crate::cli::exit::{Exit, Failure};
use crate::cli::{opening, target};
use crate::config::model::{Config, GatewayName, PolicyMode};
use crate::config::{self, Origin, leaves};
use crate::daemon::ConfiguredPolicy;
use crate::secrets::{SecretRef, SecretSettings, Secrets};

/// Everything that can be looked at; where the configuration has mistakes, those alone.
pub(super) async fn checks(app: &App, file: &Path) -> Vec<Check> {
    let loaded = match super::load(Some(file)) {
        Ok(loaded) => loaded,
        Err(failure) => return vec![Check::new("configuration", Err(failure))],
    };
    let config = &loaded.config;
    let values = serde_json::to_value(config).unwrap_or_default();
    let said = leaves(&values)
        .iter()
        .filter(|leaf| loaded.origins.of_leaf(&leaf.key()) != Origin::Default)
        .count();
    let place = loaded
        .file
        .as_deref()
        .map_or("no file".to_owned(), |file| file.display().to_string());
    let mut checks = vec![Check::new(
        "configuration",
        Ok(format!("{place}, {said} values set")),
    )];
    for (name, upstream) in &config.upstreams {
        checks.push(Check::new(format!("upstream {name}"), Ok(upstream.url.clone())));
    }
    checks.push(Check::new("policy", policy(config)));
    for (key, path) in files(config) {
        checks.push(Check::new(key, readable(path)));
    }
    let secrets = secrets(config);
    for (key, reference) in references(config) {
        checks.push(Check::new(key, secret(&secrets, &reference).await));
    }
    for (key, provider) in &config.providers {
        checks.push(Check::new(
            format!("providers.{key}"),
            self::provider(app, key, provider, &secrets),
        ));
    }
    checks
}

fn secrets(config: &Config) -> Secrets {
    let settings = SecretSettings {
        cache_ttl: config.secrets.cache_ttl,
        max_stale: config.secrets.max_stale,
    };
    Secrets::new(settings, config::environment)
}

/// The files that the configuration names, by their keys.
fn files(config: &Config) -> Vec<(String, &Path)> {
    let mut found: Vec<(String, Option<&Path>)> = Vec::new();
    for (name, upstream) in &config.upstreams {
        found.push((format!("upstreams.{name}.ca"), upstream.ca.as_deref()));
    }
    let control = &config.listeners.control;
    found.push((
        "listeners.control.certificate".into(),
        control.certificate.as_deref(),
    ));
    found.push(("listeners.control.client_ca".into(), control.client_ca.as_deref()));
    for (name, target) in &config.targets {
        let key = |field: &str| format!("targets.{name}.{field}");
        found.push((key("known_hosts"), target.known_hosts.as_deref()));
        found.extend(
            target
                .identities
                .iter()
                .map(|path| (key("identities"), Some(path.as_path()))),
        );
        found.push((
            key("gateway"),
            match &target.gateway {
                GatewayName::Builtin => None,
                GatewayName::Program(path) | GatewayName::Node(path) => Some(path),
            },
        ));
    }
    found
        .into_iter()
        .filter_map(|(key, path)| Some((key, path?)))
        .collect()
}

/// The secrets that the configuration itself names, by their keys; those of providers are read by them.
fn references(config: &Config) -> Vec<(String, SecretRef)> {
    let control = &config.listeners.control;
    let single = [
        ("listeners.control.token", &control.token),
        ("store.password", &config.store.password),
        ("audit.key", &config.audit.key),
    ];
    let single = single
        .into_iter()
        .filter_map(|(key, reference)| Some((key.to_owned(), reference.clone()?)));
    let upstreams = config.upstreams.iter();
    upstreams
        .map(|(name, upstream)| {
            (
                format!("upstreams.{name}.credential"),
                upstream.credential.clone(),
            )
        })
        .chain(single)
        .collect()
}

fn policy(config: &Config) -> Result<String, Failure> {
    ConfiguredPolicy::read(config)
        .map_err(|lines| Failure::new(Exit::Configuration, "the policy is refused").listing(lines))?;
    let policy = &config.policy;
    let shown = match (&policy.file, &policy.rules, &policy.packs) {
        (Some(path), ..) => path.display().to_string(),
        (None, Some(_), _) => "rules of the configuration".to_owned(),
        (None, None, Some(packs)) if packs.is_empty() => {
            "no pack and no rules: everything is denied".to_owned()
        }
        (None, None, Some(packs)) => format!("packs {}", packs.join(", ")),
        (None, None, None) => format!("pack {}", policy::Pack::newest().name()),
    };
    Ok(match policy.mode {
        PolicyMode::Enforce => shown,
        PolicyMode::Report => format!("{shown}; denials are only reported"),
    })
}

fn readable(path: &Path) -> Result<String, Failure> {
    std::fs::File::open(path)
        .map(|_| path.display().to_string())
        .map_err(|error| {
            Failure::new(Exit::Configuration, format!("cannot read {}", path.display())).because(error)
        })
}

/// Its value goes no further than this function; one of another machine is not asked for.
async fn secret(secrets: &Secrets, reference: &SecretRef) -> Result<String, Failure> {
    if reference.is_remote() {
        return Ok(format!("{reference}, not read here: nothing is connected to"));
    }
    let read = secrets.live(reference).get().await;
    read.map(|_| reference.to_string())
        .map_err(|error| Failure::new(Exit::Configuration, "the secret cannot be used").because(error))
}

fn provider(app: &App, key: &str, config: &ProviderConfig, secrets: &Secrets) -> Result<String, Failure> {
    let parsed = target::parse(&format!("{key}:"));
    let Ok(TargetSpec::Provider(target)) = parsed else {
        return Err(Failure::new(Exit::Configuration, "there is no such provider"));
    };
    let shown = super::check::fields(target.spec, config);
    let target = crate::app::ProviderTarget {
        config: config.clone(),
        secrets: secrets.clone(),
        ..target
    };
    app.check(&TargetSpec::Provider(target))
        .map_err(opening::failure)?;
    Ok(shown)
}
