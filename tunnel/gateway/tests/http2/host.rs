//! Hosts: hyper's HTTP/2 server with a service, or `h2` alone where a test needs to misbehave.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::JoinSet;

use super::gateway::Channel;
use super::within;

pub(crate) type HostBody = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> HostBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Serves until the value is dropped, which closes the channel.
pub(crate) struct Host {
    _serving: JoinSet<()>,
}

/// hyper's server, answering each stream with `answer`.
pub(crate) fn hyper<F, A>(channel: Channel, answer: F) -> Host
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + Clone + 'static,
    A: Future<Output = Response<HostBody>> + Send + 'static,
{
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let service = service_fn(move |request| {
            let answer = answer.clone();
            async move { Ok::<_, Infallible>(answer(request).await) }
        });
        let _ended = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_frame_size(64 << 10)
            .keep_alive_interval(Some(Duration::from_millis(200)))
            .serve_connection(TokioIo::new(channel), service)
            .await;
    });
    Host { _serving: serving }
}

/// Sends the request's body back, with its content type.
pub(crate) async fn echo(request: Request<Incoming>) -> Response<HostBody> {
    let body = request.into_body().map_err(std::io::Error::other).boxed_unsync();
    Response::new(body)
}

/// `h2` alone.
pub(crate) async fn h2(channel: Channel) -> Connection<Channel, Bytes> {
    within(h2::server::handshake(channel))
        .await
        .expect("an HTTP/2 client")
}

/// The next stream.
pub(crate) async fn next(
    host: &mut Connection<Channel, Bytes>,
) -> (Request<h2::RecvStream>, SendResponse<Bytes>) {
    within(host.accept()).await.expect("a stream").expect("in order")
}

/// Drives the connection until it closes.
pub(crate) fn drive(mut host: Connection<Channel, Bytes>) -> Host {
    let mut serving = JoinSet::new();
    serving.spawn(async move { while host.accept().await.is_some() {} });
    Host { _serving: serving }
}
