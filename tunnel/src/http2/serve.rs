//! One connection of a gateway, served to its end.
//!
//! Here: hyper's HTTP/2 server with every limit set by us, and the owner of the streams' tasks. Not here: how the
//! connection came about (`handshake`) and what happens after it (`mod`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::limits;

use super::answer::{PacedBody, until_stalled};
use super::channel::Channel;
use super::message;
use crate::launch::GatewayKind;
use crate::{Callbacks, Listening};

/// A PING after so long without a frame, …
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// … and no answer to it for so long: the gateway is gone.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// Streams that a gateway may open and reset again before anyone looks at them. Agents that give up a lot must not cost
/// the connection.
const RESET_LIMIT: usize = 1024;
/// Bytes that one stream may have waiting to be written.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// What one connection is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) streams: u32,
    header_list: u32,
    stream_window: u32,
    connection_window: u32,
    frame: u32,
}

impl Limits {
    /// The published settings for the peer's script; room for a 40 ms round trip with our own gateway.
    pub(super) fn of(kind: GatewayKind, streams: Option<u32>) -> Self {
        match kind {
            GatewayKind::Binary => Self {
                streams: streams.unwrap_or(256),
                // A head of 32 KiB, with 32 bytes more for each field as HTTP/2 counts them.
                header_list: 64 * 1024,
                stream_window: limits::STREAM_WINDOW,
                connection_window: limits::CONNECTION_WINDOW,
                frame: limits::FRAME_SIZE,
            },
            GatewayKind::Script => Self {
                streams: streams.unwrap_or(4),
                header_list: 16_384,
                stream_window: 65_535,
                connection_window: 65_535,
                frame: 16_384,
            },
        }
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServeEnd {
    /// As it was asked to.
    Stopped {
        /// How long that took.
        drained: Duration,
    },
    /// By itself; one line for the log.
    Lost(String),
}

/// Serves the connection until it ends or `stop` is cancelled; then its streams have `drain` to finish.
pub(super) async fn serve(
    channel: Channel,
    kind: GatewayKind,
    limits: Limits,
    listening: &Listening,
    callbacks: &Arc<dyn Callbacks>,
    stop: &CancellationToken,
    drain: Duration,
) -> ServeEnd {
    let streams = Streams::default();
    let (callbacks, listening) = (Arc::clone(callbacks), listening.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let answered =
            message::read(request, kind, &listening).map(|message| callbacks.serve_message(message));
        async move {
            let response = match answered {
                Ok(answered) => answered.await,
                Err(fault) => message::refuse(fault),
            };
            Ok::<Response<PacedBody>, Infallible>(response.map(PacedBody::new))
        }
    });
    let connection = builder(&streams, limits).serve_connection(TokioIo::new(channel), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stop.cancelled() => None,
    };
    let end = match ended {
        Some(Ok(())) => ServeEnd::Lost("the gateway's channel ended".to_owned()),
        Some(Err(error)) => ServeEnd::Lost(with_causes(&error)),
        None => {
            let asked = Instant::now();
            connection.as_mut().graceful_shutdown();
            if tokio::time::timeout(drain, connection).await.is_err() {
                tracing::debug!("streams that did not end in time are cut");
            }
            ServeEnd::Stopped {
                drained: asked.elapsed(),
            }
        }
    };
    streams.cut().await;
    end
}

fn builder(streams: &Streams, limits: Limits) -> http2::Builder<StreamSpawner> {
    let mut builder = http2::Builder::new(streams.spawner());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_list)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame)
        .header_table_size(4096)
        .max_pending_accept_reset_streams(RESET_LIMIT)
        .max_local_error_reset_streams(RESET_LIMIT)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT);
    builder
}

/// Owns the tasks of a connection's streams: what is not finished when it is dropped is cut.
#[derive(Debug, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl Streams {
    fn spawner(&self) -> StreamSpawner {
        StreamSpawner(Arc::downgrade(&self.0))
    }

    async fn cut(self) {
        let mut tasks = std::mem::take(&mut *lock(&self.0));
        tasks.shutdown().await;
    }
}

/// What hyper spawns streams with. The tasks hold it, too, so it must not own them.
#[derive(Clone, Debug)]
struct StreamSpawner(Weak<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for StreamSpawner
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Some(tasks) = self.0.upgrade() else { return };
        let mut tasks = lock(&tasks);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "serving a stream panicked");
            }
        }
        tasks.spawn(async move {
            until_stalled(async move {
                stream.await;
            })
            .await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
