//! The fake's side of a WebSocket: the upgrade, the limit on what comes in, and how it is closed.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::http::{Answer, Asked, error};
use super::world::Shared;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The longest message that the daemon takes.
pub(super) const INBOUND_BYTES: usize = 65536;
/// How long a closing side goes on reading, so that its close frame is not lost in a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Answers the upgrade and runs `serve` on the socket until it ends or a test cuts it.
pub(super) fn accept<F>(
    shared: &Shared,
    asked: Asked,
    protocol: Option<&str>,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Answer
where
    F: Future<Output = ()> + Send + 'static,
{
    let key = asked.header("sec-websocket-key").map(str::to_owned);
    let (Some(upgrade), Some(key)) = (asked.upgrade, key) else {
        return error(400, "BAD_REQUEST", "a WebSocket upgrade is required");
    };
    let mut response = Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(key.as_bytes()));
    if let Some(protocol) = protocol {
        response = response.header("sec-websocket-protocol", protocol);
    }
    let mut cut = shared.cut.subscribe();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default()
            .max_message_size(Some(INBOUND_BYTES))
            .max_frame_size(Some(INBOUND_BYTES));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config));
        let socket = socket.await;
        tokio::select! {
            () = serve(socket) => {}
            _ = cut.changed() => {}
        }
    });
    response
        .body(Full::default())
        .expect("the fake's own header fields are valid")
}

/// Sends a close frame and goes on reading for a moment, until the other side has closed, too.
pub(super) async fn close(mut socket: Socket, code: u16, reason: &str) {
    let frame = CloseFrame {
        code: CloseCode::from(code),
        reason: reason.to_owned().into(),
    };
    if timeout(LINGER, socket.close(Some(frame))).await.is_err() {
        return;
    }
    let stream = socket.get_mut();
    let mut rest = [0; 4096];
    let drained = async { while matches!(stream.read(&mut rest).await, Ok(count) if count > 0) {} };
    drop(timeout(LINGER, drained).await);
}

/// A JSON text of the fake's own as a message.
pub(super) fn text(value: &serde_json::Value) -> tokio_tungstenite::tungstenite::Message {
    value.to_string().into()
}

/// Bytes as a binary message.
pub(super) fn binary(bytes: Bytes) -> tokio_tungstenite::tungstenite::Message {
    bytes.into()
}
