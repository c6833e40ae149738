//! The relay against a Worker that the tests play: on memory for what is spoken, on loopback for how it begins.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _, stream};
use http::Response;
use http_body_util::{BodyExt as _, Full, StreamBody};
use runners::SecretText;
use runners::provider::{
    ProviderSettings, SecretFault, SecretField, SecretHandle, SecretSource, UnsignedRequest,
};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response as Upgraded};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::credit::STREAM_WINDOW;
use super::frame::{Frame, Frames, Hello, RequestHead, ResetCode};
use super::serve::STREAMS;
use super::socket::code;
use super::*;
use crate::{AgentMessage, AgentStream, BodyError, MessageBody};

/// A promise of what is answered.
type Answer = BoxFuture<'static, Response<MessageBody>>;

/// Answers as the test says.
struct Agent(Box<dyn Fn(AgentMessage) -> Answer + Send + Sync>);

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

impl Callbacks for Agent {
    fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
        unreachable!("the relay has no streams of bytes")
    }

    fn serve_message(&self, message: AgentMessage) -> Answer {
        (self.0)(message)
    }
}

fn agent<F>(answer: impl Fn(AgentMessage) -> F + Send + Sync + 'static) -> Arc<dyn Callbacks>
where
    F: Future<Output = Response<MessageBody>> + Send + 'static,
{
    Arc::new(Agent(Box::new(move |message| answer(message).boxed())))
}

fn whole(bytes: impl Into<Bytes>) -> MessageBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn hello() -> Hello {
    Hello {
        v: 1,
        bridge_id: "b-1".into(),
        epoch: 1,
        max_frame: 65_536,
        window: STREAM_WINDOW,
        conn_window: 4 * 1024 * 1024,
    }
}

fn asked(method: &str, path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    RequestHead {
        method: method.into(),
        path: path.into(),
        query: String::new(),
        host: "relay.example".into(),
        headers: headers.collect(),
        received: 1_000,
        deadline: Some(31_000),
        run: None,
    }
}

/// The Worker's end of a socket.
struct Worker<S> {
    socket: WebSocketStream<S>,
    frames: Vec<Frame>,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Worker<S> {
    fn on(socket: WebSocketStream<S>) -> Self {
        Self {
            socket,
            frames: Vec::new(),
        }
    }

    async fn say(&mut self, frames: &[Frame]) {
        let mut message = BytesMut::new();
        for frame in frames {
            frame.write(&mut message);
        }
        self.socket.send(Message::Binary(message.freeze())).await.unwrap();
    }

    async fn ask(&mut self, stream: u32, end: bool, head: RequestHead) {
        self.say(&[Frame::RequestHead { stream, end, head }]).await;
    }

    /// The next frame; `Err` holds the code with which the daemon closed the socket.
    async fn hear(&mut self) -> Result<Frame, u16> {
        while self.frames.is_empty() {
            match self.socket.next().await {
                Some(Ok(Message::Binary(message))) => {
                    self.frames = Frames::of(message).map(Result::unwrap).collect();
                }
                Some(Ok(Message::Close(close))) => {
                    return Err(close.map_or(0, |close| close.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
        Ok(self.frames.remove(0))
    }

    async fn close(&mut self, code: u16) {
        let close = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        self.socket.close(Some(close)).await.unwrap();
    }

    /// The next answer: its status, its body, and whether it was whole.
    async fn answer(&mut self) -> (u32, u16, Vec<u8>, Result<(), ResetCode>) {
        let (mut answered, mut status, mut body) = (0, 0, Vec::new());
        loop {
            let whole = match self.hear().await.unwrap() {
                Frame::ResponseHead { stream, end, head } => {
                    (answered, status) = (stream, head.status);
                    end
                }
                Frame::Data { bytes, end, .. } => {
                    body.extend_from_slice(&bytes);
                    end
                }
                Frame::Reset { code, .. } => return (answered, status, body, Err(code)),
                Frame::Hello(_)
                | Frame::RequestHead { .. }
                | Frame::Window { .. }
                | Frame::Ping(_)
                | Frame::Pong(_)
                | Frame::GoAway { .. } => false,
            };
            if whole {
                return (answered, status, body, Ok(()));
            }
        }
    }
}

/// A connection on memory, greeted already.
struct World {
    worker: Worker<DuplexStream>,
    served: JoinHandle<ServeEnd>,
    stop: CancellationToken,
}

async fn world(callbacks: Arc<dyn Callbacks>) -> World {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let ours = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let theirs = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let stop = CancellationToken::new();
    let served = Served {
        callbacks,
        listening: Listening::Url {
            url: "https://relay.example".into(),
            bridge_id: "b-1".into(),
        },
        seen: Arc::default(),
    };
    let stopping = stop.clone();
    let served = tokio::spawn(async move { serve(ours, &hello(), served, &stopping, DRAIN_LIMIT).await });
    World {
        worker: Worker::on(theirs),
        served,
        stop,
    }
}

#[tokio::test]
async fn a_callback_goes_out_as_it_came_and_its_answer_comes_back_whole() {
    let mut world = world(agent(|message| async move {
        assert_eq!(
            (message.method.as_str(), &message.target[..]),
            ("POST", &b"/api/x"[..])
        );
        assert_eq!(message.host.as_deref(), Some(&b"relay.example"[..]));
        assert_eq!(message.headers["authorization"], "Bearer t");
        assert_eq!(http_body::Body::size_hint(&message.body).exact(), Some(5));
        let body = message.body.collect().await.unwrap().to_bytes();
        Response::builder().status(201).body(whole(body)).unwrap()
    }))
    .await;

    let head = asked(
        "POST",
        "/api/x",
        &[("authorization", "Bearer t"), ("content-length", "5")],
    );
    world.worker.ask(1, false, head).await;
    for (bytes, end) in [("12", false), ("345", true)] {
        let bytes = Bytes::from_static(bytes.as_bytes());
        world
            .worker
            .say(&[Frame::Data {
                stream: 1,
                end,
                bytes,
            }])
            .await;
    }

    assert_eq!(world.worker.answer().await, (1, 201, b"12345".to_vec(), Ok(())));
}

#[tokio::test]
async fn an_answer_waits_for_credit_and_takes_no_more_than_it_has() {
    let size = 1024 * 1024_usize;
    let mut world = world(agent(move |_| async move { Response::new(whole(vec![7; size])) })).await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;
    let mut came = 0;
    let mut given = usize::try_from(STREAM_WINDOW).unwrap();

    while came < size {
        if let Frame::Data { bytes, .. } = world.worker.hear().await.unwrap() {
            came += bytes.len();
            assert!(came <= given, "{came} of {given}");
        }
        if came == given {
            // Nothing more may be under way.
            world.worker.say(&[Frame::Ping(*b"nothing?")]).await;
            assert_eq!(world.worker.hear().await, Ok(Frame::Pong(*b"nothing?")));
            given += 100_000;
            world
                .worker
                .say(&[Frame::Window {
                    stream: 1,
                    credit: 100_000,
                }])
                .await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_is_reset_and_never_ended() {
    let mut world = world(agent(|_| async {
        let pieces = [
            Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
            Err(BodyError::from("the upstream broke")),
        ];
        Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync())
    }))
    .await;

    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    let (_, _, body, end) = world.worker.answer().await;
    assert_eq!((body, end), (b"half".to_vec(), Err(ResetCode::Internal)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_is_reset() {
    let mut world = world(agent(|_| pending())).await;

    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Timeout));
}

/// Says so when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_caller_that_has_gone_ends_its_callback() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let mut world = world(agent(move |_| {
        let dropped = Dropped(Arc::clone(&told));
        async move {
            let _dropped = dropped;
            pending().await
        }
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    let text = "gone".to_owned();
    let code = ResetCode::Cancel;
    world
        .worker
        .say(&[Frame::Reset {
            stream: 1,
            code,
            text,
        }])
        .await;

    gone.notified().await;
}

#[tokio::test]
async fn a_body_whose_caller_has_gone_never_looks_whole() {
    let (ends, mut ended) = mpsc::channel(1);
    let mut world = world(agent(move |message: AgentMessage| {
        let ends = ends.clone();
        // As the bridge does with what it has dispatched: it goes on without the stream's task.
        drop(tokio::spawn(async move {
            ends.send(message.body.collect().await.is_ok()).await
        }));
        pending()
    }))
    .await;
    world.worker.ask(1, false, asked("POST", "/", &[])).await;
    let bytes = Bytes::from_static(b"half");
    world
        .worker
        .say(&[Frame::Data {
            stream: 1,
            end: false,
            bytes,
        }])
        .await;

    let text = String::new();
    let code = ResetCode::Cancel;
    world
        .worker
        .say(&[Frame::Reset {
            stream: 1,
            code,
            text,
        }])
        .await;

    assert_eq!(ended.recv().await, Some(false));
}

#[tokio::test]
async fn a_worker_that_sends_beyond_its_credit_loses_that_stream_alone() {
    let mut world = world(agent(|message: AgentMessage| async move {
        if message.method == http::Method::GET {
            return Response::new(whole("here"));
        }
        let _unread = message.body;
        pending().await
    }))
    .await;
    world.worker.ask(1, false, asked("POST", "/", &[])).await;

    for _ in 0..5 {
        let bytes = Bytes::from(vec![0; 65_536]);
        world
            .worker
            .say(&[Frame::Data {
                stream: 1,
                end: false,
                bytes,
            }])
            .await;
    }

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Flow));
    world.worker.ask(2, true, asked("GET", "/", &[])).await;
    assert_eq!(world.worker.answer().await, (2, 200, b"here".to_vec(), Ok(())));
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_had_no_effect() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let mut world = world(agent(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        pending()
    }))
    .await;

    for stream in 1..=u32::try_from(STREAMS).unwrap() + 1 {
        world.worker.ask(stream, true, asked("GET", "/", &[])).await;
    }

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Refused));
    assert_eq!(served.load(Ordering::Relaxed), STREAMS);
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection_with_4400() {
    let head = || asked("GET", "/", &[]);
    let open = |stream| Frame::RequestHead {
        stream,
        end: true,
        head: head(),
    };
    let rows: [(&str, Vec<Frame>); 6] = [
        ("jump back", vec![open(2), open(1)]),
        ("twice", vec![open(1), open(1)]),
        (
            "data of no stream",
            vec![Frame::Data {
                stream: 1,
                end: true,
                bytes: Bytes::new(),
            }],
        ),
        ("hello twice", vec![Frame::Hello(hello())]),
        (
            "credit without end",
            vec![
                open(1),
                Frame::Window {
                    stream: 1,
                    credit: u32::MAX,
                },
            ],
        ),
        (
            "an answer",
            vec![Frame::ResponseHead {
                stream: 1,
                end: true,
                head: super::frame::ResponseHead {
                    status: 200,
                    headers: vec![],
                },
            }],
        ),
    ];
    for (what, frames) in rows {
        let mut world = world(agent(|_| pending())).await;

        world.worker.say(&frames).await;

        assert_eq!(world.worker.hear().await, Err(code::PROTOCOL), "{what}");
        assert!(
            matches!(world.served.await.unwrap(), ServeEnd::Over(Over::Broken(_))),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_text_that_is_no_pong_ends_the_connection_with_4400() {
    let mut world = world(agent(|_| pending())).await;

    world
        .worker
        .socket
        .send(Message::Text("hi".into()))
        .await
        .unwrap();

    assert_eq!(world.worker.hear().await, Err(code::PROTOCOL));
}

#[tokio::test]
async fn an_unsafe_callback_that_comes_again_is_not_served_again() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let mut world = world(agent(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            let answer = Response::builder().header("x-paperclip-bridge-request-id", "r-1");
            answer.body(whole("done")).unwrap()
        }
    }))
    .await;
    let head = || asked("POST", "/api/x", &[("x-request-id", "q-1")]);
    world.worker.ask(1, true, head()).await;
    assert_eq!(world.worker.answer().await.1, 200);

    world.worker.ask(2, true, head()).await;

    let (_, status, body, _) = world.worker.answer().await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["code"]), (409, &"outcome_indeterminate".into()));
    assert_eq!(body["request_id"], "r-1");
    assert_eq!(served.load(Ordering::Relaxed), 1);
    world
        .worker
        .ask(3, true, asked("GET", "/api/x", &[("x-request-id", "q-1")]))
        .await;
    assert_eq!(world.worker.answer().await.1, 200);
}

#[tokio::test]
async fn a_malformed_head_is_answered_and_not_served() {
    let mut world = world(agent(|_| async { unreachable!() })).await;

    let head = asked("POST", "/", &[("content-length", "1"), ("content-length", "2")]);
    world.worker.ask(1, false, head).await;

    let (_, status, body, _) = world.worker.answer().await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["code"]), (400, &"malformed_request".into()));
}

#[tokio::test]
async fn a_stop_finishes_what_is_open_and_takes_nothing_new() {
    let go = Arc::new(Notify::new());
    let (wait, begun) = (Arc::clone(&go), Arc::new(Notify::new()));
    let begins = Arc::clone(&begun);
    let mut world = world(agent(move |_| {
        let wait = Arc::clone(&wait);
        begins.notify_one();
        async move {
            wait.notified().await;
            Response::new(whole("done"))
        }
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;
    begun.notified().await;

    world.stop.cancel();

    assert!(matches!(
        world.worker.hear().await,
        Ok(Frame::GoAway { last_stream: 1, .. })
    ));
    world.worker.ask(2, true, asked("GET", "/", &[])).await;
    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Refused));
    go.notify_one();
    assert_eq!(world.worker.answer().await.2, b"done");
    assert_eq!(world.worker.hear().await, Err(code::NORMAL));
    assert_eq!(world.served.await.unwrap(), ServeEnd::Stopped { cut: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_any_more_is_lost() {
    let mut world = world(agent(|_| pending())).await;
    let mut pings = 0;

    // It reads, and does not answer.
    while let Some(Ok(message)) = world.worker.socket.next().await {
        pings += usize::from(message == Message::Text("ping".into()));
    }

    assert!(matches!(
        world.served.await.unwrap(),
        ServeEnd::Over(Over::Lost(_))
    ));
    assert_eq!(pings, 2);
}

#[tokio::test]
async fn a_worker_that_goes_away_is_left_once_all_is_finished() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let mut world = world(agent(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Response::new(whole("done"))
        }
    }))
    .await;
    let away = Frame::GoAway {
        last_stream: 1,
        code: 0,
        text: String::new(),
    };
    let open = Frame::RequestHead {
        stream: 1,
        end: true,
        head: asked("GET", "/", &[]),
    };
    world.worker.say(&[open, away]).await;

    go.notify_one();

    assert_eq!(world.worker.answer().await.2, b"done");
    assert_eq!(world.worker.hear().await, Err(code::NORMAL));
    assert_eq!(world.served.await.unwrap(), ServeEnd::MovedOn);
}

struct Given;

impl SecretSource for Given {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        let value = SecretText::new(format!("value-of-{}", reference.replace(':', "-")));
        std::future::ready(Ok(value)).boxed()
    }
}

impl RequestSigner for Given {
    fn sign(
        &self,
        key_id: &str,
        key: &SecretText,
        request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        let said = format!(
            "{} {} {} {}",
            request.method,
            request.target,
            request.host,
            key.expose()
        );
        Ok(vec![
            ("x-paperclip-key-id", key_id.to_owned()),
            ("x-test-signed", said),
        ])
    }
}

fn secret(name: &str) -> SecretHandle {
    let settings = ProviderSettings {
        config: serde_json::Map::new(),
        secrets: Arc::new(Given),
        signer: Arc::new(Given),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    let field = SecretField {
        name: "key",
        fallback_env: None,
    };
    SecretHandle::required("test", &field, Some(format!("env:{name}")), &settings).unwrap()
}

/// A Worker on loopback whose relay is served in a task of its own.
struct Loopback {
    listener: TcpListener,
    status: watch::Receiver<Status>,
    end: JoinHandle<TunnelEnd>,
    stop: CancellationToken,
}

async fn loopback(expected_host: Option<&str>) -> Loopback {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let route = RelayRoute {
        base_url: format!("http://{address}"),
        agent_url: "https://relay.example".into(),
        bridge_id: "b-1".into(),
        expected_host: expected_host.unwrap_or(&address).into(),
        key_id: "k1".into(),
        key: secret("KEY"),
        bearer: secret("BEARER"),
    };
    let relay = Relay::new(route, Arc::new(Given), HttpClient::new([]));
    let (reporter, status) = StatusReporter::new();
    let stop = CancellationToken::new();
    let served = Box::new(relay).serve(agent(|_| pending()), reporter, stop.clone());
    Loopback {
        listener,
        status,
        end: tokio::spawn(served),
        stop,
    }
}

impl Loopback {
    /// Takes the daemon's next connection and its hello.
    async fn accept(&self) -> (Worker<TcpStream>, String, http::HeaderMap) {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut seen = None;
        #[expect(clippy::result_large_err, reason = "the library's own signature")]
        let note = |request: &Request, response: Upgraded| {
            seen = Some((request.uri().to_string(), request.headers().clone()));
            Ok::<Upgraded, ErrorResponse>(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
        let mut worker = Worker::on(socket);
        let (target, headers) = seen.unwrap();
        assert!(matches!(worker.hear().await, Ok(Frame::Hello(_))));
        (worker, target, headers)
    }

    /// Answers the daemon's next connection without an upgrade.
    async fn answer(&self, answer: &str) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn ready(&mut self) {
        let ready = |status: &Status| matches!(status, Status::Ready { .. });
        self.status.wait_for(ready).await.unwrap();
    }
}

#[tokio::test]
async fn the_upgrade_is_signed_for_its_host_and_nothing_secret_is_in_its_url() {
    let mut world = loopback(None).await;

    let (mut worker, target, headers) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    let host = world.listener.local_addr().unwrap().to_string();
    let path = "/api/paperclip-sandbox/v1/relay/b-1/connect?epoch=";
    assert!(target.starts_with(path), "{target}");
    assert_eq!(headers["host"], host.as_str());
    assert_eq!(headers["authorization"], "Bearer value-of-env-BEARER");
    assert_eq!(headers["x-paperclip-key-id"], "k1");
    let signed = format!("GET {target} {host} value-of-env-KEY");
    assert_eq!(headers["x-test-signed"], signed.as_str());
    world.stop.cancel();
    while worker.hear().await.is_ok() {}
    assert!(matches!(world.end.await.unwrap(), TunnelEnd::Stopped));
}

#[tokio::test]
async fn a_url_of_another_host_is_refused_and_nothing_is_sent() {
    let world = loopback(Some("bridge.example")).await;

    let end = world.end.await.unwrap();

    let TunnelEnd::Refused { reason, detail } = end else {
        panic!("{end:?}")
    };
    assert_eq!(reason, "host_header_mismatch");
    assert!(detail.contains("nothing was sent"), "{detail}");
    assert!(world.listener.accept().now_or_never().is_none());
}

#[tokio::test]
async fn a_relay_that_is_lost_is_connected_again() {
    let mut world = loopback(None).await;
    let (mut worker, first, _) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    drop(worker);
    let lost = |status: &Status| matches!(status, Status::Reconnecting { .. });
    world.status.wait_for(lost).await.unwrap();
    let (mut worker, again, _) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;

    world.ready().await;
    assert_eq!(first, again, "the epoch is that of the daemon's life");
    world.stop.cancel();
    while worker.hear().await.is_ok() {}
    world.end.await.unwrap();
}

#[tokio::test]
async fn a_relay_that_another_daemon_took_over_is_left_to_it() {
    let mut world = loopback(None).await;
    let (mut worker, ..) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    worker.close(code::SUPERSEDED).await;

    let end = world.end.await.unwrap();
    assert!(
        matches!(
            end,
            TunnelEnd::Refused {
                reason: "relay_superseded",
                ..
            }
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_refusal_says_why_and_what_the_clocks_have_to_do_with_it() {
    let rows = [
        (
            "HTTP/1.1 401 No\r\nDate: Thu, 01 Jan 2015 00:00:00 GMT\r\nContent-Length: 37\r\n\r\n\
             {\"error\": \"timestamp_out_of_window\" }\n",
            "relay_refused",
            vec!["timestamp_out_of_window", "set the clock"],
        ),
        (
            "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
            "no_relay",
            vec!["404"],
        ),
        (
            "HTTP/1.1 302 No\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
            "relay_unavailable",
            vec!["redirect"],
        ),
        ("SSH-2.0-x\r\n\r\n", "relay_protocol", vec![]),
    ];
    for (answer, expected, words) in rows {
        let world = loopback(None).await;

        world.answer(answer).await;

        let end = world.end.await.unwrap();
        let TunnelEnd::Refused { reason, detail } = end else {
            panic!("{end:?}")
        };
        assert_eq!(reason, expected, "{detail}");
        for word in words {
            assert!(detail.contains(word), "{detail}");
        }
        assert!(!detail.contains("value-of"), "{detail}");
    }
}

#[tokio::test]
async fn a_hello_of_another_relay_is_refused() {
    let strange = [
        Hello { v: 2, ..hello() },
        Hello {
            bridge_id: "b-2".into(),
            ..hello()
        },
        Hello { window: 0, ..hello() },
    ];
    for hello in strange {
        let world = loopback(None).await;
        let (mut worker, ..) = world.accept().await;

        worker.say(&[Frame::Hello(hello)]).await;

        let end = world.end.await.unwrap();
        assert!(
            matches!(
                end,
                TunnelEnd::Refused {
                    reason: "relay_protocol",
                    ..
                }
            ),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = loopback(None).await;
    drop(world.listener);
    world.listener = listener;

    // It may have connected before the listener was gone; then the socket ends before any answer.
    let end = world.end.await.unwrap();
    assert!(matches!(end, TunnelEnd::Unreachable(_)), "{end:?}");
}

#[test]
fn waits_double_to_half_a_minute_and_are_anything_below() {
    let mut backoff = Backoff::default();

    let longest: Vec<u128> = (0..9).map(|_| backoff.next(u32::MAX).as_millis()).collect();

    assert_eq!(longest, [249, 499, 999, 1999, 3999, 7999, 15999, 29999, 29999]);
    assert_eq!(backoff.next(0), Duration::ZERO);
    for _ in 0..100 {
        assert!(backoff.next(u32::MAX) <= Backoff::LONGEST);
    }
}

#[tokio::test]
async fn one_slow_reader_does_not_keep_the_others_waiting() {
    let mut world = world(agent(|message: AgentMessage| async move {
        let size = if message.target == "/big" {
            8 * 1024 * 1024
        } else {
            10
        };
        Response::new(whole(vec![1; size]))
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/big", &[])).await;

    for stream in 2..50 {
        world.worker.ask(stream, true, asked("GET", "/small", &[])).await;
        let ended =
            |frame: &Frame| matches!(frame, Frame::Data { stream: of, end: true, .. } if *of == stream);
        while !ended(&world.worker.hear().await.unwrap()) {}
    }
}
