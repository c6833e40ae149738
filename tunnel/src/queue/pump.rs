//! One long execution for the whole session: a shell that claims, prints and writes until its input ends.
//!
//! Here: [`Pump`]. For runners with a duplex. Not here: the script (`host.sh`) and how its output reads (`listing.rs`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use runners::DuplexRequest;
use runners::runner::DuplexStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::channel::{
    ChannelFault, FOUND_QUEUE, ORDER_QUEUE, OpenQueue, Order, QueueAccess, QueueChannel, TICK, arguments,
    encode, fence_word, owner, script,
};
use super::listing::{Found, Listing};

/// A login and the start of a shell take no longer.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// The shell says every five seconds that it lives; a body on its way is a sign of life, too.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// One write into the channel takes no longer.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Written at a time, so that the limit is one of progress and not of size.
const WRITE_PIECE_BYTES: usize = 256 * 1024;

/// Reaches a queue directory through a duplex of the runner.
#[derive(Debug)]
pub struct Pump(QueueAccess);

impl Pump {
    /// For one queue.
    #[must_use]
    pub fn new(access: QueueAccess) -> Self {
        Self(access)
    }

    async fn start(&self) -> Result<OpenQueue, ChannelFault> {
        let request = DuplexRequest {
            command: self.0.shell.clone(),
            args: arguments(
                "pump",
                [
                    &self.0.directory,
                    &self.0.limit_bytes.to_string(),
                    &owner(),
                    "0",
                    "1",
                    &self.0.record,
                    &fence_word(self.0.fence),
                ],
            ),
            cwd: None,
        };
        self.0.executions.fetch_add(1, Ordering::Relaxed);
        let duplex = self.0.runner.open_duplex(request).await?;
        let (mut reading, mut writing) = tokio::io::split(duplex.stream);
        write(&mut writing, &script()).await?;
        let mut listing = Listing::new(self.0.limit_bytes);
        let mut first = Vec::new();
        let (exact_head, clock) = loop {
            read(&mut reading, &mut listing, &mut first).await?;
            match first.first() {
                Some(Found::Hello { exact_head, clock }) => break (*exact_head, *clock),
                Some(Found::Behind { fence }) => return Err(ChannelFault::Fenced(*fence)),
                Some(_) => return Err(super::listing::ListingFault::Unknown.into()),
                None => {}
            }
        };
        first.remove(0);
        let (found_in, found) = mpsc::channel(FOUND_QUEUE);
        let (orders, orders_out) = mpsc::channel(ORDER_QUEUE);
        let mut tasks = JoinSet::new();
        let failed = found_in.clone();
        tasks.spawn(listen(reading, listing, first, found_in));
        tasks.spawn(async move {
            if let Err(fault) = speak(writing, orders_out, exact_head).await {
                let _ = failed.send(Err(fault)).await;
            }
        });
        Ok(OpenQueue {
            found,
            orders,
            clock,
            tasks,
        })
    }
}

impl QueueChannel for Pump {
    fn open(&self) -> BoxFuture<'_, Result<OpenQueue, ChannelFault>> {
        Box::pin(async {
            timeout(OPEN_LIMIT, self.start())
                .await
                .unwrap_or(Err(ChannelFault::Silent(OPEN_LIMIT)))
        })
    }
}

type Reading = ReadHalf<Box<dyn DuplexStream>>;
type Writing = WriteHalf<Box<dyn DuplexStream>>;

async fn read(
    reading: &mut Reading,
    listing: &mut Listing,
    found: &mut Vec<Found>,
) -> Result<(), ChannelFault> {
    let mut buffer = bytes::BytesMut::with_capacity(64 * 1024);
    let count = timeout(SILENCE_LIMIT, reading.read_buf(&mut buffer))
        .await
        .map_err(|_| ChannelFault::Silent(SILENCE_LIMIT))?
        .map_err(|error| ChannelFault::Ended(error.to_string()))?;
    if count == 0 {
        return Err(ChannelFault::Ended("end of its output".to_owned()));
    }
    Ok(listing.feed(&buffer, found)?)
}

async fn listen(
    mut reading: Reading,
    mut listing: Listing,
    mut found: Vec<Found>,
    to: mpsc::Sender<Result<Found, ChannelFault>>,
) {
    loop {
        for item in found.drain(..) {
            if to.send(Ok(item)).await.is_err() {
                return;
            }
        }
        if let Err(fault) = read(&mut reading, &mut listing, &mut found).await {
            let _ = to.send(Err(fault)).await;
            return;
        }
    }
}

async fn speak(
    mut writing: Writing,
    mut orders: mpsc::Receiver<Order>,
    exact_head: bool,
) -> Result<(), ChannelFault> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => write(&mut writing, &encode(&order, exact_head)).await?,
                None => {
                    write(&mut writing, b"E\n").await?;
                    let _ = timeout(WRITE_LIMIT, writing.shutdown()).await;
                    return Ok(());
                }
            },
            _ = tick.tick() => write(&mut writing, b"T\n").await?,
        }
    }
}

async fn write(writing: &mut Writing, bytes: &[u8]) -> Result<(), ChannelFault> {
    let ended = |error: std::io::Error| ChannelFault::Ended(error.to_string());
    for piece in bytes.chunks(WRITE_PIECE_BYTES) {
        timeout(WRITE_LIMIT, writing.write_all(piece))
            .await
            .map_err(|_| ChannelFault::Silent(WRITE_LIMIT))?
            .map_err(ended)?;
    }
    timeout(WRITE_LIMIT, writing.flush())
        .await
        .map_err(|_| ChannelFault::Silent(WRITE_LIMIT))?
        .map_err(ended)
}
