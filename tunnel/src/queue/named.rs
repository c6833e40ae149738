//! Where somebody else's gateway listens, as its directory says at the time of each callback.
//!
//! Here: [`Named`], which stands between a hosted queue and its callbacks: the gateway may come, or come back on another
//! port, after the host has begun. Not here: what the port is held against; that is the daemon's.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Response;
use tokio::io::AsyncReadExt as _;

use super::gateway::{READY_MAX_BYTES, ready_port};
use crate::{AgentMessage, AgentStream, Callbacks, Listening, MessageBody};

/// Callbacks whose listener is read from a readiness document.
#[derive(Debug)]
pub(super) struct Named {
    callbacks: Arc<dyn Callbacks>,
    ready: PathBuf,
}

impl Named {
    pub(super) fn new(callbacks: Arc<dyn Callbacks>, ready: PathBuf) -> Self {
        Self { callbacks, ready }
    }

    /// The port, if there is a document that names one.
    pub(super) async fn port(&self) -> Option<u16> {
        read(&self.ready).await
    }
}

async fn read(ready: &PathBuf) -> Option<u16> {
    let mut text = String::new();
    let limit = u64::try_from(READY_MAX_BYTES).ok()?;
    let file = tokio::fs::File::open(ready).await.ok()?;
    file.take(limit + 1).read_to_string(&mut text).await.ok()?;
    ready_port(&text).ok()
}

impl Callbacks for Named {
    fn serve_stream(&self, stream: AgentStream) -> BoxFuture<'static, ()> {
        self.callbacks.serve_stream(stream)
    }

    fn serve_message(&self, mut message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
        // A gateway that does not tell the caller's Host leaves nothing to compare.
        if message.host.is_none() {
            return self.callbacks.serve_message(message);
        }
        let callbacks = Arc::clone(&self.callbacks);
        let ready = self.ready.clone();
        async move {
            if let Some(port) = read(&ready).await {
                message.listening = Listening::Tcp { port };
            }
            callbacks.serve_message(message).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;
    use crate::CallerProof;

    /// Keeps where each message came in.
    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<Listening>>);

    impl Callbacks for Seen {
        fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
            unreachable!("a queue hands over messages")
        }

        fn serve_message(&self, message: AgentMessage) -> BoxFuture<'static, Response<MessageBody>> {
            self.0.lock().unwrap().push(message.listening);
            std::future::ready(Response::new(MessageBody::default())).boxed()
        }
    }

    fn message(host: Option<&'static str>) -> AgentMessage {
        AgentMessage {
            method: http::Method::GET,
            target: Bytes::from_static(b"/"),
            headers: http::HeaderMap::new(),
            host: host.map(|host| Bytes::from_static(host.as_bytes())),
            proof: CallerProof::Channel,
            body: MessageBody::default(),
            listening: Listening::Unix { path: "/q".into() },
        }
    }

    #[tokio::test]
    async fn a_callback_came_in_where_the_document_says_at_that_time() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready.json");
        let seen = Arc::new(Seen::default());
        let named = Named::new(seen.clone(), ready.clone());

        for document in ["", "{\"port\":81}", "{\"port\":82}", "{\"port\":0}"] {
            std::fs::write(&ready, document).unwrap();
            named.serve_message(message(Some("127.0.0.1:81"))).await;
        }
        std::fs::write(&ready, "{\"port\":83}").unwrap();
        named.serve_message(message(None)).await;

        let unknown = Listening::Unix { path: "/q".into() };
        let tcp = |port| Listening::Tcp { port };
        let expected = [unknown.clone(), tcp(81), tcp(82), unknown.clone(), unknown];
        assert_eq!(*seen.0.lock().unwrap(), expected);
    }
}
