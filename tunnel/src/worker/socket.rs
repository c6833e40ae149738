//! The relay's socket: messages in, messages out.
//!
//! Here: the loop that writes (batches, pings, the farewell), what a message from the Worker is, and what a close code
//! means. Not here: how the socket came about (`connect`), and what the frames do (`serve`).

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::frame::{Frame, MESSAGE_LIMIT_BYTES};
use super::outbox::Outbox;

/// Frames are put together up to so many bytes; more would keep the others waiting.
const BATCH_BYTES: usize = 256 * 1024;
/// The answer of the Worker's runtime to `ping`.
const PONG: &str = "pong";

/// Close codes of the relay.
pub(super) mod code {
    /// Both sides are done.
    pub(in crate::worker) const NORMAL: u16 = 4000;
    /// A daemon with a higher epoch has connected, or a newer one with the same.
    pub(in crate::worker) const SUPERSEDED: u16 = 4001;
    /// The peer broke the rules of this protocol.
    pub(in crate::worker) const PROTOCOL: u16 = 4400;
    /// The signature or the bearer is not right.
    pub(in crate::worker) const AUTHENTICATION: u16 = 4401;
}

/// What came from the Worker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// One or more frames.
    Frames(Bytes),
    /// A sign of life.
    Alive,
    /// The socket is over.
    Over(Over),
}

/// Why a socket is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Another daemon serves this relay now.
    Superseded,
    /// The Worker does not know us any more.
    Refused(String),
    /// Anything else; one line for the log.
    Lost(String),
    /// The Worker broke the rules; one line for it and for the log.
    Broken(String),
}

/// Waits for the next message. Cancel safe.
pub(super) async fn incoming<S>(socket: &mut SplitStream<WebSocketStream<S>>) -> Incoming
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match socket.next().await {
        None => Incoming::Over(Over::Lost("the relay's socket ended without a farewell".into())),
        Some(Ok(Message::Binary(message))) => Incoming::Frames(message),
        Some(Ok(Message::Text(text))) if text.as_str() == PONG => Incoming::Alive,
        Some(Ok(Message::Text(_))) => Incoming::Over(Over::Broken(
            "the relay sent a text that is no answer to a ping".into(),
        )),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Incoming::Alive,
        Some(Ok(Message::Close(farewell))) => Incoming::Over(closed(farewell.as_ref())),
        Some(Err(Error::Capacity(_))) => Incoming::Over(Over::Broken(format!(
            "the relay sent a message of more than {MESSAGE_LIMIT_BYTES} bytes"
        ))),
        Some(Err(error)) => Incoming::Over(Over::Lost(error.to_string())),
    }
}

fn closed(farewell: Option<&CloseFrame>) -> Over {
    let Some(farewell) = farewell else {
        return Over::Lost("the relay closed the socket".into());
    };
    let number = u16::from(farewell.code);
    // The text is the peer's: no control characters, and not much of it.
    let reason: String = farewell.reason.as_str().escape_debug().take(200).collect();
    match number {
        code::SUPERSEDED => Over::Superseded,
        code::AUTHENTICATION => Over::Refused(reason),
        _ => Over::Lost(format!("the relay closed the socket: {number} {reason}")),
    }
}

/// Writes what waits until it is told to end, or the socket breaks.
pub(super) async fn write<S>(
    mut socket: SplitSink<WebSocketStream<S>, Message>,
    outbox: &Outbox,
    mut bodies: mpsc::Receiver<Frame>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut first: Option<Frame> = None;
    loop {
        let mut message = BytesMut::new();
        for frame in outbox.control() {
            frame.write(&mut message);
        }
        let mut next = first.take();
        while let Some(frame) = next {
            frame.write(&mut message);
            next = (message.len() < BATCH_BYTES)
                .then(|| bodies.try_recv().ok())
                .flatten();
        }
        if outbox.take_ping() {
            socket.feed(Message::Text("ping".into())).await?;
        }
        if !message.is_empty() {
            socket.feed(Message::Binary(message.freeze())).await?;
        }
        socket.flush().await?;
        first = match outbox.farewell() {
            // What was said before goes first.
            Some(farewell) => match bodies.try_recv() {
                Ok(frame) => Some(frame),
                Err(_) => {
                    let close = CloseFrame {
                        code: CloseCode::from(farewell.code),
                        reason: short(&farewell.reason).into(),
                    };
                    return socket.send(Message::Close(Some(close))).await;
                }
            },
            None => outbox.next(&mut bodies).await,
        };
    }
}

/// A close reason has at most 123 bytes.
fn short(reason: &str) -> String {
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default().to_owned()
}
