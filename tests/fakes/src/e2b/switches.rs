//! What a test can make the fake do wrong.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fault to be made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Answer this status instead of doing it.
    Refuse { status: u16, retry_after: Option<u64> },
    /// Do it, and close the connection without an answer.
    LoseAnswer,
}

#[derive(Debug, Default)]
struct Set {
    latency: Duration,
    once: Vec<(String, Fault)>,
    refused_tag: Option<String>,
    old: bool,
}

/// The switches of a fake; all off at first.
#[derive(Debug, Default)]
pub struct Switches(Mutex<Set>);

impl Switches {
    fn lock(&self) -> MutexGuard<'_, Set> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every answer comes this much later.
    pub fn latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// The next call whose `METHOD /path` holds `part` gets this status and does nothing.
    pub fn fail_next(&self, part: &str, status: u16) {
        self.fail_next_after(part, status, None);
    }

    /// As [`Self::fail_next`], with a `Retry-After` in seconds.
    pub fn fail_next_after(&self, part: &str, status: u16, retry_after: Option<u64>) {
        let fault = Fault::Refuse { status, retry_after };
        self.lock().once.push((part.to_owned(), fault));
    }

    /// The next call whose `METHOD /path` holds `part` is done, but its answer is lost with the connection.
    pub fn lose_answer(&self, part: &str) {
        self.lock().once.push((part.to_owned(), Fault::LoseAnswer));
    }

    /// Forgets the faults that no call has met with.
    pub fn fail_no_more(&self) {
        self.lock().once.clear();
    }

    /// Starts no process whose tag begins so.
    pub fn refuse_tagged(&self, prefix: &str) {
        self.lock().refused_tag = Some(prefix.to_owned());
    }

    /// Refuses no tag any more.
    pub fn refuse_no_tag(&self) {
        self.lock().refused_tag = None;
    }

    /// A server that knows no `/v2/`.
    pub fn old_server(&self) {
        self.lock().old = true;
    }

    pub(super) fn latency_now(&self) -> Duration {
        self.lock().latency
    }

    pub(super) fn is_old(&self) -> bool {
        self.lock().old
    }

    pub(super) fn refuses_tag(&self, tag: &str) -> bool {
        self.lock()
            .refused_tag
            .as_ref()
            .is_some_and(|prefix| tag.starts_with(prefix.as_str()))
    }

    /// Takes the fault that this call is to meet with.
    pub(super) fn planned(&self, call: &str) -> Option<Fault> {
        let mut set = self.lock();
        let at = set
            .once
            .iter()
            .position(|(part, _)| call.contains(part.as_str()))?;
        Some(set.once.remove(at).1)
    }
}
