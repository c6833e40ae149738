//! The two sides: our daemon, and `ssh -R` with an nginx that checks the token and swaps the credential.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use paperclip_bridge_tests::binary::Bridge;
use paperclip_bridge_tests::measure::Api;
use paperclip_bridge_tests::sshd::Access;
use paperclip_bridge_tests::waiting::{eventually_blocking, program};
use paperclip_bridge_tests::world::{CREDENTIAL, Place, RUN_ID, daemon};
use paperclip_bridge_tests::{Agent, eventually, processes};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long a side may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long nginx may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The rival's token; ours makes its own.
const TOKEN: &str = "pcb_0123456789abcdef0123456789abcdef";

/// One side, running.
#[derive(Debug)]
pub(crate) struct Side {
    agent: Agent,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Ours {
        bridge: Box<Bridge>,
        _directory: TempDir,
    },
    Rival(Box<Rival>),
}

#[derive(Debug)]
struct Rival {
    ssh: Child,
    nginx: Child,
    _directory: TempDir,
}

impl Side {
    /// Starts our daemon; the time runs from its start to the first answer of a call.
    pub(crate) async fn ours(access: &Access, upstream: &Api) -> anyhow::Result<(Self, Duration)> {
        let directory = tempfile::tempdir()?;
        let log = fs::File::create(directory.path().join("log"))?;
        let started = Instant::now();
        let command = daemon("open", &Place::Other(access.clone()), &upstream.url());
        let opened = command
            .args(["--json", "--until-stdin-closes"])
            .log_to(log)
            .open()
            .await;
        let bridge = opened.map_err(|ended| {
            let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
            anyhow!("`open` ended with {:?}: {}{log}", ended.code, ended.stderr)
        })?;
        let agent = Agent {
            url: bridge.opened.url.clone(),
            token: bridge.opened.token.clone(),
        };
        let kind = Kind::Ours {
            bridge: Box::new(bridge),
            _directory: directory,
        };
        Self { agent, kind }.after_first_answer(started).await
    }

    /// Starts nginx and `ssh -R` at the same moment.
    pub(crate) async fn rival(access: &Access, upstream: &Api) -> anyhow::Result<(Self, Duration)> {
        let directory = tempfile::tempdir()?;
        let nginx = program("nginx").map_err(|reason| anyhow!(reason))?;
        let reserved = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = reserved.local_addr()?.port();
        drop(reserved);
        let config = directory.path().join("nginx.conf");
        fs::write(&config, nginx_config(&directory, port, upstream.port()))?;

        let started = Instant::now();
        let errors = fs::File::create(directory.path().join("nginx.stderr"))?;
        let nginx = Command::new(nginx)
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()?;
        let stderr = directory.path().join("ssh.stderr");
        let ssh = ssh_command(access, port)?
            .stderr(fs::File::create(&stderr)?)
            .kill_on_drop(true)
            .spawn()?;
        let forwarded = eventually(START_LIMIT, "ssh allocates its remote port", || {
            let text = fs::read_to_string(&stderr).unwrap_or_default();
            text.split_once("Allocated port ")?
                .1
                .split_whitespace()
                .next()?
                .parse::<u16>()
                .ok()
        })
        .await;
        let agent = Agent {
            url: format!("http://127.0.0.1:{forwarded}"),
            token: TOKEN.to_owned(),
        };
        let kind = Kind::Rival(Box::new(Rival {
            ssh,
            nginx,
            _directory: directory,
        }));
        Self { agent, kind }.after_first_answer(started).await
    }

    async fn after_first_answer(self, started: Instant) -> anyhow::Result<(Self, Duration)> {
        loop {
            // nginx may not listen yet; then ssh closes the connection.
            match self.agent.get("/api/agents/me").await {
                Ok(answer) if answer.status == 200 => return Ok((self, started.elapsed())),
                Ok(answer) => return Err(anyhow!("{}: {}", answer.status, answer.text())),
                Err(broken) if started.elapsed() > START_LIMIT => {
                    return Err(anyhow!("no answer: {broken:?}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours { .. })
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.is_ours() { "ours" } else { "rival" }
    }

    /// The processes whose cost counts: not sshd, not the upstream.
    pub(crate) fn pids(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Ours { bridge, .. } => vec![bridge.running.pid()],
            Kind::Rival(rival) => {
                let nginx = rival.nginx.id().unwrap_or_default();
                let workers = processes::descendants(nginx).into_iter().map(|one| one.pid);
                workers
                    .chain([nginx, rival.ssh.id().unwrap_or_default()])
                    .collect()
            }
        }
    }

    pub(crate) fn cpu_time(&self) -> Duration {
        self.pids().into_iter().map(processes::cpu_time).sum()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // Told to end, the master ends and reaps its workers; killed, it would leave them.
        let Some(master) = self.nginx.id() else { return };
        processes::signal(master, "TERM");
        let ended = || {
            processes::one(master)
                .is_none_or(|one| one.state == 'Z')
                .then_some(())
        };
        eventually_blocking(END_LIMIT, "nginx ends", ended);
    }
}

fn ssh_command(access: &Access, port: u16) -> anyhow::Result<Command> {
    let place = access.target.strip_prefix("ssh://").context("an ssh target")?;
    let (user_host, ssh_port) = place.rsplit_once(':').context("a target with a port")?;
    let mut command = Command::new(program("ssh").map_err(|reason| anyhow!(reason))?);
    command
        .args([
            "-F",
            "none",
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
        ])
        .args(["-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes", "-o"])
        .arg(format!("UserKnownHostsFile={}", access.known_hosts.display()))
        .arg("-i")
        .arg(&access.identity)
        .args([
            "-R",
            &format!("127.0.0.1:0:127.0.0.1:{port}"),
            "-p",
            ssh_port,
            user_host,
        ])
        // A running command makes sshd turn Nagle's algorithm off; this one ends with its stdin.
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    Ok(command)
}

/// As good a rival as we can write: kept connections both ways, nothing spooled to disk, one worker.
fn nginx_config(directory: &TempDir, port: u16, upstream: u16) -> String {
    let directory = directory.path().display();
    let user = paperclip_bridge_tests::user::current();
    let user = if user == "root" { "user root;\n" } else { "" };
    format!(
        r#"{user}daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format call escape=json '{{"time":"$time_iso8601","method":"$request_method","path":"$uri",'
        '"status":$status,"bytes_in":$request_length,"bytes_out":$body_bytes_sent,'
        '"seconds":$request_time,"upstream_status":"$upstream_status","id":"$request_id"}}';
    access_log {directory}/access.log call;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 11m;
    keepalive_requests 100000000;
    tcp_nodelay on;
    upstream api {{
        server 127.0.0.1:{upstream};
        keepalive 128;
        keepalive_requests 100000000;
    }}
    map $http_authorization $permitted {{
        default 0;
        "Bearer {TOKEN}" 1;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            if ($permitted = 0) {{ return 401; }}
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffers 16 64k;
            proxy_buffer_size 16k;
            proxy_max_temp_file_size 0;
            proxy_set_header Connection "";
            proxy_set_header Host 127.0.0.1:{upstream};
            proxy_set_header Authorization "Bearer {CREDENTIAL}";
            proxy_set_header x-paperclip-run-id {RUN_ID};
        }}
    }}
}}
"#
    )
}
