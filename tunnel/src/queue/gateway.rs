//! The gateway of one queue: found alive or started, waited for, ended, and its directory removed.
//!
//! Here: [`GatewayLife`], a few short executions. Not here: how a program gets there and is started (`crate::launch`),
//! and what is done with its requests (`worker.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runners::shell::quote;
use runners::{Execution, Input, RunnerError};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::channel::fence_word;
use super::{QueueOptions, TAKEN_OVER};
use crate::launch::{
    Ended, Following, GatewayEnvironment, GatewayKind, GatewayToken, Installed, LaunchFault, Launcher,
    QueueVariables, SessionName, SharedToken, hex, random_name,
};
use wire::names::variable;

/// What our lines on stdout begin with: a login shell may print others.
const MARK: &str = "pcb-queue ";
/// A readiness document is shorter.
pub(super) const READY_MAX_BYTES: usize = 4096;
/// A gateway listens within this time.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// A login and a few lines of shell.
const EXECUTION_LIMIT: Duration = Duration::from_secs(30);
/// Between `TERM` and `KILL`.
const END_GRACE: Duration = Duration::from_secs(2);

/// A queue's gateway and its place on the target.
#[derive(Debug)]
pub(super) struct GatewayLife {
    launcher: Launcher,
    installed: Installed,
    name: SessionName,
    environment: QueueVariables,
    token: SharedToken,
    fence: Option<u64>,
    executions: Arc<AtomicU64>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayFault {
    /// It could not be put there or started.
    #[error(transparent)]
    Launch(#[from] LaunchFault),
    /// A command of ours failed.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// It ended before it listened.
    #[error("the gateway ended before it listened; its log begins with {0:?}")]
    Died(String),
    /// It does not listen.
    #[error("the gateway does not listen after {READY_LIMIT:?}")]
    Late,
    /// It said something else than where it listens.
    #[error("the gateway's readiness document is not acceptable: {0}")]
    Ready(&'static str),
    /// Another port than the one that the agent was told.
    #[error("the gateway listens on another port than {0}")]
    OtherPort(u16),
    /// A later owner of the session has been there.
    #[error("another host serves the queue by now, under the fence {0}")]
    Fenced(u64),
    /// The directory is not acceptable.
    #[error("the queue directory cannot be used: {0}")]
    Directory(String),
}

impl GatewayFault {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Launch(fault) => fault.reason(),
            Self::Runner(_) => "channel_open_failed",
            Self::Died(_) => "gateway_exited",
            Self::Late => "readiness_timeout",
            Self::Ready(_) => "ready_invalid",
            Self::OtherPort(_) => "port_taken",
            Self::Fenced(_) => TAKEN_OVER,
            Self::Directory(_) => "queue_directory",
        }
    }
}

/// What lies in the queue directory.
enum Look {
    Alive(u16),
    Nothing,
}

impl GatewayLife {
    pub(super) fn new(launcher: Launcher, installed: Installed, options: &QueueOptions) -> Self {
        let directory = format!("{}/q-{}", installed.folder(), options.session.as_str());
        Self {
            launcher,
            installed,
            name: options.session.clone(),
            environment: QueueVariables {
                directory,
                port: options.port,
                poll_interval: options.poll,
                response_timeout: options.response_timeout,
                max_queue_depth: options.depth,
                max_body: u64::try_from(options.max_body).unwrap_or(u64::MAX),
                linger: options.linger,
            },
            token: options.token.clone(),
            fence: options.fence,
            executions: options.executions.clone(),
        }
    }

    /// The queue's directory on the target.
    pub(super) fn directory(&self) -> &str {
        &self.environment.directory
    }

    /// The file that says which token a gateway of ours holds.
    fn token_file(&self) -> String {
        format!("{}/token", self.directory())
    }

    /// The file that names the gateway's process.
    pub(super) fn record(&self) -> String {
        self.installed.record(&self.name)
    }

    /// Finds the gateway of an earlier host of this session, or starts one in an empty directory.
    pub(super) async fn begin(&mut self) -> Result<u16, GatewayFault> {
        let wanted = self.environment.port;
        let port = self.alive_or_started(true).await?;
        if wanted != 0 && port != wanted {
            return Err(GatewayFault::OtherPort(wanted));
        }
        self.environment.port = port;
        Ok(port)
    }

    /// Makes sure that it lives, on the same port; what waits in the directory stays.
    pub(super) async fn revive(&self) -> Result<(), GatewayFault> {
        let port = self.environment.port;
        if self.alive_or_started(false).await? == port {
            return Ok(());
        }
        Err(GatewayFault::OtherPort(port))
    }

    /// Where it listens. Until that is known it takes no other token: that would be lost between two gateways.
    async fn alive_or_started(&self, empty: bool) -> Result<u16, GatewayFault> {
        let mut held = self.token.held().await;
        held.gateway = None;
        let (port, start) = match self.look(empty, &held.token).await? {
            Look::Alive(port) => (port, None),
            Look::Nothing => {
                let start = random_name()?;
                (self.start(&held.token, &start).await?, Some(start))
            }
        };
        held.gateway = (self.launcher.kind() == GatewayKind::Binary).then(|| Following {
            launcher: self.launcher.clone(),
            file: self.token_file(),
            start,
            fence: self.fence.map(|fence| (self.directory().to_owned(), fence)),
        });
        Ok(port)
    }

    /// - `start`: the file of its token marks with it what is meant for this gateway.
    async fn start(&self, token: &GatewayToken, start: &str) -> Result<u16, GatewayFault> {
        let (port, kind) = (self.environment.port, self.launcher.kind());
        let mut environment = GatewayEnvironment::queue(kind, token, &self.environment)?;
        if kind == GatewayKind::Binary {
            environment.set(variable::NONCE, start)?;
            environment.set(variable::TOKEN_FILE, self.token_file())?;
        }
        self.count();
        let log = format!("{}/logs/bridge.log", self.directory());
        let started = self
            .launcher
            .start_detached(&self.installed, &self.name, &environment, &log)
            .await?;
        let script = format!(
            "q={}; n=0; while [ $n -lt 200 ]; do if [ -s \"$q/ready.json\" ]; then echo \"{MARK}ready\"; \
             head -c {READY_MAX_BYTES} \"$q/ready.json\"; exit 0; fi; \
             l=; {{ read -r l </proc/{pid}/stat; }} 2>/dev/null; \
             {{ kill -0 {pid} 2>/dev/null && case ${{l##*) }} in Z*|X*) false;; esac; }} || {{ echo \"{MARK}died\"; head -c 300 \"$q/logs/bridge.log\"; exit 0; }}; \
             n=$((n+1)); sleep 0.05 2>/dev/null || {{ sleep 1; n=$((n+19)); }}; done; echo \"{MARK}late\"",
            quote(self.directory()),
            pid = started.pid,
        );
        let (word, rest) = self.run(script, Input::None, EXECUTION_LIMIT).await?;
        match word.as_str() {
            "ready" => ready_port(&rest),
            "died" if port != 0 && rest.to_ascii_lowercase().contains("in use") => {
                Err(GatewayFault::OtherPort(port))
            }
            "died" => Err(GatewayFault::Died(rest.trim().chars().take(300).collect())),
            _ => Err(GatewayFault::Late),
        }
    }

    /// Whether this session's gateway lives there, with this token. If not, prepares the directory: emptied, or as it is.
    /// Nothing of it where a later owner has been there; else the directory says that this one was.
    ///
    /// Which token a gateway holds is said by the file of its token, which another one may have come by since, and where it
    /// has none by the stamp of its beginning.
    async fn look(&self, empty: bool, token: &GatewayToken) -> Result<Look, GatewayFault> {
        let clear = if empty {
            "rm -rf \"$q\"; "
        } else {
            "rm -rf \"$q/ready.json\" \"$q/token\"; "
        };
        let script = format!(
            "unset CDPATH; umask 077; q={}; r={}; w={}; v={}; f={}; a=0; b=; IFS= read -r d || exit 125; \
             if [ \"$f\" ] && [ -f \"$q/fence\" ] && [ ! -L \"$q/fence\" ]; then read -r b x <\"$q/fence\"; fi; \
             case $b in ''|*[!0-9]*|???????????????????*) b=-1;; esac; \
             if [ \"$f\" ] && [ \"$b\" -gt \"$f\" ]; then echo \"{MARK}behind\"; echo \"$b\"; exit 0; fi; \
             own() {{ [ \"$f\" ] || return 0; [ ! -d \"$q/fence\" ] || rm -rf \"$q/fence\"; \
             echo \"$f\" >\"$q/fence.$$\" && mv -f \"$q/fence.$$\" \"$q/fence\"; }}; \
             if [ -f \"$r\" ]; then read -r p s x <\"$r\"; \
             if [ -r \"/proc/$p/stat\" ] && [ \"$s\" ]; then read -r l <\"/proc/$p/stat\"; set -- ${{l##*) }}; \
             if [ \"${{20}}\" = \"$s\" ]; then case $1 in Z|X) ;; *) a=1;; esac; fi; elif kill -0 \"$p\" 2>/dev/null; then a=1; fi; fi; \
             h=; i=; if [ -f \"$q/host.session\" ]; then {{ read -r h; read -r i; }} <\"$q/host.session\"; fi; \
             k=; if [ -f \"$q/token\" ] && [ ! -L \"$q/token\" ]; then read -r x k <\"$q/token\"; fi; \
             holds() {{ if [ \"$k\" ]; then [ \"$k\" = \"$d\" ] && [ \"$i\" = \"$v\" ]; else [ \"$h\" = \"$w\" ]; fi; }}; \
             if [ $a = 1 ] && holds && [ -f \"$q/ready.json\" ]; then own; echo \"{MARK}alive\"; \
             head -c {READY_MAX_BYTES} \"$q/ready.json\"; exit 0; fi; \
             {clear}mkdir -p \"$q/requests\" \"$q/responses\" \"$q/claimed\" \"$q/logs\" && chmod 700 \"$q\" && \
             own && {{ echo \"$w\"; echo \"$v\"; }} >\"$q/host.session\" && echo \"{MARK}nothing\"",
            quote(self.directory()),
            quote(&self.record()),
            self.stamp(Some(token)),
            self.stamp(None),
            fence_word(self.fence),
        );
        let digest = format!("{}\n", hex(token.sha256()));
        let (word, rest) = self
            .run(script, Input::Bytes(digest.into()), EXECUTION_LIMIT)
            .await?;
        match word.as_str() {
            "behind" => Err(GatewayFault::Fenced(rest.trim().parse().unwrap_or(u64::MAX))),
            "alive" => Ok(Look::Alive(ready_port(&rest)?)),
            _ => Ok(Look::Nothing),
        }
    }

    /// What a directory must say for its gateway to be this session's: nothing in it can be turned into the token.
    ///
    /// - `token`: `None` for what holds whichever token it is.
    fn stamp(&self, token: Option<&GatewayToken>) -> String {
        let mut digest = Sha256::new();
        digest.update(b"paperclip-bridge queue_v1\n");
        if let Some(token) = token {
            digest.update(token.sha256());
        }
        digest.update(self.environment.max_body.to_be_bytes());
        digest.update(self.environment.response_timeout.as_millis().to_be_bytes());
        hex(&digest.finalize())
    }

    /// Ends the gateway: it takes no more requests at once, and is killed after two seconds.
    pub(super) async fn end(&self) -> Result<(), String> {
        self.count();
        match self.launcher.end(&self.installed, &self.name, END_GRACE).await {
            Ok(Ended::WasGone | Ended::Now) => Ok(()),
            Ok(Ended::StillThere) => Err("the gateway's process could not be ended".to_owned()),
            Err(fault) => Err(format!("the gateway could not be ended: {fault}")),
        }
    }

    /// Removes the directory.
    pub(super) async fn remove(&self) -> Result<(), String> {
        let script = format!(
            "q={}; rm -rf \"$q\" 2>/dev/null || rm -rf \"$q\"; \
             if [ -e \"$q\" ]; then echo \"{MARK}left\"; else echo \"{MARK}gone\"; fi",
            quote(self.directory())
        );
        match self.run(script, Input::None, EXECUTION_LIMIT).await {
            Ok((word, _)) if word == "gone" => Ok(()),
            Ok(_) => Err(format!("{} could not be removed", self.directory())),
            Err(fault) => Err(format!("{} could not be removed: {fault}", self.directory())),
        }
    }

    /// Runs one script; gives back the word after our mark and what follows that line.
    async fn run(
        &self,
        script: String,
        stdin: Input,
        limit: Duration,
    ) -> Result<(String, String), GatewayFault> {
        self.count();
        let shell = self.launcher.shell();
        let mut execution = Execution::new(shell.program(), shell.script_args(script));
        execution.stdin = stdin;
        execution.timeout = Some(limit);
        execution.keep_output = 64 * 1024;
        let result = self.launcher.runner().execute(execution).await?;
        let said = String::from_utf8_lossy(&result.stdout);
        let marked = said
            .split_once(MARK)
            .map(|(_, rest)| rest.split_once('\n').unwrap_or((rest, "")));
        match marked {
            Some((word, rest)) => Ok((word.trim().to_owned(), rest.to_owned())),
            None => {
                let error = String::from_utf8_lossy(&result.stderr);
                Err(GatewayFault::Directory(error.trim().chars().take(300).collect()))
            }
        }
    }

    fn count(&self) {
        self.executions.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
struct Ready {
    port: u16,
    #[serde(default)]
    host: Option<String>,
}

/// Reads a readiness document. Only the port is believed, and only on loopback.
pub(super) fn ready_port(text: &str) -> Result<u16, GatewayFault> {
    if text.len() > READY_MAX_BYTES {
        return Err(GatewayFault::Ready("it is too long"));
    }
    let ready: Ready =
        serde_json::from_str(text.trim()).map_err(|_| GatewayFault::Ready("it is not JSON with a port"))?;
    if ready.port == 0 {
        return Err(GatewayFault::Ready("its port is 0"));
    }
    match ready.host.as_deref() {
        None | Some("127.0.0.1" | "::1" | "localhost") => Ok(ready.port),
        Some(_) => Err(GatewayFault::Ready("it does not listen on loopback")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_on_loopback_is_believed() {
        let whole = "{\"pid\":4711,\"host\":\"127.0.0.1\",\"port\":40123,\"baseUrl\":\"http://evil\",\"startedAt\":\"x\"}";
        assert_eq!(ready_port(whole).ok(), Some(40_123));
        assert_eq!(ready_port("{\"port\":1}\n").ok(), Some(1));
        for bad in [
            "",
            "{}",
            "{\"port\":0}",
            "{\"port\":65536}",
            "{\"port\":-1}",
            "{\"port\":\"80\"}",
            "{\"port\":80,\"host\":\"0.0.0.0\"}",
            "{\"port\":80,\"host\":\"10.0.0.1\"}",
            "{\"port\":80,\"port\":81}",
            "{\"port\":80} x",
        ] {
            assert!(ready_port(bad).is_err(), "{bad}");
        }
    }
}
