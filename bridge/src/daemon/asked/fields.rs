//! The values of single fields, each read by itself so that every mistake is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum as _;

use super::{Mistake, NO_HEARTBEAT, NewSession};
use crate::app::{GatewayChoice, TargetSpec};
use crate::cli::options::{self, SessionOptions, ShellName, SshOptions, TunnelName, UpstreamOptions};
use crate::cli::provider_options::{ProviderOptions, ScopeOptions};
use crate::cli::secrets::SecretOptions;
use crate::cli::{policies, target};
use crate::config::{self, spelled};
use crate::secrets::{SecretError, SecretRef};

/// A session with a shorter heartbeat would be a busy one.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);
const LONGEST_HEARTBEAT: Duration = Duration::from_hours(1);
const LONGEST_LIFE: Duration = Duration::from_hours(24 * 30);
/// More private keys are no way to log in.
const MOST_IDENTITIES: usize = 16;

/// Fields that were read, each by itself.
pub(super) struct Parts {
    pub(super) options: SessionOptions,
    pub(super) ttl: Option<Duration>,
    /// `Some(None)`: none is wanted.
    pub(super) heartbeat: Option<Option<Duration>>,
}

impl NewSession {
    /// Every field, read by itself.
    pub(super) fn parts(&self, state_dir: Option<PathBuf>) -> Result<Parts, Vec<Mistake>> {
        let mut read = Reader::default();
        let target = read.field("target", Some(self.target.as_str()), |text| {
            target::parse(text).map_err(|error| error.to_string())
        });
        let options = SessionOptions {
            target: target.unwrap_or(TargetSpec::Local),
            upstream: UpstreamOptions {
                upstream: self.upstream.clone(),
                credential: read
                    .field("credential", self.credential.as_deref(), credential)
                    .or_else(|| config::DEFAULT_CREDENTIAL.parse().ok())
                    .ok_or_else(Vec::new)?,
                upstream_ca: read.field("upstream_ca", self.upstream_ca.as_deref(), absolute),
                secrets: SecretOptions::default(),
            },
            no_upstream_check: self.no_upstream_check.unwrap_or_default(),
            run_id: read.field("run_id", self.run_id.as_deref(), options::run_id),
            policy: policies::PolicyOptions {
                file: read.field("policy", self.policy.as_deref(), absolute),
                pack: read.field("pack", self.pack.as_deref(), policies::pack),
            },
            tunnel: read
                .field("tunnel", self.tunnel.as_deref(), tunnel)
                .unwrap_or(TunnelName::Auto),
            gateway: read
                .field("gateway", self.gateway.as_deref(), gateway)
                .unwrap_or_default(),
            streams: self.streams,
            state_dir,
            shell: ShellName::None,
            max_body: read.field("max_body", self.max_body.as_deref(), options::size),
            rate: read.field("rate", self.rate.as_deref(), |text| {
                policy::RateLimit::parse(text).map_err(|fault| fault.to_string())
            }),
            provider: self
                .provider
                .as_ref()
                .map_or_else(ProviderOptions::none, ProviderOptions::of_fields),
            scope: self.scope(&mut read),
            ssh: SshOptions {
                identity: self.identities(&mut read),
                known_hosts: read.field("known_hosts", self.known_hosts.as_deref(), absolute),
            },
            unix_socket: read.field("unix_socket", self.unix_socket.as_deref(), options::socket_path),
            allow_exposed_forward: self.allow_exposed_forward.unwrap_or_default(),
        };
        if self.streams.is_some_and(|streams| !(1..=1024).contains(&streams)) {
            read.mistake("streams", "give 1 to 1024");
        }
        read.field("agent_id", self.agent_id.as_deref(), options::run_id);
        let ttl = read.field("ttl", self.ttl.as_deref(), life);
        let heartbeat = match self.heartbeat.as_deref() {
            Some(NO_HEARTBEAT) => Some(None),
            given => read.field("heartbeat", given, heartbeat).map(Some),
        };
        if read.mistakes.is_empty() {
            Ok(Parts {
                options,
                ttl,
                heartbeat,
            })
        } else {
            Err(read.mistakes)
        }
    }

    /// A lease is for somebody; for other targets these ids are the daemon's to keep.
    fn scope(&self, read: &mut Reader) -> ScopeOptions {
        let ids = [
            read.field("environment_id", self.environment_id.as_deref(), options::run_id),
            read.field("issue_id", self.issue_id.as_deref(), options::run_id),
            read.field("company_id", self.company_id.as_deref(), options::run_id),
        ];
        let leased = matches!(target::parse(&self.target), Ok(TargetSpec::Provider(_)));
        let [environment_id, issue_id, company_id] = ids.map(|id| id.filter(|_| leased));
        ScopeOptions {
            environment_id,
            issue_id,
            company_id,
        }
    }

    fn identities(&self, read: &mut Reader) -> Vec<PathBuf> {
        let named = self.identity.as_deref().unwrap_or_default();
        if named.len() > MOST_IDENTITIES {
            read.mistake("identity", "give 16 private keys at most");
            return Vec::new();
        }
        named
            .iter()
            .filter_map(|path| read.field("identity", Some(path), absolute))
            .collect()
    }
}

/// Reads fields one by one and remembers what is wrong with each.
#[derive(Debug, Default)]
struct Reader {
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn field<T>(
        &mut self,
        name: &str,
        text: Option<&str>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(text?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistake(name, why);
                None
            }
        }
    }

    fn mistake(&mut self, name: &str, why: impl Into<String>) {
        self.mistakes.push(Mistake::new(name, why));
    }
}

fn credential(text: &str) -> Result<SecretRef, String> {
    text.parse().map_err(|error: SecretError| error.to_string())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err("give an absolute path: the daemon has another working folder than you".to_owned())
    }
}

fn gateway(text: &str) -> Result<GatewayChoice, String> {
    let choice = options::gateway(text)?;
    match &choice {
        GatewayChoice::Builtin => {}
        GatewayChoice::Binary(path) | GatewayChoice::Script(path) => {
            absolute(&path.to_string_lossy()).map(drop)?;
        }
    }
    Ok(choice)
}

fn tunnel(text: &str) -> Result<TunnelName, String> {
    TunnelName::from_str(text, false).map_err(|_| {
        let names: Vec<_> = TunnelName::value_variants()
            .iter()
            .filter_map(clap::ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        format!("there is no such tunnel; give one of {}", names.join(", "))
    })
}

fn life(text: &str) -> Result<Duration, String> {
    let life = spelled::duration(text)?;
    if life.is_zero() || life > LONGEST_LIFE {
        return Err("must be more than nothing and at most 720h".to_owned());
    }
    Ok(life)
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let heartbeat = spelled::duration(text).map_err(|why| format!("{why}, or off"))?;
    if !(SHORTEST_HEARTBEAT..=LONGEST_HEARTBEAT).contains(&heartbeat) {
        return Err("must be 100ms to 1h, or off".to_owned());
    }
    Ok(heartbeat)
}
