//! One request, two ways in: as bytes on a stream and as a message. Their answers must be the same.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use policy::Limits;
use proptest::prelude::*;
use tunnel::{AgentMessage, BodyError, CallerProof, MessageBody};

use super::*;

/// One request, to be written out as bytes or handed over as a message.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) target: &'static str,
    pub(super) host: String,
    pub(super) token: Option<String>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Sent,
}

#[derive(Clone, Debug)]
pub(super) enum Sent {
    Nothing,
    Declared(Vec<u8>),
    Chunked(Vec<u8>),
}

/// What the caller is told, without what differs from call to call.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Ask {
    pub(super) fn to(world: &World, method: &'static str, target: &'static str) -> Self {
        Self {
            method,
            target,
            host: format!("127.0.0.1:{PORT}"),
            token: Some(world.token.expose().to_owned()),
            headers: Vec::new(),
            body: Sent::Nothing,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn json(self, body: &str) -> Self {
        Self {
            body: Sent::Declared(body.into()),
            ..self.header("content-type", "application/json")
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            self.method, self.target, self.host
        );
        if let Some(token) = &self.token {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut bytes = head.into_bytes();
        match &self.body {
            Sent::Nothing => bytes.extend_from_slice(b"\r\n"),
            Sent::Declared(body) => {
                bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(body);
            }
            Sent::Chunked(body) => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                for chunk in body.chunks(3) {
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        bytes
    }

    pub(super) fn message(&self) -> AgentMessage {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        for (name, value) in &self.headers {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let body = match &self.body {
            Sent::Nothing => whole(&[]),
            Sent::Declared(body) => {
                headers.insert("content-length", body.len().into());
                whole(body)
            }
            Sent::Chunked(body) => {
                let pieces: Vec<Bytes> = body.chunks(3).map(Bytes::copy_from_slice).collect();
                pieces_of(pieces.into_iter().map(Ok).collect())
            }
        };
        AgentMessage {
            method: Method::from_bytes(self.method.as_bytes()).unwrap(),
            target: Bytes::from_static(self.target.as_bytes()),
            headers,
            host: Some(Bytes::from(self.host.clone())),
            proof: CallerProof::Token,
            body,
            listening: Listening::Tcp { port: PORT },
        }
    }
}

fn whole(body: &[u8]) -> MessageBody {
    Full::new(Bytes::copy_from_slice(body))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body of unknown length; a last `Err` breaks it off.
pub(super) fn pieces_of(pieces: Vec<Result<Bytes, BodyError>>) -> MessageBody {
    let frames = pieces.into_iter().map(|piece| piece.map(Frame::data));
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

fn without_request_id(body: String) -> String {
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(&body) else {
        return body;
    };
    let Some(object) = value.as_object_mut() else {
        return body;
    };
    if object.remove("request_id").is_some() {
        object.remove("hint");
        return value.to_string();
    }
    body
}

impl Told {
    fn new(status: u16, headers: impl Iterator<Item = (String, String)>, body: String) -> Self {
        // The length is how HTTP/1 frames a body; a message has its own way, so that only one of the two says it. It is
        // compared by the body itself.
        let own = [
            "date",
            "connection",
            "x-paperclip-bridge-request-id",
            "content-length",
        ];
        let mut headers: Vec<_> = headers
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .collect();
        headers.sort();
        Self {
            status,
            headers,
            body: without_request_id(body),
        }
    }
}

impl World {
    pub(super) async fn hand_over(&self, message: AgentMessage) -> Response<MessageBody> {
        self.session.callbacks().serve_message(message).await
    }

    pub(super) async fn as_message(&self, ask: &Ask) -> Told {
        let (head, body) = self.hand_over(ask.message()).await.into_parts();
        assert!(
            head.headers.contains_key("x-paperclip-bridge-request-id"),
            "{head:?}"
        );
        assert!(!head.headers.contains_key("connection"), "{head:?}");
        let body = body.collect().await.unwrap().to_bytes();
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        Told::new(
            head.status.as_u16(),
            headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    async fn as_bytes(&self, ask: &Ask) -> Told {
        let answer = self.raw(&ask.bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let headers = head.lines().skip(1).map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Told::new(status(&answer), headers, body.to_owned())
    }

    pub(super) async fn code_of(&self, ask: &Ask) -> (u16, String) {
        let told = self.as_message(ask).await;
        (told.status, code_in(&told.body))
    }
}

fn code_in(body: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    json["code"].as_str().unwrap_or_default().to_owned()
}

/// An upstream that says back what it was asked, so that two ways can be compared by their answers.
async fn mirror(request: String, stream: TcpStream) -> Option<TcpStream> {
    let head_only = request.starts_with("HEAD ");
    let answer = request.replace("\r\n", "|");
    let body = if head_only { "" } else { answer.as_str() };
    say(
        stream,
        &format!(
            "HTTP/1.1 200 OK\r\netag: \"1\"\r\nx-secret: 1\r\ncontent-length: {}\r\n\r\n{body}",
            answer.len()
        ),
    )
    .await
}

pub(super) fn small() -> Shape {
    Shape {
        limits: Some(Limits {
            max_body: 64,
            max_target: 200,
            max_headers: 12,
            max_head: 2048,
        }),
        ..Shape::default()
    }
}

/// Over the limit of a head by itself.
pub(super) static LONG: &str = match std::str::from_utf8(&[b'y'; 3000]) {
    Ok(text) => text,
    Err(_) => "",
};

fn any_ask(token: String) -> impl Strategy<Value = Ask> {
    let method = prop::sample::select(vec![
        "GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", "get",
    ]);
    let target = prop::sample::select(vec![
        "/api/agents/me",
        "/api/issues/PAP-1?q=%2F&x=a:b",
        "/api/issues/PAP-1/comments",
        "/api/issues/PAP-1",
        "/api/secrets",
        "/api/issues/../secrets",
        "/api/%69ssues",
        "//api/issues",
        "*",
        "http://127.0.0.1/api/agents/me",
        "127.0.0.1:1",
        "/_bridge/whoami",
        "/_bridge/limits",
        "/_bridge/outcome/key:none",
        "/_bridge",
    ]);
    let host = prop::sample::select(vec![
        format!("127.0.0.1:{PORT}"),
        format!("localhost:{PORT}"),
        "evil.example".to_owned(),
    ]);
    let token = prop::sample::select(vec![Some(token), Some("pcb_wrong".to_owned()), None]);
    let header = prop::sample::select(vec![
        ("content-type", "application/json"),
        ("content-type", "text/plain"),
        ("accept", "application/json"),
        ("cookie", "a=b"),
        ("idempotency-key", ""),
        ("idempotency-key", "k"),
        ("x-paperclip-run-id", "forged"),
        ("x-long", LONG),
    ]);
    let body = prop_oneof![
        Just(Sent::Nothing),
        (0_usize..80).prop_map(|length| Sent::Declared(vec![b'1'; length])),
        (0_usize..80).prop_map(|length| Sent::Chunked(vec![b'1'; length])),
    ];
    // Most asks are good in all but one or two points, or every one would end at the first check.
    let usual = (prop::bool::weighted(0.8), prop::bool::weighted(0.8));
    (
        method,
        target,
        host,
        token,
        prop::collection::vec(header, 0..8),
        body,
        usual,
    )
        .prop_map(
            |(method, target, host, token, headers, body, (own_host, own_token))| Ask {
                method,
                target,
                host: if own_host {
                    format!("127.0.0.1:{PORT}")
                } else {
                    host
                },
                token: if own_token {
                    Some(Token::from_random([7; 24]).expose().to_owned())
                } else {
                    token
                },
                headers: headers
                    .into_iter()
                    .map(|(name, value)| (name, value.to_owned()))
                    .collect(),
                body,
            },
        )
}

#[test]
fn whichever_way_a_request_takes_its_answer_is_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let world = runtime.block_on(world(small(), mirror));
    let token = world.token.expose().to_owned();

    proptest!(ProptestConfig::with_cases(512), |(ask in any_ask(token))| {
        let (before, as_bytes, between, as_message, after) = runtime.block_on(async {
            let before = world.seen().len();
            let as_bytes = world.as_bytes(&ask).await;
            let between = world.seen().len();
            let as_message = world.as_message(&ask).await;
            (before, as_bytes, between, as_message, world.seen().len())
        });
        prop_assert_eq!(&as_bytes, &as_message);
        prop_assert_eq!(between - before, after - between, "dispatched by both ways or by none");
    });
}
