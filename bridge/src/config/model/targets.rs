//! `[targets.NAME]`: places where agents run.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One place where agents run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// `ssh://user@host[:port][/dir]`, an ssh_config alias, `local`, or a provider's `KEY:` or `KEY:ID`.
    #[schemars(length(min = 1, max = 2048), extend("x-kind" = "target"))]
    pub target: String,
    /// Which of `upstreams` its sessions speak to, unless they name another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// How calls travel back; anything but `auto` is that tunnel or an error.
    #[serde(default)]
    pub tunnel: TunnelName,
    /// What listens in the sandbox for `http2_v1` and `queue_v1`: `builtin`, the path of a program, or `node:PATH`.
    #[serde(default)]
    pub gateway: GatewayName,
    /// Calls at the same time over `http2_v1`; absent: 256, with `node:PATH` 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub streams: Option<u32>,
    /// Private keys for an SSH target, instead of those of ssh_config.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub identities: Vec<PathBuf>,
    /// Host keys of an SSH target, instead of those of ssh_config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// Listen on a unix socket of this path on the target instead of a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_socket: Option<PathBuf>,
    /// Go on although the target's sshd makes the listener reachable from other machines.
    #[serde(default)]
    pub allow_exposed_forward: bool,
}

/// A tunnel by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum TunnelName {
    /// The best that works on the target.
    #[default]
    Auto,
    /// The target's sshd listens.
    SshReverse,
    /// A gateway on the target listens; HTTP/2 over its stdin and stdout.
    #[serde(rename = "http2_v1")]
    Http2,
    /// A gateway on the target listens; files on the target carry the calls.
    #[serde(rename = "queue_v1")]
    Queue,
    /// A listener on this machine.
    Local,
    /// A provider's relay listens.
    Worker,
}

/// Which program listens in the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GatewayName {
    /// The one that this daemon carries.
    #[default]
    Builtin,
    /// A program of this machine.
    Program(PathBuf),
    /// A script of this machine, run by the target's own Node.
    Node(PathBuf),
}

impl FromStr for GatewayName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "node:" || text.contains(char::is_control) {
            return Err("must be `builtin`, the path of a program, or node:PATH".to_owned());
        }
        Ok(match text.strip_prefix("node:") {
            Some(path) => Self::Node(PathBuf::from(path)),
            None if text == "builtin" => Self::Builtin,
            None => Self::Program(PathBuf::from(text)),
        })
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Program(path) => write!(f, "{}", path.display()),
            Self::Node(path) => write!(f, "node:{}", path.display()),
        }
    }
}

impl TryFrom<String> for GatewayName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GatewayName> for String {
    fn from(gateway: GatewayName) -> Self {
        gateway.to_string()
    }
}

impl JsonSchema for GatewayName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Gateway".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "gateway" })
    }
}
