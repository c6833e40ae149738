//! The demo's sandbox: an SSH server in this process that lets a client listen on its loopback, and runs nothing.
//!
//! Here: public-key login, `tcpip-forward` with real listeners, and a copy of every byte that passes on the sandbox's
//! side. Not here: any command. What a bridge would run on a sandbox must not run on the operator's machine, so
//! session channels are refused, as an account restricted to forwarding would.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{Auth, Config, Handle, Handler, Msg, Session, VerifiedPublicKey, run_stream};
use russh::{Channel, Disconnect};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The only account.
pub(crate) const USER: &str = "agent";

/// A running sandbox. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Where its SSH server listens.
    pub(crate) address: SocketAddr,
    /// Every byte that agents sent and received.
    pub(crate) seen: Arc<Seen>,
    host_key: PublicKey,
    _server: JoinSet<()>,
    stop: CancellationToken,
}

impl Sandbox {
    /// Starts the server; only `client` may log in.
    pub(crate) async fn start(client: PublicKey) -> io::Result<Self> {
        let host_key = fresh_key()?;
        let public = host_key.public_key().clone();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let config = Arc::new(Config {
            keys: vec![host_key],
            // Nobody guesses here: no need to slow wrong keys down.
            auth_rejection_time: Duration::ZERO,
            nodelay: true,
            ..Config::default()
        });
        let seen = Arc::new(Seen::default());
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, config, client, seen.clone(), stop.clone()));
        Ok(Self {
            address,
            seen,
            host_key: public,
            _server: server,
            stop,
        })
    }

    /// The line that makes a client trust this server.
    pub(crate) fn known_hosts(&self) -> io::Result<String> {
        let key = self.host_key.to_openssh().map_err(io::Error::other)?;
        Ok(format!("[{}]:{} {key}\n", self.address.ip(), self.address.port()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An Ed25519 key from the system's randomness.
pub(crate) fn fresh_key() -> io::Result<PrivateKey> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).map_err(io::Error::other)?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

/// What passed on the sandbox's side, one entry a direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    directions: Mutex<Vec<Vec<u8>>>,
}

/// Kept of one direction; the demo's calls are smaller.
const KEEP_BYTES: usize = 4 * 1024 * 1024;

impl Seen {
    /// Whether `needle` passed in any direction.
    pub(crate) fn contains(&self, needle: &str) -> bool {
        let directions = self.directions.lock().unwrap_or_else(PoisonError::into_inner);
        directions.iter().any(|bytes| {
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
    }

    fn start(&self) -> usize {
        let mut directions = self.directions.lock().unwrap_or_else(PoisonError::into_inner);
        directions.push(Vec::new());
        directions.len() - 1
    }

    fn add(&self, direction: usize, bytes: &[u8]) {
        let mut directions = self.directions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = directions.get_mut(direction) {
            let room = KEEP_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }
}

async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    client: PublicKey,
    seen: Arc<Seen>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let login = Login {
            client: client.clone(),
            seen: seen.clone(),
            forwards: HashMap::new(),
        };
        let (config, stop) = (config.clone(), stop.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(session) = run_stream(config, stream, login).await else { return };
            let handle = session.handle();
            tokio::select! {
                _ = session => {}
                () = stop.cancelled() => {
                    let _ = handle.disconnect(Disconnect::ByApplication, "the demo is over".into(), String::new()).await;
                }
            }
        });
    }
}

/// One SSH connection.
struct Login {
    client: PublicKey,
    seen: Arc<Seen>,
    /// Listeners by port; a listener ends when its set is dropped.
    forwards: HashMap<u32, JoinSet<()>>,
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        offered: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = user == USER && offered.public_key.key_data() == self.client.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Ok(wanted) = u16::try_from(*port) else {
            return Ok(false);
        };
        // Whatever address was asked for: this sandbox listens on its loopback and nowhere else.
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await else {
            return Ok(false);
        };
        let Ok(bound) = listener.local_addr() else {
            return Ok(false);
        };
        *port = u32::from(bound.port());
        let mut task = JoinSet::new();
        task.spawn(forward(
            listener,
            address.to_owned(),
            *port,
            session.handle(),
            self.seen.clone(),
        ));
        self.forwards.insert(*port, task);
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        _: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(mut task) = self.forwards.remove(&port) else {
            return Ok(false);
        };
        // Waited for, so that the port is closed when the client hears of it.
        task.shutdown().await;
        Ok(true)
    }
}

/// Brings every connection to the listener to the client.
async fn forward(listener: TcpListener, address: String, port: u32, client: Handle, seen: Arc<Seen>) {
    let mut agents = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = agents.join_next() => continue,
        };
        let Ok((agent, peer)) = accepted else { continue };
        let (client, address, seen) = (client.clone(), address.clone(), seen.clone());
        agents.spawn(async move {
            let opened = client
                .channel_open_forwarded_tcpip(address, port, peer.ip().to_string(), u32::from(peer.port()))
                .await;
            if let Ok(channel) = opened {
                carry(agent, channel, &seen).await;
            }
        });
    }
}

async fn carry(agent: TcpStream, channel: Channel<Msg>, seen: &Seen) {
    let (from_agent, to_agent) = agent.into_split();
    let (from_bridge, to_bridge) = tokio::io::split(channel.into_stream());
    tokio::join!(
        copy(from_agent, to_bridge, seen),
        copy(from_bridge, to_agent, seen)
    );
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: &Seen) {
    let direction = seen.start();
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let piece = buffer.get(..length).unwrap_or_default();
        seen.add(direction, piece);
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
