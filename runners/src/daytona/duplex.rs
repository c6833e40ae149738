//! A long-lived command on a terminal: from the making of the terminal to the first byte of the command.
//!
//! Here: [`open`]. Not here: the bytes after that; see [`super::channel`].
//!
//! The terminal is made by one call and joined by another, which every daemon knows, and no subprotocol is offered:
//! some daemons answer none, and then the handshake would fail. Nothing of the caller's is sent before the launcher's
//! mark was seen, for until then the terminal would take control characters for what they are.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::api::Fault;
use super::runner::DaytonaRunner;
use super::script::{self, Launched};
use super::toolbox::Toolbox;
use super::{channel, random_name};
use crate::http::{HttpFault, HttpStream};
use crate::shell::{CommandParts, check_parts, quote};
use crate::{Duplex, DuplexRequest, RunnerError, SecretText};

pub(super) type Socket = WebSocketStream<HttpStream>;

/// The handshake, and then the daemon's word that the terminal is joined.
const JOIN: Duration = Duration::from_secs(10);
/// From the typed line to the launcher's mark: a login shell may be slow to start.
const LAUNCH: Duration = Duration::from_secs(30);
/// What a login shell may print ahead of the mark.
const NOISE_LIMIT_BYTES: usize = 256 * 1024;
/// The longest message that is taken; the daemon's own are 32 KiB at most.
const MESSAGE_LIMIT_BYTES: usize = 1024 * 1024;

/// A terminal with a command on it.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) toolbox: Toolbox,
    pub(super) id: String,
    /// The launcher's folder in the sandbox.
    pub(super) folder: String,
}

impl Terminal {
    /// Ends it, whatever runs on it, and removes its files. Each call is bounded; what fails is logged.
    pub(super) async fn end(&self) {
        if let Err(fault) = self.toolbox.delete_terminal(&self.id).await {
            tracing::debug!(%fault, id = self.id, "a terminal was not ended");
        }
        self.clean().await;
    }

    /// Removes its files.
    pub(super) async fn clean(&self) {
        if let Err(fault) = self.toolbox.remove(&self.folder).await {
            tracing::debug!(%fault, id = self.id, "the files of a terminal stay in the sandbox");
        }
    }
}

/// Why there is no duplex.
enum Failure {
    Call(Fault),
    Refused(String),
    Invalid(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Call(fault)
    }
}

/// Starts the command and hands over its stream.
pub(super) async fn open(runner: &DaytonaRunner, request: DuplexRequest) -> Result<Duplex, RunnerError> {
    let parts = CommandParts::from(&request);
    check_parts(&parts)?;
    let toolbox = runner.toolbox().await?.clone();
    let name = random_name().map_err(RunnerError::Invalid)?;
    let terminal = Terminal {
        toolbox,
        folder: format!("{}/d-{name}", runner.runtime),
        // By this name a terminal is found whose making nobody answered.
        id: format!("paperclip-duplex-{name}"),
    };
    match start(&terminal, &parts, &runner.cwd).await {
        Ok((socket, first)) => Ok(channel::run(terminal, socket, first)),
        Err(failure) => {
            terminal.end().await;
            Err(match failure {
                Failure::Call(fault) => runner.explain(fault, false).await,
                Failure::Invalid(reason) => RunnerError::Invalid(reason),
                Failure::Refused(reason) => RunnerError::Refused {
                    target: crate::CommandManagedRuntimeRunner::target(runner).to_owned(),
                    reason,
                },
            })
        }
    }
}

async fn start(terminal: &Terminal, parts: &CommandParts<'_>, cwd: &str) -> Result<(Socket, Bytes), Failure> {
    let toolbox = &terminal.toolbox;
    let mark = random_name().map_err(Failure::Refused)?;
    let launcher = script::launcher(parts, cwd, &terminal.folder, &mark);
    let path = format!("{}/run", terminal.folder);
    toolbox.folder(&terminal.folder, "700").await?;
    toolbox.upload(&[(&path, launcher.as_bytes())]).await?;
    // The launcher enters the working directory: one that is missing here would only be a failure to start.
    toolbox.create_terminal(&terminal.id, "/").await?;
    let mut socket = join(terminal).await?;
    let mut seen = connected(&mut socket).await?;
    let line = format!(" exec sh {}\r", quote(&path));
    socket.send(Message::binary(line)).await.map_err(broken)?;
    let launched = timeout(LAUNCH, launch(&mut socket, &mut seen, mark.as_bytes()))
        .await
        .map_err(|_| {
            Failure::Refused(format!(
                "the terminal's shell did not start the command within {LAUNCH:?}"
            ))
        })??;
    match launched {
        Launched::Ready => Ok((socket, seen.freeze())),
        Launched::NoDirectory => Err(Failure::Invalid(format!(
            "working directory {} cannot be entered in the sandbox",
            parts.cwd.unwrap_or(cwd)
        ))),
        Launched::NoRawMode => Err(Failure::Refused(
            "its image has no `stty`, without which a terminal changes bytes: install coreutils, or let queue_v1 be used"
                .to_owned(),
        )),
    }
}

/// The WebSocket handshake; once more with another key, where the first one is refused.
async fn join(terminal: &Terminal) -> Result<Socket, Failure> {
    let api = &terminal.toolbox.api;
    let key = api.key().await?;
    let refused = match shake_hands(terminal, &key).await? {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    let unauthorized =
        matches!(&refused, Error::Http(response) if response.status() == http::StatusCode::UNAUTHORIZED);
    if unauthorized && let Some(key) = api.renewed(&key).await {
        return shake_hands(terminal, &key).await?.map_err(broken);
    }
    Err(broken(refused))
}

async fn shake_hands(terminal: &Terminal, key: &SecretText) -> Result<Result<Socket, Error>, Failure> {
    let path = format!("/process/pty/{}/connect", terminal.id);
    let url = terminal.toolbox.url(&path);
    let address = url.replacen("http", "ws", 1);
    let mut request = address
        .into_client_request()
        .map_err(|error| Failure::Refused(format!("the terminal's address cannot be used: {error}")))?;
    let api = &terminal.toolbox.api;
    api.sign(request.headers_mut(), key)?;
    let uri = url
        .parse()
        .map_err(|error| Failure::Refused(format!("the terminal's address cannot be used: {error}")))?;
    let stream = api.http.connect(uri).await.map_err(Fault::Http)?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT_BYTES))
        .max_frame_size(Some(MESSAGE_LIMIT_BYTES));
    let handshake = client_async_with_config(request, stream, Some(config));
    match timeout(JOIN, handshake).await {
        Ok(Ok((socket, _))) => Ok(Ok(socket)),
        Ok(Err(error)) => Ok(Err(error)),
        Err(_) => Err(Fault::Http(HttpFault::TimedOut(JOIN)).into()),
    }
}

/// Waits for the daemon's word; output may come ahead of it.
async fn connected(socket: &mut Socket) -> Result<BytesMut, Failure> {
    let waiting = async {
        let mut seen = BytesMut::new();
        loop {
            match next(socket).await? {
                Message::Text(text) => match channel::control(&text) {
                    channel::Control::Connected => return Ok(seen),
                    channel::Control::Error(reason) => {
                        return Err(Failure::Refused(format!("the terminal says: {reason}")));
                    }
                    channel::Control::Exited(_) | channel::Control::Other => {}
                },
                Message::Binary(bytes) => append(&mut seen, &bytes)?,
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
    };
    timeout(JOIN, waiting)
        .await
        .map_err(|_| Failure::Call(Fault::Http(HttpFault::TimedOut(JOIN))))?
}

/// Drops all up to the mark; what stands behind it stays in `seen`.
async fn launch(socket: &mut Socket, seen: &mut BytesMut, mark: &[u8]) -> Result<Launched, Failure> {
    loop {
        let found = seen.windows(mark.len()).position(|window| window == mark);
        if let Some(at) = found
            && let Some(word) = seen.get(at + mark.len()).copied()
        {
            drop(seen.split_to(at + mark.len() + 1));
            return Launched::read(word)
                .ok_or_else(|| Failure::Refused("the terminal changes what is printed on it".to_owned()));
        }
        match next(socket).await? {
            Message::Binary(bytes) => append(seen, &bytes)?,
            Message::Text(text) => match channel::control(&text) {
                channel::Control::Exited(code) => {
                    return Err(Failure::Refused(format!(
                        "the terminal's shell exited with {code} before the command started"
                    )));
                }
                channel::Control::Connected | channel::Control::Error(_) | channel::Control::Other => {}
            },
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
}

fn append(seen: &mut BytesMut, bytes: &[u8]) -> Result<(), Failure> {
    seen.extend_from_slice(bytes);
    if seen.len() > NOISE_LIMIT_BYTES {
        return Err(Failure::Refused(format!(
            "the terminal's shell printed {NOISE_LIMIT_BYTES} bytes before it started the command: look at its profile"
        )));
    }
    Ok(())
}

async fn next(socket: &mut Socket) -> Result<Message, Failure> {
    match socket.next().await {
        Some(Ok(Message::Close(frame))) => {
            let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
            Err(Failure::Refused(format!(
                "the terminal was closed before the command started: {reason}"
            )))
        }
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(broken(error)),
        None => Err(Fault::Http(HttpFault::Unknown(
            "the terminal's connection was closed".to_owned(),
        ))
        .into()),
    }
}

fn broken(error: Error) -> Failure {
    if let Error::Http(response) = &error {
        let status = response.status();
        return Fault::Broken(format!(
            "the terminal cannot be joined: the toolbox answered {status}"
        ))
        .into();
    }
    Fault::Http(HttpFault::Unknown(error.to_string())).into()
}
