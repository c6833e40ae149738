//! Callers in the sandbox.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::gateway::TOKEN;
use super::within;

/// Writes `request` as it is and reads to the end of the connection.
pub(crate) async fn raw(port: u16, request: &[u8]) -> String {
    let exchanged = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        stream.write_all(request).await.expect("room");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    };
    within(exchanged).await
}

/// A request with the token.
pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1:1")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Full::new(body.into()))
        .expect("a request")
}

/// Sends one request over a connection of its own; `Err` when the answer breaks off.
pub(crate) async fn call(port: u16, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, hyper::Error> {
    within(async {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    })
    .await
}

/// The value of a key in the JSON body of an answer.
pub(crate) fn json(response: &Response<Bytes>) -> serde_json::Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_slice(response.body()).expect("JSON")
}
