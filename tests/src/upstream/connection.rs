//! One connection of the scripted upstream: requests are read, recorded and played by their scripts.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Seen, Shared, Step};

/// Heads beyond this end the connection.
const HEAD_LIMIT_BYTES: usize = 256 * 1024;

/// Serves a connection to its end; whatever goes wrong ends it.
pub(crate) async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    number: usize,
    shared: Arc<Shared>,
) {
    // The reset is made on this duplicate's socket, which is the same one below TLS.
    let Ok(handle) = stream.set_nodelay(true).and_then(|()| duplicate(&stream)) else {
        return;
    };
    let ended = match acceptor {
        None => Connection::new(stream, number, shared).run().await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => Connection::new(stream, number, shared).run().await,
            // A client that does not trust this certificate ends here, and that may be the test.
            Err(_) => return,
        },
    };
    if matches!(ended, Ok(End::Reset)) {
        // With a linger of zero the close below is a reset, unless it already was in order.
        drop(handle.set_linger(Some(std::time::Duration::ZERO)));
    }
}

fn duplicate(stream: &TcpStream) -> io::Result<socket2::Socket> {
    socket2::SockRef::from(stream).try_clone()
}

enum End {
    /// The other side left, or a script closed.
    Closed,
    /// A script asked for a reset.
    Reset,
}

#[derive(Clone, Copy)]
enum Body {
    Left(usize),
    Chunks,
    Done,
}

struct Connection<S> {
    stream: S,
    number: usize,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, number: usize, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            number,
            shared,
            buffer: vec![],
        }
    }

    async fn run(mut self) -> io::Result<End> {
        let end = self.requests().await?;
        if matches!(end, End::Closed) {
            self.stream.shutdown().await?;
            // What still comes is read and dropped, or closing would turn into a reset.
            let mut rest = [0; 4096];
            let linger = async { while matches!(self.stream.read(&mut rest).await, Ok(1..)) {} };
            drop(tokio::time::timeout(std::time::Duration::from_secs(2), linger).await);
        }
        Ok(end)
    }

    async fn requests(&mut self) -> io::Result<End> {
        while let Some((seen, mut body)) = self.head().await? {
            let script = self.shared.script_for(&seen.method, &seen.target);
            let entry = self.shared.record(seen);
            if matches!(body, Body::Done) {
                self.shared.add_body(entry, b"", true);
            }
            for step in script.steps {
                match step {
                    Step::ReadBody => self.read_body(entry, &mut body, usize::MAX).await?,
                    Step::ReadSome(count) => self.read_body(entry, &mut body, count).await?,
                    Step::Send(bytes) => {
                        self.stream.write_all(&bytes).await?;
                        self.stream.flush().await?;
                    }
                    Step::Wait(time) => tokio::time::sleep(time).await,
                    Step::Stall => std::future::pending().await,
                    Step::Hold(permits) => match permits.acquire().await {
                        Ok(permit) => permit.forget(),
                        Err(_) => return Ok(End::Closed),
                    },
                    Step::Close => return Ok(End::Closed),
                    Step::Reset => return Ok(End::Reset),
                }
            }
            self.read_body(entry, &mut body, usize::MAX).await?;
        }
        Ok(End::Closed)
    }

    /// `None` where the connection ended between two requests.
    async fn head(&mut self) -> io::Result<Option<(Seen, Body)>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 256];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(&self.buffer).map_err(io::Error::other)?;
            if let httparse::Status::Complete(length) = parsed {
                let seen = Seen {
                    connection: self.number,
                    method: request.method.unwrap_or_default().to_owned(),
                    target: request.path.unwrap_or_default().to_owned(),
                    headers: request
                        .headers
                        .iter()
                        .map(|header| {
                            (
                                header.name.to_owned(),
                                String::from_utf8_lossy(header.value).into_owned(),
                            )
                        })
                        .collect(),
                    body: vec![],
                    whole: false,
                };
                let body = body_of(&seen)?;
                self.buffer.drain(..length);
                return Ok(Some((seen, body)));
            }
            if self.buffer.len() > HEAD_LIMIT_BYTES || !self.more().await? {
                return Ok(None);
            }
        }
    }

    async fn read_body(&mut self, entry: usize, body: &mut Body, limit: usize) -> io::Result<()> {
        let mut left = limit;
        loop {
            match *body {
                Body::Done => return Ok(()),
                Body::Left(_) | Body::Chunks if left == 0 => return Ok(()),
                Body::Left(length) => {
                    if self.buffer.is_empty() && !self.more().await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let count = self.buffer.len().min(length).min(left);
                    let bytes: Vec<u8> = self.buffer.drain(..count).collect();
                    left -= count;
                    *body = if count == length {
                        Body::Done
                    } else {
                        Body::Left(length - count)
                    };
                    self.shared.add_body(entry, &bytes, matches!(body, Body::Done));
                }
                Body::Chunks => {
                    let size = self.line().await?;
                    let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
                    while self.buffer.len() < size + 2 {
                        if !self.more().await? {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    let bytes: Vec<u8> = self.buffer.drain(..size + 2).take(size).collect();
                    if size == 0 {
                        *body = Body::Done;
                    }
                    left = left.saturating_sub(size);
                    self.shared.add_body(entry, &bytes, size == 0);
                }
            }
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn more(&mut self) -> io::Result<bool> {
        self.buffer.reserve(64 * 1024);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

/// The real API would be lenient here; a test's upstream refuses what is ambiguous, so that nothing hides.
fn body_of(seen: &Seen) -> io::Result<Body> {
    match (seen.count("content-length"), seen.count("transfer-encoding")) {
        (0, 0) => Ok(Body::Done),
        (1, 0) => {
            let length = seen
                .header("content-length")
                .unwrap_or_default()
                .parse()
                .map_err(io::Error::other)?;
            Ok(if length == 0 {
                Body::Done
            } else {
                Body::Left(length)
            })
        }
        (0, 1) if seen.header("transfer-encoding") == Some("chunked") => Ok(Body::Chunks),
        _ => Err(io::Error::other("an ambiguous length reached the upstream")),
    }
}
