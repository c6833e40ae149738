//! `paperclip-bridge config check`: is everything there that `run` and `open` would be made of?
//!
//! Here: each check, without a connection to anything. Not here: a configuration file; this version has none, only
//! options, variables and policy files.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::options::{SshOptions, UpstreamOptions};
use crate::cli::policies::PolicyOptions;
use crate::cli::secrets::check_credential;
use crate::cli::stdio::{print, print_json};
use crate::config;

/// Arguments of `config check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    upstream: UpstreamOptions,
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    ssh: SshOptions,
    /// A JSON object instead of text
    #[arg(long)]
    json: bool,
}

struct Check {
    name: &'static str,
    /// What was found, or what is wrong.
    found: Result<String, Failure>,
}

/// Checks everything and reports all of it, not only the first mistake.
///
/// # Errors
///
/// Code 1 where the report cannot be written. A failed check is code 3 in `Ok`.
pub(crate) async fn check(arguments: &CheckArguments) -> Result<Exit, Failure> {
    let checks = checks(arguments).await;
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
            name: "upstream",
            found: arguments
                .upstream
                .settings()
                .map(|settings| format!("{}, by {}", settings.origin(), choice.said_by)),
        },
        Check {
            name: "credential",
            found: credential(&arguments.upstream).await,
        },
        Check {
            name: "policy",
            found: arguments.policy.load().map(|_| arguments.policy.to_string()),
        },
        Check {
            name: "ssh files",
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
            name: "upstream CA",
            found,
        });
    }
    checks
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
