//! The unix socket of the control API, and who may use it.
//!
//! Here: [`Control`]: the socket is ours alone (0600; 0660 where other users are allowed), the user of each connection is
//! asked of the system and not of the connection, and a connection costs no more than a place among a bounded number.
//! Not here: what is answered (`mod.rs`).

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::problem::Problem;
use crate::daemon::AllowedUids;

/// Connections at the same time; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// A head that is not whole by then is given up; an idle connection, too.
pub(super) const HEAD: Duration = Duration::from_secs(30);
/// Answers under way get so long when the listener is closed.
const CLOSING: Duration = Duration::from_secs(2);
/// After a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    /// The daemon's own user.
    pub(crate) own: bool,
}

impl Peer {
    /// Whoever comes over TCP is nobody of this machine: `(uid_t) -1` is no user.
    pub(super) const REMOTE: Self = Self {
        uid: u32::MAX,
        own: false,
    };
}

/// The control API at its socket. Its file goes away with it, unless a service manager made it.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// The file is ours to remove.
    made: bool,
    allow_uids: AllowedUids,
}

impl Control {
    /// Listens. A socket that a daemon left that is no more is replaced.
    ///
    /// # Errors
    ///
    /// One line: what stands there, and what to do.
    pub(crate) async fn bind(path: &Path, allow_uids: AllowedUids) -> Result<Self, String> {
        let fault =
            |error: io::Error| format!("cannot listen on the control socket {}: {error}", path.display());
        // Users that are allowed come in as members of our group.
        let (folder_mode, mode) = if allow_uids.is_empty() {
            (0o700, 0o600)
        } else {
            (0o750, 0o660)
        };
        if let Some(folder) = path.parent() {
            let mut made = DirBuilder::new();
            made.recursive(true)
                .mode(folder_mode)
                .create(folder)
                .map_err(fault)?;
        }
        clear(path).await?;
        let listener = UnixListener::bind(path).map_err(fault)?;
        // Whoever was faster than this is still asked who he is.
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(fault)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            made: true,
            allow_uids,
        })
    }

    /// Listens on a socket that a service manager opened; its file and mode are that one's.
    ///
    /// # Errors
    ///
    /// One line, where the socket has no path.
    pub(crate) fn passed(
        listener: std::os::unix::net::UnixListener,
        allow_uids: AllowedUids,
    ) -> Result<Self, String> {
        let fault = |error: io::Error| format!("the control socket that was passed cannot be used: {error}");
        let address = listener.local_addr().map_err(fault)?;
        let path = address
            .as_pathname()
            .ok_or("the control socket that was passed has no path; its unit has ListenStream=/PATH")?
            .to_owned();
        listener.set_nonblocking(true).map_err(fault)?;
        Ok(Self {
            listener: UnixListener::from_std(listener).map_err(fault)?,
            path,
            made: false,
            allow_uids,
        })
    }

    /// Where it listens, as `--control` takes it.
    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Answers until `stop`, and lets answers under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let cut = CancellationToken::new();
        let own = rustix::process::geteuid().as_raw();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let Ok((stream, place)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else {
                continue;
            };
            let peer = Peer { uid, own: uid == own };
            let admission = Admission {
                router: router.clone(),
                allow_uids: self.allow_uids.clone(),
            };
            let (stop, cut) = (stop.clone(), cut.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = connection(stream, peer, admission, stop) => {}
                    () = cut.cancelled() => {}
                }
                drop(place);
            });
        }
        connections.close();
        if tokio::time::timeout(CLOSING, connections.wait()).await.is_err() {
            cut.cancel();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.made {
            // It may be gone already.
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes away what a daemon left that is no more.
async fn clear(path: &Path) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("cannot look at {}: {error}", path.display())),
        Ok(found) if !found.file_type().is_socket() => Err(format!(
            "{} is no socket; remove it, or name another with --control unix:PATH",
            path.display()
        )),
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => Err(format!(
                "another daemon listens on {}; end it, or name another socket with --control unix:PATH",
                path.display()
            )),
            Err(_) => std::fs::remove_file(path)
                .map_err(|error| format!("cannot remove the old socket {}: {error}", path.display())),
        },
    }
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// What answers those who may ask. Who they are may change between two requests.
struct Admission {
    router: Router,
    allow_uids: AllowedUids,
}

impl Admission {
    fn of(&self, peer: Peer) -> Option<Router> {
        let admitted = peer.own || self.allow_uids.has(peer.uid);
        if !admitted {
            tracing::warn!(
                uid = peer.uid,
                "a user that may not use the control API was refused"
            );
        }
        admitted.then(|| self.router.clone())
    }
}

/// Serves one connection; a peer that is not admitted is told so, whatever it asks.
async fn connection(stream: UnixStream, peer: Peer, admission: Admission, stop: CancellationToken) {
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let router = admission.of(peer);
        request.extensions_mut().insert(peer);
        async move {
            match router {
                Some(mut router) => router.call(request.map(Body::new)).await,
                None => Ok(refused(peer.uid)),
            }
        }
    });
    serve_http(stream, service, HEAD, stop).await;
}

fn refused(uid: u32) -> axum::response::Response {
    let mut response = Problem::new(
        StatusCode::FORBIDDEN,
        "peer_not_allowed",
        format!(
            "the user with the number {uid} may not use this daemon's control API; its operator can allow it"
        ),
    )
    .into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// One connection of HTTP/1, until it ends or is asked to.
///
/// - `head`: a head that is not whole by then is given up; an idle connection, too.
pub(super) async fn serve_http<I, S>(stream: I, service: S, head: Duration, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the control API or the ops listener broke");
    }
}
