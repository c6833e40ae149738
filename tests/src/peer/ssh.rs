//! A sandbox behind a real SSH server, with the `node` of choice on the `PATH` of its logins.
//!
//! Here: the server, its logins' home, and how the peer's host is told of it. Not here: the server itself
//! ([`crate::sshd`]) and what goes over it.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Installed;
use super::gateway::{path_with_node, path_with_our_gateway};
use crate::sshd::{Access, Sshd};

/// A running server. Dropping it ends every session.
#[derive(Debug)]
pub struct SshSandbox {
    server: Sshd,
    // After the server, whose sessions live in it.
    home: TempDir,
}

impl SshSandbox {
    /// Starts it. Whoever logs in finds the installed Node, or our gateway in its place.
    ///
    /// # Panics
    ///
    /// With sshd's own words where it does not start.
    pub fn start(installed: &Installed, our_gateway: bool) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        let path = if our_gateway {
            path_with_our_gateway(home.path(), installed)
        } else {
            path_with_node(installed)
        };
        // The peer's host reads the profiles first, and that of the system sets a PATH of its own.
        fs::write(home.path().join(".profile"), format!("PATH='{path}'\n"))
            .expect("a temporary folder takes files");
        let server = Sshd::builder()
            // Who else may not look into the target folder, where Node is.
            .with_current_user()
            .line(&format!("SetEnv HOME={} PATH={path}", home.path().display()))
            .start();
        Self { server, home }
    }

    /// How our host logs in.
    pub fn access(&self) -> Access {
        self.server.access()
    }

    /// How the peer's host logs in, as `tests/peer/host.mjs` is told it.
    ///
    /// # Panics
    ///
    /// Where the server's own files cannot be read.
    pub fn for_the_peer(&self) -> Value {
        let access = self.access();
        let read = |file| fs::read_to_string(file).expect("the server's files are there");
        let folder = self.home.path();
        json!({ "spec": {
            "host": "127.0.0.1",
            "port": self.server.port(),
            "username": self.server.user(),
            "remoteCwd": folder,
            "remoteWorkspacePath": folder,
            "privateKey": read(access.identity),
            "knownHosts": read(access.known_hosts),
            "strictHostKeyChecking": true,
        }})
    }
}
