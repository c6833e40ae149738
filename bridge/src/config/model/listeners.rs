//! `[listeners]`: where the daemon listens.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::secrets::SecretRef;

/// Where the daemon listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenersConfig {
    /// Agents on this machine, those of the target `local`.
    pub agents: AgentsListener,
    /// The control API.
    pub control: ControlListener,
    /// Health, metrics and the dashboard.
    pub ops: OpsListener,
}

/// Agents on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentsListener {
    /// `loopback`: a free port of 127.0.0.1 for each session; `unix:FOLDER`: a socket for each session in that folder.
    pub address: AgentsAddress,
}

/// Where a session of the target `local` listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AgentsAddress {
    /// A free port of 127.0.0.1.
    #[default]
    Loopback,
    /// A unix socket in this folder.
    Unix(PathBuf),
}

/// The control API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ControlListener {
    /// `unix:PATH` or `tcp:ADDRESS:PORT`; absent: `control.sock` in `$RUNTIME_DIRECTORY`, else in
    /// `$XDG_RUNTIME_DIR/paperclip-bridge`. TCP needs `certificate`, `key`, and `token` or `client_ca`.
    pub address: Option<ControlAddress>,
    /// Where other daemons on the same store and their operators reach this daemon's control API, as `--control` takes it:
    /// `tcp:HOST:PORT` or `unix:PATH`. Told by each of them for the sessions that this one serves. Absent: where it listens.
    #[schemars(length(max = 256), extend("x-kind" = "control-place"))]
    pub advertise: Option<String>,
    /// PEM file with the certificate chain for TCP.
    pub certificate: Option<PathBuf>,
    /// Where the certificate's private key is found, in PEM.
    pub key: Option<SecretRef>,
    /// Clients over TCP must send this as a bearer token, of 32 characters or more.
    pub token: Option<SecretRef>,
    /// Clients over TCP must show a certificate of this PEM file's authority.
    pub client_ca: Option<PathBuf>,
}

/// Where the control API listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ControlAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, with TLS and authentication only.
    Tcp(SocketAddr),
}

/// Health, metrics and the dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OpsListener {
    /// Address and port. On another address than loopback there are only health and metrics.
    #[schemars(with = "String", extend("x-kind" = "address"))]
    pub address: SocketAddr,
    /// Show the dashboard where `address` is loopback.
    pub dashboard: bool,
}

impl Default for OpsListener {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4409)),
            dashboard: true,
        }
    }
}

/// Longest path of a socket: `sun_path` holds 108 bytes with its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// A folder of sockets leaves room for their names.
const MAX_SOCKET_FOLDER_BYTES: usize = 64;

fn absolute(path: &str, most: usize) -> Result<PathBuf, String> {
    if !path.starts_with('/') || path.len() > most || path.contains(char::is_control) {
        return Err(format!(
            "must have an absolute path of at most {most} bytes without control characters behind `unix:`"
        ));
    }
    Ok(PathBuf::from(path))
}

impl FromStr for AgentsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(folder) => absolute(folder, MAX_SOCKET_FOLDER_BYTES).map(Self::Unix),
            None if text == "loopback" => Ok(Self::Loopback),
            None => Err("must be `loopback` or unix:FOLDER".to_owned()),
        }
    }
}

impl FromStr for ControlAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return absolute(path, MAX_SOCKET_PATH_BYTES).map(Self::Unix);
        }
        text.strip_prefix("tcp:")
            .and_then(|address| address.parse().ok())
            .map(Self::Tcp)
            .ok_or_else(|| {
                "must be unix:PATH, or tcp: with an address and a port, such as tcp:127.0.0.1:4410".to_owned()
            })
    }
}

impl fmt::Display for AgentsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Unix(folder) => write!(f, "unix:{}", folder.display()),
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl TryFrom<String> for AgentsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AgentsAddress> for String {
    fn from(address: AgentsAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for ControlAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ControlAddress> for String {
    fn from(address: ControlAddress) -> Self {
        address.to_string()
    }
}

impl JsonSchema for AgentsAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AgentsAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "agents-address" })
    }
}

impl JsonSchema for ControlAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ControlAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "control-address" })
    }
}
