//! Which daemon a command talks to, and how its answers end a command line.
//!
//! Here: `--control`, its defaults, and exit codes. Not here: how a daemon is spoken to (`control::Client`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::exit::{Exit, Failure};
use crate::config;
use crate::control::{Client, ClientError};

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
pub(crate) struct ControlAddress(pub(crate) PathBuf);

/// Which daemon.
#[derive(Args, Debug)]
pub(crate) struct ControlOptions {
    /// The daemon's control API, as `unix:PATH` [default: unix:$RUNTIME_DIRECTORY/control.sock, else
    /// unix:$XDG_RUNTIME_DIR/paperclip-bridge/control.sock, else the service's, if there is one]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    control: Option<ControlAddress>,

    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

impl ControlOptions {
    /// Speaks to that daemon.
    ///
    /// # Errors
    ///
    /// Code 3 where none is named and there is no default.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let service = Path::new(SERVICE);
        match chosen(self.control.as_ref(), &config::environment) {
            Ok(ControlAddress(path)) if self.control.is_some() || path.exists() => Ok(Client::new(&path)),
            // Nobody serves there: a machine with a service has its socket.
            _ if service.exists() => Ok(Client::new(service)),
            chosen => chosen.map(|ControlAddress(path)| Client::new(&path)),
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
        .or_else(|| Some(ControlAddress(absolute("RUNTIME_DIRECTORY")?.join(SOCKET))))
        .or_else(|| {
            let folder = absolute("XDG_RUNTIME_DIR")?.join("paperclip-bridge");
            Some(ControlAddress(folder.join(SOCKET)))
        })
        .ok_or_else(|| {
            Failure::new(
                Exit::Configuration,
                "there is no place for the control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is an absolute path",
            )
            .hint("name one with --control unix:PATH")
        })
}

/// Reads `unix:PATH`.
pub(crate) fn address(text: &str) -> Result<ControlAddress, String> {
    if text.starts_with("tcp:") {
        return Err(
            "a control API over TCP needs TLS and authentication, which this version does not have; give unix:PATH".into(),
        );
    }
    let path = text
        .strip_prefix("unix:")
        .ok_or("give unix:PATH, such as unix:/run/paperclip-bridge/control.sock")?;
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains(char::is_control) {
        return Err(format!(
            "the PATH of unix:PATH is 1 to {MAX_PATH_BYTES} bytes without control characters"
        ));
    }
    std::path::absolute(path)
        .map(ControlAddress)
        .map_err(|error| error.to_string())
}

/// How a command ends that the daemon did not carry out.
pub(crate) fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::NoDaemon { path, source } => Failure::new(
            Exit::Unreachable,
            format!("no daemon answers on {}", path.display()),
        )
        .because(source)
        .hint("start one with `paperclip-bridge serve`, or name its socket with --control unix:PATH"),
        ClientError::Problem(problem) => {
            let exit = match problem.status {
                400 | 409 | 413 | 415 | 422 => Exit::Configuration,
                403 | 502..=504 => Exit::Unreachable,
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
            chosen(None, &lookup).ok().map(|ControlAddress(path)| path)
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
    fn an_address_is_a_unix_socket_and_tcp_is_refused_with_a_reason() {
        assert_eq!(address("unix:/x/y"), Ok(ControlAddress("/x/y".into())));
        assert!(address("tcp:127.0.0.1:1").unwrap_err().contains("TLS"));
        for text in [
            "",
            "unix:",
            "/x/y",
            "unix:/x\n",
            &format!("unix:/{}", "x".repeat(107)),
        ] {
            assert!(address(text).is_err(), "{text:?} was taken");
        }
    }
}
