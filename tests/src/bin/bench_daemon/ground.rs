//! A daemon with its sessions, each on a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use paperclip_bridge_tests::measure::{Api, load};
use paperclip_bridge_tests::raw::Agent;
use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::world::{CREDENTIAL_VARIABLE, RUN_ID};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

/// Sessions that are asked for at once.
const AT_ONCE: usize = 8;

/// How a daemon is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// As it comes: audit at `write` with body digests of unsafe callbacks, log, metrics.
    Default,
    /// Audit at `fsync`.
    Fsync,
    /// Audit at `write` without body digests.
    NoDigests,
    /// Neither audit nor log nor metrics.
    AllOff,
}

/// A running daemon and its sessions. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) serving: Serving,
    pub(crate) sessions: Vec<Agent>,
    upstream: String,
    sockets: PathBuf,
}

impl Ground {
    pub(crate) async fn start(setting: Setting, upstream: &Api) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (log, sockets) = (folder.path().join("log"), folder.path().join("agents"));
        std::fs::create_dir(&sockets)?;
        let mut builder = Serving::in_folder(folder).log_to(&log);
        match setting {
            Setting::Default => {}
            Setting::Fsync => builder = builder.env("PCBRIDGE_AUDIT__DURABILITY", "fsync"),
            Setting::NoDigests => builder = builder.env("PCBRIDGE_AUDIT__BODY_DIGEST", "off"),
            Setting::AllOff => {
                builder = builder
                    .args(["--log-level", "error"])
                    .env("PCBRIDGE_TELEMETRY__METRICS", "false")
                    .env("PCBRIDGE_AUDIT__ENABLED", "false");
            }
        }
        Ok(Self {
            serving: builder.start().await,
            sessions: vec![],
            upstream: upstream.url(),
            sockets,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.serving.running.pid()
    }

    /// Makes sessions until there are so many.
    pub(crate) async fn grow_to(&mut self, count: usize) -> anyhow::Result<()> {
        let this = &*self;
        let made = stream::iter(this.sessions.len()..count).map(|number| this.new_session(number));
        let made: Vec<_> = made.buffered(AT_ONCE).collect().await;
        for agent in made {
            self.sessions.push(agent?);
        }
        Ok(())
    }

    async fn new_session(&self, number: usize) -> anyhow::Result<Agent> {
        let asked = json!({
            "target": "local",
            "unix_socket": self.sockets.join(format!("{number}.sock")),
            "upstream": self.upstream,
            "credential": format!("env:{CREDENTIAL_VARIABLE}"),
            "run_id": RUN_ID,
            "agent_id": format!("agent-{number}"),
            "company_id": "company-1",
            "issue_id": format!("issue-{number}"),
            "heartbeat": "off",
            "no_upstream_check": true,
        });
        let made = self
            .serving
            .call("POST", "/v1/sessions?wait=ready", &asked.to_string())
            .await;
        ensure!(made.status == 201, "no session: {}", made.text());
        let made = made.json();
        Ok(Agent {
            url: made["url"].as_str().context("a session has a place")?.to_owned(),
            token: made["token"]
                .as_str()
                .context("a session has a token")?
                .to_owned(),
        })
    }

    /// One call on a connection of each session; the connections, at rest.
    pub(crate) async fn one_call_each(&self) -> anyhow::Result<Vec<UnixStream>> {
        let mut connections = Vec::with_capacity(self.sessions.len());
        for agent in &self.sessions {
            let mut connection = connect(agent).await?;
            connection.write_all(&small_call(agent)).await?;
            load::answer(&mut connection, &mut vec![]).await?;
            connections.push(connection);
        }
        Ok(connections)
    }

    /// What a scrape reads.
    pub(crate) async fn scrape(&self) -> anyhow::Result<usize> {
        let agent = Agent {
            url: self.serving.ops.clone(),
            token: "none".to_owned(),
        };
        let answer = agent
            .get("/metrics")
            .await
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        ensure!(answer.status == 200, "no metrics: {}", answer.text());
        Ok(answer.text().len())
    }
}

/// A connection of an agent on its session's socket.
pub(crate) async fn connect(agent: &Agent) -> anyhow::Result<UnixStream> {
    let path = agent
        .url
        .strip_prefix("unix:")
        .context("it is on a unix socket")?;
    let connected = tokio::time::timeout(Duration::from_secs(10), UnixStream::connect(path)).await?;
    connected.with_context(|| format!("connect to {path}"))
}

/// A call that changes nothing.
pub(crate) fn small_call(agent: &Agent) -> Vec<u8> {
    agent.head("GET", "/api/agents/me", &[("Accept", "*/*")], None)
}
