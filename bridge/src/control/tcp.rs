//! The control API over TCP: TLS, and nobody without a token or a certificate.
//!
//! Here: [`TcpControl`]. Nobody who comes over TCP is the daemon's own user, so that nothing but what the configuration
//! names can be asked for. A handshake gets a few seconds, and the oldest of too many is cut for the next, so that
//! half-open connections do not keep others out. The certificate is read again with the configuration. Not here: certificates (`tls.rs`), what is answered (`mod.rs`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::service::service_fn;
use policy::TokenDigest;
use policy::token::bearer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::listener::{Peer, serve_http};
use super::problem::Problem;
use super::tls;
use crate::daemon::{Companion, Mistake, PutInForce};
use crate::secrets::{LiveSecret, SecretRef, Secrets};

/// Connections at the same time behind their handshake; further ones are closed.
const CONNECTIONS: usize = 256;
/// Handshakes at the same time; the oldest is cut for the next.
const HANDSHAKES: usize = 64;
/// A handshake that is not done by then is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A head that is not whole by then is given up; an idle connection, too.
const HEAD: Duration = Duration::from_secs(10);
/// Answers under way get so long when the listener is closed.
const CLOSING: Duration = Duration::from_secs(2);
/// After a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// A shorter token could be guessed.
const LEAST_TOKEN_BYTES: usize = 32;

/// What the control API over TCP is asked to be.
#[derive(Clone, Debug)]
pub(crate) struct TcpSettings {
    pub(crate) address: SocketAddr,
    /// PEM file with the certificate chain.
    pub(crate) certificate: PathBuf,
    /// Its private key, in PEM.
    pub(crate) key: SecretRef,
    /// What clients must send.
    pub(crate) token: Option<SecretRef>,
    /// Whose certificate clients must show.
    pub(crate) client_ca: Option<PathBuf>,
}

/// The control API at its address.
pub(crate) struct TcpControl {
    listener: TcpListener,
    address: SocketAddr,
    shown: Arc<ArcSwap<tls::Shown>>,
    settings: TcpSettings,
    secrets: Secrets,
    door: Arc<Door>,
}

/// Who is let in, beyond what the handshake has shown.
struct Door {
    token: Option<LiveSecret>,
}

impl TcpSettings {
    /// Reads what is shown, and whose clients are believed.
    async fn shown(&self, secrets: &Secrets) -> Result<tls::Shown, Mistake> {
        let key = secrets.document(&self.key).await.map_err(|error| {
            let key = "listeners.control.key";
            Mistake::new(key, format!("{key}: {error}"))
        })?;
        tls::server(&self.certificate, &key, self.client_ca.as_deref())
            .map_err(|why| Mistake::new("listeners.control", format!("listeners.control: {why}")))
    }
}

impl TcpControl {
    /// Listens.
    ///
    /// # Errors
    ///
    /// One line: what is missing or in the way, and what to do.
    pub(crate) async fn bind(settings: TcpSettings, secrets: &Secrets) -> Result<Self, String> {
        if settings.token.is_none() && settings.client_ca.is_none() {
            return Err(
                "a control API over TCP needs authentication: set listeners.control.token or listeners.control.client_ca"
                    .to_owned(),
            );
        }
        let shown = settings.shown(secrets).await.map_err(|mistake| mistake.detail)?;
        let token = settings.token.as_ref().map(|reference| secrets.live(reference));
        if let Some(token) = &token {
            let value = token
                .get()
                .await
                .map_err(|error| format!("listeners.control.token: {error}"))?;
            let length = value.expose().len();
            if length < LEAST_TOKEN_BYTES {
                return Err(format!(
                    "listeners.control.token has {length} characters, but must have {LEAST_TOKEN_BYTES} or more; make one with `openssl rand -hex 32`"
                ));
            }
        }
        let fault = |error: std::io::Error| {
            format!(
                "cannot listen on {}: {error}; name another address with --control tcp:ADDRESS:PORT",
                settings.address
            )
        };
        let listener = TcpListener::bind(settings.address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        Ok(Self {
            listener,
            address,
            shown: Arc::new(ArcSwap::from_pointee(shown)),
            settings,
            secrets: secrets.clone(),
            door: Arc::new(Door { token }),
        })
    }

    /// What reads certificate and key again, and whose clients are believed: for handshakes from then on. Connections
    /// that stand go on.
    ///
    /// Another place, token or authority needs a restart, so that nobody is let in by a slip of the pen.
    pub(crate) fn companion(&self) -> Companion {
        let (live, secrets) = (Arc::clone(&self.shown), self.secrets.clone());
        let started = self.settings.clone();
        Box::new(move |config| {
            let control = &config.listeners.control;
            let settings = TcpSettings {
                certificate: control
                    .certificate
                    .clone()
                    .unwrap_or_else(|| started.certificate.clone()),
                key: control.key.clone().unwrap_or_else(|| started.key.clone()),
                ..started.clone()
            };
            let (live, secrets) = (Arc::clone(&live), secrets.clone());
            let prepared = async move {
                let shown = settings.shown(&secrets).await.map_err(|mistake| vec![mistake])?;
                let put: PutInForce = Box::new(move || {
                    let before = live.swap(Arc::new(shown));
                    live.load().differs(&before)
                });
                Ok(put)
            };
            prepared.boxed()
        })
    }

    /// Where it listens, as `--control` takes it.
    pub(crate) fn address(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Answers until `stop`, and lets answers under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let cut = CancellationToken::new();
        let mut handshakes = Handshakes::default();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, from)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let shaking = handshakes.another();
            let acceptor = TlsAcceptor::from(Arc::clone(&self.shown.load().config));
            let places = Arc::clone(&places);
            let (door, router) = (Arc::clone(&self.door), router.clone());
            let (stop, cut) = (stop.clone(), cut.clone());
            connections.spawn(async move {
                let served = async {
                    let Some(stream) = handshake(&acceptor, stream, from, shaking).await else {
                        return;
                    };
                    let Ok(_place) = places.try_acquire() else {
                        tracing::warn!(%from, "a connection of the control API was closed: there are too many");
                        return;
                    };
                    connection(stream, from, door, router, stop.clone()).await;
                };
                tokio::select! {
                    () = served => {}
                    () = cut.cancelled() => {}
                }
            });
        }
        connections.close();
        if tokio::time::timeout(CLOSING, connections.wait()).await.is_err() {
            cut.cancel();
        }
    }
}

/// Handshakes under way, the oldest first.
#[derive(Default)]
struct Handshakes(VecDeque<Weak<Notify>>);

impl Handshakes {
    /// One more; the oldest of too many is told to end. It is under way for as long as what is returned lives.
    fn another(&mut self) -> Arc<Notify> {
        self.0.retain(|handshake| handshake.strong_count() > 0);
        if self.0.len() >= HANDSHAKES
            && let Some(oldest) = self.0.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.notify_one();
        }
        let handshake = Arc::new(Notify::new());
        self.0.push_back(Arc::downgrade(&handshake));
        handshake
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    pushed_out: Arc<Notify>,
) -> Option<TlsStream<TcpStream>> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
        () = pushed_out.notified() => return None,
    };
    match shaken {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "a handshake of the control API failed");
            None
        }
        Err(_) => None,
    }
}

async fn connection(
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    door: Arc<Door>,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let (door, mut router) = (Arc::clone(&door), router.clone());
        request.extensions_mut().insert(Peer::REMOTE);
        async move {
            match door.admits(request.headers()).await {
                Ok(()) => router.call(request.map(Body::new)).await,
                Err(problem) => {
                    tracing::warn!(%from, code = problem.code, "a client of the control API was refused");
                    Ok(refused(problem))
                }
            }
        }
    });
    serve_http(stream, service, HEAD, stop).await;
}

impl Door {
    async fn admits(&self, headers: &HeaderMap) -> Result<(), Problem> {
        // A browser that holds a certificate shows it to whatever page asks.
        if headers.contains_key(header::ORIGIN) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "browser_refused",
                "pages of a browser may not use the control API",
            ));
        }
        let Some(token) = &self.token else {
            return Ok(());
        };
        let expected = token.get().await.map_err(|error| {
            tracing::error!(%error, "the control API's token cannot be read");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "token_unreadable",
                "the daemon cannot read its control token at the moment; its log says why",
            )
        })?;
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let known = match (shown.next(), shown.next()) {
            // Digests are compared in constant time.
            (Some(value), None) => bearer(value.as_bytes())
                .is_some_and(|shown| TokenDigest::of(expected.expose().as_bytes()).matches(shown)),
            (None, _) | (Some(_), Some(_)) => false,
        };
        if known {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "token_refused",
            "show the daemon's control token: --control-token REF, or `Authorization: Bearer …`",
        ))
    }
}

/// Whoever is refused connects anew.
fn refused(problem: Problem) -> Response {
    let unauthorized = problem.status == StatusCode::UNAUTHORIZED.as_u16();
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
