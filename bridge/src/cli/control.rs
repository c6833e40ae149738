//! Which daemon a command talks to, and how its answers end a command line.
//!
//! Here: `--control`, its defaults, what goes with it over TCP, and exit codes. Not here: how a daemon is spoken to (`control::Client`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustls_pki_types::ServerName;
use uuid::Uuid;

use crate::cli::exit::{Exit, Failure};
use crate::config;
use crate::control::{Client, ClientError, Remote};
use crate::secrets::{SecretRef, Secrets};

/// A daemon on this machine answers within this time, unless it is asked to wait for something.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Where the service of this machine listens (`bridge/packaging/paperclip-bridge.socket`).
const SERVICE: &str = "/run/paperclip-bridge/control.sock";
/// The name of the socket in its folder.
const SOCKET: &str = "control.sock";
/// `sun_path` holds 108 bytes with its final NUL.
const MAX_PATH_BYTES: usize = 107;

/// Where a control API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A host, by its name or address, and a port.
    Tcp(String, u16),
}

/// Which daemon.
#[derive(Args, Debug)]
pub(crate) struct ControlOptions {
    /// The daemon's control API, as `unix:PATH` or `tcp:HOST:PORT` [default: unix:$RUNTIME_DIRECTORY/control.sock, else
    /// unix:$XDG_RUNTIME_DIR/paperclip-bridge/control.sock, else the service's, if there is one]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    control: Option<ControlAddress>,

    #[command(flatten)]
    remote: RemoteOptions,

    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// What goes with a daemon over TCP.
#[derive(Args, Debug, Default)]
struct RemoteOptions {
    /// PEM file with the authority of the daemon's certificate, for tcp: [default: those that the system trusts]
    #[arg(long, value_name = "FILE", help_heading = "Over TCP")]
    control_ca: Option<PathBuf>,

    /// Where the daemon's control token is found, such as file:PATH or env:NAME
    #[arg(long, value_name = "REF", help_heading = "Over TCP")]
    control_token: Option<SecretRef>,

    /// PEM file with our own certificate
    #[arg(
        long,
        value_name = "FILE",
        requires = "control_key",
        help_heading = "Over TCP"
    )]
    control_cert: Option<PathBuf>,

    /// Where our certificate's private key is found, such as file:PATH
    #[arg(
        long,
        value_name = "REF",
        requires = "control_cert",
        help_heading = "Over TCP"
    )]
    control_key: Option<SecretRef>,
}

impl RemoteOptions {
    fn is_given(&self) -> bool {
        self.control_ca.is_some() || self.control_token.is_some() || self.control_cert.is_some()
    }

    fn to(&self, host: String, port: u16) -> Remote {
        Remote {
            host,
            port,
            ca: self.control_ca.clone(),
            token: self.control_token.clone(),
            shows: self.control_cert.clone().zip(self.control_key.clone()),
            secrets: Secrets::default(),
        }
    }
}

impl ControlOptions {
    /// Speaks to that daemon.
    ///
    /// # Errors
    ///
    /// Code 3 where none is named and there is no default; 2 where options for TCP go with a unix socket.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let service = Path::new(SERVICE);
        let given = self.control.is_some();
        match chosen(self.control.as_ref(), &config::environment) {
            Ok(ControlAddress::Tcp(host, port)) => Ok(Client::Tcp(Box::new(self.remote.to(host, port)))),
            _ if self.remote.is_given() => Err(Failure::new(
                Exit::Usage,
                "--control-ca, --control-token, --control-cert and --control-key go with --control tcp:HOST:PORT",
            )),
            Ok(ControlAddress::Unix(path)) if given || path.exists() => Ok(Client::Unix(path)),
            // Nobody serves there: a machine with a service has its socket.
            _ if service.exists() => Ok(Client::Unix(service.to_owned())),
            Ok(ControlAddress::Unix(path)) => Ok(Client::Unix(path)),
            Err(why) => Err(why),
        }
    }
}

/// The address that was named, else the default.
///
/// # Errors
///
/// Code 3 where there is no default.
pub(crate) fn chosen(
    named: Option<&ControlAddress>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<ControlAddress, Failure> {
    let absolute = |name: &str| {
        environment(name)
            .and_then(|paths| paths.split(':').next().map(PathBuf::from))
            .filter(|path| path.is_absolute())
    };
    named
        .cloned()
        .or_else(|| Some(ControlAddress::Unix(absolute("RUNTIME_DIRECTORY")?.join(SOCKET))))
        .or_else(|| {
            let folder = absolute("XDG_RUNTIME_DIR")?.join("paperclip-bridge");
            Some(ControlAddress::Unix(folder.join(SOCKET)))
        })
        .ok_or_else(|| {
            Failure::new(
                Exit::Configuration,
                "there is no place for the control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is an absolute path",
            )
            .hint("name one with --control unix:PATH")
        })
}

/// Reads `unix:PATH` or `tcp:HOST:PORT`.
pub(crate) fn address(text: &str) -> Result<ControlAddress, String> {
    if let Some(place) = text.strip_prefix("tcp:") {
        return host_and_port(place)
            .map(|(host, port)| ControlAddress::Tcp(host, port))
            .ok_or_else(|| {
                "give tcp:HOST:PORT, such as tcp:bridge.example:4410 or tcp:[::1]:4410".to_owned()
            });
    }
    let path = text
        .strip_prefix("unix:")
        .ok_or("give unix:PATH, such as unix:/run/paperclip-bridge/control.sock, or tcp:HOST:PORT")?;
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains(char::is_control) {
        return Err(format!(
            "the PATH of unix:PATH is 1 to {MAX_PATH_BYTES} bytes without control characters"
        ));
    }
    std::path::absolute(path)
        .map(ControlAddress::Unix)
        .map_err(|error| error.to_string())
}

/// Reads the id of a session or of a callback.
pub(crate) fn id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| {
        "give an id as it is shown, such as 0198c0de-0000-7000-8000-000000000000; `sessions ls` lists those of sessions"
            .to_owned()
    })
}

fn host_and_port(place: &str) -> Option<(String, u16)> {
    if let Ok(address) = place.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), address.port()));
    }
    let (host, port) = place.rsplit_once(':')?;
    ServerName::try_from(host).ok()?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// How a command ends that the daemon did not carry out.
pub(crate) fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::NoDaemon { address, source } => {
            let hint = if address.starts_with("tcp:") {
                "is it there, and does --control-ca name the authority of its certificate?"
            } else if source.kind() == std::io::ErrorKind::PermissionDenied {
                "the socket is there and not for this user: be one of its group that control.allow_uids names, or use sudo"
            } else {
                "start one with `paperclip-bridge serve`, or name its socket with --control unix:PATH"
            };
            Failure::new(Exit::Unreachable, format!("no daemon answers on {address}"))
                .because(source)
                .hint(hint)
        }
        ClientError::Unusable(why) => Failure::new(Exit::Configuration, why),
        ClientError::Problem(problem) => {
            let exit = match problem.status {
                400 | 409 | 413 | 415 | 422 => Exit::Configuration,
                401 | 403 | 502..=504 => Exit::Unreachable,
                _ => Exit::Failed,
            };
            let lines: Vec<_> = problem
                .mistakes
                .iter()
                .filter(|mistake| !mistake.field.is_empty())
                .map(|mistake| format!("{}: {}", mistake.field, mistake.detail))
                .collect();
            if lines.is_empty() {
                return Failure::new(exit, format!("{} ({})", problem.detail, problem.code));
            }
            Failure::new(exit, format!("the daemon refuses the request ({})", problem.code))
                .listing(lines.join("\n"))
        }
        ClientError::Broken(_) | ClientError::Late(_) => Failure::new(Exit::Failed, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_stands_in_the_service_s_folder_else_in_the_user_s() {
        let found = |set: &[(&str, &str)]| {
            let lookup = |name: &str| {
                let value = set.iter().find(|(key, _)| *key == name);
                value.map(|(_, value)| (*value).to_owned())
            };
            chosen(None, &lookup).ok().and_then(|address| match address {
                ControlAddress::Unix(path) => Some(path),
                ControlAddress::Tcp(..) => None,
            })
        };

        assert_eq!(
            found(&[("RUNTIME_DIRECTORY", "/run/p:/run/q"), ("XDG_RUNTIME_DIR", "/u")]),
            Some("/run/p/control.sock".into())
        );
        assert_eq!(
            found(&[("XDG_RUNTIME_DIR", "/u")]),
            Some("/u/paperclip-bridge/control.sock".into())
        );
        assert_eq!(found(&[("XDG_RUNTIME_DIR", "u")]), None);
    }

    #[test]
    fn an_address_is_a_unix_socket_or_a_host_with_its_port() {
        assert_eq!(address("unix:/x/y"), Ok(ControlAddress::Unix("/x/y".into())));
        for (text, host, port) in [
            ("tcp:127.0.0.1:1", "127.0.0.1", 1),
            ("tcp:[::1]:65535", "::1", 65535),
            ("tcp:bridge.example:4410", "bridge.example", 4410),
        ] {
            assert_eq!(address(text), Ok(ControlAddress::Tcp(host.to_owned(), port)));
        }
        for text in [
            "",
            "unix:",
            "/x/y",
            "unix:/x\n",
            "tcp:",
            "tcp:host",
            "tcp::1",
            "tcp:a b:1",
            "tcp:host:65536",
            &format!("unix:/{}", "x".repeat(107)),
        ] {
            assert!(address(text).is_err(), "{text:?} was taken");
        }
    }
}
