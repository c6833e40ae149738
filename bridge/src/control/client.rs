//! The other side of the control API: one request over the unix socket.
//!
//! Here: [`Client`], which every command that talks to a daemon goes through. Not here: what is asked (`cli/`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::problem::Problem;

/// A daemon on this machine answers a connection at once.
const CONNECTING: Duration = Duration::from_secs(5);
/// A longer answer is none of a daemon's.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error("no daemon answers on {}", path.display())]
    NoDaemon {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
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

/// Speaks to one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    path: PathBuf,
}

impl Client {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

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
        let no_daemon = |source| ClientError::NoDaemon {
            path: self.path.clone(),
            source,
        };
        let stream = tokio::time::timeout(CONNECTING, UnixStream::connect(&self.path))
            .await
            .map_err(|_| no_daemon(io::ErrorKind::TimedOut.into()))?
            .map_err(no_daemon)?;
        let broken = |error: &dyn std::error::Error| ClientError::Broken(crate::placing::with_causes(error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // Ends with the answer, or with the process.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the daemon broke");
            }
        });
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost");
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
