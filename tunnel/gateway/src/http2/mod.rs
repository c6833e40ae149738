//! Mode `http2_v1`: an HTTP/2 client on standard input and output, one stream per caller's request.
//!
//! Here: the life of the channel, from the READY line to its end. Read `exchange.rs` for one stream, `ours.rs` and
//! `peer.rs` for what either role puts on it, `channel.rs` for what is watched. Not here: the listener (`listen.rs`).
//!
//! `h2` is driven directly: hyper's client on top of it takes a reset without END_STREAM for the end of a body.

mod frames;
mod stdio;
mod channel;
mod upload;
mod exchange;
mod ours;
mod peer;

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::{limits, ready};

use crate::caller::CallerRequest;
use crate::diagnostics::say;
use crate::listen::{self, Answering, Carrier};
use crate::settings::{Role, Settings};
use channel::{Channel, Watch};
use peer::Ledger;

/// Answers under way when the channel ends still go out for so long.
const GRACE: Duration = Duration::from_secs(5);
/// So many PINGs of ours fit into the silence after which the host counts as gone: one each 5 s.
const PINGS_IN_SILENCE: u32 = 5;
/// Bytes that wait for the host, per stream.
const SEND_BUFFER: usize = 256 * 1024;
/// Header fields of an answer.
const ANSWER_HEADERS: u32 = 256 * 1024;
/// Streams opened before the host's SETTINGS are read; Paperclip's allows so many.
const PEER_STREAMS: usize = 4;

/// Hands callers' requests to the host on the other end of standard input and output.
pub(crate) struct Http2 {
    role: Role,
    max_body: u64,
    sender: SendRequest<Bytes>,
    watch: Arc<Watch>,
    /// As peer: bytes of requests' bodies held.
    ledger: Arc<Ledger>,
    /// … and of answers'.
    answers: Arc<Ledger>,
    lost: CancellationToken,
}

impl Http2 {
    fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }
}

impl Carrier for Http2 {
    fn answer(self: Arc<Self>, request: CallerRequest) -> Answering {
        Box::pin(async move {
            match self.role {
                Role::Ours => ours::answer(&self, request).await,
                Role::Peer => peer::answer(&self, request).await,
            }
        })
    }
}

/// Says READY and serves until the host is gone.
///
/// # Errors
///
/// One line when the channel cannot be opened, or ended otherwise than by the host's closing it.
pub(crate) async fn serve(listener: TcpListener, settings: Arc<Settings>) -> Result<(), String> {
    // Before READY can be seen, so that no signal meets the default, which is an end without status 0.
    let failed = |error| format!("cannot listen for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stdio = stdio::open().map_err(|error| format!("standard input or output is of no use: {error}"))?;
    let watch = Watch::new();
    let (sender, mut connection) = connect(&settings, stdio, &watch).await?;
    let lost = CancellationToken::new();
    let carrier = Arc::new(Http2 {
        role: settings.role,
        max_body: settings.max_body,
        sender,
        watch: Arc::clone(&watch),
        ledger: Ledger::new(settings.max_body),
        answers: Ledger::new(settings.max_body),
        lost: lost.clone(),
    });
    let silence = settings.silence;
    let pings = match settings.role {
        Role::Ours => connection.ping_pong(),
        // Its gateway sends none.
        Role::Peer => None,
    };
    // Dropped at the end, it takes the listener with it.
    let mut listening = JoinSet::new();
    listening.spawn(listen::serve(listener, settings, carrier, lost.clone(), GRACE));
    let outcome = tokio::select! {
        ended = connection => ended.map_err(|error| broken(&error)),
        () = silent(&watch, silence) => {
            say("the host has fallen silent");
            Ok(())
        }
        never = ask_for_life(pings, silence) => match never {},
        // At once: who asked does not wait for answers.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    lost.cancel();
    while listening.join_next().await.is_some() {}
    match outcome {
        Err(text) if !watch.ended() => Err(text),
        Ok(()) | Err(_) => Ok(()),
    }
}

type Channels = (SendRequest<Bytes>, Connection<Channel, Bytes>);

async fn connect(
    settings: &Settings,
    stdio: (stdio::Input, stdio::Output),
    watch: &Arc<Watch>,
) -> Result<Channels, String> {
    let line = ready::line(&settings.nonce);
    let mut channel = Channel::new(stdio, Arc::clone(watch), line.len());
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .max_header_list_size(ANSWER_HEADERS)
        .max_send_buffer_size(SEND_BUFFER);
    match settings.role {
        Role::Ours => {
            builder
                .initial_window_size(limits::STREAM_WINDOW)
                .initial_connection_window_size(limits::CONNECTION_WINDOW)
                .max_frame_size(limits::FRAME_SIZE);
        }
        // The published windows: its channels count what is written and not yet read, and end above 384 KiB.
        Role::Peer => {
            builder.initial_max_send_streams(PEER_STREAMS);
        }
    }
    channel
        .write_all(line.as_bytes())
        .await
        .map_err(|error| format!("the READY line cannot be written: {error}"))?;
    builder.handshake(channel).await.map_err(|error| broken(&error))
}

fn broken(error: &h2::Error) -> String {
    format!("the channel broke: {error}")
}

/// Resolves once nothing has come for `limit`.
async fn silent(watch: &Watch, limit: Option<Duration>) {
    let Some(limit) = limit else {
        return pending().await;
    };
    loop {
        let deadline = watch.heard() + limit;
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

/// Has the host answer a PING now and then, so that its silence means something: its own PINGs pause while it reads a
/// body.
async fn ask_for_life(pings: Option<PingPong>, silence: Option<Duration>) -> Infallible {
    if let (Some(mut pings), Some(silence)) = (pings, silence) {
        loop {
            tokio::time::sleep(silence / PINGS_IN_SILENCE).await;
            if pings.ping(Ping::opaque()).await.is_err() {
                // The connection has ended, and says so itself.
                break;
            }
        }
    }
    pending().await
}
