//! The bytes of a command on a raw terminal, both ways, until it ends or nobody wants it any more.
//!
//! Here: [`run`]. Not here: how the command came to be there; see [`super::duplex`].
//!
//! The daemon knows no back-pressure towards us: it drops a reader that has 256 messages waiting. So messages are
//! taken as they come, into a buffer with a bound; whoever reads slower than that loses the channel, with an error.
//! Towards the terminal a write either went out or ends the channel, since nobody knows how much of it arrived.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::duplex::{Socket, Terminal};
use super::script;
use crate::Duplex;

/// What the command wrote and nobody has read yet, at most.
const UNREAD_BYTES: usize = 4 * 1024 * 1024;
/// The longest message to the daemon, which closes the channel at 64 KiB.
const SLICE_BYTES: usize = 32 * 1024;
const PING_EVERY: Duration = Duration::from_secs(20);
/// Pings in a row to which nothing at all came back.
const MISSED_PINGS: u32 = 3;
/// A message that the connection does not take for so long never gets there.
const SEND: Duration = Duration::from_secs(60);
/// All of the clearing up after a channel.
const CLEAR_UP: Duration = Duration::from_secs(10);
/// The terminal's end of input, in the mode that [`script::end_of_input`] sets.
const END_OF_INPUT: &[u8] = &[4];

/// Hands over the stream; a task carries the bytes and clears up after the last of them.
///
/// - `first`: what the command has printed already.
pub(super) fn run(terminal: Terminal, socket: Socket, first: Bytes) -> Duplex {
    let (ours, theirs) = tokio::io::duplex(UNREAD_BYTES);
    let unwanted = CancellationToken::new();
    let fault = Arc::new(OnceLock::new());
    let channel = Channel {
        stream: theirs,
        fault: Arc::clone(&fault),
        _unwanted: unwanted.clone().drop_guard(),
    };
    // It ends with the stream that is handed over, at most the clearing up later.
    tokio::spawn(carry(terminal, socket, first, ours, unwanted, fault));
    Duplex {
        stream: Box::new(channel),
    }
}

/// How a channel ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The command exited.
    Exited(i32),
    /// The stream was dropped.
    Unwanted,
    /// Anything else, in one line.
    Broken(String),
}

async fn carry(
    terminal: Terminal,
    socket: Socket,
    first: Bytes,
    ours: DuplexStream,
    unwanted: CancellationToken,
    fault: Arc<OnceLock<String>>,
) {
    let (read, mut write) = tokio::io::split(ours);
    let (sink, source) = socket.split();
    let heart = Heart::default();
    let end = tokio::select! {
        () = unwanted.cancelled() => End::Unwanted,
        end = output(source, &mut write, first, &heart) => end,
        end = input(sink, read, &heart, &terminal) => end,
    };
    let exited = match &end {
        End::Exited(code) => {
            tracing::debug!(code, id = terminal.id, "a duplex's command exited");
            true
        }
        End::Unwanted => false,
        End::Broken(reason) => {
            tracing::debug!(reason, id = terminal.id, "a duplex broke");
            // Read after the end of the bytes, so it must be there before that.
            drop(fault.set(reason.clone()));
            false
        }
    };
    drop(write.shutdown().await);
    let clearing = async {
        if exited {
            terminal.clean().await;
        } else {
            terminal.end().await;
        }
    };
    if timeout(CLEAR_UP, clearing).await.is_err() {
        tracing::warn!(id = terminal.id, "a terminal may still be in the sandbox");
    }
}

/// Whether anything comes from the other side.
#[derive(Debug, Default)]
struct Heart {
    missed: AtomicU32,
    /// We do not read, because our own reader is slow.
    waiting: AtomicBool,
}

impl Heart {
    fn beat(&self) {
        self.missed.store(0, Ordering::Relaxed);
    }

    /// Counts a ping; true where too many went unanswered.
    fn is_dead(&self) -> bool {
        if self.waiting.load(Ordering::Relaxed) {
            self.beat();
            return false;
        }
        self.missed.fetch_add(1, Ordering::Relaxed) >= MISSED_PINGS
    }
}

/// Everything that the command prints.
async fn output(
    mut source: SplitStream<Socket>,
    write: &mut WriteHalf<DuplexStream>,
    first: Bytes,
    heart: &Heart,
) -> End {
    let mut exit = None;
    let mut bytes = first;
    loop {
        heart.waiting.store(true, Ordering::Relaxed);
        if write.write_all(&bytes).await.is_err() {
            return End::Unwanted;
        }
        heart.waiting.store(false, Ordering::Relaxed);
        bytes = Bytes::new();
        let message = source.next().await;
        heart.beat();
        match message {
            Some(Ok(Message::Binary(chunk))) => bytes = chunk,
            Some(Ok(Message::Text(text))) => match control(&text) {
                Control::Exited(code) => exit = Some(code),
                Control::Error(reason) => return End::Broken(format!("the terminal says: {reason}")),
                Control::Connected | Control::Other => {}
            },
            Some(Ok(Message::Close(frame))) => return closed(frame, exit),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => match exit {
                Some(code) => return End::Exited(code),
                None => return End::Broken(format!("the connection to the terminal broke: {error}")),
            },
            None => return closed(None, exit),
        }
    }
}

/// Everything that the command shall read.
async fn input(
    mut sink: SplitSink<Socket, Message>,
    mut read: ReadHalf<DuplexStream>,
    heart: &Heart,
    terminal: &Terminal,
) -> End {
    let mut buffer = vec![0; SLICE_BYTES];
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut open = true;
    loop {
        let message = tokio::select! {
            count = read.read(&mut buffer), if open => match count {
                Ok(count) if count > 0 => {
                    Message::binary(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
                }
                Ok(_) | Err(_) => {
                    open = false;
                    if !can_end_input(terminal).await {
                        return End::Broken("its command cannot be told the end of its input, and was ended".to_owned());
                    }
                    Message::binary(END_OF_INPUT)
                }
            },
            _ = pings.tick() => {
                if heart.is_dead() {
                    return End::Broken(format!("nothing came from the terminal for {:?}", PING_EVERY * MISSED_PINGS));
                }
                Message::Ping(Bytes::new())
            }
        };
        match timeout(SEND, sink.send(message)).await {
            Ok(Ok(())) => {}
            // The reading side learns why, if there is a reason.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return End::Broken(format!("the terminal took nothing for {SEND:?}")),
        }
    }
}

async fn can_end_input(terminal: &Terminal) -> bool {
    let ran = terminal
        .toolbox
        .script(&script::end_of_input(&terminal.folder))
        .await;
    ran.is_ok_and(|ran| ran.line(script::PROBED).is_some())
}

/// What the daemon says in text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    Connected,
    Exited(i32),
    Error(String),
    Other,
}

pub(super) fn control(text: &str) -> Control {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said {
        #[serde(default)]
        status: String,
        #[serde(default)]
        exit_code: Option<i32>,
        #[serde(default)]
        error: Option<String>,
    }
    let Ok(said) = serde_json::from_str::<Said>(text) else {
        return Control::Other;
    };
    match (said.status.as_str(), said.exit_code) {
        ("connected", _) => Control::Connected,
        ("exited", code) => Control::Exited(code.unwrap_or(-1)),
        ("error", _) => Control::Error(said.error.unwrap_or_else(|| "no reason given".to_owned())),
        _ => Control::Other,
    }
}

/// What a close means: the exit code stands in its reason, and code 1011 goes with every exit but 0.
fn closed(frame: Option<CloseFrame>, exit: Option<i32>) -> End {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Reason {
        exit_code: i32,
    }
    if let Some(code) = exit {
        return End::Exited(code);
    }
    let Some(frame) = frame else {
        return End::Broken("the connection to the terminal was lost".to_owned());
    };
    match serde_json::from_str::<Reason>(&frame.reason) {
        Ok(reason) => End::Exited(reason.exit_code),
        Err(_) => End::Broken(match u16::from(frame.code) {
            1008 => "its output was read too slowly, and the sandbox dropped the channel".to_owned(),
            code => format!(
                "the terminal's connection was closed with {code} {}",
                frame.reason
            ),
        }),
    }
}

/// The stream as the caller has it.
struct Channel {
    stream: DuplexStream,
    /// Why it ended, where that is no proper end.
    fault: Arc<OnceLock<String>>,
    _unwanted: DropGuard,
}

impl Channel {
    fn fault(&self) -> Option<io::Error> {
        let reason = self.fault.get()?;
        Some(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            format!("daytona: {reason}"),
        ))
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0 {
            return Poll::Ready(self.fault().map_or(Ok(()), Err));
        }
        read
    }
}

impl AsyncWrite for Channel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        written.map_err(|error| self.fault().unwrap_or(error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// The command reads the end of its input; what it still says can be read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

    use super::*;

    fn close(code: u16, reason: &str) -> Option<CloseFrame> {
        Some(CloseFrame {
            code: CloseCode::from(code),
            reason: reason.to_owned().into(),
        })
    }

    #[test]
    fn a_failed_command_is_an_exit_although_its_code_is_that_of_a_server_error() {
        let seven = close(1011, r#"{"exitCode":7,"exitReason":"non-zero exit"}"#);

        assert_eq!(closed(seven, None), End::Exited(7));
        assert_eq!(closed(close(1000, r#"{"exitCode":0}"#), None), End::Exited(0));
        assert_eq!(closed(None, Some(7)), End::Exited(7));
    }

    #[test]
    fn a_close_that_tells_no_exit_code_is_no_exit() {
        for frame in [
            None,
            close(1011, ""),
            close(1008, "slow consumer"),
            close(1000, "bye"),
        ] {
            assert!(matches!(closed(frame.clone(), None), End::Broken(_)), "{frame:?}");
        }
    }

    #[test]
    fn what_the_daemon_says_is_understood_or_passed_over() {
        assert_eq!(
            control(r#"{"type":"control","status":"connected"}"#),
            Control::Connected
        );
        assert_eq!(control(r#"{"status":"exited","exitCode":3}"#), Control::Exited(3));
        assert_eq!(
            control(r#"{"status":"error","error":"no"}"#),
            Control::Error("no".to_owned())
        );
        assert_eq!(control("plain"), Control::Other);
    }
}
