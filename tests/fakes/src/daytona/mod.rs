//! Daytona played on this machine: its control API and its toolbox daemon, with real processes and a real terminal.
//!
//! Here: [`Daytona`], what a test starts, its switches, and what it remembers. The control API is in `control`, the
//! toolbox in `toolbox` and behind it `execute`, `session`, `terminal` and `files`. Not here: any code of our runner. Read
//! next: `world`, the sandboxes as data.
//!
//! A sandbox is a temporary folder and a mark in the environment of its processes; there is no jail. Stopping one
//! ends every process that bears its mark, and dropping the fake does so for all of them.

mod http;
mod world;
mod control;
mod toolbox;
mod execute;
mod session;
mod terminal;
mod socket;
mod files;
mod multipart;
mod processes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

pub use world::{Call, Fault};
use world::{Shared, World};

/// Which toolbox daemon is played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// `create-connect`, subprotocols answered, an exit control message, and `PROCESS_EXECUTION_TIMEOUT`.
    #[default]
    Newer,
    /// `POST` and `connect` only, no subprotocol in the answer, the exit code by the close reason only.
    Old,
}

/// How the fake behaves from its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which toolbox daemon is played.
    pub daemon: Daemon,
    /// What runs one-shot commands, sessions and terminals.
    pub shell: PathBuf,
    /// How long a state such as `starting` lasts, on the fake's clock.
    pub transition: Duration,
    /// Messages held for one reader of a terminal before it is dropped.
    pub outbound_messages: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let bash = PathBuf::from("/bin/bash");
        Self {
            daemon: Daemon::default(),
            shell: if bash.is_file() {
                bash
            } else {
                PathBuf::from("/bin/sh")
            },
            transition: Duration::ZERO,
            outbound_messages: 256,
        }
    }
}

/// The API key that the fake takes, until it is rotated.
pub const API_KEY: &str = "dtn_00000000000000000000000000000000";

/// A running fake. Dropping it ends its server and every process of its sandboxes.
#[derive(Debug)]
pub struct Daytona {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: AbortHandle,
}

impl Daytona {
    /// Starts one on loopback, with the newer daemon.
    ///
    /// # Panics
    ///
    /// Where no port of loopback can be had; outside a runtime.
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// As [`Self::start`], behaving as told.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn with(settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::new(settings, format!("http://{address}")));
        let server = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            shared,
            address,
            server,
        }
    }

    /// Base URL of the control API: what `DAYTONA_API_URL` names.
    pub fn api_url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Base URL of one sandbox's toolbox.
    pub fn toolbox_url(&self, id: &str) -> String {
        format!("http://{}/toolbox/{id}", self.address)
    }

    /// Every call so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.world(|world| world.calls.clone())
    }

    /// Ids and states of the sandboxes that have not been destroyed.
    pub fn sandboxes(&self) -> Vec<(String, String)> {
        let now = self.shared.now();
        self.world(|world| {
            let settle = |sandbox: &mut world::Sandbox| sandbox.settle(now).to_owned();
            let all = world.sandboxes.iter_mut();
            all.map(|(id, sandbox)| (id.clone(), settle(sandbox))).collect()
        })
    }

    /// The labels of one sandbox.
    pub fn labels(&self, id: &str) -> serde_json::Value {
        self.world(|world| world.sandboxes.get(id).map(|sandbox| sandbox.labels.clone()))
            .unwrap_or_default()
    }

    /// The folder that is a sandbox's disk.
    pub fn home(&self, id: &str) -> Option<PathBuf> {
        self.world(|world| world.sandboxes.get(id).map(|sandbox| sandbox.home()))
    }

    /// Ids of the processes that live in a sandbox.
    pub fn processes(&self, id: &str) -> Vec<u32> {
        processes::marked(id)
    }

    /// Moves the fake's clock: time-outs of sandboxes and the lengths of their states go by it.
    pub fn advance(&self, time: Duration) {
        self.world(|world| world.skipped += time);
        self.shared.stop_idle();
    }

    /// The next `times` calls whose `METHOD /path` holds `what` meet with `fault`.
    pub fn fail(&self, what: &str, fault: Fault, times: usize) {
        self.world(|world| {
            let faults = std::iter::repeat_n((what.to_owned(), fault), times);
            world.faults.extend(faults);
        });
    }

    /// Forgets the faults that no call has met with.
    pub fn fail_no_more(&self) {
        self.world(|world| world.faults.clear());
    }

    /// From now on this is the only key that the fake takes.
    pub fn rotate_key(&self, key: &str) {
        self.world(|world| world.key = Some(key.to_owned()));
    }

    /// Every call waits this long before anything is done.
    pub fn delay(&self, latency: Duration) {
        self.world(|world| world.latency = latency);
    }

    /// Cuts every WebSocket without a close frame.
    pub fn drop_sockets(&self) {
        self.shared.cut.send_modify(|generation| *generation += 1);
    }

    /// The sandbox and all in it are gone, as after a failure of its host.
    pub fn lose(&self, id: &str) {
        self.shared.end_processes(id);
        self.world(|world| world.sandboxes.remove(id));
    }

    fn world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.shared.world())
    }
}

impl Drop for Daytona {
    fn drop(&mut self) {
        self.server.abort();
        self.drop_sockets();
        let ids: Vec<String> = self.world(|world| world.sandboxes.keys().cloned().collect());
        for id in ids {
            processes::end(&id);
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        drop(stream.set_nodelay(true));
        connections.spawn(async move {
            let service = service_fn(|request| http::serve(Arc::clone(&shared), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away is nothing to report.
            drop(connection.with_upgrades().await);
        });
        while connections.try_join_next().is_some() {}
    }
}
