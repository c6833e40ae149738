//! The tunnel `local`: a listener on the daemon's own machine, for agents that run there too.
//!
//! Here: a loopback TCP port, a unix socket that only the daemon's user can open, or a listener that somebody else opened
//! and keeps. Not here: who may call; each stream is answered as any other.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{AgentStream, ByteStream, Callbacks, Listening, Status, StatusReporter, Tunnel, TunnelEnd};

/// Streams of one session at the same time; a further one waits in the kernel's queue.
const MAX_STREAMS: usize = 512;
/// As many as the longest queue of most systems holds.
const MAX_TURNED_AWAY: usize = 4096;

/// Serves agents on this machine.
#[derive(Debug)]
pub struct Local {
    place: Bind,
    again: bool,
}

/// Where to listen.
#[derive(Debug)]
enum Bind {
    /// 0: the system chooses.
    Tcp(u16),
    Unix(PathBuf),
    Passed(PassedListener, Listening),
}

/// A listener that somebody else opened, such as a service manager. Whoever calls while nobody serves it waits in the
/// kernel's queue.
#[derive(Debug)]
pub enum PassedListener {
    /// On a port of 127.0.0.1.
    Tcp(std::net::TcpListener),
    /// On a unix socket, whose file is not ours to remove.
    Unix(std::os::unix::net::UnixListener),
}

impl PassedListener {
    /// Where agents reach it.
    ///
    /// # Errors
    ///
    /// Where the system does not say, and for an address other than 127.0.0.1 or a socket without a path.
    pub fn listening(&self) -> io::Result<Listening> {
        let unfit = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                if address.ip() != Ipv4Addr::LOCALHOST {
                    return Err(unfit("agents listen on 127.0.0.1 or on a unix socket only"));
                }
                Ok(Listening::Tcp { port: address.port() })
            }
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address
                    .as_pathname()
                    .ok_or_else(|| unfit("the socket has no path"))?;
                Ok(Listening::Unix {
                    path: path.to_owned(),
                })
            }
        }
    }

    /// Another descriptor of the same listener.
    ///
    /// # Errors
    ///
    /// Where there is no room for one.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }

    /// Closes the connections that wait in its queue.
    ///
    /// # Errors
    ///
    /// Where the system does not let us look at it without waiting.
    pub fn turn_away(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                (0..MAX_TURNED_AWAY).all(|_| listener.accept().is_ok());
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                (0..MAX_TURNED_AWAY).all(|_| listener.accept().is_ok());
            }
        }
        Ok(())
    }
}

impl Local {
    /// On 127.0.0.1, on a port that the system chooses.
    #[must_use]
    pub fn tcp() -> Self {
        Self {
            place: Bind::Tcp(0),
            again: false,
        }
    }

    /// On this port of 127.0.0.1 and no other: an agent was told of it before.
    #[must_use]
    pub fn tcp_again(port: u16) -> Self {
        Self {
            place: Bind::Tcp(port),
            again: true,
        }
    }

    /// On a unix socket of this path, mode 0600. A socket there that nobody serves is replaced, anything else refused.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self {
            place: Bind::Unix(path),
            again: false,
        }
    }

    /// The same for a session that had it before: what somebody else has there now is `port_taken`.
    #[must_use]
    pub fn unix_again(path: PathBuf) -> Self {
        Self {
            place: Bind::Unix(path),
            again: true,
        }
    }

    /// On a listener that somebody else opened, at the place that its own word gives.
    #[must_use]
    pub fn passed(listener: PassedListener, listening: Listening) -> Self {
        Self {
            place: Bind::Passed(listener, listening),
            again: false,
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes the file when dropped")] Option<SocketFile>,
    ),
}

/// Removes the socket's file when the tunnel ends, by whatever way; not one that has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and number of the file that is ours.
    ours: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: PathBuf) -> Self {
        let ours = identity(&path).ok();
        Self { path, ours }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = identity(&self.path);
        if found.as_ref().ok() != self.ours.as_ref() {
            tracing::debug!(path = %self.path.display(), "the socket was gone already, or another took its place");
        } else if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

impl Listener {
    async fn bind(place: Bind) -> io::Result<(Self, Listening)> {
        let path = match place {
            Bind::Tcp(port) => {
                let listener = TcpListener::bind(("127.0.0.1", port)).await?;
                let port = listener.local_addr()?.port();
                return Ok((Self::Tcp(listener), Listening::Tcp { port }));
            }
            Bind::Unix(path) => path,
            Bind::Passed(listener, listening) => return Ok((Self::of(listener)?, listening)),
        };
        clear_stale(&path).await?;
        // Bound beside its place and moved there once only its owner can open it. What may lie there is an earlier
        // process's of our number: nothing awaits from here on, so that no other session of ours is at it.
        let hidden = path.with_file_name(format!(".{}", std::process::id()));
        let _none = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        let mut file = SocketFile::new(hidden);
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&file.path, &path)?;
        file.path.clone_from(&path);
        Ok((Self::Unix(listener, Some(file)), Listening::Unix { path }))
    }

    fn of(passed: PassedListener) -> io::Result<Self> {
        match passed {
            PassedListener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            PassedListener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(UnixListener::from_std(listener)?, None))
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn ByteStream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Makes room for a socket: only a socket that nobody serves any more is removed.
async fn clear_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket lies there",
        ));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process serves this socket",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

impl Tunnel for Local {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        serve(*self, callbacks, status, stop).boxed()
    }

    fn name(&self) -> &'static str {
        "local"
    }
}

async fn serve(
    Local { place, again }: Local,
    callbacks: Arc<dyn Callbacks>,
    status: StatusReporter,
    stop: CancellationToken,
) -> TunnelEnd {
    let shown = match &place {
        Bind::Tcp(0) => "127.0.0.1".to_owned(),
        Bind::Tcp(port) => format!("127.0.0.1:{port}"),
        Bind::Unix(path) => path.display().to_string(),
        Bind::Passed(..) => "the socket that was passed".to_owned(),
    };
    let (listener, listening) = match Listener::bind(place).await {
        Ok(bound) => bound,
        Err(error) => {
            return TunnelEnd::Refused {
                reason: if again && is_taken(&error) {
                    "port_taken"
                } else {
                    "listen_failed"
                },
                detail: format!("cannot listen on {shown}: {error}"),
            };
        }
    };
    status.set(Status::Ready {
        listening: listening.clone(),
        verified_loopback: Some(true),
    });
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return TunnelEnd::Stopped,
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            accepted = listener.accept(), if streams.len() < MAX_STREAMS => match accepted {
                Ok(bytes) => {
                    let stream = AgentStream { bytes, listening: listening.clone() };
                    drop(streams.spawn(callbacks.serve_stream(stream)));
                }
                Err(error) => {
                    // Out of descriptors, most likely: those in use must come back first.
                    tracing::warn!(%error, "cannot take a connection now");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Somebody else is where we were.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[derive(Debug)]
    struct Echo;

    impl Callbacks for Echo {
        fn serve_message(
            &self,
            _: crate::AgentMessage,
        ) -> BoxFuture<'static, http::Response<crate::MessageBody>> {
            unreachable!("this tunnel hands over streams")
        }

        fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()> {
            async move {
                let (mut reading, mut writing) = tokio::io::split(stream.bytes);
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                let _ = writing.shutdown().await;
            }
            .boxed()
        }
    }

    async fn started(tunnel: Local) -> (Listening, CancellationToken, tokio::task::JoinHandle<TunnelEnd>) {
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(Box::new(tunnel).serve(Arc::new(Echo), reporter, stop.clone()));
        let ready = status
            .wait_for(|status| matches!(status, Status::Ready { .. }))
            .await
            .unwrap()
            .clone();
        let Status::Ready { listening, .. } = ready else {
            panic!("not ready")
        };
        (listening, stop, task)
    }

    #[tokio::test]
    async fn a_port_on_loopback_carries_bytes_and_is_gone_afterwards() {
        let (listening, stop, task) = started(Local::tcp()).await;
        let Listening::Tcp { port } = listening else {
            panic!("no port")
        };
        let mut agent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();

        agent.write_all(b"hello").await.unwrap();
        agent.shutdown().await.unwrap();
        let mut back = String::new();
        agent.read_to_string(&mut back).await.unwrap();

        assert_eq!(back, "hello");
        stop.cancel();
        assert!(matches!(task.await.unwrap(), TunnelEnd::Stopped));
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_an_agent_was_told_of_is_taken_again_and_no_other() {
        let (listening, stop, task) = started(Local::tcp()).await;
        let Listening::Tcp { port } = listening else {
            panic!("no port")
        };
        let (reporter, _status) = StatusReporter::new();
        let taken = Box::new(Local::tcp_again(port))
            .serve(Arc::new(Echo), reporter, CancellationToken::new())
            .await;
        stop.cancel();
        task.await.unwrap();

        let (again, _stop, _task) = started(Local::tcp_again(port)).await;

        let TunnelEnd::Refused { reason, detail } = taken else {
            panic!("{taken:?}")
        };
        assert_eq!(reason, "port_taken");
        assert!(detail.contains(&port.to_string()), "{detail}");
        assert_eq!(again, Listening::Tcp { port });
    }

    #[tokio::test]
    async fn a_unix_socket_is_its_owners_alone_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_, stop, task) = started(Local::unix(path.clone())).await;

        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;

        assert_eq!(mode, 0o600);
        assert!(UnixStream::connect(&path).await.is_ok());
        stop.cancel();
        task.await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_took_the_place_of_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_, stop, task) = started(Local::unix(path.clone())).await;
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();

        stop.cancel();
        task.await.unwrap();

        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join("stale");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let served = folder.path().join("served");
        let _held = std::os::unix::net::UnixListener::bind(&served).unwrap();

        let (_, _stop, task) = started(Local::unix(stale)).await;
        for taken in [file.clone(), served] {
            for (tunnel, expected) in [
                (Local::unix(taken.clone()), "listen_failed"),
                (Local::unix_again(taken), "port_taken"),
            ] {
                let (reporter, _status) = StatusReporter::new();
                let end = Box::new(tunnel)
                    .serve(Arc::new(Echo), reporter, CancellationToken::new())
                    .await;
                assert!(
                    matches!(&end, TunnelEnd::Refused { reason, .. } if *reason == expected),
                    "{end:?}"
                );
            }
        }

        assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
        task.abort();
    }
}
