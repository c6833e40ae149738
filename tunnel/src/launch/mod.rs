//! A gateway's way into a sandbox: its program is put there once, and started without a secret in any argv.
//!
//! Here: [`Launcher`] and what it is given. In `install` the program's place on the target, in `start` how it is run
//! and ended again, in `token` how it takes another token, in `environment` the variables it is given, in `scripts` all
//! shell text. Not here: what a gateway says once it runs. Read next: `install`.

mod environment;
mod fault;
mod install;
mod scripts;
mod start;
mod token;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use runners::{CommandManagedRuntimeRunner, Shell};
use sha2::{Digest, Sha256};

pub use environment::{GatewayEnvironment, GatewayToken, QueueVariables};
pub use fault::LaunchFault;
pub use install::Installed;
pub(crate) use install::random_name;
pub use start::{DetachedGateway, Ended, StartCommand};
pub(crate) use token::Following;
pub use token::{ChangeFault, SharedToken};

/// What `uname -sm` says where our own binary runs.
pub const PLATFORM: &str = "Linux x86_64";

/// What kind of program a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayKind {
    /// Our own binary: static, for Linux on x86-64. It is given the digest of the token only.
    Binary,
    /// The peer's script for Node. It needs the token itself.
    Script,
}

/// A gateway's program, as the daemon brings it along.
#[derive(Clone)]
pub struct GatewayProgram {
    kind: GatewayKind,
    bytes: Bytes,
    sha256: String,
}

impl GatewayProgram {
    /// Our own binary.
    #[must_use]
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self::new(GatewayKind::Binary, bytes.into())
    }

    /// The peer's script, to be run as `node PATH`.
    #[must_use]
    pub fn script(bytes: impl Into<Bytes>) -> Self {
        Self::new(GatewayKind::Script, bytes.into())
    }

    fn new(kind: GatewayKind, bytes: Bytes) -> Self {
        let sha256 = hex(&Sha256::digest(&bytes));
        Self { kind, bytes, sha256 }
    }

    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> GatewayKind {
        self.kind
    }

    /// Its digest in lower-case hex, which is also part of its name on the target.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its path below the folder on the target. The peer's program must keep its name: it goes by it.
    fn file_name(&self) -> String {
        match self.kind {
            GatewayKind::Binary => format!("gateway-{}", self.sha256),
            GatewayKind::Script => format!("{}/paperclip-bridge-server.mjs", self.sha256),
        }
    }
}

impl fmt::Debug for GatewayProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayProgram")
            .field("kind", &self.kind)
            .field("bytes", &self.bytes.len())
            .field("sha256", &self.sha256)
            .finish()
    }
}

/// The name under which a session's gateway is recorded on its target: 1 to 64 letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName(String);

impl SessionName {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`LaunchFault::Invalid`] where it is empty, too long or holds anything else.
    pub fn new(name: impl Into<String>) -> Result<Self, LaunchFault> {
        let name = name.into();
        let fits = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if fits {
            return Ok(Self(name));
        }
        Err(LaunchFault::Invalid(format!(
            "session name {name:?} is not 1 to 64 letters, digits, `-` and `_`"
        )))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Installs and starts one gateway program on one target.
#[derive(Clone, Debug)]
pub struct Launcher {
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    shell: Shell,
    program: GatewayProgram,
}

impl Launcher {
    /// A launcher; nothing is done on the target yet.
    #[must_use]
    pub fn new(runner: Arc<dyn CommandManagedRuntimeRunner>, shell: Shell, program: GatewayProgram) -> Self {
        Self {
            runner,
            shell,
            program,
        }
    }

    /// What runs the commands.
    #[must_use]
    pub fn runner(&self) -> &Arc<dyn CommandManagedRuntimeRunner> {
        &self.runner
    }

    /// The shell that the scripts are run with.
    #[must_use]
    pub fn shell(&self) -> Shell {
        self.shell
    }

    /// Which kind of gateway it starts.
    #[must_use]
    pub fn kind(&self) -> GatewayKind {
        self.program.kind
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
