//! The tunnel `worker`: a Cloudflare Worker takes the agents' requests and pushes them to us over a socket that we opened.
//!
//! Here: the life of one session's relay: connected, served, brought back after a loss, given up when another daemon
//! has taken it over. Nothing of ours runs in the sandbox and no port is open here. In `connect` how the socket comes
//! about, in `serve` one connection, in [`frame`] what is spoken on it. Not here: the Worker (`tunnel/worker-template`),
//! and the bearer that agents show to it, which only the holder of the signing key can make; [`Listening::Url`] says
//! for which bridge id.

mod connect;
mod serve;
mod answer;
mod credit;
mod outbox;
mod socket;
mod seen;
mod head;
pub mod frame;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use runners::http::HttpClient;
use runners::provider::{RelayRoute, RequestSigner};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};
use connect::{ConnectFault, Connector};
use seen::Seen;
use serve::{ServeEnd, Served, serve};
use socket::Over;

/// The name of this tunnel.
pub const NAME: &str = "worker";

/// What open callbacks have to finish when the tunnel stops.
const DRAIN_LIMIT: Duration = Duration::from_millis(3500);
/// A connection that lived that long was a good one: the next attempt follows at once.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// One session's push relay.
#[derive(Debug)]
pub struct Relay {
    connector: Connector,
}

impl Relay {
    /// A relay that connects once it is served.
    ///
    /// - `signer`: signs the upgrade with the route's key.
    #[must_use]
    pub fn new(route: RelayRoute, signer: Arc<dyn RequestSigner>, http: HttpClient) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A later start is a higher epoch, also after a restart of the daemon. It is the same for all connections of one
        // life: a daemon that was superseded must not come back above its successor.
        let epoch = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        let connector = Connector {
            route,
            signer,
            http,
            epoch,
        };
        Self { connector }
    }

    async fn run(
        self,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> TunnelEnd {
        let connector = &self.connector;
        let served = Served {
            callbacks,
            listening: Listening::Url {
                url: connector.route.agent_url.clone(),
                bridge_id: connector.route.bridge_id.clone(),
            },
            seen: Arc::new(Mutex::new(Seen::default())),
        };
        let mut backoff = Backoff::default();
        loop {
            let connected = tokio::select! {
                connected = connector.connect() => connected,
                () = stop.cancelled() => return TunnelEnd::Stopped,
            };
            match connected {
                Ok((socket, hello)) => {
                    status.set(Status::Ready {
                        listening: served.listening.clone(),
                        // It is no address of the sandbox's.
                        verified_loopback: None,
                    });
                    let began = Instant::now();
                    match serve(socket, &hello, served.clone(), &stop, DRAIN_LIMIT).await {
                        ServeEnd::Stopped { cut: 0 } => return TunnelEnd::Stopped,
                        ServeEnd::Stopped { cut } => {
                            return TunnelEnd::StoppedUnclean(format!("{cut} callbacks were cut"));
                        }
                        ServeEnd::Over(Over::Superseded) => return refused(&ConnectFault::Superseded),
                        ServeEnd::MovedOn => {
                            backoff.reset();
                            continue;
                        }
                        ServeEnd::Over(Over::Lost(detail) | Over::Broken(detail) | Over::Refused(detail)) => {
                            self.lost(&status, "connection_lost", detail);
                        }
                    }
                    if began.elapsed() >= GOOD_LIFE {
                        backoff.reset();
                        continue;
                    }
                }
                Err(ConnectFault::Superseded) => return refused(&ConnectFault::Superseded),
                Err(fault @ ConnectFault::Unreachable(_)) if !status.was_ready() => {
                    return TunnelEnd::Unreachable(fault.to_string());
                }
                Err(fault) if !status.was_ready() => return refused(&fault),
                Err(fault) => self.lost(&status, fault.reason(), fault.to_string()),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_jittered()) => {}
                () = stop.cancelled() => return TunnelEnd::Stopped,
            }
        }
    }

    fn lost(&self, status: &StatusReporter, reason: &'static str, detail: String) {
        let bridge_id = &self.connector.route.bridge_id;
        tracing::info!(bridge_id, reason, detail, "relay lost");
        status.set(Status::Reconnecting { reason, detail });
    }
}

fn refused(fault: &ConnectFault) -> TunnelEnd {
    TunnelEnd::Refused {
        reason: fault.reason(),
        detail: fault.to_string(),
    }
}

impl Tunnel for Relay {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        Box::pin(self.run(callbacks, status, stop))
    }

    fn name(&self) -> &'static str {
        NAME
    }
}

/// Doubling waits from 250 ms to 30 s, each anything from nothing to the whole: many daemons lose a Worker at once.
#[derive(Clone, Copy, Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The wait after one more failure; all values of `random` are equally likely.
    fn next(&mut self, random: u32) -> Duration {
        let doubled = Self::FIRST.saturating_mul(2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        doubled.min(Self::LONGEST).saturating_mul(random >> 16) / (1 << 16)
    }

    fn next_jittered(&mut self) -> Duration {
        // Without a source of randomness the waits are not spread, which is no reason to fail.
        self.next(getrandom::u32().unwrap_or(u32::MAX / 2))
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}
