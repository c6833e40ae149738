//! The demo's agent: raw HTTP/1.1 to the URL in its sandbox, so that nothing tidies up what it sends.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An agent that was given a URL and a token.
#[derive(Debug)]
pub(crate) struct Agent {
    /// `host:port` of the URL.
    pub(crate) place: String,
    /// Its token.
    pub(crate) token: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Status code.
    pub(crate) status: u16,
    /// Value of `x-paperclip-bridge-request-id`.
    pub(crate) request_id: Option<String>,
    /// Body, if it is JSON.
    body: serde_json::Value,
}

impl Reply {
    /// A text of the body, by its key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.body.get(key).and_then(serde_json::Value::as_str)
    }
}

impl Agent {
    /// One call on a connection of its own.
    ///
    /// - `call`: `METHOD TARGET`, sent as it is.
    /// - `body`: JSON text, or `None` for a call without a body.
    pub(crate) async fn call(&self, call: &str, body: Option<&str>) -> io::Result<Reply> {
        self.call_with_token(call, body, &self.token).await
    }

    /// The same with another token.
    pub(crate) async fn call_with_token(
        &self,
        call: &str,
        body: Option<&str>,
        token: &str,
    ) -> io::Result<Reply> {
        let mut request = format!(
            "{call} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Cookie: session=of-the-agent\r\nX-Forwarded-For: 203.0.113.7\r\n",
            self.place
        );
        if let Some(body) = body {
            // A `String` takes every write.
            let _ = write!(
                request,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        request.push_str("\r\n");
        request.push_str(body.unwrap_or_default());
        timeout(PATIENCE, self.exchange(request.as_bytes()))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Whether anything still listens there.
    pub(crate) async fn is_answered(&self) -> bool {
        matches!(
            timeout(PATIENCE, TcpStream::connect(&self.place)).await,
            Ok(Ok(_))
        )
    }

    async fn exchange(&self, request: &[u8]) -> io::Result<Reply> {
        let stream = TcpStream::connect(&self.place).await?;
        let (mut from, mut to) = stream.into_split();
        let mut answer = Vec::new();
        // Both at once: an early answer must be read although the body is not all sent yet.
        let (sent, received) = tokio::join!(to.write_all(request), from.read_to_end(&mut answer));
        match (parse(&answer), received, sent) {
            (Some(reply), _, _) => Ok(reply),
            (None, Err(error), _) | (None, Ok(_), Err(error)) => Err(error),
            (None, Ok(_), Ok(())) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no whole HTTP answer came back",
            )),
        }
    }
}

fn parse(answer: &[u8]) -> Option<Reply> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(answer).ok()? else {
        return None;
    };
    let text = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let body = match text("content-length") {
        Some(length) => answer.get(head..head.checked_add(length.parse().ok()?)?)?,
        None => answer.get(head..)?,
    };
    Some(Reply {
        status: response.code?,
        request_id: text("x-paperclip-bridge-request-id").map(str::to_owned),
        body: serde_json::from_slice(body).unwrap_or_default(),
    })
}
