//! A daemon with its sessions, each on a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use paperclip_bridge_tests::measure::{Api, load};
use paperclip_bridge_tests::raw::Agent;
use paperclip_bridge_tests::serving::Serving;
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

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
    /// The audit at `write` without body digests, and nothing else.
    OnlyAudit,
    /// The log, and nothing else.
    OnlyLog,
    /// Metrics, and nothing else.
    OnlyMetrics,
}

impl Setting {
    fn audits(self) -> bool {
        !matches!(self, Self::AllOff | Self::OnlyLog | Self::OnlyMetrics)
    }

    fn logs(self) -> bool {
        !matches!(self, Self::AllOff | Self::OnlyAudit | Self::OnlyMetrics)
    }

    fn counts(self) -> bool {
        !matches!(self, Self::AllOff | Self::OnlyAudit | Self::OnlyLog)
    }
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
            Setting::Fsync => builder = builder.env("PCBRIDGE_AUDIT__DURABILITY", "fsync"),
            Setting::NoDigests | Setting::OnlyAudit => {
                builder = builder.env("PCBRIDGE_AUDIT__BODY_DIGEST", "off");
            }
            Setting::Default | Setting::AllOff | Setting::OnlyLog | Setting::OnlyMetrics => {}
        }
        if !setting.audits() {
            builder = builder.env("PCBRIDGE_AUDIT__ENABLED", "false");
        }
        if !setting.logs() {
            builder = builder.args(["--log-level", "error"]);
        }
        if !setting.counts() {
            builder = builder.env("PCBRIDGE_TELEMETRY__METRICS", "false");
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
    pub(crate) async fn one_call_each(&self) -> anyhow::Result<Vec<Connection>> {
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

/// To a session's socket, or straight to the upstream.
pub(crate) type Connection = Either<UnixStream, TcpStream>;

/// A connection to where this agent calls.
pub(crate) async fn connect(agent: &Agent) -> anyhow::Result<Connection> {
    let connecting = async {
        match agent.url.strip_prefix("unix:") {
            Some(path) => UnixStream::connect(path).await.map(Either::Left),
            None => {
                let stream = TcpStream::connect(agent.host()).await?;
                stream.set_nodelay(true)?;
                Ok(Either::Right(stream))
            }
        }
    };
    let connected = tokio::time::timeout(Duration::from_secs(10), connecting).await?;
    connected.with_context(|| format!("connect to {}", agent.url))
}

/// Agents that call the upstream itself.
pub(crate) fn straight_to(upstream: &Api, count: usize) -> Vec<Agent> {
    let agent = Agent {
        url: upstream.url(),
        token: CREDENTIAL.to_owned(),
    };
    vec![agent; count]
}

/// A call that changes nothing.
pub(crate) fn small_call(agent: &Agent) -> Vec<u8> {
    let mut headers = vec![("Accept", "*/*")];
    headers.extend(bridged(agent));
    agent.head("GET", "/api/agents/me", &headers, None)
}

/// What the bridge would put on, where there is none in between.
pub(crate) fn bridged(agent: &Agent) -> Option<(&'static str, &'static str)> {
    agent
        .url
        .starts_with("http:")
        .then_some(("X-Paperclip-Run-Id", RUN_ID))
}
