//! `host --queue DIR` for a gateway that somebody else started: ours, and the published ones.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use paperclip_bridge_tests::binary::{BridgeCommand, Running};
use paperclip_bridge_tests::peer::{Installed, Release, installed, our_gateway, their_script};
use paperclip_bridge_tests::upstream::Step;
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID};
use paperclip_bridge_tests::{Agent, Script, Upstream, can_run, eventually};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::queue::{COMMENTS, ME, port};

const TOKEN: &str = "a-token-of-the-gateway";
const START: Duration = Duration::from_secs(20);

/// A gateway that the test started, its directory and the API.
struct Hosted {
    upstream: Upstream,
    folder: TempDir,
    agent: Agent,
    gateway: Child,
    patience: Duration,
    depth: usize,
}

/// How a gateway is started by hand.
enum Program<'a> {
    Ours,
    Theirs(&'a Installed, Release),
}

impl Hosted {
    async fn start(program: Program<'_>, patience: Duration, depth: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("queue");
        for name in ["requests", "responses", "logs"] {
            std::fs::create_dir_all(queue.join(name)).unwrap();
        }
        let mut command = match program {
            Program::Ours => Command::new(our_gateway()),
            Program::Theirs(installed, release) => {
                let mut command = Command::new(installed.node());
                command.arg(their_script(installed, release, folder.path()));
                command
            }
        };
        let gateway = command
            .env_clear()
            .envs(variables(&queue, patience))
            .env("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", depth.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = eventually(START, "the gateway listens", || {
            let text = std::fs::read(queue.join("ready.json")).ok()?;
            let ready: serde_json::Value = serde_json::from_slice(&text).ok()?;
            Some(format!("http://127.0.0.1:{}", ready["port"].as_u64()?))
        })
        .await;
        Self {
            upstream: Upstream::start().await,
            folder,
            agent: Agent {
                url,
                token: TOKEN.to_owned(),
            },
            gateway,
            patience,
            depth,
        }
    }

    fn queue(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    fn host(&self, arguments: &[&str]) -> Running {
        let queue = self.queue();
        let mut command = BridgeCommand::new(["host", "--queue", queue.to_str().unwrap()])
            .args(["--upstream", &self.upstream.url(), "--run-id", RUN_ID])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
            .args(arguments.iter().copied())
            .env(CREDENTIAL_VARIABLE, CREDENTIAL);
        for (name, value) in variables(&queue, self.patience) {
            command = command.env(name, &value);
        }
        command.start()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.queue().join(folder));
        let names = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    async fn is_empty(&self) {
        eventually(Duration::from_secs(10), "the queue is empty", || {
            let left = ["requests", "responses", "claimed"].map(|folder| self.files(folder));
            left.iter().all(Vec::is_empty).then_some(())
        })
        .await;
    }

    async fn end(mut self, host: Running) {
        host.signal("TERM");
        let ended = host.finish().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        self.gateway.kill().await.unwrap();
    }
}

fn variables(queue: &Path, patience: Duration) -> [(&'static str, String); 6] {
    [
        ("PAPERCLIP_API_BRIDGE_MODE", "queue_v1".to_owned()),
        ("PAPERCLIP_BRIDGE_QUEUE_DIR", queue.display().to_string()),
        ("PAPERCLIP_BRIDGE_TOKEN", TOKEN.to_owned()),
        ("PAPERCLIP_BRIDGE_PORT", "0".to_owned()),
        (
            "PAPERCLIP_BRIDGE_RESPONSE_TIMEOUT_MS",
            patience.as_millis().to_string(),
        ),
        ("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "262144".to_owned()),
    ]
}

async fn serves_and_is_served_again_after_a_kill(hosted: Hosted, arguments: &[&str]) {
    let state = hosted.folder.path().join("state");
    let with_state = ["--state-dir", state.to_str().unwrap()];
    let arguments: Vec<&str> = arguments.iter().copied().chain(with_state).collect();
    hosted.upstream.on("POST", COMMENTS, Script::json(201, "{}"));
    let host = hosted.host(&arguments);
    assert_eq!(hosted.agent.get(ME).await.unwrap().status, 200);
    assert_eq!(hosted.agent.post(COMMENTS, "{}").await.unwrap().status, 201);

    // Killed while one call is being served and its outcome is open.
    hosted
        .upstream
        .on_next(1, "POST", COMMENTS, Script::stall_before_answer());
    let (agent, mark) = (hosted.agent.clone(), hosted.upstream.count());
    let open = tokio::spawn(async move { agent.post(COMMENTS, "{}").await });
    eventually(START, "the call is sent", || {
        (hosted.upstream.count() > mark).then_some(())
    })
    .await;
    host.signal("KILL");
    host.finish().await;
    let host = hosted.host(&arguments);

    let told = open.await.unwrap().unwrap();
    assert_eq!(told.status, 409, "{}", told.text());
    assert_eq!(told.header("x-paperclip-bridge-outcome"), Some("indeterminate"));
    assert_eq!(hosted.upstream.count(), mark + 1, "it was sent twice");
    assert_eq!(hosted.agent.get(ME).await.unwrap().status, 200);
    hosted.is_empty().await;
    hosted.end(host).await;
}

const USUAL: (Duration, usize) = (Duration::from_secs(30), 64);

#[tokio::test]
async fn our_gateway_started_by_hand_is_served_also_by_a_restarted_host() {
    let hosted = Hosted::start(Program::Ours, USUAL.0, USUAL.1).await;
    assert!(port(&hosted.agent.url) > 0);

    serves_and_is_served_again_after_a_kill(hosted, &[]).await;
}

#[tokio::test]
async fn the_published_gateways_started_by_hand_are_served_also_by_a_restarted_host() {
    if !can_run(installed().map(drop)) {
        return;
    }
    for (release, arguments) in [(Release::R916, &[][..]), (Release::R707, &["--text-bodies"][..])] {
        let program = Program::Theirs(installed().unwrap(), release);
        let hosted = Hosted::start(program, USUAL.0, USUAL.1).await;

        serves_and_is_served_again_after_a_kill(hosted, arguments).await;
    }
}

#[tokio::test]
async fn an_older_gateway_never_hands_out_a_status_that_invites_to_send_a_write_again() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let program = Program::Theirs(installed().unwrap(), Release::R707);
    let hosted = Hosted::start(program, Duration::from_secs(6), 64).await;
    let host = hosted.host(&["--text-bodies"]);
    let lost = [
        ("closed", Script::close_without_answer()),
        ("cut", Script::json(201, r#"{"made":true}"#).cut_after(70)),
        ("reset", Script::steps([Step::ReadBody, Step::Reset])),
        // Longer than the gateway waits.
        ("late", Script::json(201, "{}").after(Duration::from_secs(6))),
    ];

    for (name, script) in lost {
        hosted.upstream.on_next(1, "POST", COMMENTS, script);
        let answer = hosted.agent.post(COMMENTS, "{}").await.unwrap();

        assert_eq!(answer.status, 409, "{name}: {}", answer.text());
        assert_eq!(
            answer.header("x-paperclip-bridge-outcome"),
            Some("indeterminate"),
            "{name}"
        );
    }
    hosted.end(host).await;
}

#[tokio::test]
async fn a_full_queue_says_503_and_recovers_by_itself() {
    for ours in [true, false] {
        if !ours && !can_run(installed().map(drop)) {
            return;
        }
        let program = match ours {
            true => Program::Ours,
            false => Program::Theirs(installed().unwrap(), Release::R916),
        };
        let hosted = Hosted::start(program, Duration::from_secs(4), 2).await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..hosted.depth {
            let agent = hosted.agent.clone();
            waiting.spawn(async move { agent.get(ME).await.unwrap().status });
        }
        // What is still being written does not count for the gateway either.
        let whole = || {
            let files = hosted.files("requests").into_iter();
            files.filter(|name| name.ends_with(".json")).count()
        };
        let full = || (whole() == hosted.depth).then_some(());
        eventually(START, "nobody takes the requests", full).await;

        let refused = hosted.agent.get(ME).await.unwrap();
        assert_eq!(refused.status, 503, "{}", refused.text());
        let given_up = waiting.join_all().await;
        assert!(given_up.iter().all(|status| *status >= 500), "{given_up:?}");
        let host = hosted.host(&[]);

        let answer = hosted.agent.get(ME).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            hosted.upstream.count(),
            1,
            "what its caller gave up was sent all the same"
        );
        hosted.is_empty().await;
        hosted.end(host).await;
    }
}

#[tokio::test]
async fn answers_that_nobody_fetches_are_removed() {
    let mut hosted = Hosted::start(Program::Ours, Duration::from_secs(2), 64).await;
    // Nobody is left to fetch what is asked now.
    hosted.gateway.kill().await.unwrap();
    let host = hosted.host(&[]);
    let id = "8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11";
    let now = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.000Z"])
        .output()
        .await
        .unwrap();
    let request = serde_json::json!({
        "id": id, "method": "GET", "path": ME, "query": "", "headers": {}, "body": "",
        "createdAt": String::from_utf8(now.stdout).unwrap().trim(),
    });
    let part = hosted.queue().join("requests/part.tmp");
    std::fs::write(&part, format!("{request}\n")).unwrap();
    std::fs::rename(&part, hosted.queue().join(format!("requests/{id}.json"))).unwrap();

    eventually(START, "it is answered", || {
        (hosted.files("responses") == [format!("{id}.json")]).then_some(())
    })
    .await;
    eventually(START, "the answer is removed", || {
        hosted.files("responses").is_empty().then_some(())
    })
    .await;
    hosted.is_empty().await;
    hosted.end(host).await;
}
