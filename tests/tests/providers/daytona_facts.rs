//! What was seen on real toolbox daemons, asserted of the fake as a table: one row a fact.
//!
//! A fact that does not hold here would let our runner be tested against something that nobody runs.

use std::time::Duration;

use fakes::daytona::{API_KEY, Daemon, Daytona, Settings};
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use http_body_util::Full;
use paperclip_bridge_tests::within;
use runners::http::HttpClient;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const LIMIT: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<TcpStream>;

/// One sandbox of the fake, and a client that knows nothing of our runner.
struct Sandbox {
    fake: Daytona,
    id: String,
    http: HttpClient,
}

impl Sandbox {
    async fn of(daemon: Daemon) -> Self {
        let settings = Settings {
            daemon,
            ..Settings::default()
        };
        let fake = Daytona::with(settings).await;
        let mut sandbox = Self {
            fake,
            id: String::new(),
            http: HttpClient::new([]),
        };
        let url = format!("{}/sandbox", sandbox.fake.api_url());
        let (_, made) = sandbox.ask("POST", &url, &json!({})).await;
        sandbox.id = made["id"].as_str().expect("an id").to_owned();
        let url = format!("{}/sandbox/{}", sandbox.fake.api_url(), sandbox.id);
        assert_eq!(sandbox.ask("GET", &url, &Value::Null).await.1["state"], "started");
        sandbox
    }

    async fn ask(&self, method: &str, url: &str, body: &Value) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header("authorization", format!("Bearer {API_KEY}"))
            .body(Full::from(body.to_string()))
            .expect("a request");
        let answer = self.http.fetch(request, LIMIT, 1 << 20).await;
        let (parts, body) = answer.expect("an answer");
        (
            parts.status.as_u16(),
            serde_json::from_slice(&body).unwrap_or_default(),
        )
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}{path}", self.fake.toolbox_url(&self.id));
        self.ask(method, &url, &body).await
    }

    async fn execute(&self, command: &str) -> (u16, Value) {
        let request = json!({"command": command, "timeout": 20});
        self.call("POST", "/process/execute", request).await
    }

    async fn dial(&self, path: &str, protocol: Option<&str>) -> Result<Socket, Error> {
        let url = format!("{}{path}", self.fake.toolbox_url(&self.id)).replacen("http", "ws", 1);
        let mut request = url.into_client_request().expect("a request");
        let headers = request.headers_mut();
        let key = format!("Bearer {API_KEY}").parse().expect("a header field");
        headers.insert("authorization", key);
        headers.insert(
            "x-daytona-sdk-version",
            "0.218.0".parse().expect("a header field"),
        );
        if let Some(protocol) = protocol {
            headers.insert(
                "sec-websocket-protocol",
                protocol.parse().expect("a header field"),
            );
        }
        let authority = request.uri().authority().expect("an address").to_string();
        let stream = TcpStream::connect(authority).await.expect("the fake listens");
        client_async(request, stream).await.map(|(socket, _)| socket)
    }

    /// A terminal, joined.
    async fn terminal(&self, id: &str) -> Socket {
        let made = self.call("POST", "/process/pty", json!({"id": id, "cols": 120, "rows": 30}));
        assert_eq!(made.await, (201, json!({"sessionId": id})));
        let joined = self.dial(&format!("/process/pty/{id}/connect"), None).await;
        joined.expect("it can be joined")
    }
}

/// All binary and text messages until `done`, or the end with its close frame.
async fn read(socket: &mut Socket, done: impl Fn(&[u8]) -> bool) -> (Vec<u8>, String, Option<(u16, String)>) {
    let (mut bytes, mut text) = (vec![], String::new());
    while !done(&bytes) {
        match within(LIMIT, "a message", socket.next()).await {
            Some(Ok(Message::Binary(chunk))) => bytes.extend_from_slice(&chunk),
            Some(Ok(Message::Text(said))) => text.push_str(&said),
            Some(Ok(Message::Close(frame))) => {
                let frame = frame.expect("the daemon says why");
                return (bytes, text, Some((frame.code.into(), frame.reason.to_string())));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return (bytes, text, None),
        }
    }
    (bytes, text, None)
}

fn holds(part: &'static str) -> impl Fn(&[u8]) -> bool {
    move |bytes| bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

async fn send(socket: &mut Socket, message: impl Into<Message>) {
    socket.send(message.into()).await.expect("it is taken");
}

/// Makes the terminal raw with `then` on it.
async fn raw(socket: &mut Socket, then: &str) {
    send(socket, format!("stty raw -echo; printf '%s%s' MARK ER; {then}\r")).await;
    read(socket, holds("MARKER")).await;
}

#[tokio::test]
async fn one_shot_commands_are_as_the_real_daemon_has_them() {
    for (daemon, code) in [
        (Daemon::Newer, "PROCESS_EXECUTION_TIMEOUT"),
        (Daemon::Old, "REQUEST_TIMEOUT"),
    ] {
        let sandbox = Sandbox::of(daemon).await;
        let table = [
            ("echo out; echo err >&2; exit 3", 3, "out\nerr\n"),
            // The command is the shell's stdin: what reads it eats the rest of the script.
            ("cat\necho second", 0, "echo second"),
            ("sh -c 'kill -s KILL $$'", 137, ""),
        ];
        for (command, exit, result) in table {
            let (status, ran) = sandbox.execute(command).await;

            assert_eq!((status, &ran["exitCode"]), (200, &json!(exit)), "{command}");
            assert!(
                ran["result"]
                    .as_str()
                    .is_some_and(|text| text.starts_with(result)),
                "{command}: {ran}"
            );
        }
        let request = json!({"command": "true", "cwd": "/no/such/folder"});
        let (status, ran) = sandbox.call("POST", "/process/execute", request).await;
        assert_eq!((status, &ran["exitCode"]), (200, &json!(-1)), "a failed spawn");

        let request = json!({"command": "echo partial; sleep 987 & sleep 986", "timeout": 1});
        let (status, fault) = sandbox.call("POST", "/process/execute", request).await;
        assert_eq!((status, &fault["code"]), (408, &json!(code)));
        assert!(fault.get("result").is_none(), "no output after a time-out");
        let gone = || sandbox.fake.processes(&sandbox.id).is_empty().then_some(());
        paperclip_bridge_tests::eventually(LIMIT, "the whole group is killed", gone).await;
        assert_eq!(sandbox.execute("  ").await.0, 400, "an empty command");
    }
}

#[tokio::test]
async fn a_terminal_is_as_the_real_daemon_has_it() {
    for daemon in [Daemon::Newer, Daemon::Old] {
        let sandbox = Sandbox::of(daemon).await;
        let mut one = sandbox.terminal("one").await;
        let again = sandbox.call("POST", "/process/pty", json!({"id": "one"})).await;
        assert_eq!(again.0, 409, "a name that is taken");
        let large = sandbox.call("POST", "/process/pty", json!({"id": "two", "cols": 1001}));
        assert_eq!(large.await.0, 400);

        raw(&mut one, "exec cat").await;
        let every: Vec<u8> = (0..=255_u8).cycle().take(65536).collect();
        for slice in every.chunks(32768) {
            send(&mut one, slice.to_vec()).await;
        }
        let (back, _, _) = read(&mut one, |bytes| bytes.len() >= 65536).await;
        assert!(back == every, "raw is 8-bit clean");
        send(&mut one, vec![b'a'; 65536]).await;
        let (back, _, close) = read(&mut one, |bytes| bytes.len() >= 65536).await;
        assert_eq!((back.len(), close), (65536, None), "65536 bytes are taken");
        send(&mut one, vec![b'a'; 65537]).await;
        let (_, _, close) = read(&mut one, |_| false).await;
        assert_eq!(close.expect("a close frame").0, 1009, "65537 bytes are not");

        let joined = sandbox.dial("/process/pty/one/connect", None).await;
        let mut again = joined.expect("the shell lives on");
        send(&mut again, "x").await;
        let (back, text, _) = read(&mut again, |bytes| !bytes.is_empty()).await;
        assert_eq!(back, b"x", "nothing is replayed");
        assert!(text.contains("connected"), "{text}");
        assert_eq!(
            sandbox.call("DELETE", "/process/pty/one", Value::Null).await.0,
            200
        );
        let (_, _, close) = read(&mut again, |_| false).await;
        let (code, reason) = close.expect("a close frame");
        assert!(
            code == 1011 && reason.contains("\"exitCode\":137"),
            "{code} {reason}"
        );
        let after = sandbox.call("GET", "/process/pty/one", Value::Null).await;
        assert_eq!(after.0, 404, "it is removed at once");
    }
}

#[tokio::test]
async fn the_exit_of_a_terminal_is_in_its_close_frame() {
    for daemon in [Daemon::Newer, Daemon::Old] {
        let sandbox = Sandbox::of(daemon).await;
        for (exit, code, reason) in [
            (0, 1000, json!({"exitCode": 0})),
            (7, 1011, json!({"exitCode": 7, "exitReason": "non-zero exit"})),
        ] {
            let mut socket = sandbox.terminal(&format!("exit-{exit}")).await;
            send(&mut socket, format!("exit {exit}\r")).await;

            let (_, text, close) = read(&mut socket, |_| false).await;

            let (seen, said) = close.expect("a close frame");
            assert_eq!((seen, said), (code, reason.to_string()));
            assert!(
                !text.contains("exited"),
                "nobody asked for the control message: {text}"
            );
        }
    }
}

#[tokio::test]
async fn only_a_newer_daemon_knows_subprotocols_and_the_one_trip() {
    const EXIT_CONTROL: Option<&str> = Some("X-Daytona-Pty-Exit-Control");
    let one_trip = "/process/pty/create-connect?id=cc&cols=80&rows=24";
    let newer = Sandbox::of(Daemon::Newer).await;
    let mut socket = newer.dial(one_trip, EXIT_CONTROL).await.expect("it is taken");
    send(&mut socket, "exit 7\r").await;
    let (_, text, close) = read(&mut socket, |_| false).await;
    assert!(text.contains("\"exitCode\":7") && close.is_some(), "{text}");

    let old = Sandbox::of(Daemon::Old).await;
    let missing = old.dial(one_trip, None).await;
    assert!(matches!(&missing, Err(Error::Http(answer)) if answer.status() == 404));
    old.terminal("one").await;
    let strict = old.dial("/process/pty/one/connect", EXIT_CONTROL).await;
    assert!(
        strict.is_err(),
        "an upgrade without a subprotocol is refused by strict clients"
    );
}

#[tokio::test]
async fn a_followed_log_is_text_with_marks_from_its_first_byte_on() {
    let sandbox = Sandbox::of(Daemon::Newer).await;
    let made = sandbox.call("POST", "/process/session", json!({"sessionId": "s"}));
    assert_eq!(made.await.0, 201);
    let again = sandbox.call("POST", "/process/session", json!({"sessionId": "s"}));
    assert_eq!(again.await.0, 409);
    let command = "printf 'a\\0b'; echo; read line; echo got:$line; printf end";
    let request = json!({"command": command, "runAsync": true});
    let (status, started) = sandbox.call("POST", "/process/session/s/exec", request).await;
    assert_eq!(status, 202);
    let path = format!(
        "/process/session/s/command/{}",
        started["cmdId"].as_str().expect("an id")
    );
    let follow = format!("{path}/logs?follow=true");
    let mut first = sandbox.dial(&follow, None).await.expect("it can be followed");
    read(&mut first, holds("ab\n")).await;
    let running = sandbox.call("GET", &path, Value::Null).await.1;
    assert!(running.get("exitCode").is_none(), "{running}");

    let input = sandbox
        .call("POST", &format!("{path}/input"), json!({"data": "hi"}))
        .await;
    let (_, _, close) = read(&mut first, |_| false).await;
    let mut second = sandbox
        .dial(&follow, None)
        .await
        .expect("it can be followed again");
    let (replayed, _, _) = read(&mut second, |_| false).await;

    assert_eq!(input.0, 204);
    assert_eq!(close, Some((1000, String::new())));
    // NUL has vanished, input is echoed, and the last line has gained its end.
    assert_eq!(
        String::from_utf8_lossy(&replayed),
        "\u{1}\u{1}\u{1}ab\n\u{1}\u{1}\u{1}hi\n\u{1}\u{1}\u{1}got:hi\n\u{1}\u{1}\u{1}end\n"
    );
    assert_eq!(sandbox.call("GET", &path, Value::Null).await.1["exitCode"], 0);
    let late = sandbox
        .call("POST", &format!("{path}/input"), json!({"data": "x"}))
        .await;
    assert_eq!(late.0, 410);
    let request = json!({"command": "exit 4", "runAsync": true});
    assert_eq!(
        sandbox.call("POST", "/process/session/s/exec", request).await.0,
        202
    );
    let gone = async {
        loop {
            let request = json!({"command": "echo alive", "runAsync": true});
            let (status, fault) = sandbox.call("POST", "/process/session/s/exec", request).await;
            if status == 500 {
                return fault;
            }
        }
    };
    let fault = within(LIMIT, "an exit ends the session's shell", gone).await;
    assert!(
        fault["message"]
            .as_str()
            .is_some_and(|text| text.contains("broken pipe"))
    );
    assert_eq!(
        sandbox.call("DELETE", "/process/session/s", Value::Null).await.0,
        204
    );
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_dropped() {
    let sandbox = Sandbox::of(Daemon::Newer).await;
    let mut socket = sandbox.terminal("slow").await;
    raw(&mut socket, "head -c 20000000 /dev/zero; exec sleep 987").await;

    // It goes on to sleep once nobody is attached any more.
    let dropped = || {
        let pids = sandbox.fake.processes(&sandbox.id);
        let sleeps =
            |pid: &u32| paperclip_bridge_tests::processes::command_line(*pid).starts_with(b"sleep\x00987");
        pids.into_iter().find(sleeps)
    };
    paperclip_bridge_tests::eventually(LIMIT, "the reader is dropped", dropped).await;
    let (bytes, _, close) = read(&mut socket, |_| false).await;

    assert_eq!(close, Some((1008, "slow consumer".to_owned())));
    assert!(bytes.len() < 20_000_000);
}
