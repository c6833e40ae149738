//! Load: requests prepared once, sent over plain sockets from a thread and a runtime of their own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::api::{BULK_BYTES, BULK_PATH, SLOW_PATH, STALLED_PATH};
use crate::raw::Agent;

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// One connection for all of its requests.
    KeepAlive,
    /// One connection for one request, closed by the caller as `curl` does.
    NewConnection,
}

/// How long a caller waits after a fault.
const AFTER_A_FAULT: Duration = Duration::from_millis(10);

/// What is sent, how, and when it ends.
#[derive(Clone, Debug)]
pub struct Load {
    mode: Mode,
    connections: usize,
    address: String,
    request: Vec<u8>,
    until: Until,
    /// Set: faults are counted, and whoever has no answer when this much time has passed is given up.
    give_up: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    Passed(Duration),
    Sent(u64),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Of the calls that were answered 200; sorted.
    pub latencies: Vec<Duration>,
    /// From the first call to the end of the last caller.
    pub elapsed: Duration,
    /// Calls with another answer or none; only a load that [bears faults](Load::bearing_faults) has any.
    pub failed: u64,
    /// Calls that were given up.
    pub given_up: u64,
}

impl Sample {
    /// Calls answered 200 in a second.
    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency below which this share of the requests stayed.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let place = (last as f64 * share).round() as usize;
        self.latencies.get(place).copied().unwrap_or_default()
    }
}

impl Load {
    /// Small calls.
    pub fn small(agent: &Agent, mode: Mode, connections: usize) -> Self {
        let request = agent.head("GET", "/api/agents/me", &[("Accept", "*/*")], None);
        Self {
            mode,
            connections,
            ..Self::sending(agent, request)
        }
    }

    /// 10 MiB down or up, one after the other on one connection.
    pub fn bulk(agent: &Agent, upload: bool) -> Self {
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
            give_up: None,
        }
    }

    /// Ends after this time.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.until = Until::Passed(time);
        self
    }

    /// Ends after this many requests over all connections.
    #[must_use]
    pub fn counting(mut self, requests: u64) -> Self {
        self.until = Until::Sent(requests);
        self
    }

    /// Does not end at the first fault but counts it, and gives up `limit` after the start what is not answered.
    #[must_use]
    pub fn bearing_faults(mut self, limit: Duration) -> Self {
        self.give_up = Some(limit);
        self
    }

    /// Runs it on another thread.
    ///
    /// # Errors
    ///
    /// The first fault, unless the load bears faults.
    pub async fn run(self) -> anyhow::Result<Sample> {
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, self.run_here())
        })
        .await?
    }

    async fn run_here(self) -> anyhow::Result<Sample> {
        let load = Rc::new(self);
        let tally = Rc::new(Tally::default());
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..load.connections {
            let (load, tally) = (Rc::clone(&load), Rc::clone(&tally));
            callers.spawn_local(async move { load.call(started, &tally).await });
        }
        let all = async {
            while let Some(ended) = callers.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        };
        let given_up = match load.give_up {
            Some(limit) => match tokio::time::timeout(limit, all).await {
                Ok(ended) => ended.map(|()| 0)?,
                Err(_) => tally.waiting.get(),
            },
            None => all.await.map(|()| 0)?,
        };
        let elapsed = started.elapsed();
        let mut latencies = tally.latencies.take();
        latencies.sort_unstable();
        Ok(Sample {
            latencies,
            elapsed,
            failed: tally.failed.get(),
            given_up,
        })
    }

    async fn call(&self, started: Instant, tally: &Tally) -> anyhow::Result<()> {
        let mut stream = None;
        let mut buffer = Vec::with_capacity(128 * 1024);
        while self.goes_on(started, &tally.sent) {
            let begun = Instant::now();
            tally.waiting.set(tally.waiting.get() + 1);
            let answered = self.once(&mut stream, &mut buffer).await;
            tally.waiting.set(tally.waiting.get() - 1);
            match answered {
                Ok(()) => tally.latencies.borrow_mut().push(begun.elapsed()),
                Err(fault) if self.give_up.is_none() => return Err(fault),
                Err(_) => {
                    tally.failed.set(tally.failed.get() + 1);
                    // A side that refuses at once is not called in a loop without end.
                    tokio::time::sleep(AFTER_A_FAULT).await;
                }
            }
        }
        Ok(())
    }

    async fn once(&self, kept: &mut Option<TcpStream>, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => connect(&self.address).await?,
        };
        connection.write_all(&self.request).await?;
        answer(&mut connection, buffer).await?;
        if self.mode == Mode::KeepAlive {
            *kept = Some(connection);
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

/// What the callers of one load count together.
#[derive(Debug, Default)]
struct Tally {
    sent: Cell<u64>,
    waiting: Cell<u64>,
    failed: Cell<u64>,
    latencies: RefCell<Vec<Duration>>,
}

/// Starts calls whose upstream takes [`SLOW_TIME`](super::api::SLOW_TIME); returns once they have been sent.
///
/// # Errors
///
/// Where one cannot be sent.
pub async fn slow_calls(agent: &Agent, count: usize) -> anyhow::Result<SlowCalls> {
    let request = agent.head("GET", SLOW_PATH, &[("Accept", "*/*")], None);
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let mut stream = connect(&agent.host()).await?;
        stream.write_all(&request).await?;
        calls.spawn(async move { answer(&mut stream, &mut vec![]).await.is_ok() });
    }
    // So that each has reached the upstream or waits for its turn.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(SlowCalls { calls })
}

/// Calls that wait for a slow upstream; given up when dropped.
#[derive(Debug)]
pub struct SlowCalls {
    calls: JoinSet<bool>,
}

impl SlowCalls {
    /// How many were answered 200 within this time.
    pub async fn answered_within(mut self, limit: Duration) -> usize {
        let mut answered = 0;
        let all = async {
            while let Some(ended) = self.calls.join_next().await {
                answered += usize::from(ended.unwrap_or(false));
            }
        };
        // Whoever has no answer by then is not counted.
        drop(tokio::time::timeout(limit, all).await);
        answered
    }
}

/// Starts uploads whose upstream never reads them; returns once they have had time to fill every buffer.
///
/// # Errors
///
/// Where no connection can be made.
pub async fn stalled_uploads(agent: &Agent, count: usize) -> anyhow::Result<StalledUploads> {
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
pub struct StalledUploads {
    uploads: JoinSet<()>,
}

impl StalledUploads {
    /// Cuts them.
    pub fn abort_all(mut self) {
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

/// Reads one whole answer, which must be 200; leaves `buffer` empty or holding what was read last.
///
/// # Errors
///
/// Where it is another one, or none.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> anyhow::Result<()> {
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
    let value_of = |wanted: &str| {
        head.split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
    };
    let Some(length) = value_of("content-length") else {
        value_of("transfer-encoding").context("an answer without a length")?;
        // The rest of the head's last line stands for the line end before the first chunk.
        buffer.drain(..head_bytes - 2);
        return to_the_last_chunk(stream, buffer).await;
    };
    let mut left = (head_bytes + length.parse::<usize>()?) - buffer.len();
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

/// Reads to the chunk of no bytes. Nothing follows it, because nothing is sent before the answer is whole; and the
/// API's bodies hold no line ends that could look like it.
async fn to_the_last_chunk(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> anyhow::Result<()> {
    const LAST: &[u8] = b"\r\n0\r\n\r\n";
    while !buffer.ends_with(LAST) {
        let read_already = buffer.len().saturating_sub(LAST.len());
        buffer.drain(..read_already);
        if stream.read_buf(buffer).await? == 0 {
            bail!("an answer in chunks was cut");
        }
    }
    Ok(())
}
