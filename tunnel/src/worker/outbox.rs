//! What waits to be written to the relay's socket.
//!
//! Here: [`Outbox`], one for each connection: frames of bodies wait in a short queue whose senders wait with them, small
//! ones about the connection itself are put together until there is room. Not here: the writing (`socket`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::frame::Frame;

/// Frames of bodies and heads; beyond that their senders wait.
pub(super) const QUEUE_FRAMES: usize = 64;
/// Credit of the connection goes back in no smaller pieces.
const GIVE_BACK: u32 = super::credit::STREAM_WINDOW;
/// A peer that makes us owe it more small frames does not read.
const CONTROL_LIMIT: usize = 4096;

/// Small frames that wait, and the word that there are some.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    windows: HashMap<u32, u32>,
    /// Read on all streams, and the sender has not been told.
    owed: u32,
    ping: bool,
    farewell: Option<Farewell>,
    flooded: bool,
}

/// How a connection is ended from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Farewell {
    pub(super) code: u16,
    pub(super) reason: String,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of ours that concerns no body.
    pub(super) fn send(&self, frame: Frame) {
        let mut waiting = self.lock();
        if waiting.frames.len() + waiting.windows.len() >= CONTROL_LIMIT {
            waiting.flooded = true;
            return;
        }
        waiting.frames.push_back(frame);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Whether the peer made us owe it more than is kept.
    pub(super) fn flooded(&self) -> bool {
        let waiting = self.lock();
        waiting.flooded || waiting.windows.len() >= CONTROL_LIMIT
    }

    /// Credit on one stream.
    pub(super) fn give_back(&self, stream: u32, bytes: u32) {
        if bytes == 0 {
            return;
        }
        let mut waiting = self.lock();
        let credit = waiting.windows.entry(stream).or_default();
        *credit = credit.saturating_add(bytes);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Credit of the connection, told in larger pieces.
    pub(super) fn give_back_connection(&self, bytes: u32) {
        let mut waiting = self.lock();
        waiting.owed = waiting.owed.saturating_add(bytes);
        if waiting.owed < GIVE_BACK {
            return;
        }
        let owed = std::mem::take(&mut waiting.owed);
        drop(waiting);
        self.give_back(0, owed);
    }

    /// The text `ping`, which the Worker's runtime answers without waking anyone.
    pub(super) fn ping(&self) {
        self.lock().ping = true;
        self.wake.notify_one();
    }

    /// Ends the connection once everything is written.
    pub(super) fn close(&self, code: u16, reason: impl Into<String>) {
        self.lock().farewell.get_or_insert(Farewell {
            code,
            reason: reason.into(),
        });
        self.wake.notify_one();
    }

    /// Takes the small frames out.
    pub(super) fn control(&self) -> Vec<Frame> {
        let mut waiting = self.lock();
        let windows = std::mem::take(&mut waiting.windows);
        let mut frames: Vec<Frame> = std::mem::take(&mut waiting.frames).into();
        frames.extend(
            windows
                .into_iter()
                .map(|(stream, credit)| Frame::Window { stream, credit }),
        );
        frames
    }

    pub(super) fn take_ping(&self) -> bool {
        std::mem::take(&mut self.lock().ping)
    }

    pub(super) fn farewell(&self) -> Option<Farewell> {
        self.lock().farewell.clone()
    }

    /// Waits until one of the above has something, or a frame of a body comes.
    pub(super) async fn next(&self, bodies: &mut mpsc::Receiver<Frame>) -> Option<Frame> {
        tokio::select! {
            frame = bodies.recv() => match frame {
                Some(frame) => Some(frame),
                None => {
                    self.wake.notified().await;
                    None
                }
            },
            () = self.wake.notified() => None,
        }
    }
}
