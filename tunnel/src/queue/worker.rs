//! All requests of one queue: in parallel, within bounds, each answered once.
//!
//! Here: [`Worker`], which outlives a lost channel. Not here: one request (`desk.rs`), the channel (`channel.rs`), the
//! gateway's life (`life.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::channel::{ChannelFault, NAMES_PER_ORDER, OpenQueue, Order};
use super::desk::{Clock, Decision, Desk};
use super::listing::{FileId, Found, ListingFault};

/// Callbacks of one session that are served at the same time; further ones wait in the queue directory.
const PARALLEL: usize = 64;
/// Bytes of request envelopes of one session in memory; one larger than that is served alone.
const HELD_BYTES: usize = 64 * 1024 * 1024;
/// Times that the writing of one answer is tried on a channel that works.
const WRITE_ATTEMPTS: u8 = 3;
/// What is left of a callback is removed so long after its caller's time.
const LEFT_BEHIND_SLACK: Duration = Duration::from_secs(2);
/// Callbacks that are over are remembered at most so many; the oldest are removed from the queue early.
const REMEMBERED: usize = 4096;

/// Serves one queue directory, through one channel after the other.
#[derive(Debug)]
pub(super) struct Worker {
    desk: Arc<Desk>,
    known: HashMap<FileId, State>,
    serving: JoinSet<(FileId, usize, Decision)>,
    held_bytes: usize,
    pending: VecDeque<Order>,
    /// Answered or found: removed from the directory at this time, should anything be left.
    leaving: VecDeque<(Instant, FileId)>,
    begun: u64,
}

#[derive(Debug)]
enum State {
    Serving { sent: Arc<AtomicBool> },
    Answering { answer: Bytes, attempts: u8, sent: bool },
    Over,
}

/// Why the worker gave a channel back.
#[derive(Debug)]
pub(super) enum Pause {
    /// It was asked to stop; the channel still works.
    Stop(OpenQueue),
    /// The gateway's process has ended; the channel still works.
    GatewayGone(OpenQueue),
    /// The channel is gone.
    Lost(ChannelFault),
}

impl Worker {
    pub(super) fn new(desk: Desk) -> Self {
        Self {
            desk: Arc::new(desk),
            known: HashMap::new(),
            serving: JoinSet::new(),
            held_bytes: 0,
            pending: VecDeque::new(),
            leaving: VecDeque::new(),
            begun: 0,
        }
    }

    /// Callbacks that were taken up so far, also those that were then refused.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// Serves until `stop` is cancelled or the channel is lost. What is being served goes on meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses the channel, not the callbacks.
    pub(super) async fn serve(&mut self, mut queue: OpenQueue, stop: &CancellationToken) -> Pause {
        let clock = Clock::read(queue.clock);
        self.resume();
        let mut open = true;
        let mut gateway_gone = false;
        loop {
            let leaving = self.leaving.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(served) = self.serving.join_next(), if !self.serving.is_empty() => self.served(served),
                permit = queue.orders.reserve(), if open && !self.pending.is_empty() => match permit {
                    Ok(permit) => if let Some(order) = self.pending.pop_front() { permit.send(order) },
                    // What ended it comes through the other queue.
                    Err(_) => open = false,
                },
                found = queue.found.recv(), if self.has_room() => match found {
                    Some(Ok(Found::GatewayGone)) => {
                        gateway_gone = true;
                        break;
                    }
                    Some(Ok(Found::Behind { fence })) => return Pause::Lost(ChannelFault::Fenced(fence)),
                    Some(Ok(found)) => if let Err(fault) = self.take(found, clock) {
                        return Pause::Lost(fault.into());
                    },
                    Some(Err(fault)) => return Pause::Lost(fault),
                    None => return Pause::Lost(ChannelFault::Ended("its tasks ended".to_owned())),
                },
                () = until(leaving), if leaving.is_some() => self.leave(Instant::now()),
            }
        }
        if gateway_gone {
            return Pause::GatewayGone(queue);
        }
        Pause::Stop(queue)
    }

    /// Answers what is open and waits until the answers stand, both within `limit`.
    ///
    /// Callbacks get half of the time to finish by themselves.
    pub(super) async fn finish(&mut self, mut queue: OpenQueue, limit: Duration) {
        let deadline = Instant::now() + limit;
        let drain = Instant::now() + limit / 2;
        let clock = Clock::read(queue.clock);
        let mut drained = false;
        let ended = timeout(limit, async {
            loop {
                let open = self.known.values().any(|state| !matches!(state, State::Over));
                if !open && self.pending.is_empty() {
                    return;
                }
                tokio::select! {
                    biased;
                    Some(served) = self.serving.join_next(), if !self.serving.is_empty() => self.served(served),
                    permit = queue.orders.reserve(), if !self.pending.is_empty() => match permit {
                        Ok(permit) => if let Some(order) = self.pending.pop_front() { permit.send(order) },
                        Err(_) => return,
                    },
                    found = queue.found.recv() => match found {
                        Some(Ok(Found::Request { id, .. })) => self.answer(&id, self.desk.stopped(&id), false),
                        Some(Ok(found)) => if self.take(found, clock).is_err() { return },
                        Some(Err(_)) | None => return,
                    },
                    () = sleep_until(drain), if !drained => {
                        drained = true;
                        self.give_up();
                    },
                }
            }
        })
        .await;
        if ended.is_err() {
            tracing::debug!(
                session = self.desk.session,
                "answers were left when the queue stopped"
            );
        }
        self.serving.abort_all();
        drop(queue.orders);
        // The shell ends at the end of its input; what it prints until then is of no use.
        let rest = async { while queue.found.recv().await.is_some() {} };
        let _ = tokio::time::timeout_at(deadline, rest).await;
    }

    /// Lets what is being served end and its answers be written, within `limit`, and takes nothing up: what waits in the
    /// directory is the successor's.
    pub(super) async fn leave_to_a_successor(&mut self, mut queue: OpenQueue, limit: Duration) {
        let clock = Clock::read(queue.clock);
        let ended = timeout(limit, async {
            loop {
                let open = self.known.values().any(|state| !matches!(state, State::Over));
                if !open && self.pending.is_empty() {
                    return;
                }
                tokio::select! {
                    biased;
                    Some(served) = self.serving.join_next(), if !self.serving.is_empty() => self.served(served),
                    permit = queue.orders.reserve(), if !self.pending.is_empty() => match permit {
                        Ok(permit) => if let Some(order) = self.pending.pop_front() { permit.send(order) },
                        Err(_) => return,
                    },
                    found = queue.found.recv() => match found {
                        Some(Ok(Found::Request { .. })) => {}
                        Some(Ok(found)) => if self.take(found, clock).is_err() { return },
                        Some(Err(_)) | None => return,
                    },
                }
            }
        })
        .await;
        if ended.is_err() {
            tracing::debug!(
                session = self.desk.session,
                "callbacks were still under way when the queue was left to a successor"
            );
        }
        self.serving.abort_all();
    }

    /// Answers what is still being served: what may have been sent by its outcome, the rest as not sent.
    fn give_up(&mut self) {
        let serving: Vec<(FileId, bool)> = self
            .known
            .iter()
            .filter_map(|(id, state)| match state {
                State::Serving { sent } => Some((id.clone(), sent.load(Ordering::Acquire))),
                State::Answering { .. } | State::Over => None,
            })
            .collect();
        for (id, sent) in serving {
            let answer = if sent {
                self.desk.indeterminate(&id)
            } else {
                self.desk.stopped(&id)
            };
            self.answer(&id, answer, sent);
        }
        self.serving.abort_all();
    }

    fn has_room(&self) -> bool {
        self.serving.len() < PARALLEL && self.held_bytes < HELD_BYTES
    }

    /// On a new channel: answers that were not reported as written are written again.
    fn resume(&mut self) {
        self.pending.retain(|order| matches!(order, Order::Forget { .. }));
        for (id, state) in &mut self.known {
            if let State::Answering { answer, attempts, .. } = state {
                *attempts = 0;
                self.pending.push_back(Order::Write {
                    id: id.clone(),
                    answer: answer.clone(),
                });
            }
        }
    }

    fn take(&mut self, found: Found, clock: Clock) -> Result<(), ListingFault> {
        match found {
            Found::Request { id, bytes } => self.begin(id, bytes, clock),
            Found::Unreadable { id } if !self.known.contains_key(&id) => {
                self.answer(&id, self.desk.invalid(&id), false);
            }
            Found::TooLong { id } if !self.known.contains_key(&id) => {
                self.answer(&id, self.desk.too_long(&id), false);
            }
            Found::Unreadable { .. } | Found::TooLong { .. } | Found::Beat | Found::GatewayGone => {}
            Found::Response { id } => {
                if !self.known.contains_key(&id) {
                    self.known.insert(id.clone(), State::Over);
                    self.leaves(id);
                }
            }
            Found::Written { id } => self.written(&id),
            Found::Gone { id } => self.over(id),
            Found::NotWritten { id } => self.not_written(&id),
            Found::Hello { .. } | Found::Behind { .. } | Found::End => return Err(ListingFault::Unknown),
        }
        Ok(())
    }

    fn begin(&mut self, id: FileId, bytes: Bytes, clock: Clock) {
        match self.known.get(&id) {
            // Found again on a new channel; it is being served, or its answer is on the way.
            Some(State::Serving { .. } | State::Answering { .. }) => return,
            // The same name once more: removed with the rest. Whether it may be sent again, only the journal knows,
            // so a file that comes back later is asked there.
            Some(State::Over) => return,
            None => {}
        }
        self.begun += 1;
        let sent = Arc::new(AtomicBool::new(false));
        self.known
            .insert(id.clone(), State::Serving { sent: sent.clone() });
        let size = bytes.len();
        self.held_bytes += size;
        let desk = self.desk.clone();
        self.serving.spawn(async move {
            let decision = desk.handle(id.clone(), bytes, clock, sent).await;
            (id, size, decision)
        });
    }

    fn served(&mut self, served: Result<(FileId, usize, Decision), tokio::task::JoinError>) {
        // A task that panicked took its name with it; its caller's time runs out, and its request is not sent again.
        let Ok((id, size, decision)) = served else { return };
        self.held_bytes = self.held_bytes.saturating_sub(size);
        let sent = match self.known.get(&id) {
            Some(State::Serving { sent }) => sent.load(Ordering::Acquire),
            Some(State::Answering { .. } | State::Over) | None => return,
        };
        match decision {
            Decision::Answer(answer) => self.answer(&id, answer, sent),
            Decision::Forget => {
                self.known.remove(&id);
                self.forget(vec![id]);
            }
        }
    }

    fn answer(&mut self, id: &FileId, answer: Bytes, sent: bool) {
        self.pending.push_back(Order::Write {
            id: id.clone(),
            answer: answer.clone(),
        });
        self.known.insert(
            id.clone(),
            State::Answering {
                answer,
                attempts: 1,
                sent,
            },
        );
    }

    fn written(&mut self, id: &FileId) {
        if let Some(State::Answering { sent: true, .. }) = self.known.get(id)
            && let Err(fault) = self.desk.journal.answered(&self.desk.session, id)
        {
            // It stays unanswered there, so it is never sent again all the same.
            tracing::warn!(session = self.desk.session, %fault, "an answer is not written down");
        }
        self.over(id.clone());
    }

    fn not_written(&mut self, id: &FileId) {
        let Some(State::Answering { answer, attempts, .. }) = self.known.get_mut(id) else {
            return;
        };
        if *attempts < WRITE_ATTEMPTS {
            *attempts += 1;
            let order = Order::Write {
                id: id.clone(),
                answer: answer.clone(),
            };
            self.pending.push_back(order);
            return;
        }
        tracing::warn!(
            session = self.desk.session,
            "an answer could not be written into the queue"
        );
        self.over(id.clone());
    }

    fn over(&mut self, id: FileId) {
        if let Some(state) = self.known.get_mut(&id) {
            *state = State::Over;
            self.leaves(id);
        }
    }

    fn leaves(&mut self, id: FileId) {
        let at = Instant::now() + self.desk.response_timeout + LEFT_BEHIND_SLACK;
        self.leaving.push_back((at, id));
        if self.leaving.len() > REMEMBERED {
            self.leave(Instant::now());
        }
    }

    /// Removes what is left of callbacks that are over, many at once.
    fn leave(&mut self, now: Instant) {
        let mut ids = Vec::new();
        while ids.len() < NAMES_PER_ORDER {
            let due =
                self.leaving.len() > REMEMBERED || self.leaving.front().is_some_and(|(at, _)| *at <= now);
            let Some((_, id)) = self.leaving.pop_front_if(|_| due) else {
                break;
            };
            self.known.remove(&id);
            ids.push(id);
        }
        self.forget(ids);
    }

    fn forget(&mut self, ids: Vec<FileId>) {
        if !ids.is_empty() {
            self.pending.push_back(Order::Forget { ids });
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
