//! Load: requests prepared once, sent over plain sockets from a thread and a runtime of their own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use paperclip_bridge_tests::Agent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::api::{BULK_BYTES, BULK_PATH, STALLED_PATH};

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// One connection for all of its requests.
    KeepAlive,
    /// One connection for one request, closed by the caller as `curl` does.
    NewConnection,
}

/// What is sent, how, and when it ends.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    mode: Mode,
    connections: usize,
    address: String,
    request: Vec<u8>,
    until: Until,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    Passed(Duration),
    Sent(u64),
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Sorted.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) elapsed: Duration,
}

impl Sample {
    /// The latency below which this share of the requests stayed.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let place = (last as f64 * share).round() as usize;
        self.latencies.get(place).copied().unwrap_or_default()
    }
}

impl Load {
    /// Small calls.
    pub(crate) fn small(agent: &Agent, mode: Mode, connections: usize) -> Self {
        let request = agent.head("GET", "/api/agents/me", &[("Accept", "*/*")], None);
        Self {
            mode,
            connections,
            ..Self::sending(agent, request)
        }
    }

    /// 10 MiB down or up, one after the other on one connection.
    pub(crate) fn bulk(agent: &Agent, upload: bool) -> Self {
        if upload {
            Self::sending(agent, upload_of(agent, "/api/issues/PAP-1/comments"))
        } else {
            Self::sending(agent, agent.head("GET", BULK_PATH, &[("Accept", "*/*")], None))
        }
    }

    fn sending(agent: &Agent, request: Vec<u8>) -> Self {
        let (mode, until) = (Mode::KeepAlive, Until::Sent(1));
        Self {
            mode,
            connections: 1,
            address: agent.host(),
            request,
            until,
        }
    }

    /// Ends after this time.
    pub(crate) fn lasting(mut self, time: Duration) -> Self {
        self.until = Until::Passed(time);
        self
    }

    /// Ends after this many requests over all connections.
    pub(crate) fn counting(mut self, requests: u64) -> Self {
        self.until = Until::Sent(requests);
        self
    }

    /// Runs it on another thread.
    pub(crate) async fn run(self) -> anyhow::Result<Sample> {
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, self.run_here())
        })
        .await?
    }

    async fn run_here(self) -> anyhow::Result<Sample> {
        let connections = self.connections;
        let load = Rc::new(self);
        let sent = Rc::new(Cell::new(0));
        let latencies = Rc::new(RefCell::new(Vec::with_capacity(1 << 17)));
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..connections {
            let (load, sent, latencies) = (Rc::clone(&load), Rc::clone(&sent), Rc::clone(&latencies));
            callers.spawn_local(async move { load.call(started, &sent, &latencies).await });
        }
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        let elapsed = started.elapsed();
        let mut latencies = latencies.take();
        latencies.sort_unstable();
        Ok(Sample { latencies, elapsed })
    }

    async fn call(
        &self,
        started: Instant,
        sent: &Cell<u64>,
        latencies: &RefCell<Vec<Duration>>,
    ) -> anyhow::Result<()> {
        let mut stream = None;
        let mut buffer = Vec::with_capacity(128 * 1024);
        while self.goes_on(started, sent) {
            let begun = Instant::now();
            let mut connection = match stream.take() {
                Some(connection) => connection,
                None => connect(&self.address).await?,
            };
            connection.write_all(&self.request).await?;
            answer(&mut connection, &mut buffer).await?;
            latencies.borrow_mut().push(begun.elapsed());
            if self.mode == Mode::KeepAlive {
                stream = Some(connection);
            }
        }
        Ok(())
    }

    fn goes_on(&self, started: Instant, sent: &Cell<u64>) -> bool {
        sent.set(sent.get() + 1);
        match self.until {
            Until::Passed(time) => started.elapsed() < time,
            Until::Sent(requests) => sent.get() <= requests,
        }
    }
}

/// Starts uploads whose upstream never reads them; returns once they have had time to fill every buffer.
pub(crate) async fn stalled_uploads(agent: &Agent, count: usize) -> anyhow::Result<StalledUploads> {
    let mut uploads = JoinSet::new();
    for _ in 0..count {
        let mut stream = connect(&agent.host()).await?;
        let request = upload_of(agent, STALLED_PATH);
        uploads.spawn(async move {
            let (mut reading, mut writing) = stream.split();
            // Held open also when everything was taken: the caller waits for its answer.
            let answer = async { drop(reading.read_to_end(&mut vec![]).await) };
            let upload = async { drop(writing.write_all(&request).await) };
            tokio::join!(answer, upload);
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(StalledUploads { uploads })
}

/// Uploads that stand still; cut when told or dropped.
#[derive(Debug)]
pub(crate) struct StalledUploads {
    uploads: JoinSet<()>,
}

impl StalledUploads {
    pub(crate) fn abort_all(mut self) {
        self.uploads.abort_all();
    }
}

fn upload_of(agent: &Agent, path: &str) -> Vec<u8> {
    let mut request = agent.head(
        "POST",
        path,
        &[("Content-Type", "application/json")],
        Some(BULK_BYTES),
    );
    request.resize(request.len() + BULK_BYTES, b' ');
    request
}

async fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one whole answer of declared length, which must be 200; leaves `buffer` empty.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    buffer.clear();
    let head_bytes = loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed before an answer");
        }
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = std::str::from_utf8(&buffer[..head_bytes])?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("an answer that is not 200: {}", String::from_utf8_lossy(buffer));
    }
    let length = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without a length")?
        .1;
    let mut left = (head_bytes + length.trim().parse::<usize>()?) - buffer.len();
    while left > 0 {
        buffer.clear();
        let count = stream.read_buf(buffer).await?;
        if count == 0 {
            bail!("an answer was cut {left} bytes before its end");
        }
        left -= count;
    }
    Ok(())
}
