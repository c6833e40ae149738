//! OpenSSH's client configuration, as far as it says how to reach a target.
//!
//! Here: [`Resolver`], which turns an alias into [`HostSettings`] the way `ssh -G` does. Not here: using them, and
//! whatever a configuration says beyond reaching a host; such lines are listed in [`HostSettings::notes`]. Nothing is
//! ever run: a `ProxyCommand` or `Match exec` that would apply is an error that says so.
//!
//! Reading order: [`lines`] (text to words), [`matching`] (`Host`, `Match`), [`collect`] (first value wins),
//! [`expand`] (`~`, `%h`), [`jump`], [`files`] (the only part that touches a disk). Source: ssh_config(5), OpenSSH 9.2.

pub mod lines;
pub mod pattern;
pub mod matching;
pub mod collect;
pub mod expand;
pub mod jump;
pub mod files;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod against_openssh;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use files::{ConfigFiles, DiskFiles};
pub use jump::JumpHost;

use collect::{Collected, Collector, Proxy};
use expand::Tokens;
use lines::Source;

/// Most hosts on the way to a target, itself included.
const MAX_HOPS: usize = 8;
/// Names of user keys tried when none is configured, in OpenSSH's order; those on hardware tokens are left out.
const DEFAULT_IDENTITIES: [&str; 3] = ["~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519"];

/// Reads the configuration files of one user.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    /// Home directory: `~`, `%d`, and where relative includes of the user's file are looked up.
    pub home: PathBuf,
    /// Name of the user who runs us: the login name where nothing else says so, and `%u`.
    pub local_user: String,
    /// The user's file, usually `~/.ssh/config`; read first. A missing file is empty.
    pub user_config: Option<PathBuf>,
    /// The system's file, usually `/etc/ssh/ssh_config`; read second. A missing file is empty.
    pub system_config: Option<PathBuf>,
}

/// Which agent to ask for keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Agent {
    /// That of `SSH_AUTH_SOCK`.
    #[default]
    Default,
    /// None.
    None,
    /// The one at this socket.
    Socket(PathBuf),
}

/// How to reach one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Name or address to connect to, lower case.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// Name to log in with.
    pub user: String,
    /// Private keys to try, in order.
    pub identity_files: Vec<PathBuf>,
    /// [`Self::identity_files`] are the usual names, not the configuration's: a missing one is no mistake.
    pub identity_files_are_defaults: bool,
    /// Offer only these keys, though an agent may hold more.
    pub identities_only: bool,
    /// Certificates of user keys.
    pub certificate_files: Vec<PathBuf>,
    /// Which agent to ask.
    pub agent: Agent,
    /// Name to look the host key up by, instead of host and port; lower case.
    pub host_key_alias: Option<String>,
    /// Hosts to go through, first hop first.
    pub proxy_jump: Vec<JumpHost>,
    /// The user's known hosts; empty means none.
    pub user_known_hosts_files: Vec<PathBuf>,
    /// The system's known hosts; empty means none.
    pub global_known_hosts_files: Vec<PathBuf>,
    /// `ServerAliveInterval`; zero switches keepalive off, `None` leaves it to the caller.
    pub keepalive_interval: Option<Duration>,
    /// `ServerAliveCountMax`.
    pub keepalive_count: Option<u32>,
    /// `ConnectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// Lines that would apply but are not followed, in words with file and line.
    pub notes: Vec<String>,
}

/// A configuration that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// File and line, unless the request itself is at fault.
    pub at: Option<Source>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(at) => write!(f, "{at}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl ConfigError {
    pub(super) fn new(at: Option<&Source>, message: impl Into<String>) -> Self {
        Self {
            at: at.cloned(),
            message: message.into(),
        }
    }
}

impl Resolver {
    /// What the files on disk say about `alias`, which may be a plain host name.
    ///
    /// - `user`, `port`: given on the command line; they win over the files.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with file and line: a file that cannot be read or parsed, a value that makes no sense, a
    /// `ProxyCommand` or `Match exec` that would apply.
    pub fn resolve(
        &self,
        alias: &str,
        user: Option<&str>,
        port: Option<u16>,
    ) -> Result<HostSettings, ConfigError> {
        self.resolve_with(&DiskFiles, alias, user, port)
    }

    /// As [`Self::resolve`], with the files from somewhere else.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub fn resolve_with(
        &self,
        files: &dyn ConfigFiles,
        alias: &str,
        user: Option<&str>,
        port: Option<u16>,
    ) -> Result<HostSettings, ConfigError> {
        check_name("host", alias)?;
        if let Some(user) = user {
            check_user(user)?;
        }
        let mut collector = Collector::new(self, files, alias);
        collector.collected.user = user.map(str::to_owned);
        collector.collected.port = port;
        collector.read_all()?;
        let host = expand::host_name(collector.collected.host_name.as_ref(), alias)?.to_ascii_lowercase();
        if collector.wants_final_pass {
            collector.start_final_pass(host.clone());
            collector.read_all()?;
        }
        self.settle(alias, host, collector.collected)
    }

    /// The hosts to connect to one after the other on the way to `alias`; the last is `alias` itself.
    ///
    /// The first host of a `ProxyJump` list may have a `ProxyJump` of its own; the others are reached through their
    /// predecessor, as with OpenSSH.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`]; also more than eight hosts in a row, which is most likely a loop.
    pub fn resolve_route(
        &self,
        alias: &str,
        user: Option<&str>,
        port: Option<u16>,
    ) -> Result<Vec<HostSettings>, ConfigError> {
        self.resolve_route_with(&DiskFiles, alias, user, port)
    }

    /// As [`Self::resolve_route`], with the files from somewhere else.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve_route`].
    pub fn resolve_route_with(
        &self,
        files: &dyn ConfigFiles,
        alias: &str,
        user: Option<&str>,
        port: Option<u16>,
    ) -> Result<Vec<HostSettings>, ConfigError> {
        let mut route = vec![self.resolve_with(files, alias, user, port)?];
        while let Some(jumps) = route
            .first()
            .map(|first| first.proxy_jump.clone())
            .filter(|jumps| !jumps.is_empty())
        {
            if route.len() + jumps.len() > MAX_HOPS {
                return Err(ConfigError::new(
                    None,
                    format!(
                        "the way to {alias} has more than {MAX_HOPS} hosts: does a ProxyJump apply to its own jump host? \
                         Give that host `ProxyJump none`"
                    ),
                ));
            }
            let mut hops = Vec::with_capacity(jumps.len());
            for (index, jump) in jumps.iter().enumerate() {
                let mut hop = self.resolve_with(files, &jump.host, jump.user.as_deref(), jump.port)?;
                if index > 0 {
                    hop.proxy_jump.clear();
                }
                hops.push(hop);
            }
            if let Some(first) = route.first_mut() {
                // Its hops stand in the list now.
                first.proxy_jump.clear();
            }
            hops.append(&mut route);
            route = hops;
        }
        Ok(route)
    }

    /// Defaults, `~` and tokens, once all lines are read.
    fn settle(&self, alias: &str, host: String, collected: Collected) -> Result<HostSettings, ConfigError> {
        let user = match collected.user {
            Some(user) => user,
            None => self.local_user.clone(),
        };
        let port = collected.port.unwrap_or(22);
        let tokens = Tokens {
            home: &self.home,
            host: &host,
            original_host: alias,
            host_key_alias: collected.host_key_alias.as_deref(),
            port,
            user: &user,
            local_user: &self.local_user,
        };
        let paths = |values: &[lines::Value]| -> Result<Vec<PathBuf>, ConfigError> {
            values
                .iter()
                .filter(|value| !value.text.eq_ignore_ascii_case("none"))
                .map(|value| tokens.path(value))
                .collect()
        };
        let usual = |names: &[&str]| -> Result<Vec<PathBuf>, ConfigError> {
            paths(
                &names
                    .iter()
                    .map(|name| lines::Value::built_in(name))
                    .collect::<Vec<_>>(),
            )
        };

        let identity_files_are_defaults = collected.identity_files.is_empty();
        let identity_files = match identity_files_are_defaults {
            true => usual(&DEFAULT_IDENTITIES)?,
            false => paths(&collected.identity_files)?,
        };
        let user_known_hosts_files = match &collected.user_known_hosts_files {
            Some(files) => paths(files)?,
            None => usual(&["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])?,
        };
        let global_known_hosts_files = match &collected.global_known_hosts_files {
            Some(files) => paths(files)?,
            None => usual(&["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"])?,
        };
        let agent = match &collected.agent {
            None => Agent::Default,
            Some(value) if value.text == "SSH_AUTH_SOCK" => Agent::Default,
            Some(value) if value.text.eq_ignore_ascii_case("none") => Agent::None,
            Some(value) => Agent::Socket(tokens.path(value)?),
        };
        let proxy_jump = match collected.proxy {
            Some(Proxy::Jump(jumps)) => jumps,
            Some(Proxy::Command(at)) => {
                return Err(ConfigError::new(
                    Some(&at),
                    format!(
                        "ProxyCommand would apply to {alias}, but no command is run for a connection: use ProxyJump, \
                         or put `ProxyCommand none` for this host above that line"
                    ),
                ));
            }
            Some(Proxy::None) | None => Vec::new(),
        };
        let certificate_files = paths(&collected.certificate_files)?;
        check_name("HostName", &host)?;
        check_user(&user)?;
        Ok(HostSettings {
            port,
            identity_files,
            identity_files_are_defaults,
            identities_only: collected.identities_only.unwrap_or(false),
            certificate_files,
            agent,
            proxy_jump,
            user_known_hosts_files,
            global_known_hosts_files,
            keepalive_interval: collected.keepalive_interval,
            keepalive_count: collected.keepalive_count,
            connect_timeout: collected.connect_timeout.flatten(),
            notes: collected.notes,
            host_key_alias: collected.host_key_alias.map(|alias| alias.to_ascii_lowercase()),
            host,
            user,
        })
    }
}

/// A host or alias that is safe to show, to compare and to connect to.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), ConfigError> {
    let bad = |byte: u8| {
        byte.is_ascii_whitespace() || byte.is_ascii_control() || b"'`\"$\\;&<>|(){},@".contains(&byte)
    };
    if name.is_empty() || name.len() > 1024 || name.starts_with('-') || name.bytes().any(bad) {
        return Err(ConfigError::new(
            None,
            format!("{what} {name:?} is not the name of a host"),
        ));
    }
    Ok(())
}

/// A login name without what a log would stumble over; it never meets a shell here.
pub(super) fn check_user(user: &str) -> Result<(), ConfigError> {
    if user.is_empty() || user.len() > 1024 || user.starts_with('-') || user.chars().any(char::is_control) {
        return Err(ConfigError::new(
            None,
            format!("user {user:?} is not a login name"),
        ));
    }
    Ok(())
}
