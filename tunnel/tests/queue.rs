//! The whole tunnel: a gateway that the test plays, its directory, and callbacks that the test answers.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use runners::local::{BaseEnvironment, LocalRunner};
use runners::{SecretText, Shell};
use tokio_util::sync::CancellationToken;
use tunnel::launch::{GatewayProgram, GatewayToken, Launcher, SessionName};
use tunnel::queue::{HostedQueue, Journal, Queue, QueueOptions};
use tunnel::{
    AgentMessage, AgentStream, Callbacks, CallerProof, MessageBody, Status, StatusReporter, Tunnel, TunnelEnd,
};
use wire::envelope::{EnvelopeBody, Reading, RequestEnvelope, ResponseEnvelope};

const MAX_BODY: usize = 10 * 1024 * 1024 + 65_536;
const PATIENCE: Duration = Duration::from_secs(40);

/// Says where it listens and waits; its callers are played by the test.
const GATEWAY: &str = r#"#!/bin/sh
case $1 in --version) echo 0; exit 0 ;; esac
port=$PAPERCLIP_BRIDGE_PORT
[ "$port" != 0 ] || port=40123
echo "{\"pid\":$$,\"host\":\"127.0.0.1\",\"port\":$port}" >"$PAPERCLIP_BRIDGE_QUEUE_DIR/ready.json.tmp"
mv "$PAPERCLIP_BRIDGE_QUEUE_DIR/ready.json.tmp" "$PAPERCLIP_BRIDGE_QUEUE_DIR/ready.json"
trap 'exit 0' TERM
while :; do sleep 0.1; done
"#;

/// Answers by path, and remembers what it was asked.
#[derive(Debug, Default)]
struct Api {
    seen: Mutex<Vec<String>>,
    gate: tokio::sync::Notify,
}

impl Api {
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

#[derive(Debug)]
struct Answers(Arc<Api>);

impl Callbacks for Answers {
    fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
        unreachable!("this tunnel hands over messages")
    }

    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
        assert_eq!(message.proof, CallerProof::Channel);
        let target = String::from_utf8(message.target.to_vec()).unwrap();
        self.0
            .seen
            .lock()
            .unwrap()
            .push(format!("{} {target}", message.method));
        let api = self.0.clone();
        async move {
            let body = message.body.collect().await.unwrap().to_bytes();
            let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
            match target.as_str() {
                "/hang" => api.gate.notified().await,
                "/unknown" => {
                    *response.status_mut() = StatusCode::CONFLICT;
                    response
                        .headers_mut()
                        .insert("x-paperclip-bridge-outcome", "indeterminate".parse().unwrap());
                }
                _ => {}
            }
            response
                .headers_mut()
                .insert("content-length", "7".parse().unwrap());
            response
                .headers_mut()
                .insert("connection", "close".parse().unwrap());
            response.headers_mut().insert("etag", "\"7\"".parse().unwrap());
            response
        }
        .boxed()
    }
}

struct World {
    home: tempfile::TempDir,
    api: Arc<Api>,
    executions: Arc<AtomicU64>,
}

struct Running {
    queue: PathBuf,
    status: tokio::sync::watch::Receiver<Status>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<TunnelEnd>,
}

impl World {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            api: Arc::default(),
            executions: Arc::default(),
        }
    }

    fn options(&self) -> QueueOptions {
        let name = SessionName::new("8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11").unwrap();
        let token = GatewayToken::from_text(SecretText::new("a-token"));
        let mut options = QueueOptions::new(name, token, MAX_BODY);
        options.executions = self.executions.clone();
        options
    }

    fn journal(&self) -> Journal {
        Journal::open(self.home.path().join("journal")).unwrap()
    }

    fn queue(&self, options: QueueOptions) -> Box<dyn Tunnel> {
        let home = self.home.path().to_str().unwrap().to_owned();
        let base = BaseEnvironment {
            home,
            ..BaseEnvironment::default()
        };
        let runner = Arc::new(LocalRunner::new(base, None));
        let program = GatewayProgram::binary(GATEWAY.as_bytes());
        Box::new(Queue::new(Launcher::new(runner, Shell::Sh, program), options))
    }

    async fn start(&self, options: QueueOptions) -> Running {
        let name = format!("q-{}", options.session.as_str());
        let tunnel = self.queue(options);
        let queue = self.home.path().join(".cache/paperclip-bridge").join(name);
        self.serve(tunnel, queue).await
    }

    async fn serve(&self, tunnel: Box<dyn Tunnel>, queue: PathBuf) -> Running {
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let callbacks = Arc::new(Answers(self.api.clone()));
        let task = tokio::spawn(tunnel.serve(callbacks, reporter, stop.clone()));
        let ready = status.wait_for(|status| matches!(status, Status::Ready { .. }));
        tokio::time::timeout(PATIENCE, ready).await.unwrap().unwrap();
        Running {
            queue,
            status,
            stop,
            task,
        }
    }
}

impl Running {
    fn put(&self, id: &str, method: &str, target: &str, body: &[u8]) {
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        let envelope = RequestEnvelope {
            id: id.to_owned(),
            method: method.parse().unwrap(),
            path: path.to_owned(),
            query: query.to_owned(),
            host: None,
            headers: http::HeaderMap::new(),
            body: EnvelopeBody::Base64(Bytes::copy_from_slice(body)),
            created_at: "x".to_owned(),
        };
        self.put_raw(id, &envelope.to_bytes());
    }

    fn put_raw(&self, id: &str, bytes: &[u8]) {
        let path = self.queue.join("requests").join(format!("{id}.json"));
        let part = path.with_extension("json.tmp");
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(part, path).unwrap();
    }

    /// The answer, taken away as a gateway does.
    async fn answer(&self, id: &str) -> ResponseEnvelope {
        let path = self.queue.join("responses").join(format!("{id}.json"));
        until(&format!("the answer to {id}"), || path.exists()).await;
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        ResponseEnvelope::parse(&bytes, id, MAX_BODY, Reading::Strict).unwrap()
    }

    async fn ask(&self, id: &str, method: &str, target: &str, body: &[u8]) -> ResponseEnvelope {
        self.put(id, method, target, body);
        self.answer(id).await
    }

    async fn end(self) -> TunnelEnd {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(8), self.task)
            .await
            .unwrap()
            .unwrap()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn text(answer: &ResponseEnvelope) -> String {
    String::from_utf8(answer.body.clone().into_bytes().to_vec()).unwrap()
}

/// Processes whose command line names this folder.
fn processes(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(folder))
        .count()
}

#[tokio::test]
async fn callbacks_are_answered_and_nothing_is_left_after_a_stop() {
    for batch_only in [false, true] {
        let world = World::new();
        let mut options = world.options();
        options.batch_only = batch_only;
        let running = world.start(options).await;

        let answer = running.ask("a", "POST", "/api/x?y=1", b"hello").await;

        assert_eq!((answer.status.as_u16(), text(&answer).as_str()), (200, "hello"));
        assert_eq!(answer.headers.get("etag").unwrap(), "\"7\"");
        assert!(answer.headers.get("content-length").is_none() && answer.headers.get("connection").is_none());
        assert_eq!(world.api.seen(), ["POST /api/x?y=1"]);
        let answer = running.ask("b", "POST", "/unknown", b"").await;
        assert_eq!(answer.status, 504);
        assert!(answer.is_indeterminate());

        let queue = running.queue.clone();
        assert!(matches!(running.end().await, TunnelEnd::Stopped));
        assert!(!queue.exists());
        until("no process is left", || processes(world.home.path()) == 0).await;
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_fixed_texts_and_never_sent() {
    let world = World::new();
    let running = world.start(world.options()).await;
    running.put_raw("a", b"{}");
    running.put_raw("b", b"not json");
    for (id, target) in [("c", "/x#y"), ("d", "/x\ny"), ("e", "/x?a#b"), ("f", "/x y")] {
        running.put(id, "GET", target, b"");
    }
    for id in ["a", "b", "c", "d", "e", "f"] {
        let answer = running.answer(id).await;
        assert_eq!(answer.status, 400, "{id}");
        assert_eq!(text(&answer), "{\"error\":\"Invalid bridge request payload.\"}");
    }
    std::fs::File::create(running.queue.join("requests/g.json"))
        .unwrap()
        .set_len(1 << 33)
        .unwrap();
    assert_eq!(running.answer("g").await.status, 413);
    assert_eq!(world.api.seen(), [""; 0]);
    running.end().await;
}

#[tokio::test]
async fn a_replayed_unsafe_request_is_never_sent_twice_across_restarts_of_the_host() {
    let world = World::new();
    let mut options = world.options();
    options.journal = world.journal();
    let first = world.start(options).await;
    assert_eq!(first.ask("answered", "POST", "/one", b"").await.status, 200);
    first.put("open", "POST", "/hang", b"");
    until("it is sent", || world.api.seen().len() == 2).await;
    // As if the host were killed.
    first.task.abort();
    let _ = first.task.await;

    let mut options = world.options();
    options.journal = loop {
        match Journal::open(world.home.path().join("journal")) {
            Ok(journal) => break journal,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let second = world.start(options).await;
    let answer = second.answer("open").await;
    second.put("answered", "POST", "/one", b"");
    until("the replayed file is removed", || {
        !second.queue.join("requests/answered.json").exists()
            && !second.queue.join("claimed/answered.json").exists()
    })
    .await;

    assert_eq!(answer.status, 504);
    assert!(answer.is_indeterminate());
    assert_eq!(world.api.seen(), ["POST /one", "POST /hang"]);
    assert!(matches!(second.end().await, TunnelEnd::Stopped));
}

#[tokio::test]
async fn sixty_four_at_once_are_served_side_by_side_with_few_executions() {
    for batch_only in [false, true] {
        let world = World::new();
        let mut options = world.options();
        options.batch_only = batch_only;
        let running = world.start(options).await;
        let before = world.executions.load(Ordering::Relaxed);
        let ids: Vec<String> = (0..64).map(|n| format!("r{n}")).collect();

        for id in &ids {
            running.put(id, "POST", "/x", id.as_bytes());
        }
        for id in &ids {
            assert_eq!(text(&running.answer(id).await), *id);
        }

        let used = world.executions.load(Ordering::Relaxed) - before;
        assert!(used <= 19, "{used} executions for 64 callbacks");
        running.end().await;
    }
}

#[tokio::test]
async fn a_slow_callback_does_not_hold_up_others_and_is_told_the_truth_at_a_stop() {
    let world = World::new();
    let running = world.start(world.options()).await;
    running.put("write", "POST", "/hang", b"");
    running.put("read", "GET", "/hang", b"");
    until("both are being served", || world.api.seen().len() == 2).await;

    assert_eq!(running.ask("quick", "GET", "/x", b"").await.status, 200);

    let queue = running.queue.clone();
    let stop = running.stop.clone();
    let watch = async move {
        let mut answers = Vec::new();
        for id in ["write", "read"] {
            let path = queue.join("responses").join(format!("{id}.json"));
            until(id, || path.exists()).await;
            let bytes = std::fs::read(&path).unwrap();
            answers.push(ResponseEnvelope::parse(&bytes, id, MAX_BODY, Reading::Strict).unwrap());
        }
        answers
    };
    stop.cancel();
    let (answers, end) = tokio::join!(watch, running.task);
    assert!(matches!(end.unwrap(), TunnelEnd::Stopped));
    assert_eq!(answers[0].status, 504);
    assert!(answers[0].is_indeterminate());
    assert_eq!(answers[1].status, 503);
}

#[tokio::test]
async fn a_killed_pump_is_replaced_and_nothing_is_lost_or_sent_twice() {
    let world = World::new();
    let mut running = world.start(world.options()).await;
    running.put("held", "POST", "/hang", b"");
    until("it is being served", || world.api.seen().len() == 1).await;

    let pump = std::fs::read_to_string(running.queue.join("pump")).unwrap();
    let pid = pump.split_whitespace().nth(1).unwrap().to_owned();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    let lost = running
        .status
        .wait_for(|status| matches!(status, Status::Reconnecting { .. }));
    tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    world.api.gate.notify_one();

    assert_eq!(running.answer("held").await.status, 200);
    assert_eq!(running.ask("next", "POST", "/x", b"").await.status, 200);
    assert_eq!(world.api.seen(), ["POST /hang", "POST /x"]);
    assert!(matches!(running.end().await, TunnelEnd::Stopped));
}

#[tokio::test]
async fn a_gateway_that_died_is_started_again_on_the_same_port() {
    let world = World::new();
    let running = world.start(world.options()).await;
    let read = || std::fs::read_to_string(running.queue.join("ready.json")).unwrap_or_default();
    let before = read();
    let pid = before
        .split(['"', ':', ','])
        .find_map(|word| word.parse::<u32>().ok())
        .unwrap();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );

    until("another gateway listens", || {
        let now = read();
        !now.is_empty() && now != before
    })
    .await;

    assert!(read().contains("40123"));
    assert_eq!(running.ask("a", "GET", "/x", b"").await.status, 200);
    assert!(matches!(running.end().await, TunnelEnd::Stopped));
}

#[tokio::test]
async fn a_directory_on_this_machine_is_served_and_a_request_of_a_gone_caller_is_removed() {
    let world = World::new();
    let queue = world.home.path().join("queue");
    let tunnel = Box::new(HostedQueue::new(&queue, world.options()));
    let running = world.serve(tunnel, queue).await;

    assert_eq!(running.ask("a", "POST", "/x", b"1").await.status, 200);
    let old = "{\"id\":\"old\",\"method\":\"POST\",\"path\":\"/old\",\"query\":\"\",\"headers\":{},\"body\":\"\",\"createdAt\":\"2020-01-01T00:00:00.000Z\"}";
    running.put_raw("old", old.as_bytes());
    until("it is removed", || {
        !running.queue.join("requests/old.json").exists() && !running.queue.join("claimed/old.json").exists()
    })
    .await;

    assert_eq!(world.api.seen(), ["POST /x"]);
    assert!(!running.queue.join("responses/old.json").exists());
    assert!(matches!(running.end().await, TunnelEnd::Stopped));
}
