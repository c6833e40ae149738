//! A command in a sandbox behind a Worker calls the API: by the Worker's relay, and by a queue where there is none.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::binary::{Bridge, BridgeCommand};
use paperclip_bridge_tests::relayed::config;
use paperclip_bridge_tests::upstream::{Script, Upstream};
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::workerd::{Settings, TOKEN, Workerd, installed, key};
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID, assert_headers};
use paperclip_bridge_tests::{Agent, can_run, eventually, processes, within};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);
const ME: &str = "/api/agents/me";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const CALL: &str = r#"env; curl -sS -w ' %{http_code}\n' -H "Authorization: Bearer $PAPERCLIP_API_KEY" \
    "$PAPERCLIP_API_URL/api/agents/me""#;

/// A Worker, the API, and a daemon's state folder.
pub(crate) struct World {
    pub(crate) worker: Workerd,
    upstream: Upstream,
    pub(crate) config: Map<String, Value>,
    state: TempDir,
}

impl World {
    pub(crate) async fn new(settings: &Settings, changes: Value) -> Option<Self> {
        if !can_run(installed().map(drop).and_then(|()| program("curl").map(drop))) {
            return None;
        }
        let worker = Workerd::start(settings);
        let config = config(&worker, changes);
        Some(Self {
            worker,
            upstream: Upstream::start().await,
            config,
            state: tempfile::tempdir().expect("a temporary folder can be made"),
        })
    }

    pub(crate) fn command(&self, subcommand: &[&str]) -> BridgeCommand {
        let fields = self.config.iter().flat_map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ["--provider".to_owned(), format!("{name}={value}")]
        });
        BridgeCommand::new(subcommand.iter().copied())
            .args(["--state-dir", &self.state.path().display().to_string()])
            .args(fields)
            .env("WORKER_TOKEN", TOKEN)
            .env("WORKER_KEY", &STANDARD.encode(key()))
            .env(CREDENTIAL_VARIABLE, CREDENTIAL)
    }

    pub(crate) fn session(&self, subcommand: &str) -> BridgeCommand {
        self.command(&[subcommand, "worker:"])
            .args(["--upstream", &self.upstream.url(), "--run-id", RUN_ID])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
    }

    async fn open(&self, options: &[&str]) -> Bridge {
        let opened = self
            .session("open")
            .args(["--json", "--until-stdin-closes"])
            .args(options.iter().copied())
            .open()
            .await;
        opened.unwrap_or_else(|ended| panic!("{:?}: {}", ended.code, ended.stderr))
    }

    pub(crate) fn leases(&self) -> usize {
        let entries = std::fs::read_dir(self.state.path().join("leases"));
        let folders = entries.into_iter().flatten().flatten();
        folders.filter(|entry| entry.path().is_dir()).count()
    }

    /// Neither the sandbox nor its processes nor its lease are there any more.
    pub(crate) async fn nothing_is_left(&self) {
        assert_eq!(self.leases(), 0);
        let folder = self.config["requestedCwd"].as_str().expect("it is set");
        eventually(LIMIT, "the sandbox and its processes are gone", || {
            let at_work = processes::all().into_iter().any(|one| {
                let at = std::fs::read_link(format!("/proc/{}/cwd", one.pid)).unwrap_or_default();
                at.to_string_lossy().starts_with(folder)
            });
            (!at_work && !Path::new(folder).exists()).then_some(())
        })
        .await;
    }
}

fn agent(bridge: &Bridge) -> Agent {
    Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    }
}

fn attempts(bridge: &Bridge) -> Vec<(&str, &str)> {
    let attempts = bridge.opened.ladder.iter();
    attempts
        .map(|attempt| {
            let word = |name: &str| attempt[name].as_str().unwrap_or_default();
            (word("tunnel"), word("reason"))
        })
        .collect()
}

/// In front of the Worker: refuses to pass the relay's upgrade on, and passes everything else.
struct Proxy {
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// - `worker`: where the Worker is; told once it is known.
    fn start(listener: TcpListener, worker: String, refusal: &'static str) -> Self {
        let address = listener.local_addr().expect("it listens").to_string();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::pass(client, worker.clone(), refusal));
            }
        });
        Self { address, task }
    }

    async fn pass(mut client: TcpStream, worker: String, refusal: &'static str) -> Option<()> {
        let mut begin = vec![];
        while !begin.windows(2).any(|pair| pair == b"\r\n") {
            let read = client.read_buf(&mut begin).await.ok()?;
            (read > 0).then_some(())?;
        }
        if String::from_utf8_lossy(&begin).contains("/relay/") {
            client.write_all(refusal.as_bytes()).await.ok()?;
            return client.shutdown().await.ok();
        }
        let mut server = TcpStream::connect(worker).await.ok()?;
        server.write_all(&begin).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
    }
}

#[tokio::test]
async fn a_command_reaches_the_api_through_the_relay_and_nothing_is_left_behind() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };

    let ended = world.session("run").command(["sh", "-c", CALL]).finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.ends_with("{\"ok\":true} 200\n"), "{}", ended.stdout);
    for told in [
        format!("PAPERCLIP_API_URL={}\n", world.worker.relay_url),
        "PAPERCLIP_API_BRIDGE_MODE=worker\n".to_owned(),
        "PAPERCLIP_API_KEY=prt1.pcb-".to_owned(),
    ] {
        assert!(ended.stdout.contains(&told), "{told}: {}", ended.stdout);
    }
    let signing = STANDARD.encode(key());
    for (name, secret) in [("credential", CREDENTIAL), ("bearer", TOKEN), ("key", &signing)] {
        assert!(!ended.stdout.contains(secret), "{name}: {}", ended.stdout);
        assert!(!ended.stderr.contains(secret), "{name}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("pcb_"), "{}", ended.stderr);
    assert_headers(&world.upstream.seen());
    assert_eq!(world.upstream.count(), 1);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn without_a_relay_it_reaches_the_api_by_queue_v1() {
    let Some(world) = World::new(&Settings::default(), json!({ "relayUrl": null })).await else {
        return;
    };

    let ended = world.session("run").command(["sh", "-c", CALL]).finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.ends_with("{\"ok\":true} 200\n"), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("PAPERCLIP_API_BRIDGE_MODE=queue_v1\n"),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains(CREDENTIAL) && !ended.stderr.contains(CREDENTIAL));
    assert_headers(&world.upstream.seen());
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_relay_that_is_refused_makes_room_for_queue_v1_and_its_reason_is_named() {
    for (refusal, reason) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "no_relay"),
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            "relay_unavailable",
        ),
        // As by something on the way that lets no WebSocket through.
        ("", "relay_unavailable"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings {
            allowed_hosts: vec![listener.local_addr().unwrap().to_string()],
            ..Settings::default()
        };
        let Some(mut world) = World::new(&settings, json!({})).await else {
            return;
        };
        let worker = world.worker.url.trim_start_matches("http://").to_owned();
        let proxy = Proxy::start(listener, worker, refusal);
        let base = format!("http://{}", proxy.address);
        world.config.insert("bridgeBaseUrl".to_owned(), json!(base));

        let bridge = world.open(&[]).await;

        let answer = agent(&bridge).get(ME).await.unwrap();
        assert_eq!(answer.status, 200, "{}", bridge.running.stderr());
        assert_eq!(bridge.opened.tunnel, "queue_v1");
        assert_eq!(
            attempts(&bridge),
            [("worker", reason), ("http2_v1", "no_duplex")],
            "{:?}",
            bridge.opened.ladder
        );
        let ended = bridge.close().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);

        let alone = world
            .session("open")
            .args(["--json", "--tunnel", "worker"])
            .open()
            .await;
        let alone = alone.unwrap_err();
        assert_eq!(alone.code, Some(4), "{}", alone.stderr);
        assert!(alone.stderr.contains(reason), "{}", alone.stderr);
        world.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_demanded_relay_says_which_of_its_settings_is_missing() {
    let Some(world) = World::new(&Settings::default(), json!({ "relayUrl": null })).await else {
        return;
    };

    let refused = world
        .session("open")
        .args(["--json", "--tunnel", "worker"])
        .open()
        .await;

    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("names no relay"), "{}", refused.stderr);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_the_agent_is_told_is_the_same_in_json_and_in_its_environment() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };

    let bridge = world.open(&["--tunnel", "worker"]).await;

    let opened = &bridge.opened;
    assert_eq!((opened.tunnel.as_str(), opened.ladder.len()), ("worker", 0));
    assert_eq!(opened.url, world.worker.relay_url);
    assert_eq!(opened.env["PAPERCLIP_API_URL"], opened.url);
    assert_eq!(opened.env["PAPERCLIP_API_KEY"], opened.token);
    assert_eq!(opened.env["PAPERCLIP_API_BRIDGE_MODE"], "worker");
    assert_eq!(agent(&bridge).get(ME).await.unwrap().status, 200);
    // Neither half of it is enough.
    let (relay, token) = opened.token.rsplit_once('.').unwrap();
    for half in [token.to_owned(), format!("{relay}.pcb_x")] {
        let stranger = Agent {
            token: half,
            ..agent(&bridge)
        };
        assert_eq!(stranger.get(ME).await.unwrap().status, 401);
    }
    assert_eq!(world.upstream.count(), 1);
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_daemon_killed_under_a_callback_leaves_an_honest_outcome_and_a_lease_for_its_successor() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };
    let held = Arc::new(Semaphore::new(0));
    world
        .upstream
        .on_next(1, "POST", COMMENTS, Script::json(201, "{}").held(&held));
    let bridge = world.open(&[]).await;
    let url = bridge.opened.url.clone();
    let caller = agent(&bridge);
    let call = tokio::spawn(async move { caller.post(COMMENTS, "{}").await });
    eventually(LIMIT, "it is at the API", || {
        (world.upstream.count() == 1).then_some(())
    })
    .await;

    bridge.running.signal("KILL");
    bridge.running.finish().await;

    let lost = within(LIMIT, "an outcome", call).await.unwrap().unwrap();
    assert_eq!(
        (lost.status, lost.code(), lost.json()["retryable"].as_bool()),
        (502, "relay_lost".to_owned(), Some(false))
    );
    assert_eq!(world.leases(), 1);
    held.add_permits(1);
    let successor = world.open(&[]).await;
    assert_eq!(successor.opened.url, url);
    assert_eq!(agent(&successor).get(ME).await.unwrap().status, 200);
    let posts = world.upstream.seen();
    let posts = posts.iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(posts, 1);
    assert_eq!(world.leases(), 1);
    let ended = successor.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_given_back_by_leases_reap() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };
    let bridge = world.open(&[]).await;
    bridge.running.signal("KILL");
    bridge.running.finish().await;
    assert_eq!(world.leases(), 1);

    let reaped = world.command(&["leases", "reap"]).finish().await;

    assert_eq!(reaped.code, Some(0), "{}{}", reaped.stdout, reaped.stderr);
    world.nothing_is_left().await;
}
