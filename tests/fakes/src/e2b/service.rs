//! `process.Process`: its calls.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::process::{Process, Stdin};
use super::reply::{self, Reply};
use super::rpc::{self, Fault};
use super::sandbox::Sandbox;
use super::start;
use super::switches::Switches;

/// Without a word of the caller's.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// A stream of one process's messages.
pub(super) fn stream(
    sandbox: &Arc<Sandbox>,
    switches: &Switches,
    method: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Reply {
    let limit = number(headers, "connect-timeout-ms").map(Duration::from_millis);
    let found = || {
        let mut body = BytesMut::from(body);
        let request = rpc::take(&mut body)?
            .ok_or_else(|| Fault::new("invalid_argument", "protocol error: incomplete envelope"))?;
        if method == "Connect" {
            return sandbox
                .processes
                .find_ended(&request["process"], sandbox.clock.now());
        }
        let tag = request["tag"].as_str().unwrap_or_default();
        if switches.refuses_tag(tag) {
            return Err(Fault::new(
                "permission_denied",
                "this process is not allowed here",
            ));
        }
        start::start(sandbox, user(headers).as_deref(), &request, limit)
    };
    let process = match found() {
        Ok(process) => process,
        Err(fault) => {
            let end = rpc::end(Some(&fault));
            return reply::streamed(rpc::STREAM, stream::iter([Ok(end)]));
        }
    };
    let following = Following {
        events: process.follow(),
        deadline: limit.map(|limit| Instant::now() + limit),
        idle: number(headers, "keepalive-ping-interval").map_or(KEEPALIVE, Duration::from_secs),
        clock: Arc::clone(&sandbox.clock),
        cut: sandbox.sockets(),
        over: false,
    };
    reply::streamed(
        rpc::STREAM,
        stream::unfold(following, |mut following| async {
            Some((following.next().await?, following))
        }),
    )
}

/// One caller's view of a process.
struct Following {
    events: mpsc::Receiver<Value>,
    deadline: Option<Instant>,
    idle: Duration,
    clock: Arc<Clock>,
    cut: CancellationToken,
    over: bool,
}

impl Following {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.over {
            return None;
        }
        let deadline = self.deadline;
        let too_late = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let idle = self.clock.now() + self.idle;
        tokio::select! {
            biased;
            () = self.cut.cancelled() => {
                self.over = true;
                Some(Err(reply::cut()))
            }
            () = too_late => {
                self.over = true;
                Some(Ok(rpc::end(Some(&Fault::new("deadline_exceeded", "context deadline exceeded")))))
            }
            event = self.events.recv() => Some(Ok(match event {
                Some(event) => rpc::message(&json!({"event": event})),
                None => {
                    self.over = true;
                    rpc::end(None)
                }
            })),
            () = self.clock.sleep_until(idle) => Some(Ok(rpc::message(&json!({"event": {"keepalive": {}}})))),
        }
    }
}

/// A call with one request and one answer.
pub(super) async fn unary(sandbox: &Sandbox, method: &str, body: &[u8]) -> Result<Value, Fault> {
    let request = rpc::parse(body)?;
    if method == "List" {
        return Ok(sandbox.processes.list());
    }
    let process = || sandbox.processes.find(&request["process"]);
    match method {
        "SendInput" => input(&*process()?, &request["input"]).await?,
        "CloseStdin" => process()?.close_stdin().await?,
        "SendSignal" => process()?.signal(match request["signal"].as_str() {
            Some("SIGNAL_SIGTERM") => Signal::TERM,
            Some("SIGNAL_SIGKILL") => Signal::KILL,
            _ => return Err(Fault::new("unimplemented", "invalid signal")),
        }),
        "Update" => resize(&*process()?, &request["pty"]["size"]).await?,
        _ => return Err(Fault::new("unimplemented", method)),
    }
    Ok(json!({}))
}

async fn input(process: &Process, input: &Value) -> Result<(), Fault> {
    let decode = |text: &Value| {
        STANDARD
            .decode(text.as_str().unwrap_or_default())
            .map_err(|error| Fault::new("invalid_argument", format!("unmarshal message: {error}")))
    };
    match (input.get("stdin"), input.get("pty")) {
        (Some(text), _) => process.input(&decode(text)?, false).await,
        (None, Some(text)) => process.input(&decode(text)?, true).await,
        (None, None) => Err(Fault::new("unimplemented", "invalid input type <nil>")),
    }
}

async fn resize(process: &Process, size: &Value) -> Result<(), Fault> {
    let side = |name: &str| u16::try_from(size[name].as_u64().unwrap_or_default()).unwrap_or(u16::MAX);
    match &*process.stdin.lock().await {
        Stdin::Pty(pty) => pty
            .resize(pty_process::Size::new(side("rows"), side("cols")))
            .map_err(|error| Fault::new("internal", error.to_string())),
        Stdin::None | Stdin::Pipe(_) => Err(Fault::new("internal", "tty not assigned to process")),
    }
}

/// `StreamInput`: messages as they come, one answer at the end.
pub(super) async fn stream_input(sandbox: &Sandbox, mut body: Incoming) -> Reply {
    let result = take_input(sandbox, &mut body).await;
    let frames = match result {
        Ok(()) => vec![Ok(rpc::message(&json!({}))), Ok(rpc::end(None))],
        Err(fault) => vec![Ok(rpc::end(Some(&fault)))],
    };
    reply::streamed(rpc::STREAM, stream::iter(frames))
}

async fn take_input(sandbox: &Sandbox, body: &mut Incoming) -> Result<(), Fault> {
    let mut buffer = BytesMut::new();
    let mut process = None;
    loop {
        while let Some(message) = rpc::take(&mut buffer)? {
            if let Some(start) = message.get("start") {
                process = Some(sandbox.processes.find(&start["process"])?);
            } else if let Some(data) = message.get("data") {
                let process = process
                    .as_ref()
                    .ok_or_else(|| Fault::new("invalid_argument", "data before start"))?;
                input(process, &data["input"]).await?;
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => return Err(Fault::new("canceled", error.to_string())),
            None => return Ok(()),
        }
    }
}

/// A content type that the method does not take.
pub(super) fn wrong_type() -> Reply {
    Ok(Response::builder()
        .status(415)
        .header("accept-post", format!("{}, {}", rpc::UNARY, rpc::STREAM))
        .body(reply::full(Bytes::new()))
        .expect("a valid response"))
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers
        .get(name)?
        .to_str()
        .ok()?
        .parse()
        .ok()
        .filter(|number| *number > 0)
}

/// The user of `Authorization: Basic`, if one is named.
pub(super) fn user(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("authorization")?.to_str().ok()?;
    let pair = STANDARD.decode(text.strip_prefix("Basic ")?).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    Some(pair.split(':').next().unwrap_or_default().to_owned())
}
