//! `paperclip-bridge config check`: is everything there that `run` and `open` would be made of?
//!
//! Here: each check, without a connection to anything. Not here: what the daemon would be made of (`daemon.rs`).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use runners::provider::ProviderSpec;
use serde_json::json;

use super::daemon;
use crate::app::{App, ProviderConfig, ProviderTarget, TargetSpec};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::{SshOptions, UpstreamOptions};
use crate::cli::policies::PolicyOptions;
use crate::cli::provider_options::{self, ProviderOptions};
use crate::cli::secrets::check_credential;
use crate::cli::stdio::{print, print_json};
use crate::cli::{opening, target};
use crate::config;

/// Arguments of `config check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    /// Check this configuration file of the daemon, with all that it names, instead of what run and open take
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "upstream", "credential", "upstream_ca", "file", "pack", "identity", "known_hosts", "target", "provider",
        "provider_config", "state_dir",
    ])]
    config: Option<PathBuf>,
    #[command(flatten)]
    upstream: UpstreamOptions,
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    ssh: SshOptions,
    /// Check what a provider's target would be made of, too: `KEY:` or `KEY:ID`
    #[arg(long, value_name = "TARGET", value_parser = target::parse)]
    target: Option<TargetSpec>,
    #[command(flatten)]
    provider: ProviderOptions,
    /// Folder that leases would be written down in [default: $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
pub(super) struct Check {
    name: Cow<'static, str>,
    /// What was found, or what is wrong.
    found: Result<String, Failure>,
}

impl Check {
    pub(super) fn new(name: impl Into<Cow<'static, str>>, found: Result<String, Failure>) -> Self {
        Self {
            name: name.into(),
            found,
        }
    }
}

/// Checks everything and reports all of it, not only the first mistake.
///
/// # Errors
///
/// Code 1 where the report cannot be written. A failed check is code 3 in `Ok`.
pub(crate) async fn check(app: &App, arguments: &CheckArguments) -> Result<Exit, Failure> {
    let checks = if let Some(file) = &arguments.config {
        daemon::checks(app, file).await
    } else {
        let mut checks = checks(arguments).await;
        checks.extend(provider_checks(app, arguments)?);
        checks
    };
    let ok = checks.iter().all(|check| check.found.is_ok());
    if arguments.json {
        print_json(&as_json(&checks, ok))?;
    } else {
        print(&as_text(&checks))?;
    }
    Ok(if ok { Exit::Ok } else { Exit::Configuration })
}

async fn checks(arguments: &CheckArguments) -> Vec<Check> {
    let choice = config::upstream(arguments.upstream.upstream.as_deref(), &config::environment);
    let mut checks = vec![
        Check {
            name: "upstream".into(),
            found: arguments
                .upstream
                .settings()
                .map(|settings| format!("{}, by {}", settings.origin(), choice.said_by)),
        },
        Check {
            name: "credential".into(),
            found: credential(&arguments.upstream).await,
        },
        Check {
            name: "policy".into(),
            found: arguments.policy.load().map(|_| arguments.policy.to_string()),
        },
        Check {
            name: "ssh files".into(),
            found: arguments.ssh.check().map(|()| ssh_files(&arguments.ssh)),
        },
    ];
    if let Some(path) = &arguments.upstream.upstream_ca {
        let found = std::fs::File::open(path)
            .map(|_| path.display().to_string())
            .map_err(|error| {
                Failure::new(Exit::Configuration, format!("cannot read {}", path.display())).because(error)
            });
        checks.push(Check {
            name: "upstream CA".into(),
            found,
        });
    }
    checks
}

/// What would be taken of a provider's configuration; nothing is connected to and no secret resolved.
fn provider_checks(app: &App, arguments: &CheckArguments) -> Result<Vec<Check>, Failure> {
    let Some(TargetSpec::Provider(target)) = &arguments.target else {
        if arguments.provider.are_given() {
            return Err(Failure::new(
                Exit::Usage,
                "--provider and --provider-config need --target KEY:, the target of a provider",
            ));
        }
        return Ok(Vec::new());
    };
    let found = arguments.provider.config().and_then(|config| {
        let shown = fields(target.spec, &config);
        let target = ProviderTarget {
            config,
            ..target.clone()
        };
        app.check(&TargetSpec::Provider(target))
            .map_err(opening::failure)?;
        Ok(shown)
    });
    let folder = provider_options::state_folder(arguments.state_dir.as_deref());
    Ok(vec![
        Check {
            name: "provider".into(),
            found,
        },
        Check {
            name: "leases".into(),
            found: folder.map(|folder| folder.join("leases").display().to_string()),
        },
    ])
}

/// The fields as they would be taken; a secret's is a reference, and where it is absent, the variable in its place.
pub(super) fn fields(spec: &ProviderSpec, config: &ProviderConfig) -> String {
    let given = config.0.iter().map(|(name, value)| format!("{name} = {value}"));
    let fallbacks = spec.secrets.iter().filter_map(|secret| {
        let variable = secret
            .fallback_env
            .filter(|_| !config.0.contains_key(secret.name))?;
        Some(format!("{} = \"env:{variable}\" by default", secret.name))
    });
    let all: Vec<_> = given.chain(fallbacks).collect();
    format!(
        "{}: {}",
        spec.key,
        if all.is_empty() {
            "its defaults".to_owned()
        } else {
            all.join(", ")
        }
    )
}

/// Its value goes no further than this function; one of another machine is not asked for.
async fn credential(upstream: &UpstreamOptions) -> Result<String, Failure> {
    let reference = &upstream.credential;
    if reference.is_remote() {
        return Ok(format!("{reference}, not read here: nothing is connected to"));
    }
    check_credential(&upstream.credential()).await?;
    Ok(reference.to_string())
}

fn ssh_files(ssh: &SshOptions) -> String {
    if ssh.identity.is_empty() && ssh.known_hosts.is_none() {
        return "those of ssh_config, not checked here".into();
    }
    let files: Vec<_> = ssh
        .identity
        .iter()
        .chain(&ssh.known_hosts)
        .map(|path| path.display().to_string())
        .collect();
    files.join(", ")
}

fn as_json(checks: &[Check], ok: bool) -> serde_json::Value {
    let checks: Vec<_> = checks
        .iter()
        .map(|check| match &check.found {
            Ok(found) => json!({ "check": check.name, "ok": true, "found": found }),
            Err(failure) => json!({ "check": check.name, "ok": false, "error": failure.to_string() }),
        })
        .collect();
    json!({ "ok": ok, "checks": checks })
}

fn as_text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        // A `String` takes every write.
        let _ = match &check.found {
            Ok(found) => writeln!(text, "ok      {}: {found}", check.name),
            Err(failure) => writeln!(text, "wrong   {}: {failure}", check.name),
        };
    }
    text
}
