//! HTTP/2 over a byte stream that somebody else opened, with a gateway that somebody else started.
//!
//! Here: the same handshake and the same server as everywhere, once; there is nothing that could be brought back. Not
//! here: the stream itself (`paperclip-bridge host --stdio`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::DRAIN_LIMIT;
use super::channel::Channel;
use super::handshake::{Stream, establish};
use super::serve::{Limits, ServeEnd, serve};
use crate::launch::GatewayKind;
use crate::{Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};

/// What is known of a gateway that somebody else started.
#[derive(Clone, Debug)]
pub struct GivenOptions {
    /// How it puts requests: as our own gateway does, or as the peer's script.
    pub kind: GatewayKind,
    /// What its READY line must repeat.
    pub nonce: String,
    /// Where it listens; 0 where that is not known, and then no Host that it tells is accepted.
    pub port: u16,
    /// Streams at the same time; `None`: what its kind bears.
    pub streams: Option<u32>,
    /// How long it may take to become ready, and then to speak HTTP/2.
    pub ready_timeout: Duration,
}

/// The host's end of one byte stream. Ends with it.
pub struct GivenHttp2 {
    stream: Stream,
    options: GivenOptions,
}

impl GivenHttp2 {
    /// A tunnel over this stream.
    #[must_use]
    pub fn new(stream: Stream, options: GivenOptions) -> Self {
        Self { stream, options }
    }

    async fn run(
        self,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> TunnelEnd {
        let options = self.options;
        let opened = Instant::now();
        let established = tokio::select! {
            established = establish(self.stream, &options.nonce, opened, options.ready_timeout) => established,
            () = stop.cancelled() => return TunnelEnd::Stopped,
        };
        let established = match established {
            Ok(established) => established,
            Err(fault) => {
                return TunnelEnd::Refused {
                    reason: fault.reason(),
                    detail: fault.to_string(),
                };
            }
        };
        let listening = Listening::Tcp { port: options.port };
        status.set(Status::Ready {
            listening: listening.clone(),
            verified_loopback: None,
        });
        let limits = Limits::of(options.kind, options.streams);
        let channel = Channel::new(established);
        let end = serve(
            channel,
            options.kind,
            limits,
            &listening,
            &callbacks,
            &stop,
            DRAIN_LIMIT,
        )
        .await;
        if let ServeEnd::Lost(detail) = end {
            tracing::info!(detail, "the gateway has gone");
        }
        TunnelEnd::Stopped
    }
}

impl fmt::Debug for GivenHttp2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenHttp2")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Tunnel for GivenHttp2 {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        self.run(callbacks, status, stop).boxed()
    }

    fn name(&self) -> &'static str {
        "http2_v1"
    }
}
