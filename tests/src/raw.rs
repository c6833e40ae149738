//! A raw HTTP/1.1 client: bytes go out as they are, answers come in strictly.
//!
//! Here: [`Wire`], one connection, and [`Agent`], a caller with a URL and a token. A cut answer is never taken for
//! a whole one: every length is checked, and a connection that ends early is [`Broken`]. Not here: anything that
//! corrects what a test wants to send wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A head longer than this is not an answer.
const HEAD_LIMIT_BYTES: usize = 128 * 1024;

/// One whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body, after the transfer coding.
    pub body: Vec<u8>,
    /// It came in chunks.
    pub chunked: bool,
    /// The 1xx answers that came before it.
    pub interim: Vec<u16>,
}

impl Answer {
    /// The value of the first header of this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or null where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `code` of the bridge's error body, or nothing.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No connection could be made.
    Refused(io::ErrorKind),
    /// The connection ended before the first byte of an answer.
    Closed,
    /// The connection ended inside an answer.
    Cut(String),
    /// What came is not HTTP/1.1.
    Malformed(String),
    /// Nothing more came in time.
    TimedOut,
}

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// One connection.
pub struct Wire {
    reading: ReadHalf<Box<dyn Bytes>>,
    writing: WriteHalf<Box<dyn Bytes>>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// Connects to `http://host:port` or `unix:/path`.
    ///
    /// # Errors
    ///
    /// [`Broken::Refused`] where nobody takes the connection.
    pub async fn connect(url: &str) -> Result<Self, Broken> {
        let refused = |error: io::Error| Broken::Refused(error.kind());
        let stream: Box<dyn Bytes> = match place(url) {
            Place::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.map_err(refused)?;
                stream.set_nodelay(true).map_err(refused)?;
                Box::new(stream)
            }
            Place::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(refused)?),
        };
        let (reading, writing) = tokio::io::split(stream);
        Ok(Self {
            reading,
            writing,
            buffer: vec![],
        })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// [`Broken::Closed`] where the other side takes no more.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let sent = tokio::time::timeout(LIMIT, self.writing.write_all(bytes)).await;
        sent.map_err(|_| Broken::TimedOut)?.map_err(|_| Broken::Closed)
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub async fn finish_sending(&mut self) {
        // The other side may have closed already; then there is nothing to say.
        drop(self.writing.shutdown().await);
    }

    /// Sends `bytes` while it reads one answer for each of `methods`; stops at the first that is not whole.
    ///
    /// An answer may come, and the connection may end, before everything is sent: that is no fault here.
    pub async fn exchange(
        &mut self,
        bytes: &[u8],
        methods: &[&str],
        finish: bool,
    ) -> Vec<Result<Answer, Broken>> {
        let Self {
            reading,
            writing,
            buffer,
        } = self;
        let sending = async {
            let sent = writing.write_all(bytes).await;
            if finish && sent.is_ok() {
                drop(writing.shutdown().await);
            }
            std::future::pending::<()>().await;
        };
        let receiving = async {
            let mut answers = vec![];
            for method in methods {
                let answer = read_answer(reading, buffer, method).await;
                let whole = answer.is_ok();
                answers.push(answer);
                if !whole {
                    break;
                }
            }
            answers
        };
        tokio::select! {
            answers = receiving => answers,
            () = sending => unreachable!("sending never ends the exchange"),
        }
    }

    /// Reads one whole answer to a request of this method.
    ///
    /// # Errors
    ///
    /// [`Broken`] where the answer is not whole.
    pub async fn answer(&mut self, method: &str) -> Result<Answer, Broken> {
        read_answer(&mut self.reading, &mut self.buffer, method).await
    }

    /// Reads until `count` bytes of the next answer are there, and leaves them for [`Self::answer`].
    ///
    /// # Errors
    ///
    /// [`Broken`] where the connection ends first.
    pub async fn peek(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.buffer.len() < count {
            if !more(&mut self.reading, &mut self.buffer).await? {
                return Err(Broken::Closed);
            }
        }
        Ok(self.buffer.clone())
    }

    /// Whether the other side closes within the limit without sending another byte.
    pub async fn is_closed_within(&mut self, limit: Duration) -> bool {
        let ended = async {
            while matches!(more(&mut self.reading, &mut self.buffer).await, Ok(true)) {}
            self.buffer.is_empty()
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(false)
    }
}

enum Place {
    Tcp(String),
    Unix(PathBuf),
}

fn place(url: &str) -> Place {
    if let Some(path) = url.strip_prefix("unix:") {
        return Place::Unix(PathBuf::from(path));
    }
    let rest = url
        .strip_prefix("http://")
        .unwrap_or_else(|| panic!("not an http URL: {url}"));
    Place::Tcp(rest.split('/').next().unwrap_or(rest).to_owned())
}

/// False at the end of the stream; a reset is an end, too.
async fn more(reading: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<bool, Broken> {
    let read = tokio::time::timeout(LIMIT, reading.read_buf(buffer)).await;
    Ok(read.map_err(|_| Broken::TimedOut)?.is_ok_and(|count| count > 0))
}

async fn read_answer(
    reading: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    method: &str,
) -> Result<Answer, Broken> {
    let mut interim = vec![];
    loop {
        let mut answer = read_head(reading, buffer).await?;
        if (100..200).contains(&answer.status) {
            interim.push(answer.status);
            continue;
        }
        answer.interim = interim;
        read_body(reading, buffer, method, &mut answer).await?;
        return Ok(answer);
    }
}

async fn read_head(reading: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<Answer, Broken> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > HEAD_LIMIT_BYTES {
            return Err(Broken::Malformed("a head without an end".to_owned()));
        }
        if !more(reading, buffer).await? {
            let partly = Broken::Cut(format!("{} bytes of a head", buffer.len()));
            return Err(if buffer.is_empty() { Broken::Closed } else { partly });
        }
    };
    let head: Vec<u8> = buffer.drain(..end + 4).collect();
    let malformed = || Broken::Malformed(String::from_utf8_lossy(&head).into_owned());
    let text = std::str::from_utf8(&head[..end]).map_err(|_| malformed())?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().ok_or_else(malformed)?;
    let rest = status_line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| status_line.strip_prefix("HTTP/1.0 "));
    let status = rest
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(malformed)?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(malformed)?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Result<_, _>>()?;
    Ok(Answer {
        status,
        headers,
        ..Answer::default()
    })
}

async fn read_body(
    reading: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    method: &str,
    answer: &mut Answer,
) -> Result<(), Broken> {
    let all = |name: &str| -> Vec<&str> {
        answer
            .headers
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    // Two ways to delimit one answer are one too many.
    if lengths.len() + codings.len() > 1 {
        return Err(Broken::Malformed(format!(
            "lengths {lengths:?} beside codings {codings:?}"
        )));
    }
    if method == "HEAD" || matches!(answer.status, 204 | 304) {
        return Ok(());
    }
    if let Some(coding) = codings.first() {
        if !coding.eq_ignore_ascii_case("chunked") {
            return Err(Broken::Malformed(format!("transfer coding {coding}")));
        }
        answer.chunked = true;
        return read_chunks(reading, buffer, &mut answer.body).await;
    }
    if let Some(length) = lengths.first() {
        let length = length
            .parse()
            .map_err(|_| Broken::Malformed(format!("length {length}")))?;
        answer.body = take(reading, buffer, length).await?;
        return Ok(());
    }
    // Neither: the body ends with the connection, and nothing tells a whole one from a cut one.
    Err(Broken::Malformed(
        "an answer with a body that only the connection's end delimits".to_owned(),
    ))
}

async fn read_chunks(
    reading: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    body: &mut Vec<u8>,
) -> Result<(), Broken> {
    loop {
        let line = take_line(reading, buffer).await?;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| Broken::Malformed(format!("chunk {line}")))?;
        if size == 0 {
            while !take_line(reading, buffer).await?.is_empty() {}
            return Ok(());
        }
        body.extend(take(reading, buffer, size).await?);
        if !take_line(reading, buffer).await?.is_empty() {
            return Err(Broken::Malformed("a chunk longer than its size".to_owned()));
        }
    }
}

async fn take(
    reading: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    count: usize,
) -> Result<Vec<u8>, Broken> {
    while buffer.len() < count {
        if !more(reading, buffer).await? {
            return Err(Broken::Cut(format!(
                "{} of {count} bytes of a body",
                buffer.len()
            )));
        }
    }
    Ok(buffer.drain(..count).collect())
}

async fn take_line(reading: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<String, Broken> {
    let end = loop {
        if let Some(at) = buffer.windows(2).position(|two| two == b"\r\n") {
            break at;
        }
        if !more(reading, buffer).await? {
            return Err(Broken::Cut("between chunks".to_owned()));
        }
    };
    let line: Vec<u8> = buffer.drain(..end + 2).collect();
    String::from_utf8(line[..end].to_vec()).map_err(|_| Broken::Malformed("chunk line".to_owned()))
}

/// A caller inside the sandbox: it knows a URL and a token and nothing else.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The bridge's URL.
    pub url: String,
    /// The session's token.
    pub token: String,
}

impl Agent {
    /// `GET path` on a connection of its own.
    ///
    /// # Errors
    ///
    /// [`Broken`] where there is no whole answer.
    pub async fn get(&self, path: &str) -> Result<Answer, Broken> {
        self.call("GET", path, &[], b"").await
    }

    /// `POST path` with a JSON body on a connection of its own.
    ///
    /// # Errors
    ///
    /// [`Broken`] where there is no whole answer.
    pub async fn post(&self, path: &str, json: &str) -> Result<Answer, Broken> {
        self.call(
            "POST",
            path,
            &[("content-type", "application/json")],
            json.as_bytes(),
        )
        .await
    }

    /// Any request on a connection of its own.
    ///
    /// # Errors
    ///
    /// [`Broken`] where there is no whole answer.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Broken> {
        let mut wire = Wire::connect(&self.url).await?;
        let mut bytes = self.head(method, path, headers, Some(body.len()));
        bytes.extend_from_slice(body);
        let mut answers = wire.exchange(&bytes, &[method], false).await;
        answers.pop().unwrap_or(Err(Broken::Closed))
    }

    /// The bytes of a request head with Host and token; `length` is left out for a GET without a body.
    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n",
            self.host(),
            self.token
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = length.filter(|length| *length > 0 || !matches!(method, "GET" | "HEAD")) {
            head += &format!("Content-Length: {length}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// What the Host header says: the URL's own name and port, or `localhost` on a unix socket.
    pub fn host(&self) -> String {
        match place(&self.url) {
            Place::Tcp(authority) => authority,
            Place::Unix(_) => "localhost".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &'static [u8], method: &str) -> Result<Answer, Broken> {
        let mut reading = bytes;
        read_answer(&mut reading, &mut vec![], method).await
    }

    #[tokio::test]
    async fn a_body_shorter_than_its_length_is_cut() {
        let answer = read(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", "GET").await;

        assert_eq!(answer, Err(Broken::Cut("3 of 5 bytes of a body".to_owned())));
    }

    #[tokio::test]
    async fn chunks_without_their_end_are_cut() {
        let answer = read(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "GET",
        )
        .await;

        assert_eq!(answer, Err(Broken::Cut("between chunks".to_owned())));
    }

    #[tokio::test]
    async fn an_interim_answer_is_noted_and_passed_over() {
        let answer = read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "POST")
            .await
            .unwrap();

        assert_eq!((answer.status, answer.interim), (204, vec![100]));
    }

    #[tokio::test]
    async fn the_end_before_any_byte_is_a_closed_connection() {
        assert_eq!(read(b"", "GET").await, Err(Broken::Closed));
    }

    #[tokio::test]
    async fn a_body_that_only_the_end_delimits_is_refused() {
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\n\r\nabc", "GET").await,
            Err(Broken::Malformed(_))
        ));
    }
}
