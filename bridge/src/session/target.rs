//! From the operator's words for an SSH target to what a connection needs.
//!
//! Here: ssh_config applied, known hosts and identities loaded, jump hosts in a row. Blocks on the disk; done once per
//! session. Not here: the connecting (`runners::ssh`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runners::ssh::config::{Agent, HostSettings, Resolver};
use runners::ssh::known_hosts::KnownHosts;
use runners::ssh::{ConnectionLimits, ConnectionSettings, HostKeys, Identities};

use crate::app::SshTarget;
use crate::config::environment;

/// What a connection to `target` needs; notes are what ssh_config says and we do not follow.
///
/// # Errors
///
/// One line for the operator: which file, which line, what to do.
pub(crate) fn ssh_settings(target: &SshTarget) -> Result<(ConnectionSettings, Vec<String>), String> {
    let home = crate::config::home().unwrap_or_else(|| PathBuf::from("/"));
    let resolver = Resolver {
        local_user: environment("USER")
            .or_else(|| environment("LOGNAME"))
            .unwrap_or_default(),
        user_config: target.ssh_config.then(|| home.join(".ssh/config")),
        system_config: target.ssh_config.then(|| PathBuf::from("/etc/ssh/ssh_config")),
        home,
    };
    let route = resolver
        .resolve_route(&target.host, target.user.as_deref(), target.port)
        .map_err(|error| error.to_string())?;
    let mut notes = Vec::new();
    let mut via = None;
    let last = route.len().saturating_sub(1);
    for (at, host) in route.into_iter().enumerate() {
        notes.extend(host.notes.iter().cloned());
        via = Some(Box::new(one_host(target, host, at == last, via)?));
    }
    via.map(|settings| (*settings, notes))
        .ok_or_else(|| "the target names no host".to_owned())
}

fn one_host(
    target: &SshTarget,
    host: HostSettings,
    is_target: bool,
    via: Option<Box<ConnectionSettings>>,
) -> Result<ConnectionSettings, String> {
    let known = match &target.known_hosts {
        Some(path) => vec![path.clone()],
        None => host
            .user_known_hosts_files
            .iter()
            .chain(&host.global_known_hosts_files)
            .cloned()
            .collect(),
    };
    let hosts = KnownHosts::load(&known)
        .map_err(|(path, error)| format!("cannot read {}: {error}", path.display()))?;
    for warning in hosts.warnings() {
        tracing::warn!(%warning, "a known_hosts line was passed over");
    }
    let given = is_target && !target.identities.is_empty();
    let identities = Identities {
        files: if given {
            target.identities.clone()
        } else {
            host.identity_files
        },
        files_required: given || !host.identity_files_are_defaults,
        certificates: host.certificate_files,
        agent: match host.agent {
            Agent::Default => environment("SSH_AUTH_SOCK")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            Agent::None => None,
            Agent::Socket(path) => Some(path),
        },
        only: given || host.identities_only,
    };
    let shown = if host.host.contains(':') {
        format!("[{}]", host.host)
    } else {
        host.host.clone()
    };
    Ok(ConnectionSettings {
        target: format!("ssh://{}@{shown}:{}", host.user, host.port),
        host: host.host,
        port: host.port,
        user: host.user,
        host_keys: HostKeys::Known {
            hosts: Arc::new(hosts),
            alias: host.host_key_alias,
        },
        identities,
        via,
        limits: limits(
            host.keepalive_interval,
            host.keepalive_count,
            host.connect_timeout,
        ),
    })
}

/// ssh_config may make us more watchful than we are by default, never less: a dead link is found within 15 s.
fn limits(interval: Option<Duration>, count: Option<u32>, connect: Option<Duration>) -> ConnectionLimits {
    let mut limits = ConnectionLimits::default();
    if let Some(interval) =
        interval.filter(|interval| !interval.is_zero() && *interval < limits.keepalive_interval)
    {
        limits.keepalive_interval = interval;
    }
    if let Some(count) = count
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| *count > 0)
    {
        limits.keepalive_unanswered = limits.keepalive_unanswered.min(count);
    }
    if let Some(connect) = connect.filter(|connect| !connect.is_zero()) {
        limits.connect = connect;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_config_cannot_make_a_dead_link_go_unnoticed() {
        let default = ConnectionLimits::default();

        assert_eq!(limits(Some(Duration::ZERO), Some(0), None), default);
        assert_eq!(limits(Some(Duration::from_secs(300)), Some(30), None), default);
        assert!(limits(Some(Duration::from_secs(1)), Some(1), None).silence() <= Duration::from_secs(2));
    }
}
