//! One connection of the relay, served to its end.
//!
//! Here: the table of open streams, which frame may come when, and who is told when one breaks. Not here: how a socket
//! is written and read (`socket`), what credit is (`credit`), and what comes after the connection (`mod`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use http::{HeaderName, Response};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use wire::names;

use super::answer::Answer;
use super::credit::{CONNECTION_WINDOW, Inbound, InboundBody, SendCredit, TooMuchCredit};
use super::frame::{DATA_LIMIT_BYTES, Frame, FrameFault, Frames, Hello, RequestHead, ResetCode};
use super::head::{self, Asked};
use super::outbox::{Outbox, QUEUE_FRAMES};
use super::seen::{Key, Seen};
use super::socket::{self, Incoming, Over, code};
use crate::http2::{TimedBody, malformed};
use crate::{AgentMessage, Callbacks, CallerProof, Listening, MessageBody};

/// Streams at the same time; one more is refused, which is safe to send again.
pub(super) const STREAMS: usize = 256;
/// The Worker's runtime is asked so often whether it is there, …
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// … and two questions without an answer mean that it is not.
const SILENCE: Duration = Duration::from_secs(60);
/// The Worker gives up by itself; this is for one that does not.
const DEADLINE_SLACK: Duration = Duration::from_secs(5);
/// Where the Worker names no deadline, and at most.
const LONGEST: Duration = Duration::from_secs(480);
/// The farewell has that long to be written.
const FAREWELL: Duration = Duration::from_secs(1);
const REQUEST_ID: HeaderName = HeaderName::from_static(names::header::REQUEST_ID);

/// What every connection of a tunnel serves with.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) callbacks: Arc<dyn Callbacks>,
    pub(super) listening: Listening,
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServeEnd {
    /// As it was asked to; callbacks that were cut are counted.
    Stopped {
        /// Not finished in time.
        cut: usize,
    },
    /// The Worker asked for a new connection, and everything that was open is finished.
    MovedOn,
    /// By itself.
    Over(Over),
}

/// Serves until the connection ends or `stop` is cancelled; then its streams have `drain` to finish.
pub(super) async fn serve<S>(
    socket: WebSocketStream<S>,
    hello: &Hello,
    served: Served,
    stop: &CancellationToken,
    drain: Duration,
) -> ServeEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, mut source) = socket.split();
    let outbox = Arc::new(Outbox::default());
    let (bodies, waiting) = mpsc::channel(QUEUE_FRAMES);
    let mut connection = Connection::new(hello, served, Arc::clone(&outbox), bodies);
    let end = {
        let writing = socket::write(sink, &outbox, waiting);
        tokio::pin!(writing);
        let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut heard = Instant::now();
        // Once it is set, nothing new is opened.
        let mut until: Option<Instant> = None;
        let mut moving = false;
        let end = loop {
            let idle = connection.streams.is_empty();
            if until.is_some() && idle {
                break if moving {
                    ServeEnd::MovedOn
                } else {
                    ServeEnd::Stopped { cut: 0 }
                };
            }
            tokio::select! {
                incoming = socket::incoming(&mut source) => {
                    heard = Instant::now();
                    let over = match incoming {
                        Incoming::Frames(message) => connection.message(message).err().map(Over::Broken),
                        Incoming::Alive => None,
                        Incoming::Over(over) => Some(over),
                    };
                    if let Some(over) = over {
                        break ServeEnd::Over(over);
                    }
                    if connection.leaving && until.is_none() {
                        (moving, until) = (true, Some(Instant::now() + LONGEST));
                    }
                }
                written = &mut writing => {
                    let why = written.err().map_or_else(|| "it was closed".to_owned(), |error| error.to_string());
                    break ServeEnd::Over(Over::Lost(format!("the relay's socket cannot be written: {why}")));
                }
                Some(ended) = connection.tasks.join_next_with_id() => connection.ended(ended),
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE {
                        break ServeEnd::Over(Over::Lost(format!("the relay said nothing for {} s", SILENCE.as_secs())));
                    }
                    outbox.ping();
                }
                () = stop.cancelled(), if moving || until.is_none() => {
                    (moving, until) = (false, Some(Instant::now() + drain));
                    connection.leave();
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    let cut = connection.streams.len();
                    break if moving { ServeEnd::MovedOn } else { ServeEnd::Stopped { cut } };
                }
            }
        };
        match &end {
            ServeEnd::Stopped { .. } | ServeEnd::MovedOn => outbox.close(code::NORMAL, "done"),
            ServeEnd::Over(Over::Broken(why)) => outbox.close(code::PROTOCOL, why.clone()),
            ServeEnd::Over(Over::Lost(why)) => outbox.close(code::NORMAL, why.clone()),
            ServeEnd::Over(Over::Superseded | Over::Refused(_)) => outbox.close(code::NORMAL, ""),
        }
        let gone = matches!(&end, ServeEnd::Over(Over::Lost(_)));
        if !gone && tokio::time::timeout(FAREWELL, writing).await.is_err() {
            tracing::debug!("the relay's socket took no farewell");
        }
        end
    };
    connection.cut().await;
    end
}

/// One open stream.
#[derive(Debug)]
struct Stream {
    inbound: Arc<Inbound>,
    credit: Arc<SendCredit>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Connection {
    served: Served,
    outbox: Arc<Outbox>,
    bodies: mpsc::Sender<Frame>,
    streams: HashMap<u32, Stream>,
    tasks: JoinSet<()>,
    credit: Arc<SendCredit>,
    window: u32,
    piece: usize,
    last_stream: u32,
    /// Nothing new is opened.
    leaving: bool,
}

impl Connection {
    fn new(hello: &Hello, served: Served, outbox: Arc<Outbox>, bodies: mpsc::Sender<Frame>) -> Self {
        let piece = usize::try_from(hello.max_frame).unwrap_or(DATA_LIMIT_BYTES);
        Self {
            served,
            outbox,
            bodies,
            streams: HashMap::new(),
            tasks: JoinSet::new(),
            credit: Arc::new(SendCredit::new(hello.conn_window)),
            window: hello.window,
            piece: piece.clamp(1, DATA_LIMIT_BYTES),
            last_stream: 0,
            leaving: false,
        }
    }

    /// Takes one message; the text says how it breaks the rules.
    fn message(&mut self, message: bytes::Bytes) -> Result<(), String> {
        for frame in Frames::of(message) {
            self.frame(frame.map_err(|fault: FrameFault| fault.to_string())?)?;
        }
        if self.outbox.flooded() {
            return Err("the relay asks for more than it reads".to_owned());
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::RequestHead { stream, end, head } => self.open(stream, end, head),
            Frame::Data { stream, end, bytes } => self.data(stream, end, &bytes),
            Frame::Window { stream, credit } => self.window(stream, credit),
            Frame::Reset { stream, code, text } => {
                self.known(stream)?;
                tracing::debug!(stream, ?code, text, "a caller of the relay has gone");
                self.drop_stream(stream, "the caller has gone");
                Ok(())
            }
            Frame::Ping(word) => {
                self.outbox.send(Frame::Pong(word));
                Ok(())
            }
            Frame::Pong(_) => Ok(()),
            Frame::GoAway { text, .. } => {
                tracing::debug!(text, "the relay asks for a new connection");
                self.leaving = true;
                Ok(())
            }
            Frame::Hello(_) => Err("the relay said hello twice".to_owned()),
            Frame::ResponseHead { .. } => Err("the relay answered a stream".to_owned()),
        }
    }

    /// A frame of a stream that never was is a fault; of one that is over, it is merely late.
    fn known(&self, stream: u32) -> Result<(), String> {
        if stream > self.last_stream {
            return Err(format!(
                "the relay speaks of stream {stream}, which was never opened"
            ));
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, end: bool, head: RequestHead) -> Result<(), String> {
        if stream <= self.last_stream {
            return Err(format!(
                "the relay opened stream {stream} after {}",
                self.last_stream
            ));
        }
        self.last_stream = stream;
        if self.leaving || self.streams.len() >= STREAMS {
            let text = if self.leaving {
                "the daemon is leaving"
            } else {
                "too many streams"
            };
            self.reset(stream, ResetCode::Refused, text);
            return Ok(());
        }
        // With a body to come, the Worker counts from its end, and says so when it gives up.
        let deadline = head
            .deadline
            .filter(|_| end)
            .and_then(|deadline| deadline.checked_sub(head.received))
            .map_or(LONGEST, |limit| {
                (Duration::from_millis(limit) + DEADLINE_SLACK).min(LONGEST)
            });
        let inbound = Inbound::new(stream, end, Arc::clone(&self.outbox));
        let credit = Arc::new(SendCredit::new(self.window));
        let answer = Answer {
            stream,
            bodies: self.bodies.clone(),
            own: Arc::clone(&credit),
            connection: Arc::clone(&self.credit),
            piece: self.piece,
        };
        let answered = match head::read(head) {
            Ok(asked) => self.served.answer(asked, Arc::clone(&inbound)),
            Err(fault) => {
                let answer = malformed(&format!("The relay's request is malformed: {}.", fault.0));
                std::future::ready(answer).boxed()
            }
        };
        let task = self.tasks.spawn(answer.send(answered, deadline));
        let open = Stream {
            inbound,
            credit,
            task,
        };
        self.streams.insert(stream, open);
        Ok(())
    }

    fn data(&mut self, stream: u32, end: bool, bytes: &[u8]) -> Result<(), String> {
        self.known(stream)?;
        let Some(open) = self.streams.get(&stream) else {
            // It lets a caller go on that has its answer already.
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.outbox.give_back_connection(length);
            self.outbox.give_back(stream, if end { 0 } else { length });
            return Ok(());
        };
        if open.inbound.push(bytes, end).is_err() {
            self.reset(stream, ResetCode::Flow, "more than there was credit for");
            self.drop_stream(stream, "the relay sent more than there was credit for");
        }
        let held: usize = self.streams.values().map(|stream| stream.inbound.held()).sum();
        if held > usize::try_from(CONNECTION_WINDOW).unwrap_or(usize::MAX) {
            return Err("the relay sent more than the connection has credit for".to_owned());
        }
        Ok(())
    }

    fn window(&self, stream: u32, credit: u32) -> Result<(), String> {
        self.known(stream)?;
        let given = match self.streams.get(&stream) {
            _ if stream == 0 => self.credit.add(credit),
            Some(open) => open.credit.add(credit),
            None => Ok(()),
        };
        given.map_err(|TooMuchCredit| "the relay gave credit without end".to_owned())
    }

    fn reset(&self, stream: u32, code: ResetCode, text: &str) {
        self.outbox.send(Frame::Reset {
            stream,
            code,
            text: text.to_owned(),
        });
    }

    fn drop_stream(&mut self, stream: u32, why: &'static str) {
        if let Some(open) = self.streams.remove(&stream) {
            open.inbound.fail(why);
            open.task.abort();
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) {
        let (id, broken) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error).filter(JoinError::is_panic)),
        };
        let Some(stream) = self
            .streams
            .iter()
            .find_map(|(stream, open)| (open.task.id() == id).then_some(*stream))
        else {
            return;
        };
        if let Some(error) = broken {
            tracing::error!(%error, "answering a callback of the relay panicked");
            self.reset(stream, ResetCode::Internal, "it broke");
        }
        self.streams.remove(&stream);
    }

    fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.outbox.send(Frame::GoAway {
                last_stream: self.last_stream,
                code: 0,
                text: "the daemon is leaving".to_owned(),
            });
        }
    }

    async fn cut(mut self) {
        for open in self.streams.values() {
            open.inbound.fail("the relay's socket was lost");
        }
        self.tasks.shutdown().await;
    }
}

impl Served {
    /// Hands a callback over, unless it came before.
    fn answer(
        &self,
        asked: Asked,
        inbound: Arc<Inbound>,
    ) -> futures_util::future::BoxFuture<'static, Response<MessageBody>> {
        let Asked {
            method,
            target,
            host,
            headers,
            declared,
        } = asked;
        let key = Key::of(&method, &target, &headers);
        if let Some(key) = &key
            && let Err(before) = self.lock_seen().note(key, Instant::now())
        {
            return std::future::ready(before.answer()).boxed();
        }
        let answered = self.callbacks.serve_message(AgentMessage {
            method,
            target,
            headers,
            host: Some(host),
            proof: CallerProof::Token,
            body: TimedBody::new(InboundBody::new(inbound, declared)).boxed_unsync(),
            listening: self.listening.clone(),
        });
        let Some(key) = key else { return answered };
        let seen = Arc::clone(&self.seen);
        async move {
            let response = answered.await;
            let request_id = response
                .headers()
                .get(&REQUEST_ID)
                .and_then(|id| id.to_str().ok());
            if let Some(request_id) = request_id {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.answered(&key, request_id);
            }
            response
        }
        .boxed()
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
