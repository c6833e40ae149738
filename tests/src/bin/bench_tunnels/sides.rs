//! The two sides: our daemon with its gateway, and the peer's own host with its own gateway.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use paperclip_bridge_tests::binary::Bridge;
use paperclip_bridge_tests::measure::Family;
use paperclip_bridge_tests::peer::gateway::path_with_node;
use paperclip_bridge_tests::peer::{Release, install};
use paperclip_bridge_tests::sshd::Access;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, RUN_ID, daemon};
use paperclip_bridge_tests::{Agent, processes};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::ground::{Case, Ground};

/// How long a side may take to start, and to end.
const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(15);

/// Whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Who {
    Ours,
    Peer,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
        }
    }
}

/// One side, running.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) agent: Agent,
    /// From its start to the first answer of a call.
    pub(crate) start: Duration,
    pub(crate) family: Family,
    kind: Kind,
    log: TempDir,
}

#[derive(Debug)]
enum Kind {
    Ours(Box<Bridge>),
    Peer(Box<Child>, Option<ChildStdin>),
}

impl Side {
    /// Starts one.
    pub(crate) async fn start(
        who: Who,
        case: Case,
        slow_line: bool,
        ground: &Ground,
    ) -> anyhow::Result<Self> {
        let access = match case.over_ssh() {
            true => Some(ground.access(slow_line)?),
            false => None,
        };
        let log = tempfile::tempdir()?;
        let started = Instant::now();
        let starting = async {
            match who {
                Who::Ours => ours(case, access, ground, log.path()).await,
                Who::Peer => peer(case, access, ground, log.path()).await,
            }
        };
        let come = tokio::time::timeout(START_LIMIT, starting)
            .await
            .map_err(|_| anyhow!("not within {START_LIMIT:?}"))
            .flatten()
            .with_context(|| format!("start {} for {case}: {}", who.name(), written(log.path())));
        let mut family = Family {
            host: 0,
            sshd: ground.sshd_pid(),
            apart: ground.upstream.pid().into_iter().collect(),
        };
        let (agent, kind) = match come {
            Ok(come) => come,
            Err(fault) => {
                // It may have come so far as to start something in the sandbox.
                end_by_force(&family);
                return Err(fault);
            }
        };
        family.host = match &kind {
            Kind::Ours(bridge) => bridge.running.pid(),
            Kind::Peer(child, _) => child.id().context("the peer's host runs")?,
        };
        let mut side = Self {
            agent,
            start: Duration::ZERO,
            family,
            kind,
            log,
        };
        match side.first_answer().await {
            Ok(()) => {
                side.start = started.elapsed();
                Ok(side)
            }
            Err(fault) => {
                side.stop().await;
                Err(fault)
            }
        }
    }

    async fn first_answer(&self) -> anyhow::Result<()> {
        let answer = tokio::time::timeout(START_LIMIT, self.agent.get("/api/agents/me")).await;
        let late = || {
            anyhow!(
                "no first answer within {START_LIMIT:?}: {}",
                written(self.log.path())
            )
        };
        match answer.map_err(|_| late())? {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(anyhow!("{}: {}", answer.status, answer.text())),
            Err(broken) => Err(anyhow!("no answer: {broken:?}: {}", written(self.log.path()))),
        }
    }

    /// Ends it in order, and whatever it left running by force.
    pub(crate) async fn stop(self) {
        match self.kind {
            Kind::Ours(bridge) => drop(tokio::time::timeout(END_LIMIT, bridge.close()).await),
            Kind::Peer(mut child, stdin) => {
                drop(stdin);
                drop(tokio::time::timeout(END_LIMIT, child.wait()).await);
            }
        }
        end_by_force(&self.family);
    }
}

/// Kills what is still there of a side, here and in the sandbox; the SSH server and the upstream stay.
fn end_by_force(family: &Family) {
    let stays: Vec<u32> = family.sshd.iter().chain(&family.apart).copied().collect();
    let below = |pid: u32| processes::descendants(pid).into_iter();
    let sshd: Vec<u32> = family
        .sshd
        .into_iter()
        .flat_map(below)
        .map(|one| one.pid)
        .collect();
    for one in below(std::process::id()) {
        // A login of the server's ends with its client.
        let login = sshd.contains(&one.pid) && one.name.starts_with("sshd");
        if !login && !stays.contains(&one.pid) && one.state != 'Z' {
            processes::signal(one.pid, "KILL");
        }
    }
}

async fn ours(
    case: Case,
    access: Option<Access>,
    ground: &Ground,
    log: &Path,
) -> anyhow::Result<(Agent, Kind)> {
    let place = access.map_or(Place::Local, Place::Other);
    let command = daemon("open", &place, &ground.upstream.url())
        .args(["--tunnel", case.tunnel().name(), "--json", "--until-stdin-closes"])
        .log_to(fs::File::create(log.join("log"))?);
    let bridge = command
        .open()
        .await
        .map_err(|ended| anyhow!("`open` ended with {:?}: {}", ended.code, ended.stderr))?;
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    Ok((agent, Kind::Ours(Box::new(bridge))))
}

async fn peer(
    case: Case,
    access: Option<Access>,
    ground: &Ground,
    log: &Path,
) -> anyhow::Result<(Agent, Kind)> {
    let folder = ground.sandbox_folder(case.over_ssh())?;
    let path = path_with_node(ground.peer);
    let wanted = json!({
        "package": ground.peer.package(Release::R916), "transport": case.tunnel().name(), "upstream": ground.upstream.url(),
        "credential": CREDENTIAL, "runId": RUN_ID, "folder": folder, "path": path,
        "ssh": access.map(|access| login(&access, &folder)).transpose()?,
    });
    let mut child = Command::new(ground.peer.node())
        .arg(install::drivers().join("host.mjs"))
        .env_clear()
        .env("PATH", &path)
        .env("HOME", log)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(log.join("log"))?)
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("its stdin was piped")?;
    stdin.write_all(format!("{wanted}\n").as_bytes()).await?;
    let stdout = child.stdout.take().context("its stdout was piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    let opened: Value = serde_json::from_str(&line).with_context(|| format!("the peer printed {line:?}"))?;
    let text = |key: &str| {
        opened[key]
            .as_str()
            .map(ToOwned::to_owned)
            .context("url and token")
    };
    let agent = Agent {
        url: text("url")?,
        token: text("token")?,
    };
    Ok((agent, Kind::Peer(Box::new(child), Some(stdin))))
}

/// The peer's way to log in, and the arguments of the `ssh` that carries its duplex channel.
fn login(access: &Access, folder: &Path) -> anyhow::Result<Value> {
    let place = access.target.strip_prefix("ssh://").context("an ssh target")?;
    let (user_host, port) = place.rsplit_once(':').context("a target with a port")?;
    let (user, host) = user_host.split_once('@').context("a target with a user")?;
    let known_hosts = format!("UserKnownHostsFile={}", access.known_hosts.display());
    let arguments = json!([
        "-F",
        "none",
        "-T",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        known_hosts,
        "-i",
        access.identity,
        "-p",
        port,
        user_host,
    ]);
    let spec = json!({
        "host": host, "port": port.parse::<u16>()?, "username": user, "remoteCwd": folder,
        "remoteWorkspacePath": folder, "privateKey": fs::read_to_string(&access.identity)?,
        "knownHosts": fs::read_to_string(&access.known_hosts)?, "strictHostKeyChecking": true,
    });
    Ok(json!({ "spec": spec, "arguments": arguments }))
}

/// The end of what a side wrote.
fn written(log: &Path) -> String {
    let text = fs::read_to_string(log.join("log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
