//! What the owner, the session task and the channels of one connection share.
//!
//! Here: the tables of live channels and forwards, the list of channels that linger until the server closes them, and
//! the word that the connection has ended. Not here: the callbacks that fill them ([`super::dispatch`]) and the
//! sweeper that empties them ([`super::connection`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::client::Msg;
use russh::{ChannelId, ChannelWriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::channel::ChannelIo;
use super::inbox::{ChannelEnd, Inbox};
use super::settings::ConnectionLimits;
use super::socket::Controls;

/// Where forwarded channels of one listener go.
#[derive(Debug)]
pub(super) struct ForwardEntry {
    pub(super) accepted: mpsc::Sender<ChannelIo>,
    /// Unread bytes that each of its channels may hold.
    pub(super) cap: usize,
}

/// A listener on the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ForwardKey {
    Tcp { port: u32 },
    Unix { path: String },
}

/// A last word that did not fit into russh's queue when its channel was dropped.
#[derive(Debug)]
pub(super) enum Farewell {
    Eof(Arc<ChannelWriteHalf<Msg>>),
    Close(Arc<ChannelWriteHalf<Msg>>),
    CancelForward(ForwardKey, String),
}

#[derive(Debug)]
struct Live {
    inbox: Arc<Inbox>,
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    until: Instant,
    writer: Arc<ChannelWriteHalf<Msg>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) target: String,
    pub(super) controls: Arc<Controls>,
    pub(super) limits: ConnectionLimits,
    channels: Mutex<HashMap<ChannelId, Live>>,
    lingering: AtomicUsize,
    forwards: Mutex<HashMap<ForwardKey, ForwardEntry>>,
    farewells: Mutex<Vec<Farewell>>,
    pub(super) farewell_due: Notify,
    ended: watch::Sender<Option<Arc<str>>>,
    closed_by_us: AtomicU64,
    refused: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(target: String, controls: Arc<Controls>, limits: ConnectionLimits) -> Self {
        Self {
            target,
            controls,
            limits,
            channels: Mutex::default(),
            lingering: AtomicUsize::new(0),
            forwards: Mutex::default(),
            farewells: Mutex::default(),
            farewell_due: Notify::new(),
            ended: watch::Sender::new(None),
            closed_by_us: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Makes the inbox of a channel that opens now; must happen before the session loop reads its first bytes.
    pub(super) fn register(&self, id: ChannelId, cap: usize) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::new(cap));
        lock(&self.channels).insert(
            id,
            Live {
                inbox: Arc::clone(&inbox),
                lingering: None,
            },
        );
        inbox
    }

    pub(super) fn inbox(&self, id: ChannelId) -> Option<Arc<Inbox>> {
        lock(&self.channels).get(&id).map(|live| Arc::clone(&live.inbox))
    }

    /// The server closed the channel, and russh has answered that by itself.
    pub(super) fn channel_closed(&self, id: ChannelId) {
        if let Some(live) = self.remove(id) {
            live.inbox.finish(ChannelEnd::Closed);
        }
    }

    /// We closed the channel; russh keeps something of it for as long as the connection lives.
    pub(super) fn forget_closed_by_us(&self, id: ChannelId) {
        self.remove(id);
        self.closed_by_us.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, id: ChannelId) -> Option<Live> {
        let live = lock(&self.channels).remove(&id)?;
        if live.lingering.is_some() {
            self.lingering.fetch_sub(1, Ordering::Relaxed);
        }
        Some(live)
    }

    /// Leaves a channel whose our direction has ended to the server, for the connection's `linger`.
    pub(super) fn linger(&self, id: ChannelId, writer: &Arc<ChannelWriteHalf<Msg>>) {
        if let Some(live) = lock(&self.channels).get_mut(&id)
            && live.lingering.is_none()
        {
            live.lingering = Some(Lingering {
                until: Instant::now() + self.limits.linger,
                writer: Arc::clone(writer),
            });
            self.lingering.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Channels that the server should have closed by now; they are forgotten here and must be closed by the caller.
    pub(super) fn take_overdue(&self, now: Instant) -> Vec<Arc<ChannelWriteHalf<Msg>>> {
        if self.lingering.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut overdue = Vec::new();
        lock(&self.channels).retain(|_, live| match &live.lingering {
            Some(lingering) if lingering.until <= now => {
                overdue.push(Arc::clone(&lingering.writer));
                false
            }
            Some(_) | None => true,
        });
        self.lingering.fetch_sub(overdue.len(), Ordering::Relaxed);
        self.closed_by_us
            .fetch_add(overdue.len() as u64, Ordering::Relaxed);
        overdue
    }

    /// Channels that we had to close first.
    pub(super) fn closed_by_us(&self) -> u64 {
        self.closed_by_us.load(Ordering::Relaxed)
    }

    pub(super) fn open_channels(&self) -> usize {
        lock(&self.channels).len()
    }

    pub(super) fn say_later(&self, farewell: Farewell) {
        lock(&self.farewells).push(farewell);
        self.farewell_due.notify_one();
    }

    pub(super) fn take_farewells(&self) -> Vec<Farewell> {
        std::mem::take(&mut *lock(&self.farewells))
    }

    pub(super) fn add_forward(&self, key: ForwardKey, entry: ForwardEntry) {
        lock(&self.forwards).insert(key, entry);
    }

    pub(super) fn remove_forward(&self, key: &ForwardKey) {
        lock(&self.forwards).remove(key);
    }

    /// A place in the accept queue of a live forward, with its channels' cap. `None`: nobody asked for this.
    pub(super) fn forward(&self, key: &ForwardKey) -> Option<(mpsc::Sender<ChannelIo>, usize)> {
        lock(&self.forwards)
            .get(key)
            .map(|entry| (entry.accepted.clone(), entry.cap))
    }

    /// Counts a channel that the server opened and nobody had asked for.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The connection is over: every channel fails at once, every forward ends. The first reason stands.
    pub(super) fn end(&self, reason: &str) {
        let first = self.ended.send_if_modified(|ended| {
            if ended.is_some() {
                return false;
            }
            *ended = Some(Arc::from(reason));
            true
        });
        if first {
            tracing::debug!(target_host = %self.target, reason, "SSH connection ended");
        }
        self.controls.end();
        let channels = std::mem::take(&mut *lock(&self.channels));
        self.lingering.store(0, Ordering::Relaxed);
        for live in channels.into_values() {
            live.inbox.finish(ChannelEnd::ConnectionLost);
        }
        lock(&self.forwards).clear();
        lock(&self.farewells).clear();
    }

    pub(super) fn ended(&self) -> Option<Arc<str>> {
        self.ended.borrow().clone()
    }

    pub(super) async fn wait_ended(&self) -> Arc<str> {
        let mut watch = self.ended.subscribe();
        match watch.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or_else(|| Arc::from("ended")),
            Err(_) => Arc::from("ended"),
        }
    }
}
