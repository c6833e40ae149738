//! The API that both sides call: a process of its own, one thread, as little work a request as possible.
//!
//! It checks that the credential and the run id were put on, so that a side which skips that cannot win.

use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use crate::world::{CREDENTIAL, RUN_ID};
use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Size of a bulk body.
pub const BULK_BYTES: usize = 10 * 1024 * 1024;

/// The path whose answer has [`BULK_BYTES`].
pub const BULK_PATH: &str = "/api/attachments/1/content";

/// The path that is answered only after [`SLOW_TIME`].
pub const SLOW_PATH: &str = "/api/issues/SLOW/comments";

/// How long the slow path takes.
pub const SLOW_TIME: Duration = Duration::from_secs(5);

/// The path whose body is never read.
pub const STALLED_PATH: &str = "/api/issues/STALLED/comments";

/// About what the real API answers to `GET /api/agents/me`.
const SMALL: &str = r#"{"id":"agent-1","name":"bench","companyId":"company-1","status":"running","role":"engineer","budgetMonthlyCents":10000,"spentMonthlyCents":42,"capabilities":null}"#;

/// The running process; killed when dropped.
#[derive(Debug)]
pub struct Api {
    child: Child,
    port: u16,
}

impl Api {
    /// Starts this program once more with the argument `upstream`, which must call [`serve`].
    ///
    /// # Errors
    ///
    /// Where it does not start or does not print its port.
    pub async fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("upstream")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("its stdout was piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let port = line
            .trim()
            .parse()
            .with_context(|| format!("the upstream printed {line:?}"))?;
        Ok(Self { child, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, unless it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its origin.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Made once: a connection is to cost little.
static BULK: LazyLock<Vec<u8>> = LazyLock::new(|| vec![b'x'; BULK_BYTES]);

/// Prints the port and serves until killed.
///
/// # Errors
///
/// Where loopback cannot be listened on.
pub async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = tokio::io::stdout();
    stdout
        .write_all(format!("{}\n", listener.local_addr()?.port()).as_bytes())
        .await?;
    stdout.flush().await?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        while connections.try_join_next().is_some() {}
        connections.spawn(serve_connection(stream));
    }
}

async fn serve_connection(mut stream: TcpStream) -> anyhow::Result<()> {
    let ok = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{SMALL}",
        SMALL.len()
    );
    let bulk_head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {BULK_BYTES}\r\n\r\n"
    );
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let Some(request) = head(&buffer)? else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        if request.path == STALLED_PATH {
            std::future::pending::<()>().await;
        }
        buffer.drain(..request.head_bytes);
        let mut left = request.body_bytes;
        loop {
            let count = left.min(buffer.len());
            buffer.drain(..count);
            left -= count;
            if left == 0 {
                break;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("a body was cut");
            }
        }
        if !request.authorized {
            stream
                .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
                .await?;
        } else if request.path == SLOW_PATH {
            tokio::time::sleep(SLOW_TIME).await;
            stream.write_all(ok.as_bytes()).await?;
        } else if request.path == BULK_PATH {
            stream.write_all(bulk_head.as_bytes()).await?;
            stream.write_all(&BULK).await?;
        } else {
            stream.write_all(ok.as_bytes()).await?;
        }
    }
}

struct Head {
    path: String,
    head_bytes: usize,
    body_bytes: usize,
    authorized: bool,
}

fn head(buffer: &[u8]) -> anyhow::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = request.parse(buffer)? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found
            .and_then(|header| std::str::from_utf8(header.value).ok())
            .unwrap_or_default()
    };
    let authorized = value("authorization").strip_prefix("Bearer ") == Some(CREDENTIAL)
        && value("x-paperclip-run-id") == RUN_ID;
    let body_bytes = match value("content-length") {
        "" => 0,
        length => length.parse()?,
    };
    let path = request.path.unwrap_or_default().to_owned();
    Ok(Some(Head {
        path,
        head_bytes,
        body_bytes,
        authorized,
    }))
}
