//! The other side of the control API: one request over the unix socket, or over TCP with TLS.
//!
//! Here: [`Client`], which every command that talks to a daemon goes through, and [`Remote`], what it takes to speak to
//! one over TCP. Not here: what is asked (`cli/`), certificates (`tls.rs`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::problem::Problem;
use super::tls;
use crate::secrets::{SecretRef, Secrets};

/// A daemon answers a connection at once.
const CONNECTING: Duration = Duration::from_secs(5);
/// A longer answer is none of a daemon's.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error("no daemon answers on {address}")]
    NoDaemon {
        address: String,
        #[source]
        source: io::Error,
    },
    /// What it takes to speak to one is not there.
    #[error("{0}")]
    Unusable(String),
    /// It said no.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// Something else came of it.
    #[error("the daemon did not answer as one does: {0}")]
    Broken(String),
    /// It did not answer in time.
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// What it takes to speak to a daemon over TCP.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The authority of its certificate; without one, those that the system trusts.
    pub(crate) ca: Option<PathBuf>,
    /// Shown as a bearer token.
    pub(crate) token: Option<SecretRef>,
    /// Our certificate's file and where its key is found.
    pub(crate) shows: Option<(PathBuf, SecretRef)>,
    pub(crate) secrets: Secrets,
}

/// Speaks to one daemon.
#[derive(Debug)]
pub(crate) enum Client {
    /// On this machine.
    Unix(PathBuf),
    /// Over TCP.
    Tcp(Box<Remote>),
}

impl Client {
    /// Asks for something.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        target: &str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.call(Method::GET, target, None::<&()>, limit).await
    }

    /// Has something done.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; it may have been done all the same where no answer came.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, target, body, limit).await
    }

    /// Listens to what the daemon tells; the body does not end by itself.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub(crate) async fn listen(&self, target: &str) -> Result<Incoming, ClientError> {
        let sent = self.send(Method::GET, target, None::<&()>);
        let response = tokio::time::timeout(CONNECTING, sent)
            .await
            .map_err(|_| ClientError::Late(CONNECTING))??;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        Err(problem(status, &whole(response).await?))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let answered = async {
            let response = self.send(method, target, body).await?;
            let status = response.status();
            let text = whole(response).await?;
            if !status.is_success() {
                return Err(problem(status, &text));
            }
            serde_json::from_slice(&text).map_err(|error| ClientError::Broken(error.to_string()))
        };
        tokio::time::timeout(limit, answered)
            .await
            .map_err(|_| ClientError::Late(limit))?
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        let (mut sender, host, authorization) = self.connected().await?;
        let broken = |error: &dyn std::error::Error| ClientError::Broken(crate::placing::with_causes(error));
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, host);
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let content = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(|error| broken(&error))?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(content)).map_err(|error| broken(&error))?;
        sender.send_request(request).await.map_err(|error| broken(&error))
    }

    /// A connection, with the Host to ask for and what to show.
    async fn connected(&self) -> Result<(Sender, String, Option<HeaderValue>), ClientError> {
        match self {
            Self::Unix(path) => {
                let connecting = UnixStream::connect(path);
                let no_daemon = |source| ClientError::NoDaemon {
                    address: format!("unix:{}", path.display()),
                    source,
                };
                let stream = in_time(connecting).await.map_err(no_daemon)?;
                Ok((spoken_over(stream).await?, "localhost".to_owned(), None))
            }
            Self::Tcp(remote) => {
                let (tls, authorization) = remote.prepared().await?;
                let stream = in_time(remote.connect(tls)).await;
                let stream = stream.map_err(|source| ClientError::NoDaemon {
                    address: format!("tcp:{}:{}", remote.host, remote.port),
                    source,
                })?;
                let host = format!("{}:{}", remote.host, remote.port);
                Ok((spoken_over(stream).await?, host, authorization))
            }
        }
    }
}

impl Remote {
    /// What is read before anything is connected to.
    async fn prepared(&self) -> Result<(Arc<ClientConfig>, Option<HeaderValue>), ClientError> {
        let unusable =
            |option: &str, error: &dyn std::fmt::Display| ClientError::Unusable(format!("{option}: {error}"));
        let key = match &self.shows {
            None => None,
            Some((certificate, key)) => {
                let key = self.secrets.document(key).await;
                Some((
                    certificate,
                    key.map_err(|error| unusable("--control-key", &error))?,
                ))
            }
        };
        let shows = key
            .as_ref()
            .map(|(certificate, key)| (certificate.as_path(), key.as_str()));
        let tls = tls::client(self.ca.as_deref(), shows).map_err(ClientError::Unusable)?;
        let authorization = match &self.token {
            None => None,
            Some(token) => {
                let token = self.secrets.live(token).get().await;
                let token = token.map_err(|error| unusable("--control-token", &error))?;
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                    .map_err(|error| unusable("--control-token", &error))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok((tls, authorization))
    }

    async fn connect(&self, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        TlsConnector::from(tls).connect(name, stream).await
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECTING, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn spoken_over<S>(stream: S) -> Result<Sender, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ClientError::Broken(crate::placing::with_causes(&error)))?;
    // Ends with the answer, or with the process.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the daemon broke");
        }
    });
    Ok(sender)
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    Limited::new(response.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| ClientError::Broken(error.to_string()))
}

fn problem(status: StatusCode, text: &[u8]) -> ClientError {
    match serde_json::from_slice(text) {
        Ok(problem) => ClientError::Problem(Box::new(problem)),
        Err(_) => ClientError::Broken(format!("it answered {status}")),
    }
}
