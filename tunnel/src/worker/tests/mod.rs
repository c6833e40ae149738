//! The relay against a Worker that the tests play: on memory for what is spoken, on loopback for how it begins.

mod spoken;
mod connecting;

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
