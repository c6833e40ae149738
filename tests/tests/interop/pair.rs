//! A host with a gateway, either of them ours or the peer's.

use paperclip_bridge_tests::binary::{Bridge, BridgeCommand};
use paperclip_bridge_tests::peer::{
    HostOptions, Installed, PeerHost, Release, SshSandbox, Transport, gateway, our_gateway, their_script,
};
use paperclip_bridge_tests::sshd::Access;
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID};
use tempfile::TempDir;

/// Every session's body limit: what the older release has, so that it need not be told.
pub(crate) const MAX_BODY: u64 = 262_144;

/// Whose a half is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Ours.
    Ours,
    /// The peer's.
    Theirs,
}

/// Which halves are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) host: Whose,
    pub(crate) gateway: Whose,
    pub(crate) transport: Transport,
    /// The peer's release, or the one whose routes our host has.
    pub(crate) release: Release,
    /// Whether the sandbox is behind a real SSH server; else it is a folder of this machine.
    pub(crate) ssh: bool,
}

impl Pair {
    pub(crate) const fn new(host: Whose, gateway: Whose, transport: Transport, release: Release) -> Self {
        Self {
            host,
            gateway,
            transport,
            release,
            ssh: false,
        }
    }

    /// The same with the sandbox behind an SSH server.
    pub(crate) const fn over_ssh(self) -> Self {
        Self { ssh: true, ..self }
    }

    /// The pair whose behaviour this one is measured by.
    pub(crate) const fn baseline(self) -> Self {
        Self {
            host: Whose::Theirs,
            gateway: Whose::Theirs,
            ..self
        }
    }

    /// Words for a report.
    pub(crate) fn name(self) -> String {
        let whose = |whose| match whose {
            Whose::Ours => "our",
            Whose::Theirs => "their",
        };
        let (host, gateway) = (whose(self.host), whose(self.gateway));
        let (transport, version) = (self.transport.name(), self.release.version());
        let place = if self.ssh { " over SSH" } else { "" };
        format!("{host} host, {gateway} gateway, {transport}{place}, {version}")
    }

    /// Opens a session through it.
    pub(crate) async fn open(self, installed: &'static Installed, upstream: &str) -> Open {
        let sandbox = self.ssh.then(|| {
            SshSandbox::start(
                installed,
                self.gateway == Whose::Ours && self.host == Whose::Theirs,
            )
        });
        let session = match self.host {
            Whose::Theirs => {
                let options = HostOptions {
                    release: self.release,
                    transport: self.transport,
                    our_gateway: self.gateway == Whose::Ours,
                    upstream,
                    max_body: Some(MAX_BODY),
                    ssh: sandbox.as_ref(),
                };
                Session::Theirs(Box::new(PeerHost::start(installed, &options).await))
            }
            Whose::Ours => self.open_ours(installed, upstream, sandbox.as_ref()).await,
        };
        let (url, token) = match &session {
            Session::Theirs(host) => (host.url.clone(), host.token.clone()),
            Session::Ours(bridge, _) => (bridge.opened.url.clone(), bridge.opened.token.clone()),
        };
        Open {
            url,
            token,
            session,
            sandbox,
        }
    }

    async fn open_ours(
        self,
        installed: &'static Installed,
        upstream: &str,
        sandbox: Option<&SshSandbox>,
    ) -> Session {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let program = match self.gateway {
            Whose::Ours => our_gateway().display().to_string(),
            Whose::Theirs => {
                let script = their_script(installed, self.release, folder.path());
                format!("node:{}", script.display())
            }
        };
        let access = sandbox.map(SshSandbox::access);
        let target = access.as_ref().map_or("local", |access| access.target.as_str());
        let opened = BridgeCommand::new(["open", target, "--json", "--until-stdin-closes"])
            .args(access.as_ref().map(Access::options).unwrap_or_default())
            .args(["--upstream", upstream, "--run-id", RUN_ID])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
            .args(["--tunnel", self.transport.name(), "--gateway", &program])
            .args(["--pack", self.release.pack(), "--max-body", &MAX_BODY.to_string()])
            .env(CREDENTIAL_VARIABLE, CREDENTIAL)
            .env("PATH", &gateway::path_with_node(installed))
            .open()
            .await;
        match opened {
            Ok(bridge) => {
                assert_eq!(bridge.opened.tunnel, self.transport.name(), "{}", self.name());
                Session::Ours(Box::new(bridge), folder)
            }
            Err(ended) => panic!(
                "{}: `open` ended with {:?}: {}",
                self.name(),
                ended.code,
                ended.stderr
            ),
        }
    }
}

/// An open session.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) url: String,
    pub(crate) token: String,
    session: Session,
    sandbox: Option<SshSandbox>,
}

#[derive(Debug)]
enum Session {
    Theirs(Box<PeerHost>),
    Ours(Box<Bridge>, TempDir),
}

impl Open {
    /// Ends it in order; what it said on stderr.
    pub(crate) async fn close(self) -> String {
        let said = match self.session {
            Session::Theirs(host) => host.close().await,
            Session::Ours(bridge, folder) => {
                let ended = bridge.close().await;
                drop(folder);
                assert_eq!(ended.code, Some(0), "`open` ends in order: {}", ended.stderr);
                ended.stderr
            }
        };
        // Only now: ending a session needs its server.
        drop(self.sandbox);
        said
    }
}
