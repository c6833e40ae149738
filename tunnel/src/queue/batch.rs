//! Few short executions, for runners without a duplex: each writes the answers that are ready and brings the requests
//! that wait.
//!
//! Here: [`Batch`]. One execution waits in the sandbox for requests; answers that are ready meanwhile go with a second
//! one, or with the next wait where the runner does one thing at a time. Not here: the script (`host.sh`).

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use runners::{Execution, Input, OutputSink, OutputStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::channel::{
    ChannelFault, FOUND_QUEUE, ORDER_QUEUE, OpenQueue, Order, QueueAccess, QueueChannel, arguments, encode,
    fence_word, owner, script,
};
use super::listing::{FileId, Found, Listing, ListingFault};

/// Checks of 50 ms that one execution waits when nothing is being served.
const IDLE_TURNS: i32 = 500;
/// The same while callbacks are served and the runner does one thing at a time: their answers must not wait.
const BUSY_TURNS: i32 = 4;
/// Takes no requests: another execution waits for them.
const NO_TURNS: i32 = -1;
/// What an execution may take beyond its wait: a login, and the moving of large bodies.
const EXECUTION_SLACK: Duration = Duration::from_secs(120);
/// After requests were brought, so long is waited for their answers before the next wait begins without them.
const ANSWER_HOLD: Duration = Duration::from_millis(50);
/// While more answers are to be expected, so long is waited for them to travel together.
const ANSWER_GATHER: Duration = Duration::from_millis(25);
/// Bytes of answers in one execution.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Reaches a queue directory through single executions of the runner.
#[derive(Clone, Debug)]
pub struct Batch(QueueAccess);

impl Batch {
    /// For one queue.
    #[must_use]
    pub fn new(access: QueueAccess) -> Self {
        Self(access)
    }

    /// Runs the script once.
    async fn run(
        self,
        shared: Arc<Shared>,
        orders: Vec<u8>,
        turns: i32,
        relist: bool,
        cancel: CancellationToken,
    ) -> Result<(), ChannelFault> {
        self.0.executions.fetch_add(1, Ordering::Relaxed);
        let owner = shared.owner.clone();
        let sink = Arc::new(Sink {
            reading: tokio::sync::Mutex::new(Reading {
                listing: Listing::new(self.0.limit_bytes),
                ended: false,
                fault: None,
            }),
            shared,
        });
        let mut execution = Execution::new(
            self.0.shell,
            arguments(
                "batch",
                [
                    &self.0.directory,
                    &self.0.limit_bytes.to_string(),
                    &owner,
                    &turns.to_string(),
                    if relist { "1" } else { "0" },
                    &self.0.record,
                    &fence_word(self.0.fence),
                ],
            ),
        );
        let mut stdin = script();
        stdin.extend(orders);
        execution.stdin = Input::Bytes(stdin.into());
        execution.timeout = Some(EXECUTION_SLACK + Duration::from_millis(50) * turns.max(0).unsigned_abs());
        execution.output = Some(sink.clone());
        execution.keep_output = 2048;
        execution.cancel = cancel;
        let result = self.0.runner.execute(execution).await?;
        let reading = sink.reading.lock().await;
        if let Some(fault) = reading.fault {
            return Err(fault.into());
        }
        if !reading.ended || !result.success() {
            let said = String::from_utf8_lossy(&result.stderr);
            let said: String = said.trim().chars().take(200).collect();
            return Err(ChannelFault::Ended(format!(
                "exit {:?}: {said:?}",
                result.exit_code
            )));
        }
        Ok(())
    }
}

impl QueueChannel for Batch {
    fn open(&self) -> BoxFuture<'_, Result<OpenQueue, ChannelFault>> {
        Box::pin(async {
            let (found_in, mut found_out) = mpsc::channel(FOUND_QUEUE);
            let (orders, orders_out) = mpsc::channel(ORDER_QUEUE);
            let shared = Arc::new(Shared {
                to: found_in,
                outstanding: Mutex::default(),
                exact_head: Mutex::new(None),
                owner: owner(),
            });
            let mut tasks = JoinSet::new();
            tasks.spawn(drive(self.clone(), shared.clone(), orders_out));
            // The first execution says hello; what it brings is handed on.
            let limit = EXECUTION_SLACK;
            let hello = timeout(limit, found_out.recv())
                .await
                .map_err(|_| ChannelFault::Silent(limit))?;
            match hello {
                Some(Ok(Found::Hello { clock, .. })) => Ok(OpenQueue {
                    found: found_out,
                    orders,
                    clock,
                    tasks,
                }),
                Some(Ok(Found::Behind { fence })) => Err(ChannelFault::Fenced(fence)),
                Some(Ok(_)) => Err(ListingFault::Unknown.into()),
                Some(Err(fault)) => Err(fault),
                None => Err(ChannelFault::Ended("it did not start".to_owned())),
            }
        })
    }
}

/// What all executions of one open channel share.
#[derive(Debug)]
struct Shared {
    to: mpsc::Sender<Result<Found, ChannelFault>>,
    /// Brought and not yet answered.
    outstanding: Mutex<HashSet<FileId>>,
    /// How the target's `head` is, once it said so.
    exact_head: Mutex<Option<bool>>,
    /// The channel's name: executions of an earlier one, left behind by a lost connection, claim no more.
    owner: String,
}

impl Shared {
    fn outstanding(&self) -> std::sync::MutexGuard<'_, HashSet<FileId>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exact_head(&self) -> Option<bool> {
        *self.exact_head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sink {
    reading: tokio::sync::Mutex<Reading>,
    shared: Arc<Shared>,
}

struct Reading {
    listing: Listing,
    ended: bool,
    fault: Option<ListingFault>,
}

impl OutputSink for Sink {
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut reading = self.reading.lock().await;
            if stream != OutputStream::Stdout || reading.fault.is_some() {
                return;
            }
            let mut found = Vec::new();
            if let Err(fault) = reading.listing.feed(&bytes, &mut found) {
                reading.fault = Some(fault);
            }
            for item in found {
                match &item {
                    Found::End => {
                        reading.ended = true;
                        continue;
                    }
                    Found::Hello { exact_head, .. } => {
                        let known = {
                            let mut known = self
                                .shared
                                .exact_head
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner);
                            known.replace(*exact_head)
                        };
                        if known.is_some() {
                            continue;
                        }
                    }
                    Found::Request { id, .. } | Found::Unreadable { id } | Found::TooLong { id } => {
                        self.shared.outstanding().insert(id.clone());
                    }
                    Found::Response { .. }
                    | Found::Beat
                    | Found::GatewayGone
                    | Found::Behind { .. }
                    | Found::Written { .. }
                    | Found::Gone { .. }
                    | Found::NotWritten { .. } => {}
                }
                // Nobody takes it any more: the channel is being dropped.
                let _ = self.shared.to.send(Ok(item)).await;
            }
        })
    }
}

/// Which of the two executions has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Wait,
    Write,
}

async fn drive(batch: Batch, shared: Arc<Shared>, orders: mpsc::Receiver<Order>) {
    if let Err(fault) = run_lanes(batch, &shared, orders).await {
        let _ = shared.to.send(Err(fault)).await;
    }
}

async fn run_lanes(
    batch: Batch,
    shared: &Arc<Shared>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), ChannelFault> {
    let concurrent = batch.0.runner.capabilities().concurrent;
    let cancel = CancellationToken::new();
    batch
        .clone()
        .run(shared.clone(), b"T\n".to_vec(), NO_TURNS, true, cancel.clone())
        .await?;
    let mut lanes: JoinSet<(Lane, Result<(), ChannelFault>)> = JoinSet::new();
    let (mut waiting, mut writing) = (false, false);
    let mut ready: Vec<Order> = Vec::new();
    let mut closed = false;
    loop {
        if !waiting && !closed && ready.is_empty() && !shared.outstanding().is_empty() {
            // Answers that come at once travel with the next wait.
            closed = !gather(&mut orders, &mut ready, shared, ANSWER_HOLD).await;
        }
        if !ready.is_empty() && !closed && !shared.outstanding().is_empty() {
            closed = !gather(&mut orders, &mut ready, shared, ANSWER_GATHER).await;
        }
        if closed && waiting && !writing && ready.is_empty() {
            // Nothing more is to be claimed: the wait is cut short.
            cancel.cancel();
        }
        let idle = !waiting && !writing;
        if closed && idle && ready.is_empty() {
            return Ok(());
        }
        let lane = if !waiting && !closed && (concurrent || idle) {
            Some(Lane::Wait)
        } else if !ready.is_empty() && !writing && (concurrent || idle) {
            Some(Lane::Write)
        } else {
            None
        };
        if let Some(lane) = lane {
            let text = shared.text(&mut ready);
            let turns = match lane {
                Lane::Write => NO_TURNS,
                Lane::Wait if concurrent || shared.outstanding().is_empty() => IDLE_TURNS,
                Lane::Wait => BUSY_TURNS,
            };
            let run = batch
                .clone()
                .run(shared.clone(), text, turns, false, cancel.clone());
            lanes.spawn(async move { (lane, run.await) });
            match lane {
                Lane::Wait => waiting = true,
                Lane::Write => writing = true,
            }
            continue;
        }
        tokio::select! {
            order = orders.recv(), if !closed && !writing => match order {
                Some(order) => shared.keep(order, &mut ready),
                None => closed = true,
            },
            Some(ended) = lanes.join_next(), if !lanes.is_empty() => match ended {
                Ok((Lane::Wait, _)) if cancel.is_cancelled() => waiting = false,
                Ok((Lane::Wait, result)) => { waiting = false; result?; }
                Ok((Lane::Write, result)) => { writing = false; result?; }
                Err(error) => return Err(ChannelFault::Ended(error.to_string())),
            },
        }
    }
}

/// Takes orders for at most `time`, or until no answer is outstanding; `false` when no more can come.
async fn gather(
    orders: &mut mpsc::Receiver<Order>,
    ready: &mut Vec<Order>,
    shared: &Shared,
    time: Duration,
) -> bool {
    let end = sleep(time);
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(order) => shared.keep(order, ready),
                None => return false,
            },
            () = &mut end => return true,
        }
        if shared.outstanding().is_empty() && orders.is_empty() {
            return true;
        }
    }
}

impl Shared {
    fn keep(&self, order: Order, ready: &mut Vec<Order>) {
        {
            let mut outstanding = self.outstanding();
            match &order {
                Order::Write { id, .. } => {
                    outstanding.remove(id);
                }
                Order::Forget { ids } => {
                    for id in ids {
                        outstanding.remove(id);
                    }
                }
            }
        }
        ready.push(order);
    }

    /// The sign of life and as many orders as one execution carries.
    fn text(&self, ready: &mut Vec<Order>) -> Vec<u8> {
        let mut text = b"T\n".to_vec();
        let mut taken = 0;
        for order in ready.iter() {
            if taken > 0 && text.len() > ANSWER_BYTES {
                break;
            }
            text.extend(encode(order, self.exact_head().unwrap_or(false)));
            taken += 1;
        }
        ready.drain(..taken);
        text
    }
}
