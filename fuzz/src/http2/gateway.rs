//! Who plays the gateway on a byte stream in memory, and who listens in where the tunnel hands over to the session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bridge::session::Session;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tunnel::launch::GatewayKind;
use tunnel::{AgentMessage, AgentStream, Callbacks, Listening, MessageBody};

use super::frames::Asked;
use super::script::Script;
use crate::request::PORT;
use crate::request::world::{PATIENCE, ROOM};

/// RFC 9113 section 3.4.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NONCE: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// What may stand between READY and the preface.
const NOISE: &[u8] = b"\x1b[?2004l\rPRI * HTTP/2.0\r\n\r\nPRI";
/// Bytes of a read where reads are small.
const PIECE: usize = 7;
/// Enough for a callback to get to the upstream.
const PAUSE: Duration = Duration::from_millis(5);
/// A gateway that has said everything stays that long, unless the bridge ends the connection.
const LINGER: Duration = Duration::from_millis(150);

/// One callback as the session got it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) method: String,
    pub(super) target: Bytes,
    pub(super) host: Option<Bytes>,
    pub(super) headers: HeaderMap,
}

/// What came of one connection.
#[derive(Debug, Default)]
pub(super) struct Talk {
    pub(super) heard: Vec<Heard>,
    pub(super) answers: Vec<(StatusCode, HeaderMap)>,
    /// Everything that the gateway was sent.
    pub(super) written: Vec<u8>,
    pub(super) ended: bool,
    pub(super) served: bool,
    pub(super) panicked: bool,
}

/// Plays `script` and then, where its frames are whole, takes its leave as a gateway does: streams that are still open
/// are reset, and the bridge may finish the others.
pub(super) async fn play(script: &Script, asked: &[Asked], whole: bool, session: Arc<Session>) -> Talk {
    let log = Arc::new(Mutex::new(Talk::default()));
    let listener: Arc<dyn Callbacks> = Arc::new(Listener {
        inner: session.callbacks(),
        log: Arc::clone(&log),
    });
    drop(session);
    let (ours, theirs) = tokio::io::duplex(if script.in_pieces { PIECE } else { ROOM });
    let kind = if script.is_script {
        GatewayKind::Script
    } else {
        GatewayKind::Binary
    };
    let mut serving = tokio::spawn(async move {
        let listening = Listening::Tcp { port: PORT };
        let stop = CancellationToken::new();
        tunnel::http2::serve_stream(Box::new(theirs), kind, NONCE, listening, listener, stop).await
    });
    let (mut hearing, mut saying) = tokio::io::split(ours);
    let mut written = Vec::new();
    let parts = parts(script, asked, whole);
    let say = async {
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            // The bridge may close before it has read everything.
            let _said = saying.write_all(part).await;
        }
        tokio::time::sleep(LINGER).await;
        let _shut = saying.shutdown().await;
    };
    let hear = hearing.read_to_end(&mut written);
    let talk = async {
        tokio::pin!(say, hear);
        tokio::select! {
            _ = &mut hear => {}
            () = &mut say => drop(hear.await),
        }
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await.is_ok();
    let served = tokio::time::timeout(PATIENCE, &mut serving).await;
    let in_time = served.is_ok();
    if !in_time {
        serving.abort();
    }
    let mut talk = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
    talk.written = written;
    talk.ended = ended && in_time;
    talk.served = matches!(served, Ok(Ok(_)));
    talk
}

/// All that the gateway says, from READY on, cut where it pauses.
fn parts(script: &Script, asked: &[Asked], whole: bool) -> Vec<Vec<u8>> {
    let mut part = wire::ready::line(NONCE).into_bytes();
    if script.noise {
        part.extend_from_slice(NOISE);
    }
    if !script.bare {
        part.extend_from_slice(PREFACE);
    }
    let mut parts = Vec::new();
    let mut from = 0;
    for pause in &script.pauses {
        part.extend_from_slice(&script.bytes[from..*pause]);
        parts.push(std::mem::take(&mut part));
        from = *pause;
    }
    part.extend_from_slice(&script.bytes[from..]);
    if whole {
        let mut leave = Script::read(b"\x08");
        for open in asked.iter().filter(|asked| !asked.ended) {
            leave.frame(3, 0, open.stream, &[0, 0, 0, 8]);
        }
        leave.frame(7, 0, 0, &[0; 8]);
        part.extend(leave.bytes);
    }
    parts.push(part);
    parts
}

/// Passes callbacks on and writes down what went which way.
#[derive(Debug)]
struct Listener {
    inner: Arc<dyn Callbacks>,
    log: Arc<Mutex<Talk>>,
}

impl Listener {
    fn note(log: &Mutex<Talk>, what: impl FnOnce(&mut Talk)) {
        what(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Callbacks for Listener {
    fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()> {
        self.inner.serve_stream(stream)
    }

    fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
        let heard = Heard {
            method: method(&message.method),
            target: message.target.clone(),
            host: message.host.clone(),
            headers: message.headers.clone(),
        };
        Self::note(&self.log, |talk| talk.heard.push(heard));
        let log = Arc::clone(&self.log);
        let answered = self.inner.serve_message(message);
        Box::pin(async move {
            let watch = PanicWatch(Arc::clone(&log));
            let answer = answered.await;
            drop(watch);
            Self::note(&log, |talk| {
                talk.answers.push((answer.status(), answer.headers().clone()))
            });
            answer
        })
    }
}

fn method(method: &Method) -> String {
    method.as_str().to_owned()
}

/// A stream's panic stays in its task; this tells of it.
struct PanicWatch(Arc<Mutex<Talk>>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            Listener::note(&self.0, |talk| talk.panicked = true);
        }
    }
}
