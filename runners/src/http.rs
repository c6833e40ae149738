//! HTTP to a provider: one pooled client, its deadlines, and what a failure says of the call's effect.
//!
//! Here: [`BaseUrl`], [`HttpClient`] and [`HttpFault`]. Not here: any provider's paths or bodies. No redirect is
//! followed, no proxy of the environment is used, and TLS is always verified: the client has no code for anything else.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http::{HeaderMap, Request, Response, Uri, response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Name look-up, TCP connect and TLS handshake together.
const CONNECT: Duration = Duration::from_secs(10);
/// Below the time after which the servers behind providers close idle connections.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// A provider's address: `https://`, or `http://` to this machine only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    text: String,
    authority: String,
    secure: bool,
}

impl BaseUrl {
    /// Takes an origin with an optional base path; trailing slashes are dropped.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim().trim_end_matches('/');
        let uri: Uri = text
            .parse()
            .map_err(|_| "is no URL such as https://api.example.com")?;
        let host = uri.host().ok_or("names no host")?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("must start with https://"),
        };
        if text.contains(['?', '#']) {
            return Err("has a query or a fragment; give only scheme, host, port and path");
        }
        let authority = uri
            .authority()
            .map(http::uri::Authority::as_str)
            .unwrap_or_default();
        if authority.contains('@') {
            return Err("holds a user or password; secrets are given by reference");
        }
        if !secure && !matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            return Err("must start with https://; http:// is for this machine only");
        }
        Ok(Self {
            text: text.to_owned(),
            authority: authority.to_ascii_lowercase(),
            secure,
        })
    }

    /// The URL of `path`, which starts with `/` and may hold a query; everything in it is encoded already.
    #[must_use]
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    /// As given, without trailing slashes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port as they stand in a `Host` header: lower case, the scheme's own port dropped.
    #[must_use]
    pub fn host_header(&self) -> &str {
        let own = if self.secure { ":443" } else { ":80" };
        self.authority.strip_suffix(own).unwrap_or(&self.authority)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a call has no answer, and so what became of it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpFault {
    /// Nothing was sent; trying again is safe.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, at least in part; its effect is unknown.
    #[error("{0}")]
    Unknown(String),
    /// The deadline passed; its effect is unknown.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The answer is longer than asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
}

/// Either side of a connection, TLS or not.
pub type HttpStream = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;

/// A pooled HTTP/1.1 client; clones share the pool.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    connector: HttpsConnector<HttpConnector>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// A client that trusts `roots`; without any, it reaches plain `http://` only.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(store)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .build(connector.clone());
        Self { client, connector }
    }

    /// Sends `request`, whose URI is absolute, and returns when the head of the answer is there.
    ///
    /// # Errors
    ///
    /// [`HttpFault`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; the effect of the call is then unknown.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Duration,
    ) -> Result<Response<Incoming>, HttpFault> {
        let answer = self.client.request(request).map_err(|error| {
            let text = with_causes(&error);
            if error.is_connect() {
                HttpFault::NotSent(text)
            } else {
                HttpFault::Unknown(text)
            }
        });
        tokio::time::timeout(deadline, answer)
            .await
            .map_err(|_| HttpFault::TimedOut(deadline))?
    }

    /// As [`Self::send`], with the whole body, which has at most `limit` bytes; `deadline` holds for both.
    ///
    /// # Errors
    ///
    /// [`HttpFault`].
    pub async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Duration,
        limit: usize,
    ) -> Result<(response::Parts, Bytes), HttpFault> {
        let end = Instant::now() + deadline;
        let (parts, body) = self.send(request, deadline).await?.into_parts();
        let whole = tokio::time::timeout_at(end, Limited::new(body, limit).collect())
            .await
            .map_err(|_| HttpFault::TimedOut(deadline))?
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    HttpFault::TooLarge(limit)
                } else {
                    HttpFault::Unknown(error.to_string())
                }
            })?;
        Ok((parts, whole.to_bytes()))
    }

    /// Connects to the host of `uri` for a protocol of the caller's own, such as WebSocket.
    ///
    /// # Errors
    ///
    /// [`HttpFault::NotSent`].
    pub async fn connect(&self, uri: Uri) -> Result<HttpStream, HttpFault> {
        let mut connector = self.connector.clone();
        let stream = tokio::time::timeout(CONNECT, tower_service::Service::call(&mut connector, uri))
            .await
            .map_err(|_| HttpFault::NotSent(format!("no connection within {CONNECT:?}")))?
            .map_err(|error| HttpFault::NotSent(with_causes(error.as_ref())))?;
        Ok(TokioIo::new(stream))
    }
}

/// How far the clock of whoever sent `headers` is from `now`, where they tell the time.
///
/// A `Date` is whole seconds, so that less than two of them mean nothing.
#[must_use]
pub fn clock_skew(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = headers.get(http::header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    Some(
        now.duration_since(theirs)
            .unwrap_or_else(|ahead| ahead.duration()),
    )
}

/// An error and what was underneath, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_clear() {
        for good in [
            "https://api.e2b.app/",
            "http://localhost:3000",
            "http://127.0.0.1:1/x/",
            "http://[::1]:9",
        ] {
            assert!(BaseUrl::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://api.e2b.app",
            "http://127.0.0.1.example.com",
            "ftp://localhost",
            "https://me:word@host",
            "https://host/?a=1",
            "https://",
            "host",
        ] {
            assert!(BaseUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_header_drops_the_schemes_own_port_alone() {
        let host = |text| BaseUrl::parse(text).unwrap().host_header().to_owned();

        assert_eq!(host("https://Bridge.Example.dev:443/base/"), "bridge.example.dev");
        assert_eq!(host("https://bridge.example.dev:8443"), "bridge.example.dev:8443");
        assert_eq!(host("http://127.0.0.1:443"), "127.0.0.1:443");
    }

    #[tokio::test]
    async fn a_host_that_does_not_listen_leaves_the_call_unsent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let request = Request::get(format!("http://{address}/"))
            .body(Full::default())
            .unwrap();

        let fault = HttpClient::new([]).send(request, CONNECT).await.unwrap_err();

        assert!(matches!(fault, HttpFault::NotSent(_)), "{fault}");
    }
}
