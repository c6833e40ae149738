//! A target of the tests, its gateways, and what answers callbacks.
//!
//! Here: a runner whose gateways are played in this process, over an in-memory stream, so that each can say and do what
//! a test wants. The tunnel's own scripts are answered as the target's shell would. Not here: any test.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use runners::{
    Capabilities, CommandManagedRuntimeRunner, Duplex, DuplexRequest, Execution, ExecutionResult,
    RunnerError, SecretText, Shell,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tunnel::http2::{Http2, Http2Options};
use tunnel::launch::{GatewayProgram, GatewayToken, Launcher, SessionName};
use tunnel::{
    AgentMessage, AgentStream, Callbacks, Listening, MessageBody, Status, StatusReporter, Tunnel, TunnelEnd,
};

pub(crate) const TOKEN: &str = "the-token";

/// How a gateway was started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) variables: BTreeMap<String, String>,
}

impl Start {
    pub(crate) fn port(&self) -> u16 {
        self.variables["PAPERCLIP_BRIDGE_PORT"].parse().unwrap()
    }

    pub(crate) fn ready(&self) -> String {
        wire::ready::line(&self.variables["PAPERCLIP_BRIDGE_NONCE"])
    }
}

pub(crate) type Stdio = BufReader<DuplexStream>;
pub(crate) type Play = Arc<dyn Fn(Start, Stdio) -> BoxFuture<'static, ()> + Send + Sync>;

/// Turns a function into what a gateway does.
pub(crate) fn play<F, R>(act: F) -> Play
where
    F: Fn(Start, Stdio) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |start, stdio| Box::pin(act(start, stdio)))
}

/// A gateway that is up, as its own side sees it.
pub(crate) struct Gateway {
    pub(crate) start: Start,
    pub(crate) send: SendRequest<MessageBody>,
    tasks: Tasks,
}

/// What hyper spawned for a gateway's connection; it may hold the channel.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let task = tokio::spawn(async move {
            task.await;
        });
        self.0.lock().unwrap().push(task.abort_handle());
    }
}

impl Gateway {
    /// It dies, and its channel with it.
    pub(crate) fn die(&self) {
        for task in self.tasks.0.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<hyper::body::Incoming> {
        self.send.ready().await.unwrap();
        self.send.send_request(get(path)).await.unwrap()
    }

    pub(crate) fn is_told_to_go(&self) -> bool {
        self.send.is_closed()
    }
}

pub(crate) fn get(path: &str) -> Request<MessageBody> {
    Request::get(format!("http://127.0.0.1:1{path}"))
        .body(empty())
        .unwrap()
}

pub(crate) fn empty() -> MessageBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> MessageBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A target whose gateways act as told; the last act is repeated.
pub(crate) struct Target {
    plays: Mutex<VecDeque<Play>>,
    pub(crate) starts: Arc<Mutex<Vec<Start>>>,
    /// Another program has the port.
    pub(crate) port_is_taken: AtomicBool,
    pub(crate) is_reachable: AtomicBool,
    pub(crate) installs: AtomicUsize,
    pub(crate) ends: AtomicUsize,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Target")
    }
}

impl Target {
    fn unreachable(&self) -> RunnerError {
        RunnerError::Unreachable {
            target: "target".to_owned(),
            reason: "the test says so".to_owned(),
        }
    }

    /// What the target's shell would print; each script is known by what only it does.
    fn answer(&self, script: &str) -> String {
        if script.contains("uname -sm") {
            self.installs.fetch_add(1, Ordering::SeqCst);
            let name = script.split("f=").nth(1).and_then(|rest| rest.split(';').next());
            return format!(
                "noise\npcb-launch system Linux x86_64\npcb-launch installed /cache/{}\n",
                name.unwrap()
            );
        }
        if script.contains("command -v node") {
            let name = script.split("f=").nth(1).and_then(|rest| rest.split(';').next());
            return format!(
                "pcb-launch node /usr/bin/node\npcb-launch installed /cache/{}\n",
                name.unwrap()
            );
        }
        if script.contains("/proc/net/tcp") {
            let last = self.starts.lock().unwrap().last().map(Start::port);
            let taken = self.port_is_taken.load(Ordering::SeqCst);
            return match last {
                Some(port) if taken => {
                    format!("pcb-listeners\n 0: 0100007F:{port:04X} 00000000:0000 0A 0\n")
                }
                Some(_) | None => "pcb-listeners\n".to_owned(),
            };
        }
        assert!(script.contains("rm -f \"$r\""), "an unknown script: {script}");
        self.ends.fetch_add(1, Ordering::SeqCst);
        "pcb-launch ended -\n".to_owned()
    }
}

impl CommandManagedRuntimeRunner for Target {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        Box::pin(async move {
            if !self.is_reachable.load(Ordering::SeqCst) {
                return Err(self.unreachable());
            }
            Ok(ExecutionResult {
                exit_code: Some(0),
                stdout: self.answer(&execution.args[1]).into_bytes(),
                ..ExecutionResult::default()
            })
        })
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        Box::pin(async move {
            if !self.is_reachable.load(Ordering::SeqCst) {
                return Err(self.unreachable());
            }
            assert!(!request.args[1].contains(TOKEN), "the token stands in argv");
            let (near, far) = tokio::io::duplex(64 * 1024);
            let mut stdio = BufReader::new(far);
            let act = {
                let mut plays = self.plays.lock().unwrap();
                let act = plays.front().unwrap().clone();
                if plays.len() > 1 {
                    plays.pop_front();
                }
                act
            };
            let starts = Arc::clone(&self.starts);
            tokio::spawn(async move {
                let Some(start) = read_block(&mut stdio).await else {
                    return;
                };
                starts.lock().unwrap().push(start.clone());
                act(start, stdio).await;
            });
            Ok(Duplex {
                stream: Box::new(near),
            })
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            duplex: true,
            streaming_output: true,
            concurrent: true,
            file_transfer: false,
        }
    }

    fn target(&self) -> &str {
        "target"
    }
}

async fn read_block(stdio: &mut Stdio) -> Option<Start> {
    let mut line = String::new();
    stdio.read_line(&mut line).await.ok()?;
    let count: usize = line.trim_end().parse().ok()?;
    let mut variables = BTreeMap::new();
    for _ in 0..count {
        let mut line = String::new();
        stdio.read_line(&mut line).await.ok()?;
        let (key, value) = line.trim_end_matches('\n').split_once('=')?;
        variables.insert(key.to_owned(), value.to_owned());
    }
    Some(Start { variables })
}

/// What a gateway does that works: READY, then HTTP/2; the test drives it.
fn working(gateways: mpsc::Sender<Gateway>) -> Play {
    play(move |start, mut stdio| {
        let gateways = gateways.clone();
        async move {
            stdio.write_all(start.ready().as_bytes()).await.unwrap();
            speak(start, stdio, gateways).await;
        }
    })
}

/// HTTP/2 from its first octet on.
pub(crate) async fn speak(start: Start, stdio: Stdio, gateways: mpsc::Sender<Gateway>) {
    let tasks = Tasks::default();
    let shaken = hyper::client::conn::http2::Builder::new(tasks.clone())
        .initial_stream_window_size(256 * 1024)
        .handshake(TokioIo::new(stdio))
        .await;
    let Ok((send, connection)) = shaken else { return };
    hyper::rt::Executor::execute(&tasks, connection);
    let _ = gateways.send(Gateway { start, send, tasks }).await;
}

/// One tunnel on one such target.
pub(crate) struct World {
    pub(crate) target: Arc<Target>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) stop: CancellationToken,
    pub(crate) serving: JoinHandle<TunnelEnd>,
    pub(crate) gateways: mpsc::Receiver<Gateway>,
}

/// What a test may choose.
pub(crate) struct Setting {
    /// What the gateways do, one start after another, before they work.
    pub(crate) plays: Vec<Play>,
    /// After them, gateways work.
    pub(crate) then_works: bool,
    pub(crate) is_script: bool,
    pub(crate) is_reachable: bool,
    pub(crate) port: Option<u16>,
    pub(crate) gateways: Option<(mpsc::Sender<Gateway>, mpsc::Receiver<Gateway>)>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            plays: Vec::new(),
            then_works: true,
            is_script: false,
            is_reachable: true,
            port: None,
            gateways: None,
        }
    }
}

impl World {
    pub(crate) fn new(setting: Setting) -> Self {
        let (sender, gateways) = setting.gateways.unwrap_or_else(|| mpsc::channel(16));
        let mut plays: VecDeque<Play> = setting.plays.into();
        if setting.then_works {
            plays.push_back(working(sender));
        }
        let target = Arc::new(Target {
            plays: Mutex::new(plays),
            starts: Arc::default(),
            port_is_taken: AtomicBool::new(false),
            is_reachable: AtomicBool::new(setting.is_reachable),
            installs: AtomicUsize::new(0),
            ends: AtomicUsize::new(0),
        });
        let program = if setting.is_script {
            GatewayProgram::script(&b"//"[..])
        } else {
            GatewayProgram::binary(&b"ELF"[..])
        };
        let launcher = Launcher::new(target.clone(), Shell::Sh, program);
        let token = GatewayToken::from_text(SecretText::new(TOKEN));
        let mut options = Http2Options::new(SessionName::new("s1").unwrap(), token);
        options.port = setting.port;
        let (reporter, status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let agents = Arc::new(Agents::default());
        let tunnel = Box::new(Http2::new(launcher, options));
        let serving = tokio::spawn(tunnel.serve(agents.clone(), reporter, stop.clone()));
        Self {
            target,
            agents,
            status,
            stop,
            serving,
            gateways,
        }
    }

    /// The next gateway that came up.
    pub(crate) async fn gateway(&mut self) -> Gateway {
        within("a gateway comes up", self.gateways.recv()).await.unwrap()
    }

    pub(crate) async fn wait(&mut self, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
        within(what, self.status.wait_for(wanted)).await.unwrap().clone()
    }

    /// Until the tunnel says that it listens; on which port.
    pub(crate) async fn ready(&mut self) -> u16 {
        let status = self
            .wait("ready", |status| matches!(status, Status::Ready { .. }))
            .await;
        let Status::Ready {
            listening: Listening::Tcp { port },
            ..
        } = status
        else {
            panic!("{status:?}")
        };
        port
    }

    pub(crate) async fn end(self) -> TunnelEnd {
        within("the tunnel ends", self.serving).await.unwrap()
    }

    pub(crate) async fn stopped(self) -> TunnelEnd {
        self.stop.cancel();
        self.end().await
    }

    /// The stable reason and the detail of a tunnel that cannot work.
    pub(crate) async fn refusal(self) -> (&'static str, String) {
        let end = self.end().await;
        let TunnelEnd::Refused { reason, detail } = end else {
            panic!("{end:?}")
        };
        (reason, detail)
    }
}

/// No wait of a test is for ever; the limit is far above any of the tunnel's own.
pub(crate) async fn within<T>(what: &str, waited: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(600), waited).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not in time"),
    }
}

/// Answers callbacks by their path and remembers them.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    /// Callbacks that are under way.
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) served: AtomicUsize,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) const BIG: usize = 4 * 1024 * 1024;

impl Callbacks for Agents {
    fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
        unreachable!("this tunnel hands over messages")
    }

    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
        self.served.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.open));
        Box::pin(async move {
            let _open = open;
            let path = String::from_utf8(message.target.to_vec()).unwrap();
            match path.as_str() {
                "/hang" => std::future::pending().await,
                "/big" => Response::new(full(vec![b'x'; BIG])),
                "/unread" => {
                    let _held = message.body;
                    std::future::pending().await
                }
                "/broken" => {
                    let pieces = vec![
                        Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
                        Err("it broke off".into()),
                    ];
                    let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
                    Response::new(body.boxed_unsync())
                }
                "/refuse" => {
                    let mut refusal = Response::new(full("no"));
                    *refusal.status_mut() = http::StatusCode::FORBIDDEN;
                    refusal
                }
                "/about" => {
                    let about = serde_json::json!({
                        "method": message.method.as_str(),
                        "host": message.host.map(|host| String::from_utf8_lossy(&host).into_owned()),
                        "authorization": message.headers.get("authorization").map(|v| v.to_str().unwrap()),
                        "own": message.headers.keys().any(|name| name.as_str().starts_with("x-pcbridge-")),
                        "length": http_body::Body::size_hint(&message.body).exact(),
                        "proof": format!("{:?}", message.proof),
                        "listening": format!("{:?}", message.listening),
                    });
                    Response::new(full(about.to_string()))
                }
                _ => {
                    let body = message.body.collect().await.map(|body| body.to_bytes());
                    Response::new(full(body.unwrap_or_else(|error| error.to_string().into())))
                }
            }
        })
    }
}
