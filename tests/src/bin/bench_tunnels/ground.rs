//! What both sides stand on: one upstream, one SSH server, and perhaps a slow line in front of it.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use paperclip_bridge_tests::measure::{Api, DelayRelay};
use paperclip_bridge_tests::peer::gateway::path_with_node;
use paperclip_bridge_tests::peer::{self, Installed};
use paperclip_bridge_tests::sshd::{Access, Sshd};
use tempfile::TempDir;

/// How callbacks travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tunnel {
    Http2,
    Queue,
}

impl Tunnel {
    /// As both sides call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http2 => "http2_v1",
            Self::Queue => "queue_v1",
        }
    }
}

/// A tunnel and where its sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// http2_v1, the sandbox behind SSH.
    Http2Ssh,
    /// queue_v1, the sandbox behind SSH.
    QueueSsh,
    /// http2_v1, a child process on this machine.
    Http2Local,
    /// queue_v1, a shell on this machine.
    QueueLocal,
}

impl Case {
    pub(crate) const ALL: [Self; 4] = [Self::Http2Ssh, Self::QueueSsh, Self::Http2Local, Self::QueueLocal];

    pub(crate) fn tunnel(self) -> Tunnel {
        match self {
            Self::Http2Ssh | Self::Http2Local => Tunnel::Http2,
            Self::QueueSsh | Self::QueueLocal => Tunnel::Queue,
        }
    }

    pub(crate) fn over_ssh(self) -> bool {
        matches!(self, Self::Http2Ssh | Self::QueueSsh)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http2Ssh => "http2-ssh",
            Self::QueueSsh => "queue-ssh",
            Self::Http2Local => "http2-local",
            Self::QueueLocal => "queue-local",
        })
    }
}

/// What both sides stand on. The order of the fields is the order of their end.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) upstream: Api,
    pub(crate) peer: &'static Installed,
    relay: Option<(DelayRelay, Access)>,
    sshd: Sshd,
    directory: TempDir,
}

impl Ground {
    /// `round_trip` is that of the slow line, if there shall be one.
    pub(crate) async fn prepare(round_trip: Option<Duration>) -> anyhow::Result<Self> {
        let peer = peer::installed().map_err(|reason| anyhow!(reason))?;
        let upstream = Api::start().await?;
        // The peer's gateway is found as the first `node` in the sandbox.
        let path = path_with_node(peer);
        let sshd = Sshd::builder()
            .line("Ciphers aes256-gcm@openssh.com")
            .line(&format!("SetEnv PATH={path}"))
            .start();
        let directory = tempfile::tempdir()?;
        let relay = match round_trip {
            Some(round_trip) => Some(slow_line(&sshd, round_trip / 2, directory.path())?),
            None => None,
        };
        Ok(Self {
            upstream,
            peer,
            relay,
            sshd,
            directory,
        })
    }

    /// How to log in, directly or over the slow line.
    pub(crate) fn access(&self, slow_line: bool) -> anyhow::Result<Access> {
        if !slow_line {
            return Ok(self.sshd.access());
        }
        let relay = self.relay.as_ref().context("no slow line was prepared")?;
        Ok(relay.1.clone())
    }

    /// A folder that the sandbox may write to.
    pub(crate) fn sandbox_folder(&self, over_ssh: bool) -> anyhow::Result<PathBuf> {
        let made_user = self.sshd.made_user().filter(|_| over_ssh);
        if let Some(user) = made_user {
            return Ok(user.home().to_owned());
        }
        let folder = self.directory.path().join("sandbox");
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The listener's process, below which each login and each command stands.
    pub(crate) fn sshd_pid(&self) -> Option<u32> {
        self.sshd.pid()
    }

    /// Executions in the sandbox so far, by the SSH server's own log.
    pub(crate) fn executions(&self) -> usize {
        self.sshd.log().matches("Starting session: command").count()
    }
}

fn slow_line(sshd: &Sshd, one_way: Duration, directory: &Path) -> anyhow::Result<(DelayRelay, Access)> {
    let relay = DelayRelay::start(SocketAddr::from(([127, 0, 0, 1], sshd.port())), one_way);
    let straight = sshd.access();
    let (from, to) = (format!(":{}", sshd.port()), format!(":{}", relay.port()));
    let known_hosts = directory.join("known_hosts");
    fs::write(
        &known_hosts,
        fs::read_to_string(&straight.known_hosts)?.replacen(&from, &to, 1),
    )?;
    let access = Access {
        target: straight.target.replacen(&from, &to, 1),
        identity: straight.identity,
        known_hosts,
    };
    Ok((relay, access))
}
