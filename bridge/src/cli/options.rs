//! What `run` and `open` have in common: the options of a session, and what they are turned into.
//!
//! Here: each option once and its checks; [`SessionOptions::request`] makes the [`SessionRequest`]. Not here: how single
//! values are read (`values.rs`), TARGET (`target.rs`), what policy files say (`policy.rs`), what happens with the session (`run.rs`, `open.rs`).

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use policy::{Limits, RateLimit};

use crate::app::{GatewayChoice, ProviderTarget, SessionRequest, SshTarget, TargetSpec, TunnelChoice};
use crate::cli::exit::{Exit, Failure};
use crate::cli::provider_options::{self, ProviderOptions, ScopeOptions};
use crate::cli::secrets::SecretOptions;
use crate::cli::{policies, target};
use crate::config;
use crate::secrets::{LiveSecret, SecretRef, Secrets};
use crate::session::live::LiveRules;
use crate::upstream::UpstreamSettings;

pub(crate) use crate::cli::values::{MAX_BODY_BYTES, gateway, run_id, size, socket_path};

/// The options of a session.
#[derive(Args, Debug)]
pub(crate) struct SessionOptions {
    /// Where the agent runs: `ssh://user@host[:port][/dir]`, an ssh_config alias, `local`, or a provider's sandbox:
    /// `KEY:` acquires a lease, `KEY:ID` resumes one
    #[arg(value_name = "TARGET", value_parser = target::parse)]
    pub(crate) target: TargetSpec,

    #[command(flatten)]
    pub(crate) upstream: UpstreamOptions,

    /// Open although the upstream does not answer a connection attempt
    #[arg(long)]
    pub(crate) no_upstream_check: bool,

    /// Id of the run, sent upstream as x-paperclip-run-id [default: a fresh UUIDv7]
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) run_id: Option<String>,

    #[command(flatten)]
    pub(crate) policy: policies::PolicyOptions,

    /// How calls travel back; anything but auto is that tunnel or an error
    #[arg(long, value_enum, default_value_t = TunnelName::Auto)]
    pub(crate) tunnel: TunnelName,

    /// What listens in the sandbox for http2_v1 and queue_v1: `builtin`, a program (PATH), or a script for the target's
    /// own Node (node:PATH); files are on this machine
    #[arg(long, value_name = "GATEWAY", default_value = "builtin", value_parser = gateway)]
    pub(crate) gateway: GatewayChoice,

    /// Calls at the same time over http2_v1 [default: 256, with node:PATH 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) streams: Option<u32>,

    /// Folder where this session is written down, so that after a crash the same command can take up what it left;
    /// leases stand in it, too [default for leases: $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Take COMMAND as a script for this shell, its words joined by blanks; `none` runs it as it is
    #[arg(long, value_enum, default_value_t = ShellName::None)]
    pub(crate) shell: ShellName,

    /// Largest body each way, such as 512KiB or 10MiB [default: the policy file's, else 10 MiB + 64 KiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_body: Option<u64>,

    /// Most calls over time: `COUNT/UNIT[:BURST]`, such as 20/s, 20/s:40 or 600/m [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<RateLimit>,

    #[command(flatten)]
    pub(crate) provider: ProviderOptions,

    #[command(flatten)]
    pub(crate) scope: ScopeOptions,

    #[command(flatten)]
    pub(crate) ssh: SshOptions,

    /// Listen on a unix socket of this path on the target instead of a port
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    pub(crate) unix_socket: Option<PathBuf>,

    /// Go on although the target's sshd makes the listener reachable from other machines
    #[arg(long)]
    pub(crate) allow_exposed_forward: bool,
}

/// Where the Paperclip API is and what proves us to it.
#[derive(Args, Debug)]
pub(crate) struct UpstreamOptions {
    /// The Paperclip API [default: $PAPERCLIP_API_URL, else http://127.0.0.1:3100]
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,

    /// Where the API credential is found: env:NAME, file:PATH, cred:NAME or aws-sm:REGION/NAME[#json-key], never the
    /// value itself
    #[arg(long, value_name = "REFERENCE", default_value = config::DEFAULT_CREDENTIAL)]
    pub(crate) credential: SecretRef,

    /// Trust the certificates in this PEM file for an https upstream, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_ca: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) secrets: SecretOptions,
}

/// How an SSH target is logged in to.
#[derive(Args, Debug)]
pub(crate) struct SshOptions {
    /// Private key for an SSH target, instead of those of ssh_config; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,

    /// Host keys of SSH targets, instead of those of ssh_config
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
}

/// What a session's callbacks are held to.
pub(crate) struct Under {
    pub(crate) rules: LiveRules,
    pub(crate) limits: Limits,
    pub(crate) rate: Option<RateLimit>,
}

/// Tunnels by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TunnelName {
    /// The best that works on the target
    Auto,
    /// The target's sshd listens
    SshReverse,
    /// A gateway on the target listens; HTTP/2 over its stdin and stdout
    #[value(name = "http2_v1")]
    Http2,
    /// A gateway on the target listens; files on the target carry the calls
    #[value(name = "queue_v1")]
    Queue,
    /// A listener on this machine
    Local,
    /// A provider's relay listens
    Worker,
}

/// Shells by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShellName {
    /// No shell: COMMAND is a program and its arguments
    None,
    /// POSIX shell
    Sh,
    /// GNU Bash
    Bash,
}

impl ShellName {
    pub(crate) const fn shell(self) -> Option<runners::Shell> {
        match self {
            Self::None => None,
            Self::Sh => Some(runners::Shell::Sh),
            Self::Bash => Some(runners::Shell::Bash),
        }
    }
}

impl UpstreamOptions {
    /// The reference, unless it is the usual one, which a daemon takes by itself.
    pub(crate) fn credential_given(&self) -> Option<String> {
        Some(self.credential.as_str().to_owned()).filter(|given| given != config::DEFAULT_CREDENTIAL)
    }

    /// The upstream in force.
    pub(crate) fn settings(&self) -> Result<UpstreamSettings, Failure> {
        let choice = config::upstream(self.upstream.as_deref(), &config::environment);
        UpstreamSettings::parse(&choice.url, self.upstream_ca.clone()).map_err(|error| {
            Failure::new(
                Exit::Configuration,
                format!("the upstream given by {} cannot be used", choice.said_by),
            )
            .because(error)
        })
    }

    /// The credential, as yet unread.
    pub(crate) fn credential(&self) -> LiveSecret {
        self.secrets().live(&self.credential)
    }

    /// What reads every secret of the session.
    pub(crate) fn secrets(&self) -> Secrets {
        self.secrets.secrets()
    }
}

impl SessionOptions {
    /// Everything checked that can be checked without a connection.
    ///
    /// # Errors
    ///
    /// Code 2 for options that contradict the target, code 3 for what is missing or wrong.
    pub(crate) fn request(&self) -> Result<SessionRequest, Failure> {
        let policies::Loaded { rules, limits } = self.policy.load()?;
        let mut sizes = Limits::default().with_file(&limits);
        if let Some(bytes) = self.max_body {
            sizes.max_body = bytes;
        }
        let under = Under {
            rules: rules.into(),
            limits: sizes,
            rate: self.rate.or(limits.rate),
        };
        self.request_under(self.upstream.secrets(), under)
    }

    /// The same under rules that were read already, with the secrets read by whoever is given.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub(crate) fn request_under(&self, secrets: Secrets, under: Under) -> Result<SessionRequest, Failure> {
        let Under { rules, limits, rate } = under;
        let credential = secrets.live(&self.upstream.credential);
        let target = self.target_with_options(secrets)?;
        let upstream = self.upstream.settings()?;
        Ok(SessionRequest {
            whose: crate::audit::Identities::default(),
            named: None,
            target,
            upstream,
            credential,
            run_id: config::run_id(self.run_id.as_deref()),
            rules,
            limits,
            rate,
            tunnel: match self.tunnel {
                TunnelName::Auto => TunnelChoice::Auto,
                TunnelName::SshReverse => TunnelChoice::SshReverse,
                TunnelName::Http2 => TunnelChoice::Http2,
                TunnelName::Queue => TunnelChoice::Queue,
                TunnelName::Local => TunnelChoice::Local,
                TunnelName::Worker => TunnelChoice::Worker,
            },
            gateway: self.gateway.clone(),
            streams: self.streams,
            state_dir: self.state_dir.clone(),
            resume: false,
            returns: None,
            unix_socket: self.unix_socket.clone(),
            passed: None,
            allow_exposed_forward: self.allow_exposed_forward,
            hold: None,
        })
    }

    /// The target as people write it, before anything is known of it.
    pub(crate) fn target_in_words(&self) -> String {
        match &self.target {
            TargetSpec::Local => "local".to_owned(),
            TargetSpec::Ssh(target) => {
                let user = target.user.as_ref().map(|user| format!("{user}@"));
                let port = target.port.map(|port| format!(":{port}"));
                // A plain word may be a name of the daemon's configuration.
                if target.user.is_none() && target.port.is_none() && target.directory.is_none() {
                    let word = !target.host.contains(':') && target.host != "local";
                    if word {
                        return target.host.clone();
                    }
                }
                let host = if target.host.contains(':') {
                    format!("[{}]", target.host)
                } else {
                    target.host.clone()
                };
                format!(
                    "ssh://{}{host}{}",
                    user.unwrap_or_default(),
                    port.unwrap_or_default()
                )
            }
            TargetSpec::Provider(target) => {
                format!("{}:{}", target.spec.key, target.id.as_deref().unwrap_or_default())
            }
        }
    }

    fn target_with_options(&self, secrets: Secrets) -> Result<TargetSpec, Failure> {
        let usage = |what: &str| Err(Failure::new(Exit::Usage, what));
        if self.unix_socket.is_some() && matches!(self.tunnel, TunnelName::Http2 | TunnelName::Queue) {
            return usage("--unix-socket is for --tunnel ssh-reverse and local; a gateway listens on a port");
        }
        if !matches!(self.target, TargetSpec::Provider(_)) {
            if self.tunnel == TunnelName::Worker {
                return usage("--tunnel worker needs the target of a provider with a relay");
            }
            if self.provider.are_given() || self.scope.are_given() {
                return usage(
                    "--provider, --provider-config, --environment-id, --issue-id and --company-id are for targets of providers only",
                );
            }
        }
        match &self.target {
            TargetSpec::Local => {
                if self.tunnel == TunnelName::SshReverse {
                    return usage("--tunnel ssh-reverse needs an SSH target; `local` takes --tunnel local");
                }
                if !self.ssh.identity.is_empty()
                    || self.ssh.known_hosts.is_some()
                    || self.allow_exposed_forward
                {
                    return usage(
                        "--identity, --known-hosts and --allow-exposed-forward are for SSH targets only",
                    );
                }
                Ok(TargetSpec::Local)
            }
            TargetSpec::Ssh(target) => {
                if self.tunnel == TunnelName::Local {
                    return usage(
                        "--tunnel local serves only the target `local`; an SSH target takes ssh-reverse, http2_v1 or queue_v1",
                    );
                }
                self.ssh.check()?;
                Ok(TargetSpec::Ssh(SshTarget {
                    identities: self.ssh.identity.clone(),
                    known_hosts: self.ssh.known_hosts.clone(),
                    ..target.clone()
                }))
            }
            TargetSpec::Provider(target) => {
                if matches!(self.tunnel, TunnelName::SshReverse | TunnelName::Local) {
                    return usage("the target of a provider takes --tunnel http2_v1, queue_v1 or worker");
                }
                if !self.ssh.identity.is_empty()
                    || self.ssh.known_hosts.is_some()
                    || self.allow_exposed_forward
                    || self.unix_socket.is_some()
                {
                    return usage(
                        "--identity, --known-hosts, --allow-exposed-forward and --unix-socket are not for targets of providers",
                    );
                }
                Ok(TargetSpec::Provider(ProviderTarget {
                    leases: provider_options::state_folder(self.state_dir.as_deref())?,
                    config: self.provider.config()?,
                    secrets,
                    environment_id: self.scope.environment_id.clone(),
                    issue_id: self.scope.issue_id.clone(),
                    company_id: self.scope.company_id.clone(),
                    ..target.clone()
                }))
            }
        }
    }
}

impl SshOptions {
    /// Each named file can be read.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let named = self.identity.iter().map(|path| ("--identity", path));
        for (option, path) in named.chain(self.known_hosts.iter().map(|path| ("--known-hosts", path))) {
            std::fs::File::open(path).map_err(|error| {
                Failure::new(
                    Exit::Configuration,
                    format!("cannot read the file of {option}, {}", path.display()),
                )
                .because(error)
            })?;
        }
        Ok(())
    }
}
