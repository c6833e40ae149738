//! The cloud: an append-only log of calls, which is also its whole state.
//!
//! Here: [`Cloud`], its [`Entry`] lines, and [`Effect`], one call while it holds the lock. What is held is what the log
//! says, so that a process may be killed at any moment and nothing has to be repaired. Not here: sandboxes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::config::{Call, Failure, How};
use super::sandbox::Sandbox;
use super::unix_ms;
use crate::provider::{LeaseScope, ProviderError};

/// How long a call waits for those of other processes.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A folder that plays a provider's cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    folder: PathBuf,
}

/// What a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LeaseState {
    /// Acquired or resumed, and not given back.
    Held,
    /// Given back; can be resumed.
    Stopped,
    /// Destroyed, expired or lost.
    Gone,
}

/// One line of the log: a call, as it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts from 1.
    pub number: u64,
    /// The process that called.
    pub pid: u32,
    /// What was called.
    pub call: Call,
    /// The lease it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// What the lease is from now on, where the call changed it: a release without it found nothing to release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub became: Option<LeaseState>,
    /// What the caller was told instead of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<How>,
    /// The order that made it fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Failure>,
    /// Whom the lease is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<LeaseScope>,
    /// When the lease ends by itself, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// The limit that an execution was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Cloud {
    /// The cloud in `folder`, which is made at the first call.
    #[must_use]
    pub fn at(folder: impl AsRef<Path>) -> Self {
        Self {
            folder: folder.as_ref().to_owned(),
        }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every call so far.
    ///
    /// # Errors
    ///
    /// Where the log cannot be read or is no log; no log is no calls.
    pub fn calls(&self) -> io::Result<Vec<Entry>> {
        let text = match std::fs::read_to_string(self.log()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // A process killed while it wrote leaves a line without an end: that call was not made.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        Ok(whole.filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The state of every lease there ever was.
    ///
    /// # Errors
    ///
    /// As [`Self::calls`].
    pub fn leases(&self) -> io::Result<BTreeMap<String, LeaseState>> {
        Ok(states(&self.calls()?))
    }

    /// Whether a lease is gone, once the calls under way are done.
    pub(super) fn is_gone(&self, lease: &str) -> io::Result<bool> {
        let _lock = self.locked_log()?;
        Ok(self.leases()?.get(lease) == Some(&LeaseState::Gone))
    }

    /// Carries out one call.
    pub(super) fn call<T>(
        &self,
        call: Call,
        lease: Option<String>,
        orders: &[Failure],
        effect: impl FnOnce(&Self, &mut Effect) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let unusable =
            |error: io::Error| ProviderError::Unreachable(format!("{}: {error}", self.folder.display()));
        let mut log = self.locked_log().map_err(unusable)?;
        let calls = self.calls().map_err(unusable)?;
        let order = orders
            .iter()
            .find(|order| order.call == call && !used_up(order, &calls));
        let mut under_way = Effect::new(call, lease, calls);
        let fails_before = order.is_some_and(|order| !order.after_effect);
        let done = if fails_before {
            None
        } else {
            Some(effect(self, &mut under_way))
        };
        let result = match (done, order) {
            // What failed by itself needs no order to fail.
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), None) => Ok(value),
            (_, Some(order)) => {
                under_way.fail(order);
                Err(fault(order.how))
            }
            (None, None) => Err(ProviderError::Unsupported("nothing")),
        };
        if let (Some(LeaseState::Gone), Some(lease)) = (under_way.entry.became, &under_way.entry.lease) {
            Sandbox::of(self, lease).remove()?;
        }
        write_line(&mut log, &under_way.entry).map_err(unusable)?;
        result
    }

    fn log(&self) -> PathBuf {
        self.folder.join("calls.jsonl")
    }

    /// The log, locked until it is dropped.
    fn locked_log(&self) -> io::Result<File> {
        std::fs::create_dir_all(&self.folder)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(self.log())?;
        let give_up_at = Instant::now() + LOCK_LIMIT;
        loop {
            match log.try_lock() {
                Ok(()) => return Ok(log),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up_at => {
                    std::thread::sleep(LOOK_EVERY)
                }
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

/// In one write, so that a line is there or not.
fn write_line(log: &mut File, entry: &Entry) -> io::Result<()> {
    let length = log.metadata()?.len();
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    let mut last = [b'\n'];
    if length > 0 {
        std::os::unix::fs::FileExt::read_exact_at(log, &mut last, length - 1)?;
    }
    if last != *b"\n" {
        // The rest of a line that its writer did not live to end.
        line.insert(0, b'\n');
    }
    log.write_all(&line)
}

fn states(calls: &[Entry]) -> BTreeMap<String, LeaseState> {
    let changes = calls
        .iter()
        .filter_map(|entry| Some((entry.lease.clone()?, entry.became?)));
    changes.collect()
}

fn used_up(order: &Failure, calls: &[Entry]) -> bool {
    let used = calls
        .iter()
        .filter(|entry| entry.order.as_ref() == Some(order))
        .count();
    order
        .times
        .is_some_and(|times| u32::try_from(used).unwrap_or(u32::MAX) >= times)
}

fn fault(how: How) -> ProviderError {
    let said = || "as the test ordered".to_owned();
    match how {
        How::Unreachable => ProviderError::Unreachable(said()),
        How::Refused => ProviderError::Refused(said()),
        How::Busy => ProviderError::Busy {
            reason: said(),
            retry_after: Some(Duration::from_millis(10)),
        },
        How::Unknown => ProviderError::Unknown(said()),
        How::Lost => ProviderError::LeaseLost(said()),
    }
}

/// One call while it holds the lock.
#[derive(Debug)]
pub(super) struct Effect {
    calls: Vec<Entry>,
    entry: Entry,
}

impl Effect {
    fn new(call: Call, lease: Option<String>, calls: Vec<Entry>) -> Self {
        let number = calls.last().map_or(0, |entry| entry.number).saturating_add(1);
        Self {
            calls,
            entry: Entry {
                number,
                pid: std::process::id(),
                call,
                lease,
                became: None,
                failed: None,
                order: None,
                scope: None,
                expires_at_ms: None,
                timeout_ms: None,
            },
        }
    }

    fn fail(&mut self, order: &Failure) {
        self.entry.failed = Some(order.how);
        self.entry.order = Some(order.clone());
        if order.how == How::Lost && self.entry.lease.is_some() {
            self.entry.became = Some(LeaseState::Gone);
        }
    }

    /// What the call's lease is now; none where there never was one of that name.
    pub(super) fn state(&self) -> Option<LeaseState> {
        self.state_of(self.entry.lease.as_deref()?)
    }

    fn state_of(&self, id: &str) -> Option<LeaseState> {
        let of_lease = || {
            self.calls
                .iter()
                .rev()
                .filter(|entry| entry.lease.as_deref() == Some(id))
        };
        let state = of_lease().find_map(|entry| entry.became)?;
        let over = of_lease()
            .find_map(|entry| entry.expires_at_ms)
            .is_some_and(|at| at <= unix_ms(SystemTime::now()));
        Some(if over { LeaseState::Gone } else { state })
    }

    /// The call's lease, held or stopped.
    ///
    /// # Errors
    ///
    /// [`ProviderError::LeaseLost`] where it is neither.
    pub(super) fn present(&mut self) -> Result<String, ProviderError> {
        let id = self.entry.lease.clone().unwrap_or_default();
        let state = self.state();
        if matches!(state, Some(LeaseState::Held | LeaseState::Stopped)) {
            return Ok(id);
        }
        self.entry.failed = Some(How::Lost);
        self.entry.became = state;
        Err(ProviderError::LeaseLost(match state {
            Some(_) => format!("{id} is gone"),
            None => format!("there is no lease {id}"),
        }))
    }

    /// The call's lease, held.
    ///
    /// # Errors
    ///
    /// As [`Self::present`], and [`ProviderError::Refused`] where it was given back.
    pub(super) fn held(&mut self) -> Result<String, ProviderError> {
        let id = self.present()?;
        if self.state() == Some(LeaseState::Stopped) {
            self.entry.failed = Some(How::Refused);
            return Err(ProviderError::Refused(format!(
                "{id} is stopped; resume it first"
            )));
        }
        Ok(id)
    }

    /// As [`Self::held`] for a command, which may find that the lease has had its last one.
    ///
    /// - `last`: after so many executions it is lost.
    pub(super) fn held_for_a_command(
        &mut self,
        last: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<(), ProviderError> {
        let id = self.held()?;
        let commands = self
            .calls
            .iter()
            .filter(|entry| entry.lease.as_deref() == Some(id.as_str()) && entry.call == Call::Execute)
            .count();
        if last.is_some_and(|last| u64::try_from(commands).unwrap_or(u64::MAX) >= last) {
            self.entry.failed = Some(How::Lost);
            self.becomes(LeaseState::Gone);
            return Err(ProviderError::LeaseLost(format!(
                "{id} is gone after {commands} executions"
            )));
        }
        self.entry.timeout_ms = timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        Ok(())
    }

    pub(super) fn becomes(&mut self, state: LeaseState) {
        self.entry.became = Some(state);
    }

    pub(super) fn expires(&mut self, at: Option<SystemTime>) {
        self.entry.expires_at_ms = at.map(unix_ms);
    }

    /// The call is the acquisition of this lease.
    pub(super) fn takes(&mut self, id: &str, scope: LeaseScope, expires_at: Option<SystemTime>) {
        self.entry.lease = Some(id.to_owned());
        self.entry.scope = Some(scope);
        self.becomes(LeaseState::Held);
        self.expires(expires_at);
    }

    /// A name that no lease had: `fake-1`, `fake-2`, and so on.
    pub(super) fn new_id(&self) -> String {
        format!("fake-{}", states(&self.calls).len().saturating_add(1))
    }

    /// A stopped lease that the environment had before.
    pub(super) fn stopped_lease_of(&self, environment: Option<&str>) -> Option<String> {
        let environment = environment?;
        let of_environment = |entry: &&Entry| {
            let scope = entry.scope.as_ref();
            scope.is_some_and(|scope| scope.environment_id.as_deref() == Some(environment))
        };
        self.calls.iter().filter(of_environment).find_map(|entry| {
            let id = entry.lease.clone()?;
            (self.state_of(&id) == Some(LeaseState::Stopped)).then_some(id)
        })
    }

    /// Every lease that is held or stopped and was made for this run.
    pub(super) fn present_of_run(&self, run: &str) -> Vec<String> {
        let of_run = |id: &String| {
            let mut acquired = self.calls.iter().filter(|entry| entry.lease.as_ref() == Some(id));
            acquired.any(|entry| entry.scope.as_ref().is_some_and(|scope| scope.run_id == run))
        };
        self.all_present().into_iter().filter(of_run).collect()
    }

    /// Every lease that is held or stopped.
    pub(super) fn all_present(&self) -> Vec<String> {
        let all = states(&self.calls).into_keys();
        all.filter(|id| self.state_of(id) != Some(LeaseState::Gone))
            .collect()
    }
}
