//! A session by each of the commands that serve one, and its restart with the same state folder.
//!
//! Here: `open`, `run`, `host --queue` and `serve` with one session ([`super::served`] starts that). Not here: what is
//! killed of it ([`super::victims`]), and many sessions in one `serve` ([`super::mixed`]).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use paperclip_bridge_tests::binary::{BridgeCommand, Running};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::upstream::Upstream;
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, Place, RUN_ID, daemon};
use paperclip_bridge_tests::{Agent, peer};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::callers::Called;
use super::served::{END_LIMIT, Served};

/// How long anything here may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The token of a gateway that we start ourselves.
const TOKEN: &str = "pcb_0123456789abcdef0123456789abcdef";

/// Which command serves, by which tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open(&'static str),
    Run(&'static str),
    /// `host --queue`, for a gateway that somebody else started.
    HostedQueue,
    /// `serve`, which brings its session back itself.
    Serve(&'static str),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(tunnel) => write!(f, "open {tunnel}"),
            Self::Run(tunnel) => write!(f, "run {tunnel}"),
            Self::HostedQueue => f.write_str("host queue_v1"),
            Self::Serve(tunnel) => write!(f, "serve {tunnel}"),
        }
    }
}

/// A session, over all of its processes on the host.
#[derive(Debug)]
pub(crate) struct Life {
    way: Way,
    agent: Agent,
    running: Option<Running>,
    /// Somebody else's gateway.
    gateway: Option<Child>,
    /// Of `serve`.
    session: Option<String>,
    directory: TempDir,
}

impl Life {
    pub(crate) async fn begin(way: Way, sshd: &Sshd, upstream: &Upstream) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut life = Self {
            way,
            agent: Agent {
                url: String::new(),
                token: TOKEN.to_owned(),
            },
            running: None,
            gateway: None,
            session: None,
            directory,
        };
        if way == Way::HostedQueue {
            life.start_gateway().await?;
        }
        life.begin_again(sshd, upstream).await?;
        Ok(life)
    }

    /// Starts the host's process, for the first time or after it was killed.
    pub(crate) async fn begin_again(&mut self, sshd: &Sshd, upstream: &Upstream) -> anyhow::Result<()> {
        if let Some(killed) = self.running.take() {
            // As a supervisor does; until the process is gone, the state folder is its own.
            drop(tokio::time::timeout(END_LIMIT, killed.finish()).await);
        }
        let state = ["--state-dir".to_owned(), self.file("state").display().to_string()];
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))?;
        let place = Place::Other(sshd.access());
        let running = match self.way {
            Way::Open(tunnel) => {
                let command = daemon("open", &place, &upstream.url());
                let options = ["--tunnel", tunnel, "--json", "--until-stdin-closes"];
                let opened = command.args(options).args(state).log_to(log).open().await;
                let bridge =
                    opened.map_err(|ended| anyhow!("`open` ended with {:?}: {}", ended.code, self.log()))?;
                self.agent.url.clone_from(&bridge.opened.url);
                // None is given out for a session that goes on: its agent has it.
                if !bridge.opened.token.is_empty() {
                    self.agent.token.clone_from(&bridge.opened.token);
                }
                bridge.running
            }
            Way::Run(tunnel) => {
                let command = daemon("run", &place, &upstream.url());
                let script = r#"printf '%s %s\n' "$PAPERCLIP_API_URL" "$PAPERCLIP_API_KEY"; exec cat"#;
                let command = command.args(["--tunnel", tunnel]).args(state).log_to(log);
                let running = command.command(["sh", "-c", script]).start();
                self.agent = said_by_its_agent(&running, || self.log()).await?;
                running
            }
            Way::HostedQueue => BridgeCommand::new(["host", "--queue"])
                .args([self.file("queue").display().to_string()])
                .args(["--upstream", &upstream.url(), "--run-id", RUN_ID])
                .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
                .args(state)
                .env(CREDENTIAL_VARIABLE, CREDENTIAL)
                .env("PAPERCLIP_BRIDGE_TOKEN", TOKEN)
                .log_to(log)
                .start(),
            Way::Serve(tunnel) => {
                let running = self.served().start().await?;
                if self.session.is_none() {
                    self.make_session(tunnel, &place, upstream).await?;
                }
                running
            }
        };
        self.running = Some(running);
        Ok(())
    }

    async fn make_session(&mut self, tunnel: &str, place: &Place, upstream: &Upstream) -> anyhow::Result<()> {
        let opened = self
            .served()
            .session(place, upstream, &["--tunnel", tunnel])
            .await?;
        self.agent = Agent {
            url: opened.url,
            token: opened.token,
        };
        self.session = Some(opened.session);
        Ok(())
    }

    fn served(&self) -> Served {
        Served::new(self.directory.path())
    }

    async fn start_gateway(&mut self) -> anyhow::Result<()> {
        let queue = self.file("queue");
        for folder in ["requests", "responses", "logs"] {
            fs::create_dir_all(queue.join(folder))?;
        }
        let gateway = Command::new(peer::our_gateway())
            .env_clear()
            .env("PAPERCLIP_API_BRIDGE_MODE", "queue_v1")
            .env("PAPERCLIP_BRIDGE_QUEUE_DIR", &queue)
            .env("PAPERCLIP_BRIDGE_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.file("gateway.log"))?)
            .kill_on_drop(true)
            .spawn()?;
        self.gateway = Some(gateway);
        let ready = queue.join("ready.json");
        self.agent.url = looked_for("the gateway is ready", || {
            let text = fs::read_to_string(&ready).ok()?;
            let ready: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(format!("http://127.0.0.1:{}", ready["port"].as_u64()?))
        })
        .await?;
        Ok(())
    }

    /// Ends it in order.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let mut running = self
            .running
            .take()
            .context("the host's process was not started again")?;
        if let Some(session) = &self.session {
            return self.served().end(&[session], running).await;
        }
        if self.way == Way::HostedQueue {
            running.signal("TERM");
        }
        running.close_stdin();
        let ended = tokio::time::timeout(END_LIMIT, running.finish()).await;
        let ended = ended.map_err(|_| anyhow!("it did not end within {END_LIMIT:?}: {}", self.log()))?;
        // `host` may report the signal that ended it.
        let in_order = ended.code == Some(0) || self.way == Way::HostedQueue;
        ensure!(in_order, "it ended with {:?}: {}", ended.code, self.log());
        if self.way == Way::HostedQueue {
            let waiting = fs::read_dir(self.file("queue").join("requests"))?.count();
            ensure!(
                waiting == 0,
                "{waiting} files are left among the queue's requests"
            );
        }
        Ok(())
    }

    pub(crate) fn agent(&self) -> Agent {
        self.agent.clone()
    }

    /// Whom callers call.
    pub(crate) fn called(&self) -> Called {
        Called {
            agent: self.agent(),
            gateway: self.way != Way::Serve("ssh-reverse"),
        }
    }

    /// The host's process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        self.served().log()
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.directory.path()).join(name)
    }
}

async fn said_by_its_agent(running: &Running, log: impl Fn() -> String) -> anyhow::Result<Agent> {
    let said = looked_for("the agent says its URL and token", || {
        let stdout = running.stdout();
        let (line, _) = stdout.split_once('\n')?;
        let (url, token) = line.trim().split_once(' ')?;
        Some(Agent {
            url: url.to_owned(),
            token: token.to_owned(),
        })
    });
    said.await.with_context(&log)
}

pub(crate) async fn looked_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let started = std::time::Instant::now();
    loop {
        match condition() {
            Some(value) => return Ok(value),
            None if started.elapsed() > START_LIMIT => {
                return Err(anyhow!("not within {START_LIMIT:?}: {what}"));
            }
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
