//! What a session takes from the configuration, and what it may not bring itself.
//!
//! Here: its named upstream and target, its provider's fields, its rules with what it adds to them; and the bounds for whoever
//! is not the daemon's own user. Not here: the values of single fields (`fields.rs`), the policies themselves
//! (`daemon/policies.rs`).

use std::path::Path;
use std::sync::Arc;

use super::super::policies::{Addition, OwnFile};
use super::super::settings::DaemonSettings;
use super::{Around, Mistake, NewSession};
use crate::cli::options::{self, SessionOptions, Under};
use crate::cli::policies;
use crate::config::model::{GatewayName, TargetConfig, TunnelName, UpstreamConfig};
use crate::config::spelled::size_text;

/// The API of a request that names none, where there are several.
const DEFAULT_NAME: &str = "default";

impl NewSession {
    /// What of it only the daemon's own user may bring. A name of the configuration brings nothing.
    pub(crate) fn beyond(&self, settings: &DaemonSettings) -> Vec<&'static str> {
        let mut reserved = self.reserved();
        let named = self.upstream.as_ref();
        if named.is_some_and(|name| settings.upstreams.contains_key(name)) {
            reserved.retain(|field| *field != "upstream");
        }
        if settings.targets.contains_key(&self.target) {
            reserved.retain(|field| *field != "target");
        }
        reserved
    }

    /// Whether it stays within what the configuration allows to everybody.
    ///
    /// # Errors
    ///
    /// What goes beyond it, at its field. What cannot be read is told when it is read.
    pub(crate) fn within(&self, settings: &DaemonSettings) -> Result<(), Vec<Mistake>> {
        let mut mistakes = Vec::new();
        if let Some(Ok(chosen)) = self.pack.as_deref().map(policies::pack)
            && let Err(why) = settings.policy.admits(chosen)
        {
            mistakes.push(Mistake::new("pack", why));
        }
        let most = settings.max_body();
        if let Some(Ok(bytes)) = self.max_body.as_deref().map(options::size)
            && bytes > most
        {
            let why = format!("the configuration allows {} at most", size_text(most));
            mistakes.push(Mistake::new("max_body", why));
        }
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(mistakes)
        }
    }
}

impl DaemonSettings {
    /// The largest body where a session asks for nothing else.
    fn max_body(&self) -> u64 {
        let from_rules = self.policy.limits().max_body.unwrap_or(u64::MAX);
        self.sizes.max_body.min(from_rules)
    }
}

impl Around {
    /// The target of the configuration that a request means.
    fn target(&self, asked: &NewSession) -> Option<&TargetConfig> {
        self.settings.targets.get(&asked.target)
    }

    /// The API of the configuration that a request means; `None`: it brings its own.
    pub(super) fn upstream(&self, asked: &NewSession) -> Result<Option<&UpstreamConfig>, Vec<Mistake>> {
        let upstreams = &self.settings.upstreams;
        let of_target = || self.target(asked).and_then(|target| target.upstream.as_ref());
        if let Some(name) = asked.upstream.as_ref().or_else(of_target) {
            let Some(named) = upstreams.get(name) else {
                return Ok(None);
            };
            let own = [
                ("credential", asked.credential.is_some()),
                ("upstream_ca", asked.upstream_ca.is_some()),
            ];
            let mistakes: Vec<_> = own
                .into_iter()
                .filter(|(_, brought)| *brought)
                .map(|(field, _)| {
                    let why = format!(
                        "the upstream `{name}` is the configuration's, which says this for it; leave it out, or bring the \
                         upstream as a URL"
                    );
                    Mistake::new(field, why)
                })
                .collect();
            return if mistakes.is_empty() {
                Ok(Some(named))
            } else {
                Err(mistakes)
            };
        }
        if asked.credential.is_some() || upstreams.is_empty() {
            return Ok(None);
        }
        let only = upstreams.values().next().filter(|_| upstreams.len() == 1);
        let chosen = upstreams.get(DEFAULT_NAME).or(only);
        chosen.map(Some).ok_or_else(|| {
            let names: Vec<_> = upstreams.keys().map(String::as_str).collect();
            vec![Mistake::new(
                "upstream",
                format!("name one of {}", names.join(", ")),
            )]
        })
    }

    /// The request with what the configuration says of its target and its provider, where it says nothing itself.
    pub(super) fn completed(&self, asked: &NewSession) -> NewSession {
        let mut completed = match self.target(asked) {
            Some(target) => on(target, asked),
            None => asked.clone(),
        };
        if completed.provider.is_none()
            && let Some((key, _)) = completed.target.split_once(':')
            && let Some(config) = self.settings.providers.get(key)
        {
            completed.provider = Some(config.0.clone());
        }
        if completed
            .upstream
            .as_ref()
            .is_some_and(|name| self.settings.upstreams.contains_key(name))
        {
            completed.upstream = None;
        }
        completed
    }

    /// The rules and sizes of a session that adds what its options say. Blocks on the disk.
    pub(super) fn rules(&self, options: &SessionOptions) -> Result<Under, Vec<Mistake>> {
        let mistake = |field: &str, why: String| vec![Mistake::new(field, why)];
        let file = match &options.policy.file {
            Some(path) => Some(Arc::new(
                OwnFile::read(path).map_err(|why| mistake("policy", why))?,
            )),
            None => None,
        };
        let own = file.as_ref().map(|own| own.rules.limits()).unwrap_or_default();
        let mut sizes = self.settings.sizes;
        sizes.max_body = options
            .max_body
            .or(own.max_body)
            .unwrap_or_else(|| self.settings.max_body());
        let most = self.settings.bytes.session;
        if sizes.max_body > most {
            let why = format!(
                "a session may hold {} of bodies (limits.bytes.session)",
                size_text(most)
            );
            return Err(mistake("max_body", why));
        }
        let addition = Addition {
            pack: options.policy.pack,
            file,
        };
        let rules = self.policies.of(addition).map_err(|mistakes| {
            let path = options
                .policy
                .file
                .as_deref()
                .unwrap_or_else(|| "the pack".as_ref());
            mistake(
                "policy",
                mistakes.in_file(&path.display().to_string()).to_string(),
            )
        })?;
        Ok(Under {
            rules,
            limits: sizes,
            rate: options.rate.or(own.rate),
        })
    }
}

/// The request on a target of the configuration: what it says itself goes before.
fn on(target: &TargetConfig, asked: &NewSession) -> NewSession {
    let mut asked = asked.clone();
    asked.target.clone_from(&target.target);
    asked.upstream = asked.upstream.or_else(|| target.upstream.clone());
    asked.tunnel = asked.tunnel.or_else(|| tunnel(target.tunnel));
    asked.gateway = asked.gateway.or_else(|| Some(gateway(&target.gateway)));
    asked.streams = asked.streams.or(target.streams);
    asked.known_hosts = asked
        .known_hosts
        .or_else(|| target.known_hosts.as_deref().map(absolute));
    asked.unix_socket = asked
        .unix_socket
        .or_else(|| Some(target.unix_socket.as_ref()?.display().to_string()));
    if asked.identity.is_none() && !target.identities.is_empty() {
        asked.identity = Some(target.identities.iter().map(|path| absolute(path)).collect());
    }
    asked.allow_exposed_forward = asked.allow_exposed_forward.or(Some(target.allow_exposed_forward));
    asked
}

/// The daemon's own working folder is what a path of its configuration is below of.
fn absolute(path: &Path) -> String {
    let absolute = std::path::absolute(path);
    absolute.as_deref().unwrap_or(path).display().to_string()
}

fn gateway(name: &GatewayName) -> String {
    match name {
        GatewayName::Builtin => name.to_string(),
        GatewayName::Program(path) => absolute(path),
        GatewayName::Node(path) => format!("node:{}", absolute(path)),
    }
}

fn tunnel(name: TunnelName) -> Option<String> {
    let name = match name {
        TunnelName::Auto => return None,
        TunnelName::SshReverse => "ssh-reverse",
        TunnelName::Http2 => "http2_v1",
        TunnelName::Queue => "queue_v1",
        TunnelName::Local => "local",
        TunnelName::Worker => tunnel::worker::NAME,
    };
    Some(name.to_owned())
}
