//! The upstream: one Paperclip API per session, and the only place that sends the real credential.
//!
//! Here: where the API is ([`UpstreamSettings`]), how it is dialled (`Dial`: TCP, TLS, one deadline over both) and
//! the pooled client ([`Upstream`]), whose connections sessions on one API share (`Upstreams`). Not here: what is forwarded (`callback/forward.rs`). No proxy of the environment
//! is ever used, no redirect is followed: the client has no code for either.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::callback::UpstreamBody;
use crate::secrets::{Fault, LiveSecret, Secret, SecretError};

/// Connections idle for longer are dropped: below the five seconds after which Node closes its side.
const POOL_IDLE: Duration = Duration::from_secs(2);
/// Idle connections kept for all sessions on one API; four times as many as callbacks may run at once in one.
const POOL_MAX_IDLE: usize = 256;

/// Where the Paperclip API is and how it is trusted.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    scheme: Scheme,
    authority: Authority,
    /// Without a trailing slash; empty for none.
    base_path: String,
    ca_file: Option<PathBuf>,
    /// Time limits of every call.
    pub deadlines: Deadlines,
}

/// Time limits of one call to the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Name look-up, TCP connect and TLS handshake together.
    pub connect: Duration,
    /// From dispatch to the head of the answer. An upload counts: a slow one needs more.
    pub head: Duration,
    /// From dispatch to the end of the answer.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(60),
            total: Duration::from_secs(120),
        }
    }
}

/// Why the upstream's settings are not acceptable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The URL cannot be used; the text says why.
    #[error("upstream URL is not acceptable: {0}")]
    Url(&'static str),
    /// The CA file cannot be read or holds no certificate.
    #[error("cannot use the CA file {path}: {reason}")]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system has no root certificate.
    #[error("no root certificates found on this system: install `ca-certificates` or name a CA file")]
    NoRoots,
}

impl UpstreamSettings {
    /// Takes an `http://` or `https://` origin with an optional base path.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Url`] for any other scheme, for user information, a query or a fragment in it. The URL is not
    /// repeated in the error: it may hold a password.
    pub fn parse(url: &str, ca_file: Option<PathBuf>) -> Result<Self, UpstreamError> {
        let url = url.trim();
        if url.contains('#') {
            return Err(UpstreamError::Url(
                "it has a fragment; give only scheme, host, port and base path",
            ));
        }
        let uri: Uri = url
            .parse()
            .map_err(|_| UpstreamError::Url("it is not a URL such as http://127.0.0.1:3100"))?;
        let parts = uri.into_parts();
        let scheme = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP || scheme == Scheme::HTTPS => scheme,
            Some(_) => return Err(UpstreamError::Url("only http:// and https:// are known")),
            None => return Err(UpstreamError::Url("it must start with http:// or https://")),
        };
        let authority = parts.authority.ok_or(UpstreamError::Url("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(UpstreamError::Url(
                "it holds a user or password; give the credential by --credential",
            ));
        }
        if authority.host().is_empty() || authority.port_u16() == Some(0) {
            return Err(UpstreamError::Url("it names no host or port 0"));
        }
        let path = parts
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(UpstreamError::Url(
                "it has a query; give only scheme, host, port and base path",
            ));
        }
        let base_path = path.path().trim_end_matches('/').to_owned();
        if !base_path.is_empty() && policy::Target::parse(base_path.as_bytes()).is_err() {
            return Err(UpstreamError::Url("its base path is not in canonical form"));
        }
        Ok(Self {
            scheme,
            authority,
            base_path,
            ca_file,
            deadlines: Deadlines::default(),
        })
    }

    /// Scheme, host and port; never a secret.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// Connects once, TLS included, and closes again.
    ///
    /// # Errors
    ///
    /// One line for the operator: what failed and what to look at.
    pub async fn probe(&self) -> Result<(), String> {
        let dial = Dial::new(self).map_err(|error| error.to_string())?;
        dial.connect().await.map(drop).map_err(|error| {
            format!(
                "cannot reach the Paperclip API at {}: {error}; start it or name another with --upstream",
                self.origin()
            )
        })
    }
}

/// The pooled client of one session's upstream, with the credential it puts on.
///
/// Belongs to the runtime on which it is used: its connections are tasks there.
pub struct Upstream {
    scheme: Scheme,
    authority: Authority,
    base_path: String,
    host: HeaderValue,
    credential: LiveSecret,
    /// Made of the credential that was read last.
    authorization: Mutex<Option<Authorization>>,
    clients: Arc<Clients>,
    /// Time limits of every call.
    pub deadlines: Deadlines,
}

/// What sends. No credential is in it: each request brings its own.
struct Clients {
    pooled: Client<Dial, UpstreamBody>,
    /// Keeps no idle connection, so what it sends goes out on a new one.
    fresh: Client<Dial, UpstreamBody>,
}

/// The APIs that sessions use now: those that are reached in one way share connections, and what is trusted is read
/// once.
#[derive(Default)]
pub(crate) struct Upstreams(Mutex<Vec<(Way, Weak<Clients>)>>);

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstreams").finish_non_exhaustive()
    }
}

/// All that a connection depends on.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    scheme: Scheme,
    authority: Authority,
    limit: Duration,
    /// The content of the file, so that another authority in it counts for the next session.
    trusted: Option<Vec<u8>>,
}

impl Upstreams {
    /// The clients of these settings: those in use, or new ones.
    fn clients(&self, settings: &UpstreamSettings) -> Result<Arc<Clients>, UpstreamError> {
        let https = settings.scheme == Scheme::HTTPS;
        let trusted = settings.ca_file.as_ref().filter(|_| https);
        let way = Way {
            scheme: settings.scheme.clone(),
            authority: settings.authority.clone(),
            limit: settings.deadlines.connect,
            // What cannot be read is told of by who reads it for use.
            trusted: trusted.and_then(|path| std::fs::read(path).ok()),
        };
        let mut ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|(_, clients)| clients.strong_count() > 0);
        let known = ways
            .iter()
            .find(|(known, _)| *known == way && !(trusted.is_some() && way.trusted.is_none()));
        if let Some(clients) = known.and_then(|(_, clients)| clients.upgrade()) {
            return Ok(clients);
        }
        let clients = Clients::new(settings)?;
        ways.push((way, Arc::downgrade(&clients)));
        Ok(clients)
    }
}

impl Clients {
    fn new(settings: &UpstreamSettings) -> Result<Arc<Self>, UpstreamError> {
        let dial = Dial::new(settings)?;
        let client = |idle: usize| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(idle)
                // A request that may have been written is never sent again behind our back.
                .retry_canceled_requests(false)
                .set_host(false)
                .build(dial.clone())
        };
        Ok(Arc::new(Self {
            pooled: client(POOL_MAX_IDLE),
            fresh: client(0),
        }))
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("scheme", &self.scheme)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// The credential as a header, and which value it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    secret: Arc<Secret>,
    header: HeaderValue,
}

/// On which connection a request shall go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// An idle one if there is one.
    Pool,
    /// A new one.
    FreshConnection,
}

impl Upstream {
    /// Builds the client; connects to nothing.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] for roots that cannot be had.
    pub fn new(
        settings: &UpstreamSettings,
        credential: impl Into<LiveSecret>,
    ) -> Result<Self, UpstreamError> {
        Self::of(settings, credential, &Upstreams::default())
    }

    /// The same over the connections of all sessions on this API.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub(crate) fn of(
        settings: &UpstreamSettings,
        credential: impl Into<LiveSecret>,
        upstreams: &Upstreams,
    ) -> Result<Self, UpstreamError> {
        let clients = upstreams.clients(settings)?;
        let host = HeaderValue::from_str(settings.authority.as_str())
            .map_err(|_| UpstreamError::Url("its host cannot stand in a header"))?;
        Ok(Self {
            scheme: settings.scheme.clone(),
            authority: settings.authority.clone(),
            base_path: settings.base_path.clone(),
            host,
            credential: credential.into(),
            authorization: Mutex::default(),
            clients,
            deadlines: settings.deadlines,
        })
    }

    /// The absolute URI for a canonical target; the target's bytes are taken over as they are.
    pub(crate) fn uri(&self, target: &PathAndQuery) -> Result<Uri, http::Error> {
        let path_and_query = if self.base_path.is_empty() {
            target.clone()
        } else {
            PathAndQuery::from_maybe_shared(format!("{}{}", self.base_path, target))?
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path_and_query)
            .build()
    }

    /// The credential that holds now, as a header.
    ///
    /// # Errors
    ///
    /// [`SecretError`]: it cannot be had, so nothing may be sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub(crate) async fn authorization(&self) -> Result<Authorization, SecretError> {
        let secret = self.credential.get().await?;
        let mut made = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(authorization) = made.as_ref()
            && Arc::ptr_eq(&authorization.secret, &secret)
        {
            return Ok(authorization.clone());
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose())).map_err(|_| {
            let fault = Fault::Unusable("it cannot stand in a header".into());
            self.credential.reference().error(fault)
        })?;
        header.set_sensitive(true);
        Ok(made.insert(Authorization { secret, header }).clone())
    }

    /// The upstream answered 401 to this credential, so there may be a newer one.
    pub(crate) fn rejected(&self, authorization: &Authorization) {
        self.credential.rejected(&authorization.secret);
    }

    /// Puts on what only we may set; replaces whatever is there under these names.
    pub(crate) fn put_on(
        &self,
        headers: &mut http::HeaderMap,
        run_id: &HeaderValue,
        authorization: &Authorization,
    ) {
        headers.insert(http::header::HOST, self.host.clone());
        headers.insert(http::header::AUTHORIZATION, authorization.header.clone());
        headers.insert(
            http::HeaderName::from_static("x-paperclip-run-id"),
            run_id.clone(),
        );
        // Content codings are not relayed, so none is asked for.
        headers.insert(
            http::header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
    }

    /// Sends one request, once.
    pub(crate) async fn send(
        &self,
        request: Request<UpstreamBody>,
        via: Via,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        match via {
            Via::Pool => self.clients.pooled.request(request).await,
            Via::FreshConnection => self.clients.fresh.request(request).await,
        }
    }
}

/// Whether an error proves that the upstream saw nothing of the request.
///
/// hyper marks with `is_canceled` what it never wrote (180 of 180 in a trial against a server that closes and resets at
/// random); a failed connect sent nothing by nature. Everything else may have arrived.
pub(crate) fn never_sent(error: &hyper_util::client::legacy::Error) -> bool {
    if error.is_connect() {
        return true;
    }
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled)
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// Dials the one upstream of a session, whatever URI it is asked for.
#[derive(Clone)]
struct Dial {
    shared: Arc<DialShared>,
}

struct DialShared {
    host: String,
    port: u16,
    limit: Duration,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why the upstream was not reached; nothing of a request was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no connection to {host}:{port} within {limit:?}")]
    TimedOut {
        host: String,
        port: u16,
        limit: Duration,
    },
    #[error("{host}:{port}: {source}")]
    Io {
        host: String,
        port: u16,
        source: io::Error,
    },
}

impl Dial {
    fn new(settings: &UpstreamSettings) -> Result<Self, UpstreamError> {
        let tls = if settings.scheme == Scheme::HTTPS {
            let host = settings.authority.host().trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host)
                .map_err(|_| UpstreamError::Url("its host is not a name or an address"))?;
            Some((
                TlsConnector::from(Arc::new(tls_config(settings.ca_file.as_ref())?)),
                name,
            ))
        } else {
            None
        };
        let default_port = if tls.is_some() { 443 } else { 80 };
        Ok(Self {
            shared: Arc::new(DialShared {
                host: settings.authority.host().trim_matches(['[', ']']).to_owned(),
                port: settings.authority.port_u16().unwrap_or(default_port),
                limit: settings.deadlines.connect,
                tls,
            }),
        })
    }

    async fn connect(&self) -> Result<Link, DialError> {
        let shared = &self.shared;
        let failed = |source| DialError::Io {
            host: shared.host.clone(),
            port: shared.port,
            source,
        };
        tokio::time::timeout(shared.limit, async {
            let stream = TcpStream::connect((shared.host.as_str(), shared.port))
                .await
                .map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            match &shared.tls {
                None => Ok(Link::Plain(stream)),
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await.map_err(failed)?;
                    Ok(Link::Tls(Box::new(stream)))
                }
            }
        })
        .await
        .unwrap_or_else(|_| {
            Err(DialError::TimedOut {
                host: shared.host.clone(),
                port: shared.port,
                limit: shared.limit,
            })
        })
    }
}

fn tls_config(ca_file: Option<&PathBuf>) -> Result<rustls::ClientConfig, UpstreamError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca_file {
        let refused = |reason: String| UpstreamError::CaFile {
            path: path.clone(),
            reason,
        };
        let certificates = rustls_pki_types::CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refused(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refused("it holds no PEM certificate".into()));
        }
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| refused(error.to_string()))?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(UpstreamError::NoRoots);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| UpstreamError::NoRoots)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Link>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

/// A connection to the upstream.
pub(crate) enum Link {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &'static str) -> PathAndQuery {
        PathAndQuery::from_static(text)
    }

    #[test]
    fn a_base_path_is_kept_in_front_of_the_target() {
        let settings = UpstreamSettings::parse("https://api.example.test:8443/paperclip/", None).unwrap();

        assert_eq!(settings.base_path, "/paperclip");
        assert_eq!(settings.origin(), "https://api.example.test:8443");
    }

    #[tokio::test]
    async fn the_target_reaches_the_uri_byte_for_byte() {
        let settings = UpstreamSettings::parse("http://127.0.0.1:1/base", None).unwrap();
        let upstream = Upstream::new(&settings, Secret::new("k")).unwrap();

        let uri = upstream.uri(&target("/api/issues/PAP-1?q=%2F&x=a:b")).unwrap();

        assert_eq!(
            uri.to_string(),
            "http://127.0.0.1:1/base/api/issues/PAP-1?q=%2F&x=a:b"
        );
    }

    #[test]
    fn urls_that_hide_something_are_refused_without_being_repeated() {
        for url in [
            "ftp://h/",
            "http://user:pw@h/",
            "h:3100",
            "http://h/?a=1",
            "http://h/#f",
            "http://h/a/../b",
            "http://h:0/",
            "",
        ] {
            let error = UpstreamSettings::parse(url, None).unwrap_err();
            assert!(!error.to_string().contains("pw"), "{url}");
        }
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = UpstreamSettings::parse("https://h/", Some(file.path().to_owned())).unwrap();

        assert!(matches!(
            Upstream::new(&settings, Secret::new("k")),
            Err(UpstreamError::CaFile { .. })
        ));
    }

    #[test]
    fn sessions_on_one_api_share_its_connections_and_those_on_another_do_not() {
        let upstreams = Upstreams::default();
        let upstream = |url: &str| {
            let settings = UpstreamSettings::parse(url, None).unwrap();
            Upstream::of(&settings, Secret::new("k"), &upstreams).unwrap()
        };
        let (one, same, other) = (
            upstream("http://h:1/a"),
            upstream("http://h:1/b"),
            upstream("http://h:2/a"),
        );

        assert!(Arc::ptr_eq(&one.clients, &same.clients));
        assert!(!Arc::ptr_eq(&one.clients, &other.clients));
        drop((one, same, other));
        let _anew = upstream("http://h:3/");
        assert_eq!(
            upstreams.0.lock().unwrap().len(),
            1,
            "what nobody uses is forgotten"
        );
    }

    #[test]
    fn another_authority_in_the_file_counts_for_the_next_session() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let authority = || {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::default()
                .self_signed(&key)
                .unwrap()
                .pem()
        };
        let settings = UpstreamSettings::parse("https://h/", Some(file.path().to_owned())).unwrap();
        let upstreams = Upstreams::default();
        let upstream = || Upstream::of(&settings, Secret::new("k"), &upstreams).unwrap();

        std::fs::write(file.path(), authority()).unwrap();
        let (one, same) = (upstream(), upstream());
        std::fs::write(file.path(), authority()).unwrap();
        let other = upstream();

        assert!(Arc::ptr_eq(&one.clients, &same.clients));
        assert!(!Arc::ptr_eq(&one.clients, &other.clients));
    }

    #[test]
    fn debug_output_holds_no_credential() {
        let settings = UpstreamSettings::parse("http://h/", None).unwrap();
        let upstream = Upstream::new(&settings, Secret::new("hunter2")).unwrap();

        assert!(!format!("{upstream:?}").contains("hunter2"));
    }
}
