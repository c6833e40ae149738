//! How a collector is spoken to: HTTP with the client of this program, on its own runtime.
//!
//! The exporter waits on a thread of its own; what it sends goes through the runtime that the daemon runs on. A collector
//! that does not answer is complained of once, until it answers again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use opentelemetry_http::{HttpClient, HttpError};
use runners::http::HttpClient as Pooled;
use tokio::runtime::Handle;

/// A collector gets so long for each batch, unless somebody says otherwise.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// A longer answer is none of a collector's.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Speaks to a collector.
#[derive(Debug)]
pub(super) struct Collector {
    /// What it is sent, for the log.
    what: &'static str,
    deadline: Duration,
    client: Pooled,
    runtime: Handle,
    silent: AtomicBool,
}

impl Collector {
    /// On the runtime that calls this.
    pub(super) fn new(what: &'static str, deadline: Duration) -> Self {
        Self {
            what,
            deadline,
            client: Pooled::new(rustls_native_certs::load_native_certs().certs),
            runtime: Handle::current(),
            silent: AtomicBool::new(false),
        }
    }

    /// One batch. A failure is told in the log, the first time of several.
    pub(super) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, deadline) = (self.client.clone(), self.deadline);
        let sent = self.runtime.spawn(async move {
            client
                .fetch(request.map(Full::new), deadline, MAX_ANSWER_BYTES)
                .await
        });
        let answered = match sent.await {
            Ok(answered) => answered.map_err(HttpError::from),
            Err(error) => Err(HttpError::from(error)),
        };
        let refused = match &answered {
            Ok((head, _)) if head.status.is_success() => None,
            Ok((head, _)) => Some(head.status.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match refused {
            None => self.silent.store(false, Ordering::Relaxed),
            Some(why) if !self.silent.swap(true, Ordering::Relaxed) => {
                tracing::warn!(why, what = self.what, "telemetry cannot be sent to its collector");
            }
            Some(_) => {}
        }
        answered.map(|(head, body)| Response::from_parts(head, body))
    }
}

impl HttpClient for Collector {
    // As `async_trait` writes it.
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> BoxFuture<'f, Result<Response<Bytes>, HttpError>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.send(request))
    }
}
