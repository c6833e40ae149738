//! A listener on the server whose connections come to us.
//!
//! Here: asking for one, taking its connections, giving it back. Not here: what the connections carry.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::channel::ChannelIo;
use super::connection::Connection;
use super::shared::{Farewell, ForwardEntry, ForwardKey, Shared};

/// Connections of one listener that wait to be accepted; more are refused.
const ACCEPT_QUEUE: usize = 128;

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The server said no, and to a port of its own choice: it does not forward at all.
    #[error(
        "the SSH server refuses remote forwarding; look for `AllowTcpForwarding no` or `local`, `PermitListen`, \
         `DisableForwarding yes` in its sshd_config, and for `restrict` or `no-port-forwarding` before the key in \
         authorized_keys"
    )]
    Refused,
    /// The server said no to a unix socket.
    #[error(
        "the SSH server refuses to listen on {path}; look for `AllowStreamLocalForwarding no` or `local`, \
         `DisableForwarding yes` in its sshd_config, for `restrict` before the key in authorized_keys, and whether \
         the file exists already (`StreamLocalBindUnlink`) or its folder does not; Dropbear cannot do this at all"
    )]
    UnixRefused {
        /// The socket's path on the server.
        path: String,
    },
    /// The server said no to this very port: taken, or forbidden by `PermitListen`; the protocol does not tell which.
    #[error("the SSH server does not listen on port {port}: it is taken there, or `PermitListen` forbids it")]
    PortRefused {
        /// The port asked for.
        port: u16,
    },
    /// The server answered something else than RFC 4254 section 7.1 says.
    #[error("the SSH server answered a forward request with {0}")]
    Nonsense(String),
    /// No answer in time, or the connection ended.
    #[error("the forward request was not answered: {0}")]
    Lost(String),
}

/// A live listener on the server. Dropping it asks the server to stop listening, without waiting for the answer.
#[derive(Debug)]
pub struct Forward {
    key: ForwardKey,
    bind_address: String,
    port: u16,
    incoming: mpsc::Receiver<ChannelIo>,
    shared: Arc<Shared>,
    is_live: bool,
}

impl Forward {
    /// The port that the server listens on; 0 for a unix socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection; `None` when the SSH connection has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn accept(&mut self) -> Option<ChannelIo> {
        self.incoming.recv().await
    }

    /// Asks the server to stop listening and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Lost`] without an answer, [`ForwardError::Nonsense`] where the server refuses even that.
    pub async fn cancel(mut self, connection: &Connection) -> Result<(), ForwardError> {
        self.is_live = false;
        self.shared.remove_forward(&self.key);
        connection.cancel_forward(&self.key, &self.bind_address).await
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if self.is_live {
            self.shared.remove_forward(&self.key);
            self.shared.say_later(Farewell::CancelForward(
                self.key.clone(),
                self.bind_address.clone(),
            ));
        }
    }
}

impl Connection {
    /// Asks the server to listen on `bind_address` and `port`; port 0 lets it choose.
    ///
    /// - `stream_cap`: unread bytes that each accepted connection may hold before it is cut.
    ///
    /// # Errors
    ///
    /// [`ForwardError`], which names the settings that may be in the way.
    pub async fn forward_tcp(
        &self,
        bind_address: &str,
        port: u16,
        stream_cap: usize,
    ) -> Result<Forward, ForwardError> {
        let (accepted, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let entry = ForwardEntry {
            accepted,
            cap: stream_cap,
        };
        // A known port is live before the answer comes: the server may open a channel right behind it.
        let early = (port != 0).then(|| ForwardKey::Tcp { port: port.into() });
        let mut entry = Some(entry);
        if let (Some(key), Some(entry)) = (&early, entry.take_if(|_| early.is_some())) {
            self.shared().add_forward(key.clone(), entry);
        }
        let answer = self.request_tcp_forward(bind_address, port).await;
        let granted = match answer {
            Ok(granted) => granted,
            Err(error) => {
                if let Some(key) = &early {
                    self.shared().remove_forward(key);
                }
                return Err(error);
            }
        };
        let key = ForwardKey::Tcp { port: granted.into() };
        if let Some(entry) = entry {
            self.shared().add_forward(key.clone(), entry);
        }
        Ok(self.live(key, bind_address.to_owned(), granted, incoming))
    }

    /// Asks the server to listen on a unix socket (`streamlocal-forward@openssh.com`).
    ///
    /// # Errors
    ///
    /// [`ForwardError`], which names the settings that may be in the way.
    pub async fn forward_unix(&self, path: &str, stream_cap: usize) -> Result<Forward, ForwardError> {
        let (accepted, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let key = ForwardKey::Unix {
            path: path.to_owned(),
        };
        self.shared().add_forward(
            key.clone(),
            ForwardEntry {
                accepted,
                cap: stream_cap,
            },
        );
        match self.request_unix_forward(path).await {
            Ok(()) => Ok(self.live(key, path.to_owned(), 0, incoming)),
            Err(error) => {
                self.shared().remove_forward(&key);
                Err(error)
            }
        }
    }

    fn live(
        &self,
        key: ForwardKey,
        bind_address: String,
        port: u16,
        incoming: mpsc::Receiver<ChannelIo>,
    ) -> Forward {
        Forward {
            key,
            bind_address,
            port,
            incoming,
            shared: Arc::clone(self.shared()),
            is_live: true,
        }
    }
}
