//! From a route to an open relay: the signed upgrade and the first words of both sides.
//!
//! Here: the request, what its refusal means, and [`Hello`]. Not here: the signature's form, which is the daemon's; and
//! when to try again (`mod`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, header};
use runners::SecretText;
use runners::http::{BaseUrl, HttpClient, HttpFault, HttpStream};
use runners::provider::{RelayRoute, RequestSigner, UnsignedRequest};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::credit::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::frame::{DATA_LIMIT_BYTES, Frame, FrameFault, Frames, Hello, MESSAGE_LIMIT_BYTES};
use super::socket::code;

/// The upgrade, and then the first words; connecting has a limit of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The prefix of the Worker's bridge API.
const API: &str = "/api/paperclip-sandbox/v1";
/// What the two clocks may differ by before it is worth a word.
const SKEW_WORTH_TELLING: u64 = 60;

/// The relay's socket.
pub(super) type Socket = WebSocketStream<HttpStream>;

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFault {
    /// The URL or the host is not what it should be; nothing was sent.
    #[error("host_header_mismatch: {0}")]
    Host(String),
    /// A secret could not be had, or nothing can be signed with it.
    #[error("{0}")]
    Secret(String),
    /// The Worker was not reached.
    #[error("the Worker cannot be reached: {0}")]
    Unreachable(String),
    /// It was reached, and the upgrade had no answer: something on the way may let no WebSocket through.
    #[error("the relay's upgrade had no answer: {0}")]
    Unanswered(String),
    /// It answered, and not with an open socket.
    #[error("the Worker answered the relay's connect with {status}{detail}")]
    Answered {
        /// Its status.
        status: u16,
        /// What it says of the reason, and what we know of it.
        detail: String,
    },
    /// Another daemon serves this relay.
    #[error("another daemon with a higher epoch serves this relay")]
    Superseded,
    /// It is not our relay that speaks there.
    #[error("{0}")]
    Protocol(String),
}

impl ConnectFault {
    /// Stable, for status and ladder.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Host(_) => "host_header_mismatch",
            Self::Secret(_) => "secret_unavailable",
            Self::Unreachable(_) => "worker_unreachable",
            Self::Answered {
                status: 401 | 403, ..
            } => "relay_refused",
            Self::Answered { status: 404, .. } => "no_relay",
            Self::Answered { status: 421, .. } => "host_header_mismatch",
            Self::Unanswered(_) | Self::Answered { .. } => "relay_unavailable",
            Self::Superseded => "relay_superseded",
            Self::Protocol(_) => "relay_protocol",
        }
    }
}

/// What it takes to connect.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) route: RelayRoute,
    pub(super) signer: Arc<dyn RequestSigner>,
    pub(super) http: HttpClient,
    /// Which life of the daemon this is.
    pub(super) epoch: u64,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("route", &self.route)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Opens the socket and exchanges the first words; returns those of the Worker.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub(super) async fn connect(&self) -> Result<(Socket, Hello), ConnectFault> {
        let base = BaseUrl::parse(&self.route.base_url)
            .map_err(|fault| ConnectFault::Host(format!("the Worker's URL {fault}")))?;
        let (key, bearer) = self.secrets(&base).await?;
        match self.connect_with(&base, &key, &bearer).await {
            Err(ConnectFault::Answered { status: 401, detail }) => {
                // The Worker does not say which of the two it refused.
                let (new_key, new_bearer) = (
                    self.route.key.renewed(&key).await,
                    self.route.bearer.renewed(&bearer).await,
                );
                if new_key.is_none() && new_bearer.is_none() {
                    return Err(ConnectFault::Answered { status: 401, detail });
                }
                let (key, bearer) = (new_key.unwrap_or(key), new_bearer.unwrap_or(bearer));
                self.connect_with(&base, &key, &bearer).await
            }
            other => other,
        }
    }

    async fn connect_with(
        &self,
        base: &BaseUrl,
        key: &SecretText,
        bearer: &SecretText,
    ) -> Result<(Socket, Hello), ConnectFault> {
        let (request, uri) = self.request(base, key, bearer)?;
        let stream = self.http.connect(uri).await.map_err(unreachable)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_LIMIT_BYTES))
            .max_frame_size(Some(MESSAGE_LIMIT_BYTES))
            .max_write_buffer_size(2 * MESSAGE_LIMIT_BYTES);
        let opened = client_async_with_config(request, stream, Some(config));
        let (mut socket, _) = tokio::time::timeout(ANSWER_LIMIT, opened)
            .await
            .map_err(|_| ConnectFault::Unanswered(format!("nothing came within {ANSWER_LIMIT:?}")))?
            .map_err(|error| refused(&error))?;
        let hello = tokio::time::timeout(ANSWER_LIMIT, self.greet(&mut socket))
            .await
            .map_err(|_| ConnectFault::Protocol("the relay did not say hello in time".to_owned()))??;
        Ok((socket, hello))
    }

    async fn secrets(&self, base: &BaseUrl) -> Result<(SecretText, SecretText), ConnectFault> {
        let route = &self.route;
        let host = base.host_header();
        // Before any secret is looked up: what is signed for another host must not exist.
        if host != route.expected_host {
            return Err(ConnectFault::Host(format!(
                "the Worker's URL leads to {host}, and {} is expected; nothing was sent",
                route.expected_host
            )));
        }
        let secret = |fault: runners::provider::SecretFault| ConnectFault::Secret(fault.to_string());
        Ok((
            route.key.get().await.map_err(secret)?,
            route.bearer.get().await.map_err(secret)?,
        ))
    }

    fn request(
        &self,
        base: &BaseUrl,
        key: &SecretText,
        bearer: &SecretText,
    ) -> Result<(Request<()>, http::Uri), ConnectFault> {
        let route = &self.route;
        let host = base.host_header();
        let url = base.join(&format!(
            "{API}/relay/{}/connect?epoch={}",
            route.bridge_id, self.epoch
        ));
        let uri: http::Uri = url
            .parse()
            .map_err(|_| ConnectFault::Host("the Worker's URL is none".to_owned()))?;
        let unsigned = UnsignedRequest {
            method: "GET",
            target: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
            host,
            content_type: "",
            context: &[],
            body: b"",
        };
        let signed = self
            .signer
            .sign(&route.key_id, key, &unsigned)
            .map_err(ConnectFault::Secret)?;
        let mut bearer = header::HeaderValue::from_str(&format!("Bearer {}", bearer.expose()))
            .map_err(|_| ConnectFault::Secret("the Worker's bearer holds what no header can".to_owned()))?;
        bearer.set_sensitive(true);
        // The library knows WebSocket's own schemes only, `ws` for `http` and `wss` for `https`.
        let mut request = Request::get(url.replacen("http", "ws", 1))
            .header(header::HOST, host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::AUTHORIZATION, bearer);
        for (name, value) in signed {
            request = request.header(name, value);
        }
        let request = request
            .body(())
            .map_err(|_| ConnectFault::Secret("a signed field holds what no header can".to_owned()))?;
        Ok((request, uri))
    }

    async fn greet(&self, socket: &mut Socket) -> Result<Hello, ConnectFault> {
        let mut message = BytesMut::new();
        let own = Hello {
            v: 1,
            bridge_id: self.route.bridge_id.clone(),
            epoch: self.epoch,
            max_frame: u32::try_from(DATA_LIMIT_BYTES).unwrap_or(u32::MAX),
            window: STREAM_WINDOW,
            conn_window: CONNECTION_WINDOW,
        };
        Frame::Hello(own).write(&mut message);
        let lost = |error: Error| ConnectFault::Unanswered(error.to_string());
        socket
            .send(Message::Binary(message.freeze()))
            .await
            .map_err(lost)?;
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(message))) => return self.greeted(message),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(match u16::from(close.code) {
                        code::SUPERSEDED => ConnectFault::Superseded,
                        code::AUTHENTICATION => ConnectFault::Answered {
                            status: 401,
                            detail: String::new(),
                        },
                        number => ConnectFault::Protocol(format!(
                            "the relay closed the socket with {number} instead of a hello"
                        )),
                    });
                }
                Some(Ok(_)) => {
                    return Err(ConnectFault::Protocol(
                        "the relay did not begin with a hello".into(),
                    ));
                }
                Some(Err(error)) => return Err(lost(error)),
                None => {
                    return Err(ConnectFault::Unanswered(
                        "the relay's socket ended before its hello".to_owned(),
                    ));
                }
            }
        }
    }

    fn greeted(&self, message: bytes::Bytes) -> Result<Hello, ConnectFault> {
        let broken = |fault: FrameFault| ConnectFault::Protocol(fault.to_string());
        let mut frames = Frames::of(message);
        let Some(Frame::Hello(hello)) = frames.next().transpose().map_err(broken)? else {
            return Err(ConnectFault::Protocol(
                "the relay did not begin with a hello".into(),
            ));
        };
        let wrong = |what: &str| {
            Err(ConnectFault::Protocol(format!(
                "the relay's hello has another {what} than this daemon"
            )))
        };
        if frames.next().is_some() {
            return wrong("end");
        }
        match hello {
            Hello { v, .. } if v != 1 => wrong("version"),
            Hello { bridge_id, .. } if bridge_id != self.route.bridge_id => wrong("bridge id"),
            hello if hello.max_frame == 0 || hello.window == 0 || hello.conn_window == 0 => {
                wrong("idea of credit")
            }
            hello => Ok(hello),
        }
    }
}

fn unreachable(fault: HttpFault) -> ConnectFault {
    ConnectFault::Unreachable(fault.to_string())
}

/// What the Worker's answer to the upgrade says.
fn refused(error: &Error) -> ConnectFault {
    if let Error::Io(error) = error {
        return ConnectFault::Unanswered(error.to_string());
    }
    if let Error::Protocol(ProtocolError::HandshakeIncomplete) = error {
        return ConnectFault::Unanswered("the connection was closed".to_owned());
    }
    let Error::Http(response) = error else {
        return ConnectFault::Protocol(format!("what answers there is no relay: {error}"));
    };
    let status = response.status().as_u16();
    let mut detail = code_of(response.body().as_deref())
        .map(|code| format!(" {code}"))
        .unwrap_or_default();
    if (300..400).contains(&status) {
        detail.push_str(", a redirect, which is never followed; give the Worker's own URL");
    }
    if let Some(hint) = skew(response.headers(), SystemTime::now()) {
        detail.push_str(&hint);
    }
    ConnectFault::Answered { status, detail }
}

/// The code in an error of the bridge API: a short word, or nothing.
fn code_of(body: Option<&[u8]>) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body?).ok()?;
    let code = body.get("error")?.as_str()?;
    let word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    word.then(|| code.to_owned())
}

/// A word on clocks that differ too much for signatures.
fn skew(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    let seconds = runners::http::clock_skew(headers, now)?.as_secs();
    (seconds > SKEW_WORTH_TELLING)
        .then(|| format!("; this machine's clock and the Worker's are {seconds} s apart: set the clock"))
}
