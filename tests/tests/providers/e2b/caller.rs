//! A small caller of the server inside a sandbox, for the table of facts alone: it shares no code with our runner but
//! the HTTP client, so that the two cannot agree on a mistake.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use fakes::FakeE2b;
use fakes::e2b::API_KEY;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use runners::http::HttpClient;
use serde_json::{Value, json};

/// For every answer, and for every message of a stream.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// The flag of a stream's last frame.
pub(super) const END: u8 = 2;
const STREAM: &str = "application/connect+json";

/// One sandbox on a fake of its own.
pub(super) struct Caller {
    pub(super) fake: FakeE2b,
    pub(super) id: String,
    pub(super) token: String,
    pub(super) folder: tempfile::TempDir,
    http: HttpClient,
}

impl Caller {
    pub(super) async fn start() -> Self {
        let fake = FakeE2b::start().await;
        let http = HttpClient::new([]);
        let request = Request::post(format!("{}/v2/sandboxes", fake.url()))
            .header("x-api-key", API_KEY)
            .body(Full::from(json!({"templateID": "base"}).to_string()))
            .expect("a request");
        let (parts, body) = http.fetch(request, LIMIT, 1 << 20).await.expect("an answer");
        assert_eq!(parts.status, 201);
        let made: Value = serde_json::from_slice(&body).expect("JSON");
        Self {
            id: made["sandboxID"].as_str().expect("an id").to_owned(),
            token: made["envdAccessToken"].as_str().expect("a token").to_owned(),
            folder: tempfile::tempdir().expect("a folder"),
            fake,
            http,
        }
    }

    /// A path in a folder of this caller's own.
    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.fake.url()))
            .header("e2b-sandbox-id", &self.id)
            .header("e2b-sandbox-port", "49983");
        if headers.iter().all(|(name, _)| *name != "x-access-token") {
            request = request.header("x-access-token", &self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        self.http.send(request, LIMIT).await.expect("an answer")
    }

    /// Status and body of a call.
    pub(super) async fn fetch(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, Bytes) {
        let answer = self.send(method, path, headers, body).await;
        let status = answer.status().as_u16();
        (
            status,
            answer.into_body().collect().await.expect("a body").to_bytes(),
        )
    }

    /// A call of `process.Process` with one answer.
    pub(super) async fn unary(&self, method: &str, request: Value) -> (u16, Value) {
        let path = format!("/process.Process/{method}");
        let headers = [("content-type", "application/json")];
        let (status, body) = self.fetch("POST", &path, &headers, request.to_string()).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// A call of `process.Process` with a stream of answers.
    pub(super) async fn stream(&self, method: &str, request: Value, headers: &[(&str, &str)]) -> Stream {
        let path = format!("/process.Process/{method}");
        let headers = [&[("content-type", STREAM)], headers].concat();
        let answer = self.send("POST", &path, &headers, frame(&request)).await;
        assert_eq!(answer.status(), 200);
        Stream {
            body: answer.into_body(),
            held: BytesMut::new(),
        }
    }

    /// A script, without input.
    pub(super) async fn script(&self, script: &str) -> Stream {
        self.stream("Start", json!({"process": command(script), "stdin": false}), &[])
            .await
    }

    /// A script with input and a tag.
    pub(super) async fn fed(&self, script: &str, tag: &str) -> Stream {
        self.stream(
            "Start",
            json!({"process": command(script), "stdin": true, "tag": tag}),
            &[],
        )
        .await
    }

    pub(super) async fn input(&self, tag: &str, bytes: &[u8]) -> (u16, Value) {
        let input = json!({"stdin": STANDARD.encode(bytes)});
        self.unary("SendInput", json!({"process": {"tag": tag}, "input": input}))
            .await
    }

    /// Some round trips, in which whatever can happen meanwhile has its time.
    pub(super) async fn some_time(&self) {
        for _ in 0..20 {
            self.script("true").await.rest().await;
        }
    }
}

/// A script as the protocol names a command.
pub(super) fn command(script: &str) -> Value {
    json!({"cmd": "/bin/sh", "args": ["-c", script]})
}

/// One frame of a request.
pub(super) fn frame(message: &Value) -> Bytes {
    let payload = message.to_string();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(payload.len()).expect("a short message"));
    frame.put_slice(payload.as_bytes());
    frame.freeze()
}

/// A stream of answers.
pub(super) struct Stream {
    body: Incoming,
    held: BytesMut,
}

impl Stream {
    /// The next frame, with its flags; none where the connection ends.
    pub(super) async fn next(&mut self) -> Option<(u8, Value)> {
        loop {
            if let Some(head) = self.held.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                let flags = head[0];
                if self.held.len() >= 5 + length {
                    let frame = self.held.split_to(5 + length);
                    return Some((flags, serde_json::from_slice(&frame[5..]).expect("JSON")));
                }
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame())
                .await
                .expect("a frame in time");
            self.held
                .extend_from_slice(&frame?.ok()?.into_data().unwrap_or_default());
        }
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> Value {
        let (flags, message) = self.next().await.expect("an event");
        assert_eq!(flags, 0, "{message}");
        message["event"].clone()
    }

    /// The pid, which comes first.
    pub(super) async fn pid(&mut self) -> u32 {
        let event = self.event().await;
        let pid = event["start"]["pid"]
            .as_u64()
            .unwrap_or_else(|| panic!("{event}"));
        u32::try_from(pid).expect("a pid")
    }

    /// Everything to the end of the connection.
    pub(super) async fn rest(mut self) -> Vec<(u8, Value)> {
        let mut all = vec![];
        while let Some(frame) = self.next().await {
            all.push(frame);
        }
        all
    }
}

/// The bytes of one output, piece by piece.
pub(super) fn pieces(frames: &[(u8, Value)], name: &str) -> Vec<Vec<u8>> {
    let texts = frames
        .iter()
        .filter_map(|(_, message)| message["event"]["data"][name].as_str());
    texts.map(|text| STANDARD.decode(text).expect("base64")).collect()
}

/// How the process ended.
pub(super) fn end(frames: &[(u8, Value)]) -> Value {
    let ends = frames
        .iter()
        .filter_map(|(_, message)| message["event"].get("end"));
    ends.last().cloned().unwrap_or(Value::Null)
}
