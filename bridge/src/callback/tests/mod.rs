//! The whole path in memory: an agent's bytes in, a scripted upstream on loopback behind.

mod message;
mod counted;
mod credential;
mod ways;
mod audit;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use policy::{Limits, Pack, RateLimit, Rules, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tunnel::{AgentStream, Listening};

use crate::audit::SessionAudit;
use crate::secrets::{LiveSecret, Secret};
use crate::session::budget::Budget;
use crate::session::{PROCESS_BODY_BYTES, Session, SessionParts, Shared};
use crate::upstream::{Upstream, UpstreamSettings};

const PORT: u16 = 40123;
const CREDENTIAL: &str = "real-credential";

struct World {
    session: Arc<Session>,
    token: Token,
    seen: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Shape {
    limits: Option<Limits>,
    rate: Option<RateLimit>,
    deadline: Option<Duration>,
    base_path: &'static str,
    credential: Option<LiveSecret>,
    shared: Shared,
    audit: Option<Arc<SessionAudit>>,
}

/// One request as the upstream read it, and the stream to answer on.
type Script<F> = fn(String, TcpStream) -> F;

/// An upstream that reads one whole request per connection turn and hands it to `script`.
async fn world<F: Future<Output = Option<TcpStream>> + Send + 'static>(
    shape: Shape,
    script: Script<F>,
) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                while let Some(request) = read_message(&mut stream).await {
                    log.lock().unwrap().push(request.clone());
                    match script(request, stream).await {
                        Some(again) => stream = again,
                        None => return,
                    }
                }
            });
        }
    });
    let mut settings =
        UpstreamSettings::parse(&format!("http://127.0.0.1:{port}{}", shape.base_path), None).unwrap();
    if let Some(deadline) = shape.deadline {
        settings.deadlines.head = deadline;
        settings.deadlines.total = deadline;
    }
    let token = Token::from_random([7; 24]);
    let session = Session::new(SessionParts {
        run_id: HeaderValue::from_static("run-1"),
        tunnel: "local",
        rules: Rules::from_pack(Pack::newest()).into(),
        limits: shape.limits.unwrap_or_default(),
        rate: shape.rate,
        upstream: Upstream::new(
            &settings,
            shape.credential.unwrap_or_else(|| Secret::new(CREDENTIAL).into()),
        )
        .unwrap(),
        token: token.digest(),
        audit: shape.audit,
        process_bodies: Budget::new(PROCESS_BODY_BYTES),
        shared: shape.shared,
    });
    World { session, token, seen }
}

/// Reads one request with a declared or chunked body.
async fn read_message(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| {
            line.strip_prefix("content-length: ")
                .map(|value| value.parse::<usize>().unwrap())
        })
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

async fn say(mut stream: TcpStream, answer: &str) -> Option<TcpStream> {
    stream.write_all(answer.as_bytes()).await.ok()?;
    Some(stream)
}

async fn ok(_: String, stream: TcpStream) -> Option<TcpStream> {
    say(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nset-cookie: a=b\r\nserver: x\r\netag: \"1\"\r\n\
         content-length: 11\r\n\r\n{\"ok\":true}",
    )
    .await
}

impl World {
    fn open(&self) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (agent, bridge) = tokio::io::duplex(64 * 1024);
        let stream = AgentStream {
            bytes: Box::new(bridge),
            listening: Listening::Tcp { port: PORT },
        };
        (
            agent,
            tokio::spawn(super::stream(stream, Arc::clone(&self.session))),
        )
    }

    /// Sends raw bytes on a connection of their own and reads all answers, to the end of the connection.
    async fn raw(&self, bytes: &[u8]) -> String {
        let (mut agent, served) = self.open();
        agent.write_all(bytes).await.unwrap();
        agent.shutdown().await.unwrap();
        let mut answer = Vec::new();
        agent.read_to_end(&mut answer).await.unwrap();
        served.await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn head(&self, request_line: &str, more: &str) -> String {
        format!(
            "{request_line} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            self.token.expose()
        )
    }

    async fn ask(&self, request_line: &str, more: &str) -> String {
        self.raw(self.head(request_line, more).as_bytes()).await
    }

    async fn post(&self, path: &str, body: &str) -> String {
        let more = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        self.raw((self.head(&format!("POST {path}"), &more) + body).as_bytes())
            .await
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Of several answers on one connection.
fn statuses(answers: &str) -> Vec<u16> {
    answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| answer.get(..3).unwrap().parse().unwrap())
        .collect()
}

fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no status in {answer:?}"))
}

fn json(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON in {answer:?}"))
}

fn code(answer: &str) -> (u16, String) {
    (status(answer), json(answer)["code"].as_str().unwrap().to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn the_upstream_sees_the_real_credential_and_nothing_of_the_callers_beyond_the_list() {
    let world = world(
        Shape {
            base_path: "/base",
            ..Shape::default()
        },
        ok,
    )
    .await;

    let answer = world
        .ask(
            "GET /api/issues/PAP-1?q=%2F&x=a:b",
            "Accept: application/json\r\nCookie: s=1\r\nX-Paperclip-Run-Id: forged\r\nX-Forwarded-For: 1.2.3.4\r\n\
             Connection: if-match\r\nIf-Match: \"x\"\r\nTraceparent: 00-1\r\nUser-Agent: curl\r\n",
        )
        .await;

    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("{\"ok\":true}") && answer.contains("etag: \"1\""));
    assert!(answer.contains("x-paperclip-bridge-request-id: "));
    assert!(
        !answer.contains("set-cookie") && !answer.contains("server:"),
        "{answer}"
    );
    let seen = world.seen().remove(0).to_ascii_lowercase();
    let mut lines: Vec<_> = seen
        .trim_end()
        .lines()
        .skip(1)
        .map(|line| line.split(':').next().unwrap())
        .collect();
    lines.sort_unstable();
    assert!(
        seen.starts_with("get /base/api/issues/pap-1?q=%2f&x=a:b http/1.1\r\n"),
        "{seen}"
    );
    assert_eq!(
        lines,
        [
            "accept",
            "accept-encoding",
            "authorization",
            "host",
            "traceparent",
            "x-paperclip-run-id"
        ]
    );
    assert!(
        seen.contains("authorization: bearer real-credential") && seen.contains("x-paperclip-run-id: run-1")
    );
}

#[tokio::test]
async fn what_is_refused_never_reaches_the_upstream() {
    let world = world(Shape::default(), ok).await;
    let token = world.token.expose().to_owned();
    let host = format!("Host: 127.0.0.1:{PORT}\r\n");
    let auth = format!("Authorization: Bearer {token}\r\n");

    let cases = [
        (
            world.ask("GET /api/secrets", "").await,
            refused(403, "route_not_allowed"),
        ),
        (
            world.ask("GET /api/issues/../secrets", "").await,
            refused(400, "path_not_canonical"),
        ),
        (
            world.ask("GET http://127.0.0.1/api/agents/me", "").await,
            refused(400, "path_not_canonical"),
        ),
        (
            world.ask("CONNECT 127.0.0.1:1", "").await,
            refused(400, "path_not_canonical"),
        ),
        (
            world.ask("OPTIONS *", "").await,
            refused(400, "path_not_canonical"),
        ),
        (
            world
                .ask("HEAD /api/issues/1", "")
                .await
                .replace("\r\n\r\n", "\r\n\r\n{\"code\":\"route_not_allowed\"}"),
            refused(403, "route_not_allowed"),
        ),
        (
            world.ask("GET /_bridge/nothing", "").await,
            refused(404, "unknown_bridge_path"),
        ),
        (
            world.ask("GET /api/issues/1", "Expect: x\r\n").await,
            refused(417, "expectation_failed"),
        ),
        (
            world.ask("GET /api/issues/1", "Host: other\r\n").await,
            refused(400, "malformed_request"),
        ),
        (
            world
                .ask(
                    "POST /api/issues/1/comments",
                    "Content-Type: text/plain\r\nContent-Length: 1\r\n",
                )
                .await,
            refused(415, "content_type_not_allowed"),
        ),
        (
            world
                .ask(
                    "POST /api/issues/1/comments",
                    "Content-Type: application/json\r\nContent-Length: 99999999\r\n",
                )
                .await,
            refused(413, "body_too_large"),
        ),
        (
            world
                .raw(format!("GET /api/agents/me HTTP/1.1\r\n{host}\r\n").as_bytes())
                .await,
            refused(401, "invalid_token"),
        ),
        (
            world
                .raw(format!("GET /api/agents/me HTTP/1.1\r\n{host}{auth}{auth}\r\n").as_bytes())
                .await,
            refused(401, "invalid_token"),
        ),
        (
            world
                .raw(format!("GET /api/agents/me HTTP/1.1\r\nHost: evil:{PORT}\r\n{auth}\r\n").as_bytes())
                .await,
            refused(421, "host_mismatch"),
        ),
        (
            world
                .raw(format!("GET /a/../b HTTP/1.1\r\nHost: evil\r\n{auth}\r\n").as_bytes())
                .await,
            refused(421, "host_mismatch"),
        ),
        (
            world.raw(b"GET / HTTP/1.1\r\n\r\n").await,
            refused(400, "malformed_request"),
        ),
        (world.raw(b"GET / HT").await, refused(400, "malformed_request")),
        (
            world.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
            refused(400, "malformed_request"),
        ),
    ];

    for (answer, expected) in cases {
        assert_eq!(code(&answer), expected, "{answer}");
        assert!(answer.contains("x-paperclip-bridge-request-id: "), "{answer}");
    }
    assert_eq!(world.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn an_idempotency_key_is_one_and_neither_empty_nor_endless() {
    let world = world(Shape::default(), ok).await;
    let json = "Content-Type: application/json\r\nContent-Length: 0\r\n";

    for keys in [
        "Idempotency-Key:\r\n".to_owned(),
        "Idempotency-Key: a\r\nIdempotency-Key: a\r\n".to_owned(),
        format!("Idempotency-Key: {}\r\n", "k".repeat(256)),
    ] {
        let answer = world
            .ask("POST /api/issues/1/comments", &format!("{json}{keys}"))
            .await;
        assert_eq!(code(&answer), refused(400, "malformed_request"), "{keys}");
    }
    assert_eq!(world.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_denial_says_why_and_what_would_be_allowed() {
    let world = world(Shape::default(), ok).await;

    let denial = json(&world.ask("GET /agents/me?secret=1", "").await);

    assert!(
        denial["error"]
            .as_str()
            .unwrap()
            .starts_with("Route not allowed: GET /agents/me")
    );
    assert!(denial["hint"].as_str().unwrap().contains("/api/agents/me"));
    assert_eq!(denial["decided_by"], "bridge");
    assert!(!denial.to_string().contains("secret=1"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_end_at_the_first_ambiguity() {
    let world = world(Shape::default(), ok).await;
    let good = world.head("GET /api/agents/me", "");
    let denied = world.head("GET /api/nothing", "");
    let bad = "GET /api/agents/me HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n";

    let answers = world
        .raw(format!("{good}{denied}{good}{bad}{good}").as_bytes())
        .await;

    let statuses = statuses(&answers);
    assert_eq!(statuses, [200, 403, 200, 400]);
    assert_eq!(world.seen().len(), 2);
}

#[tokio::test]
async fn an_unread_body_does_not_cost_the_connection() {
    let world = world(Shape::default(), ok).await;
    let denied = world.head(
        "POST /api/nothing",
        "Content-Type: application/json\r\nContent-Length: 200000\r\n",
    );
    let good = world.head("GET /api/agents/me", "");

    let answers = world
        .raw(format!("{denied}{}{good}", "x".repeat(200_000)).as_bytes())
        .await;

    let statuses = statuses(&answers);
    assert_eq!(statuses, [403, 200]);
}

#[tokio::test]
async fn a_chunked_body_is_held_whole_before_anything_is_sent() {
    let world = world(
        Shape {
            limits: Some(Limits {
                max_body: 11,
                ..Limits::default()
            }),
            ..Shape::default()
        },
        ok,
    )
    .await;
    let head = world.head(
        "POST /api/issues/1/comments",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
    );

    let good = world
        .raw(format!("{head}3\r\n{{\"a\r\n4;x=y\r\n\":1}}\r\n0\r\nX-T: 1\r\n\r\n").as_bytes())
        .await;
    assert_eq!(status(&good), 200);
    assert!(
        world.seen()[0].ends_with("{\"a\":1}") && world.seen()[0].contains("content-length: 7"),
        "{:?}",
        world.seen()
    );
    let bad = [
        (
            format!("{head}3\r\nabc\r\nzz\r\n"),
            refused(400, "malformed_request"),
        ),
        (format!("{head}3\nabc"), refused(400, "malformed_request")),
        (
            format!("{head}3\r\nabc\r\n0\r\nHost: x\r\n\r\n"),
            refused(400, "malformed_request"),
        ),
        (format!("{head}3\r\nab"), refused(400, "malformed_request")),
        (
            format!("{head}c\r\n012345678901\r\n0\r\n\r\n"),
            refused(413, "body_too_large"),
        ),
    ];
    for (bytes, expected) in bad {
        let answer = world.raw(bytes.as_bytes()).await;
        assert_eq!(code(&answer), expected, "{answer}");
    }
    assert_eq!(world.seen().len(), 1);
}

#[tokio::test]
async fn a_write_without_content_says_so_to_the_upstream_and_a_read_says_nothing() {
    let world = world(Shape::default(), ok).await;
    let requests = [
        world.head("POST /api/issues/1/comments", "Content-Length: 0\r\n"),
        world.head("GET /api/issues/1", ""),
    ];

    for request in requests {
        assert_eq!(status(&world.raw(request.as_bytes()).await), 200);
    }

    let says: Vec<bool> = world
        .seen()
        .iter()
        .map(|seen| seen.contains("content-length: 0\r\n"))
        .collect();
    assert_eq!(says, [true, false]);
}

#[tokio::test]
async fn a_get_with_a_chunked_body_is_refused_and_with_an_empty_one_is_not() {
    let world = world(Shape::default(), ok).await;
    let head = world.head(
        "GET /api/agents/me",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
    );

    assert_eq!(
        code(&world.raw(format!("{head}1\r\n1\r\n0\r\n\r\n").as_bytes()).await),
        refused(400, "malformed_request")
    );
    assert_eq!(
        status(&world.raw(format!("{head}0\r\n\r\n").as_bytes()).await),
        200
    );
    assert_eq!(world.seen().len(), 1);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_indeterminate_and_can_be_looked_up() {
    async fn vanish(_: String, stream: TcpStream) -> Option<TcpStream> {
        drop(stream);
        None
    }
    let world = world(Shape::default(), vanish).await;

    let more = "Content-Type: application/json\r\nIdempotency-Key: k 1\r\nContent-Length: 2\r\n";
    let answer = world
        .raw((world.head("POST /api/issues/1/comments", more) + "{}").as_bytes())
        .await;

    assert_eq!(code(&answer), refused(409, "outcome_indeterminate"));
    assert!(answer.contains("x-paperclip-bridge-outcome: indeterminate"));
    assert_eq!(json(&answer)["retryable"], false);
    let id = json(&answer)["request_id"].as_str().unwrap().to_owned();
    for known in [id.as_str(), "key:k%201"] {
        let entry = json(&world.ask(&format!("GET /_bridge/outcome/{known}"), "").await);
        assert_eq!(
            (&entry["outcome"], &entry["path"]),
            (&"indeterminate".into(), &"/api/issues/1/comments".into())
        );
    }
    assert_eq!(
        code(&world.ask("GET /_bridge/outcome/key:other", "").await),
        refused(404, "outcome_unknown")
    );
    let all = json(&world.ask("GET /_bridge/outcomes", "").await);
    let entry = &all["outcomes"][0];
    assert_eq!(
        (&entry["request_id"], &entry["idempotency_key"], &entry["outcome"]),
        (&id.into(), &"k 1".into(), &"indeterminate".into())
    );
    assert!(entry["dispatched_at"].is_string() && entry["settled_at"].is_string());
    assert_eq!(world.seen().len(), 1, "never sent twice");
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_may_be_repeated() {
    async fn vanish(_: String, stream: TcpStream) -> Option<TcpStream> {
        drop(stream);
        None
    }
    let world = world(Shape::default(), vanish).await;

    let answer = world.ask("GET /api/agents/me", "").await;

    assert_eq!(code(&answer), refused(502, "upstream_failed"));
    assert_eq!(json(&answer)["retryable"], true);
    assert_eq!(world.seen().len(), 1, "we do not repeat it ourselves");
}

#[tokio::test]
async fn a_late_answer_is_a_timeout_for_a_read_and_indeterminate_for_a_write() {
    async fn silence(_: String, stream: TcpStream) -> Option<TcpStream> {
        let _open = stream;
        std::future::pending().await
    }
    let world = world(
        Shape {
            deadline: Some(Duration::from_millis(200)),
            ..Shape::default()
        },
        silence,
    )
    .await;

    assert_eq!(
        code(&world.ask("GET /api/agents/me", "").await),
        refused(504, "upstream_timeout")
    );
    assert_eq!(
        code(&world.post("/api/issues/1/comments", "{}").await),
        refused(409, "outcome_indeterminate")
    );
}

#[tokio::test]
async fn an_upstream_that_is_not_there_was_sent_nothing() {
    let world = world(Shape::default(), ok).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let settings = UpstreamSettings::parse(&format!("http://127.0.0.1:{port}"), None).unwrap();
    let session = Session::new(SessionParts {
        run_id: HeaderValue::from_static("run-1"),
        tunnel: "local",
        rules: world.session.rules.clone(),
        limits: Limits::default(),
        rate: None,
        upstream: Upstream::new(&settings, Secret::new(CREDENTIAL)).unwrap(),
        token: world.token.digest(),
        audit: None,
        process_bodies: Budget::new(PROCESS_BODY_BYTES),
        shared: Shared::default(),
    });
    let world = World { session, ..world };

    let answer = world.post("/api/issues/1/comments", "{}").await;

    assert_eq!(code(&answer), refused(502, "upstream_unreachable"));
    let id = json(&answer)["request_id"].as_str().unwrap().to_owned();
    assert_eq!(
        json(&world.ask(&format!("GET /_bridge/outcome/{id}"), "").await)["outcome"],
        "not_sent"
    );
}

#[tokio::test]
async fn a_streamed_answer_that_breaks_is_cut_and_never_looks_whole() {
    async fn half(_: String, stream: TcpStream) -> Option<TcpStream> {
        say(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half",
        )
        .await?;
        None
    }
    let world = world(Shape::default(), half).await;

    let answer = world.ask("GET /api/agents/me", "").await;

    assert_eq!(status(&answer), 200);
    assert!(
        answer.contains("content-length: 100") && answer.ends_with("{\"half"),
        "shorter than it says: {answer}"
    );
}

#[tokio::test]
async fn an_answer_to_a_write_that_breaks_is_indeterminate_not_cut() {
    async fn half(_: String, stream: TcpStream) -> Option<TcpStream> {
        say(
            stream,
            "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n{\"half",
        )
        .await?;
        None
    }
    let world = world(Shape::default(), half).await;

    assert_eq!(
        code(&world.post("/api/issues/1/comments", "{}").await),
        refused(409, "outcome_indeterminate")
    );
}

#[tokio::test]
async fn answers_that_cannot_be_relayed_are_told_apart() {
    async fn by_path(request: String, stream: TcpStream) -> Option<TcpStream> {
        let answer = match request.split(' ').nth(1).unwrap() {
            "/api/issues/huge" => "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n".to_owned(),
            "/api/issues/gzip" => "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx".to_owned(),
            "/api/issues/chunked" => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n".to_owned()
            }
            "/api/issues/cut" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n".to_owned(),
            "/api/issues/moved" => {
                "HTTP/1.1 302 Found\r\nlocation: http://evil/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            "/api/issues/none" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            "/api/issues/same" => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n".to_owned(),
            "/api/issues/twice" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk".to_owned(),
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        let stream = say(stream, &answer).await?;
        if request.contains("/cut") {
            None
        } else {
            Some(stream)
        }
    }
    let world = world(Shape::default(), by_path).await;

    for (path, expected) in [
        ("huge", "upstream_failed"),
        ("gzip", "upstream_failed"),
        ("cut", "upstream_failed"),
        ("twice", "upstream_failed"),
    ] {
        assert_eq!(
            code(&world.ask(&format!("GET /api/issues/{path}"), "").await),
            refused(502, expected),
            "{path}"
        );
    }
    let chunked = world.ask("GET /api/issues/chunked", "").await;
    assert!(
        chunked.contains("content-length: 2") && chunked.ends_with("\r\n\r\nok"),
        "{chunked}"
    );
    let moved = world.ask("GET /api/issues/moved", "").await;
    assert_eq!((status(&moved), moved.contains("location")), (302, false));
    for (path, expected) in [("none", 204), ("same", 304)] {
        let answer = world.ask(&format!("GET /api/issues/{path}"), "").await;
        assert!(
            status(&answer) == expected && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
    }
    assert_eq!(status(&world.post("/api/issues/gzip/comments", "{}").await), 200);
}

#[tokio::test]
async fn a_rate_limit_says_when_to_come_back() {
    let world = world(
        Shape {
            rate: RateLimit::parse("1/h").ok(),
            ..Shape::default()
        },
        ok,
    )
    .await;

    assert_eq!(status(&world.ask("GET /api/agents/me", "").await), 200);
    let answer = world.ask("GET /api/agents/me", "").await;

    assert_eq!(code(&answer), refused(429, "rate_limited"));
    assert!(answer.contains("retry-after: "));
    assert_eq!(world.seen().len(), 1);
}

#[tokio::test]
async fn a_session_that_ends_takes_nothing_new() {
    let world = world(Shape::default(), ok).await;

    let (mut agent, _served) = world.open();
    assert_eq!(world.session.drain(Duration::from_secs(5)).await, 0);
    let _ = agent
        .write_all(world.head("GET /api/agents/me", "").as_bytes())
        .await;
    let mut answer = Vec::new();
    agent.read_to_end(&mut answer).await.unwrap();

    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "),
        "cut, or told so"
    );
    assert_eq!(world.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn the_bridge_answers_for_itself_below_its_own_prefix() {
    let world = world(Shape::default(), ok).await;

    let who = json(&world.ask("GET /_bridge/whoami", "").await);
    let routes = json(&world.ask("GET /_bridge/routes", "").await);
    let limits = json(&world.ask("GET /_bridge/limits", "").await);
    let health = json(&world.ask("GET /_bridge/health", "").await);

    assert_eq!(
        (&who["run_id"], &who["tunnel"]),
        (&"run-1".into(), &"local".into())
    );
    assert_eq!(routes["routes"].as_array().unwrap().len(), 76);
    assert_eq!(limits["max_body_bytes"], 10_551_296);
    assert_eq!(health["status"], "ok");
    assert_eq!(world.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_keep_the_ledger_from_learning() {
    async fn slow(_: String, stream: TcpStream) -> Option<TcpStream> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(stream, "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await
    }
    let world = world(Shape::default(), slow).await;
    let (mut agent, _served) = world.open();
    let more = "Content-Type: application/json\r\nIdempotency-Key: gone\r\nContent-Length: 2\r\n";
    agent
        .write_all((world.head("POST /api/issues/1/comments", more) + "{}").as_bytes())
        .await
        .unwrap();
    while world.seen().is_empty() {
        tokio::task::yield_now().await;
    }

    drop(agent);

    while world.session.ledger.open_count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let entry = json(&world.ask("GET /_bridge/outcome/key:gone", "").await);
    assert_eq!(
        (&entry["outcome"], &entry["status"]),
        (&"answered".into(), &201.into())
    );
}

#[tokio::test]
async fn an_early_answer_of_the_upstream_ends_the_upload_and_is_relayed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 1024];
        let _ = stream.read(&mut some).await;
        let _ = say(stream, "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            .await
            .map(std::mem::forget);
    });
    let base = world(Shape::default(), ok).await;
    let settings = UpstreamSettings::parse(&format!("http://127.0.0.1:{port}"), None).unwrap();
    let session = Session::new(SessionParts {
        run_id: HeaderValue::from_static("run-1"),
        tunnel: "local",
        rules: base.session.rules.clone(),
        limits: Limits::default(),
        rate: None,
        upstream: Upstream::new(&settings, Secret::new(CREDENTIAL)).unwrap(),
        token: base.token.digest(),
        audit: None,
        process_bodies: Budget::new(PROCESS_BODY_BYTES),
        shared: Shared::default(),
    });
    let world = World { session, ..base };
    let length = 8 * 1024 * 1024;
    let head = world.head(
        "POST /api/issues/1/comments",
        &format!("Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n"),
    );
    let (agent, _served) = world.open();
    let (mut reading, mut writing) = tokio::io::split(agent);

    let upload = tokio::spawn(async move {
        writing.write_all(head.as_bytes()).await.unwrap();
        let _ = writing.write_all(&vec![b'x'; length]).await;
    });
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), reading.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();

    let answer = String::from_utf8(answer).unwrap();
    assert!(status(&answer) == 413 && answer.ends_with("no"), "{answer}");
    upload.abort();
    assert_eq!(world.session.bodies.held(), 0);
}

#[tokio::test]
async fn a_stale_idle_connection_costs_nobody_an_answer() {
    async fn once(_: String, mut stream: TcpStream) -> Option<TcpStream> {
        stream
            .write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        // Closed without a word, as a server does with a connection that is idle for too long for it.
        None
    }
    let world = world(Shape::default(), once).await;

    for _ in 0..50 {
        let answer = world.post("/api/issues/1/comments", "{}").await;
        assert!(matches!(status(&answer), 201 | 409), "{answer}");
    }
    let seen = world.seen().len();
    assert!(seen <= 50, "{seen} deliveries of 50");
}

#[tokio::test]
async fn an_agent_that_reads_slowly_sees_an_early_answer_whole() {
    let world = world(Shape::default(), ok).await;
    let body = "x".repeat(100);
    let json = "Content-Type: application/json\r\n";
    let denied = world.head("POST /api/nothing", &format!("{json}Content-Length: 100\r\n")) + &body;
    let chunked = world.head(
        "POST /api/issues/1/comments",
        &format!("{json}Transfer-Encoding: chunked\r\n"),
    ) + "3\r\nabcX"
        + &body;
    let stranger =
        format!("POST /api/x HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Length: 100\r\n\r\n{body}");

    for (request, expected) in [
        (denied, refused(403, "route_not_allowed")),
        (chunked, refused(400, "malformed_request")),
        (stranger, refused(401, "invalid_token")),
    ] {
        let (agent, bridge) = tokio::io::duplex(7);
        let stream = AgentStream {
            bytes: Box::new(bridge),
            listening: Listening::Tcp { port: PORT },
        };
        let served = tokio::spawn(super::stream(stream, Arc::clone(&world.session)));
        let (mut reading, mut writing) = tokio::io::split(agent);
        let say = async {
            let _ = writing.write_all(request.as_bytes()).await;
            let _ = writing.shutdown().await;
        };
        let mut answer = String::new();
        let (_, heard) = tokio::join!(say, reading.read_to_string(&mut answer));
        heard.unwrap();
        served.await.unwrap();
        assert_eq!(code(&answer), expected, "{answer}");
    }
}

#[tokio::test]
async fn a_refused_token_does_not_cost_the_next_request() {
    let world = world(Shape::default(), ok).await;
    let stranger = format!(
        "POST /api/x HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Length: 100000\r\n\r\n{}",
        "x".repeat(100_000)
    );

    let answers = world
        .raw((stranger + &world.head("GET /api/agents/me", "")).as_bytes())
        .await;

    assert_eq!(statuses(&answers), [401, 200]);
}

#[tokio::test]
async fn an_answer_to_head_never_has_a_body_not_even_a_refusal() {
    let world = world(Shape::default(), ok).await;

    for more in ["Expect: x\r\n", "Content-Length: 1, 1\r\n", ""] {
        let answer = world.ask("HEAD /api/agents/me", more).await;
        assert!(status(&answer) >= 400 && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_given_up_and_an_idle_connection_is_closed() {
    let (mut agent, bridge) = tokio::io::duplex(1024);
    let world = offline();
    let stream = AgentStream {
        bytes: Box::new(bridge),
        listening: Listening::Tcp { port: PORT },
    };
    let served = tokio::spawn(super::stream(stream, Arc::clone(&world)));

    agent.write_all(b"GET / HT").await.unwrap();
    let mut answer = String::new();
    agent.read_to_string(&mut answer).await.unwrap();
    assert_eq!(code(&answer), refused(408, "request_timeout"));
    served.await.unwrap();

    let (mut idle, bridge) = tokio::io::duplex(1024);
    let stream = AgentStream {
        bytes: Box::new(bridge),
        listening: Listening::Tcp { port: PORT },
    };
    let served = tokio::spawn(super::stream(stream, world));
    let mut nothing = String::new();
    idle.read_to_string(&mut nothing).await.unwrap();
    assert_eq!(nothing, "");
    drop(idle);
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_reads_does_not_hold_its_answer_for_ever() {
    let session = offline();
    let (mut agent, bridge) = tokio::io::duplex(64);
    let stream = AgentStream {
        bytes: Box::new(bridge),
        listening: Listening::Tcp { port: PORT },
    };
    let served = tokio::spawn(super::stream(stream, session));

    agent.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    // The clock is paused: this returns because the stream was given up, not because time was waited for.
    served.await.unwrap();
}

/// A session whose upstream is never asked, so that the clock may be paused.
fn offline() -> Arc<Session> {
    let settings = UpstreamSettings::parse("http://127.0.0.1:9", None).unwrap();
    Session::new(SessionParts {
        run_id: HeaderValue::from_static("run-1"),
        tunnel: "local",
        rules: Rules::none().into(),
        limits: Limits::default(),
        rate: None,
        upstream: Upstream::new(&settings, Secret::new(CREDENTIAL)).unwrap(),
        token: Token::from_random([7; 24]).digest(),
        audit: None,
        process_bodies: Budget::new(PROCESS_BODY_BYTES),
        shared: Shared::default(),
    })
}

#[tokio::test]
async fn a_chunked_body_that_nobody_wants_is_dropped_and_the_next_request_answered() {
    let world = world(Shape::default(), ok).await;
    let chunked = format!(
        "POST /api/x HTTP/1.1\r\nHost: other\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\n1\r\n0\r\n\r\n{}",
        world.head("GET /api/agents/me", "")
    );

    for room in [7, 64, 64 * 1024] {
        let (agent, bridge) = tokio::io::duplex(room);
        let stream = AgentStream {
            bytes: Box::new(bridge),
            listening: Listening::Tcp { port: PORT },
        };
        let served = tokio::spawn(super::stream(stream, Arc::clone(&world.session)));
        let (mut reading, mut writing) = tokio::io::split(agent);
        let say = async {
            let _ = writing.write_all(chunked.as_bytes()).await;
            let _ = writing.shutdown().await;
        };
        let mut answers = String::new();
        let both = async { tokio::join!(say, reading.read_to_string(&mut answers)) };
        let (_, heard) = tokio::time::timeout(Duration::from_secs(5), both)
            .await
            .expect("no timer is needed");
        heard.unwrap();
        served.await.unwrap();
        assert_eq!(statuses(&answers), [421, 200], "room {room}");
    }
}
