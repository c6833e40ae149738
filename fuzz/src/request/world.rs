//! A session in memory and its upstream on loopback.
//!
//! Here: one runtime and one listener for the process; a session of its own for each exchange, so that none can see
//! what another left behind. Not here: what must hold of an exchange (the front page).

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bridge::secrets::Secret;
use bridge::session::budget::Budget;
use bridge::session::{PROCESS_BODY_BYTES, Session, SessionParts, Shared};
use bridge::upstream::{Upstream, UpstreamSettings};
use http::HeaderValue;
use policy::{Limits, Pack, Rules, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tunnel::{AgentStream, Listening};

use super::splitter;

/// No exchange needs a hundredth of it; a machine under load may need some.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes under way to each side, as a socket would hold them.
///
/// Room for the answers: an agent that reads slowly must see them whole as well.
const BUFFER: usize = 7;
/// Room for what the agent says, where it is not cut into pieces.
pub(crate) const ROOM: usize = 64 * 1024;

/// What outlives an exchange.
pub(crate) struct World {
    runtime: Runtime,
    listener: TcpListener,
    /// The same listener without the runtime's opinion on whether something waits there.
    waiting: std::net::TcpListener,
    pub(crate) host: String,
    pub(crate) rules: Arc<Rules>,
    exchanges: u64,
}

/// What came of a session that was used in whatever way.
pub(crate) struct Carried<T> {
    pub(crate) run_id: String,
    /// All requests that the upstream got, in their order.
    pub(crate) seen: Vec<Seen>,
    /// What the one who used it says.
    pub(crate) outcome: T,
}

/// What came of one connection.
pub(crate) struct Exchange {
    pub(crate) run_id: String,
    /// All bytes that the agent got.
    pub(crate) answers: Vec<u8>,
    /// All requests that the upstream got, in their order.
    pub(crate) seen: Vec<Seen>,
    pub(crate) ended: bool,
    pub(crate) served: bool,
}

/// One request as the upstream got it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// It could be read as a request of HTTP/1.1.
    pub(crate) well_formed: bool,
    /// It came to its end.
    pub(crate) whole: bool,
}

impl Seen {
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        splitter::values(&self.fields, name)
    }
}

type Log = Arc<Mutex<Vec<Seen>>>;

impl World {
    pub(crate) fn lock() -> MutexGuard<'static, Self> {
        static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
        // A broken law in one test leaves nothing broken for the next.
        WORLD
            .get_or_init(|| Mutex::new(Self::new()))
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let waiting = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        waiting
            .set_nonblocking(true)
            .expect("a listener that does not block");
        let host = waiting.local_addr().expect("its address").to_string();
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(waiting.try_clone().expect("a second handle")).expect("a listener")
        };
        Self {
            runtime,
            listener,
            waiting,
            host,
            rules: Arc::new(Rules::from_pack(Pack::newest())),
            exchanges: 0,
        }
    }

    /// Sends `data` in reads of at most `piece` bytes, and gathers what both sides got.
    pub(crate) fn exchange(&mut self, data: &[u8], piece: usize) -> Exchange {
        let carried = self.carry(|session| converse(data, piece, session));
        let (answers, ended, served) = carried.outcome;
        Exchange {
            run_id: carried.run_id,
            answers,
            seen: carried.seen,
            ended,
            served,
        }
    }

    /// Has `talk` use a session of its own to its end, and gathers what the upstream got.
    pub(crate) fn carry<F: Future>(&mut self, talk: impl FnOnce(Arc<Session>) -> F) -> Carried<F::Output> {
        self.exchanges += 1;
        let run_id = format!("fuzz-{}", self.exchanges);
        let session = self.session(&run_id);
        let (outcome, seen) = self.runtime.block_on(self.beside_upstream(async {
            let outcome = talk(Arc::clone(&session)).await;
            // Uploads and unread bodies are tasks of the session.
            session.drain(PATIENCE).await;
            // With the session its pooled connections go, and so the upstream's side of them ends.
            drop(session);
            outcome
        }));
        Carried {
            run_id,
            seen,
            outcome,
        }
    }

    fn session(&self, run_id: &str) -> Arc<Session> {
        let settings = UpstreamSettings::parse(&format!("http://{}", self.host), None).expect("an upstream");
        let token = Token::from_random([7; 24]);
        assert_eq!(token.expose(), super::TOKEN, "the seeds hold another token");
        Session::new(SessionParts {
            run_id: HeaderValue::from_str(run_id).expect("a header value"),
            tunnel: "local",
            rules: Arc::clone(&self.rules).into(),
            limits: Limits::default(),
            rate: None,
            upstream: Upstream::new(&settings, Secret::new(super::CREDENTIAL)).expect("a client"),
            token: token.digest(),
            audit: None,
            process_bodies: Budget::new(PROCESS_BODY_BYTES),
            shared: Shared::default(),
        })
    }

    async fn beside_upstream<T>(&self, talk: impl Future<Output = T>) -> (T, Vec<Seen>) {
        let log = Log::default();
        let mut connections = JoinSet::new();
        tokio::pin!(talk);
        let outcome = loop {
            tokio::select! {
                outcome = &mut talk => break outcome,
                Ok((stream, _)) = self.listener.accept() => {
                    connections.spawn(upstream(stream, Arc::clone(&log)));
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        };
        while let Ok((stream, _)) = self.waiting.accept() {
            stream
                .set_nonblocking(true)
                .expect("a stream that does not block");
            let stream = TcpStream::from_std(stream).expect("a stream");
            connections.spawn(upstream(stream, Arc::clone(&log)));
        }
        let all_gone = async { while connections.join_next().await.is_some() {} };
        let left_behind = tokio::time::timeout(PATIENCE, all_gone).await.is_err();
        assert!(!left_behind, "a connection to the upstream outlived its session");
        let seen = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (outcome, seen)
    }
}

/// One connection: what the agent got, whether it ended in time, and whether it was served without a panic.
async fn converse(data: &[u8], piece: usize, session: Arc<Session>) -> (Vec<u8>, bool, bool) {
    let (saying, said) = tokio::io::duplex(piece.min(ROOM));
    let (answering, hearing) = tokio::io::duplex(BUFFER);
    let stream = AgentStream {
        bytes: Box::new(tokio::io::join(said, answering)),
        listening: Listening::Tcp { port: super::PORT },
    };
    let serving = tokio::spawn(session.callbacks().serve_stream(stream));
    let mut answers = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, say_and_hear(saying, data, hearing, &mut answers))
        .await
        .is_ok();
    if !ended {
        serving.abort();
    }
    let served = serving.await.is_ok();
    (answers, ended, served)
}

/// Writes all of `data` and reads to the end, at the same time: either side may be slow.
async fn say_and_hear(
    mut saying: DuplexStream,
    data: &[u8],
    mut hearing: DuplexStream,
    answers: &mut Vec<u8>,
) {
    let say = async {
        // The bridge may close before it has read everything.
        let _said = saying.write_all(data).await;
        let _shut = saying.shutdown().await;
    };
    let hear = async {
        let _heard = hearing.read_to_end(answers).await;
    };
    tokio::join!(say, hear);
}

/// Reads requests off one connection, writes them down and answers each.
async fn upstream(mut stream: TcpStream, log: Log) {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer).await {
        let answer = answer(&seen);
        let go_on = seen.whole;
        log.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        if !go_on || stream.write_all(answer).await.is_err() {
            break;
        }
    }
    // Else the bridge's side would wait out TIME_WAIT, and a fuzzer run out of ports.
    let _reset = stream.set_zero_linger();
}

/// The next request, whole or broken off; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let mut seen = Seen::default();
    loop {
        if let Some((lines, rest)) = splitter::section(buffer) {
            let rest = rest.to_vec();
            take_head(&lines, &mut seen);
            *buffer = rest;
            break;
        }
        if !more(stream, buffer).await {
            // A head that was broken off asks for nothing.
            return None;
        }
    }
    let length = match seen.values("content-length").as_slice() {
        [length] => std::str::from_utf8(length)
            .ok()
            .and_then(|text| text.parse::<usize>().ok())
            .unwrap_or_default(),
        _ => 0,
    };
    while buffer.len() < length {
        if !more(stream, buffer).await {
            seen.body = std::mem::take(buffer);
            return Some(seen);
        }
    }
    seen.body = buffer.drain(..length).collect();
    seen.whole = true;
    Some(seen)
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(buffer).await, Ok(count) if count > 0)
}

fn take_head(lines: &[&[u8]], seen: &mut Seen) {
    let first = lines
        .first()
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .unwrap_or_default();
    let fields: Option<Vec<_>> = lines.iter().skip(1).map(|line| splitter::field(line)).collect();
    let words: Vec<&str> = first.split(' ').collect();
    if let ([method, target, "HTTP/1.1"], Some(fields)) = (words.as_slice(), fields) {
        seen.method = (*method).to_owned();
        seen.target = (*target).to_owned();
        seen.fields = fields;
        seen.well_formed = seen.values("transfer-encoding").is_empty();
    }
}

/// Answers of several shapes, chosen by the request, so that the same bytes get the same answers.
fn answer(seen: &Seen) -> &'static [u8] {
    match seen.target.len() % 4 {
        0 => {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nset-cookie: a=b\r\nserver: x\r\nwww-authenticate: Basic\r\netag: \"1\"\r\n\
              content-length: 11\r\n\r\n{\"ok\":true}"
        }
        1 => b"HTTP/1.1 204 No Content\r\nset-cookie: a=b\r\n\r\n",
        2 => b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        _ => b"HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n",
    }
}
