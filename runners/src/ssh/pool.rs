//! The connections to one server, and the servers in use.
//!
//! Here: [`SshHost`], which keeps one connection for everything and opens further ones only for commands that the
//! first has no room for, and closes those again once nothing runs on them; and [`SshPool`], which hands out one host
//! per server and identity. Not here: retrying; who needs a connection decides how long to try (with
//! [`super::backoff`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::channel::ChannelIo;
use super::connection::{Connection, OpenError, SessionGuard};
use super::exec;
use super::settings::ConnectionSettings;
use crate::RunnerError;
use crate::shell::kill::KILL_GRACE;
use crate::shell::{KillOutcome, StartedProcess};

/// Commands on one connection before another is opened: sshd's `MaxSessions` is 10 by default, and channels that have
/// ended here may still be open there.
const COMMANDS_PER_CONNECTION: usize = 8;
/// The same with the one that is kept for ending a command.
const WITH_CONTROL: usize = COMMANDS_PER_CONNECTION + 1;
/// Connections that may be open beside the first.
const FURTHER_CONNECTIONS: usize = 31;
/// A further connection on which nothing has run for so many looks is closed.
const IDLE_LOOKS: u32 = 2;
/// Commands that may be owed an end.
const OWED_LIMIT: usize = 256;

/// One server that we log in to as one user.
#[derive(Debug)]
pub struct SshHost {
    settings: ConnectionSettings,
    state: Arc<tokio::sync::Mutex<State>>,
    failures: AtomicU64,
    owed: Mutex<Vec<StartedProcess>>,
    settling: Mutex<JoinSet<()>>,
    /// Closes further connections that are idle; there while there are any.
    looking: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    first: Option<Arc<Connection>>,
    further: Vec<Further>,
    /// A task closes those that are idle.
    looked_after: bool,
    last_failure: String,
}

/// A connection for the commands that the first has no room for.
#[derive(Debug)]
struct Further {
    connection: Arc<Connection>,
    /// Looks in a row at which nothing ran on it, and nothing had since the one before.
    idle_looks: u32,
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A command of whoever uses the host.
    Command,
    /// Ending one, for which there is room where commands have none.
    Control,
}

impl Purpose {
    const fn most(self) -> usize {
        match self {
            Self::Command => COMMANDS_PER_CONNECTION,
            Self::Control => WITH_CONTROL,
        }
    }
}

/// A session channel with what keeps it alive.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) io: ChannelIo,
    /// Counts until the channel is let go of.
    pub(super) _guard: SessionGuard,
    pub(super) connection: Arc<Connection>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SshHost {
    /// A host without a connection yet.
    #[must_use]
    pub fn new(settings: ConnectionSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            state: Arc::default(),
            failures: AtomicU64::new(0),
            owed: Mutex::default(),
            settling: Mutex::default(),
            looking: Mutex::default(),
        })
    }

    /// The target in the operator's words.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.settings.target
    }

    /// How it is connected to.
    #[must_use]
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// The connection for everything: the live one, or a new one by one attempt. Callers that wait for the same
    /// attempt share its failure.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Unreachable`] as [`Connection::open`].
    pub async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, RunnerError> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some(first) = &state.first
            && first.end_reason().is_none()
            && !first.is_worn_out()
        {
            return Ok(Arc::clone(first));
        }
        if self.failures.load(Ordering::Acquire) != failures {
            return Err(self.unreachable(state.last_failure.clone()));
        }
        match Connection::open(&self.settings).await {
            Ok(connection) => {
                state.first = Some(Arc::clone(&connection));
                drop(state);
                self.settle_in_background();
                Ok(connection)
            }
            Err(error) => {
                if let RunnerError::Unreachable { reason, .. } = &error {
                    state.last_failure.clone_from(reason);
                }
                self.failures.fetch_add(1, Ordering::Release);
                Err(error)
            }
        }
    }

    fn unreachable(&self, reason: String) -> RunnerError {
        RunnerError::Unreachable {
            target: self.settings.target.clone(),
            reason,
        }
    }

    fn refused(&self, reason: String) -> RunnerError {
        RunnerError::Refused {
            target: self.settings.target.clone(),
            reason,
        }
    }

    /// A channel for one command, on the first connection with room, else on a further one.
    pub(super) async fn session(self: &Arc<Self>, purpose: Purpose) -> Result<Session, RunnerError> {
        let mut passed_over = Vec::new();
        // Each round uses up one connection that turned out to be full.
        for _ in 0..=FURTHER_CONNECTIONS {
            let (connection, guard) = self.place(purpose, &passed_over).await?;
            match connection.open_session().await {
                Ok(io) => {
                    return Ok(Session {
                        io,
                        _guard: guard,
                        connection,
                    });
                }
                Err(OpenError::Refused(reason)) => {
                    drop(guard);
                    // With nothing else running or about to close on it, it is not a matter of room.
                    if connection.sessions_in_use() == 0 && connection.open_channels() == 0 {
                        return Err(self.no_commands(&reason));
                    }
                    tracing::debug!(target_host = %self.target(), reason, "no room for a command on this connection");
                    passed_over.push(connection);
                }
                Err(OpenError::Lost(reason)) => return Err(self.unreachable(reason)),
            }
        }
        Err(self.full())
    }

    /// A connection that should have room, with the room taken.
    async fn place(
        self: &Arc<Self>,
        purpose: Purpose,
        passed_over: &[Arc<Connection>],
    ) -> Result<(Arc<Connection>, SessionGuard), RunnerError> {
        let has_room = |connection: &Arc<Connection>| {
            connection.sessions_in_use() < purpose.most()
                && connection.end_reason().is_none()
                && !passed_over.iter().any(|full| Arc::ptr_eq(full, connection))
        };
        let first = self.connection().await?;
        // Held while a further connection opens: whoever else needs one waits, and then finds room on it.
        let mut state = self.state.lock().await;
        if has_room(&first) {
            let guard = first.reserve();
            return Ok((first, guard));
        }
        state
            .further
            .retain(|further| further.connection.end_reason().is_none());
        if let Some(further) = state
            .further
            .iter_mut()
            .find(|further| has_room(&further.connection))
        {
            further.idle_looks = 0;
            return Ok((Arc::clone(&further.connection), further.connection.reserve()));
        }
        if state.further.len() >= FURTHER_CONNECTIONS {
            return Err(self.full());
        }
        let connection = Connection::open(&self.settings).await?;
        let guard = connection.reserve();
        state.further.push(Further {
            connection: Arc::clone(&connection),
            idle_looks: 0,
        });
        if !std::mem::replace(&mut state.looked_after, true) {
            let (state, every) = (Arc::downgrade(&self.state), self.settings.limits.further_look);
            *lock(&self.looking) = Some(AbortOnDropHandle::new(tokio::spawn(close_idle(state, every))));
        }
        Ok((connection, guard))
    }

    /// Connections that are open now beside the first.
    pub async fn further_connections(&self) -> usize {
        self.state.lock().await.further.len()
    }

    fn full(&self) -> RunnerError {
        self.refused(format!(
            "{FURTHER_CONNECTIONS} further connections are full of commands; wait for some to end"
        ))
    }

    fn no_commands(&self, reason: &str) -> RunnerError {
        self.refused(format!(
            "the SSH server opens no session for commands ({reason}); look for `MaxSessions 0` in its sshd_config and \
             for restrictions of this account"
        ))
    }

    /// Remembers a process that should be ended and could not be; done at the next connection.
    pub(super) fn owe(&self, process: StartedProcess) {
        let mut owed = lock(&self.owed);
        if owed.len() < OWED_LIMIT {
            owed.push(process);
        } else {
            tracing::warn!(target_host = %self.target(), pid = process.pid, "too many processes are owed an end; one forgotten");
        }
    }

    /// Processes that should have been ended and may still run.
    #[must_use]
    pub fn owed(&self) -> usize {
        lock(&self.owed).len()
    }

    /// Ends a process on the target: `TERM`, and `KILL` after `grace`. Only that very process: its start time must be
    /// the recorded one.
    ///
    /// # Errors
    ///
    /// [`RunnerError`] where the target cannot be reached or the command that does it cannot run.
    pub async fn end_process(
        self: &Arc<Self>,
        process: &StartedProcess,
        grace: Duration,
    ) -> Result<KillOutcome, RunnerError> {
        exec::kill(self, process, grace).await
    }

    /// Ends what is owed, over a new connection if need be. What cannot be ended now stays owed.
    ///
    /// Takes at most about seven seconds per process.
    pub async fn settle(self: &Arc<Self>) {
        let mut left = lock(&self.owed).len();
        while left > 0 {
            left -= 1;
            let Some(process) = lock(&self.owed).pop() else {
                return;
            };
            match exec::kill(self, &process, KILL_GRACE).await {
                Ok(outcome) => {
                    tracing::info!(target_host = %self.target(), pid = process.pid, ?outcome, "ended a process that was owed an end");
                }
                Err(error) => {
                    tracing::warn!(target_host = %self.target(), pid = process.pid, %error, "a process is still owed an end");
                    lock(&self.owed).insert(0, process);
                    return;
                }
            }
        }
    }

    fn settle_in_background(self: &Arc<Self>) {
        if self.owed() == 0 {
            return;
        }
        let host = Arc::clone(self);
        let mut settling = lock(&self.settling);
        while settling.try_join_next().is_some() {}
        if settling.is_empty() {
            settling.spawn(async move { host.settle().await });
        }
    }

    /// Ends the connections in order; whatever still uses them fails.
    pub async fn close(&self) {
        let (first, further) = {
            let mut state = self.state.lock().await;
            (state.first.take(), std::mem::take(&mut state.further))
        };
        let further = further.into_iter().map(|further| further.connection);
        for connection in first.into_iter().chain(further) {
            connection.close().await;
        }
    }
}

/// Closes further connections on which nothing runs, until there is none.
async fn close_idle(state: Weak<tokio::sync::Mutex<State>>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(state) = state.upgrade() else { return };
        let mut idle = Vec::new();
        {
            let mut state = state.lock().await;
            state.further.retain_mut(|further| {
                further.idle_looks = match further.connection.sessions_in_use() {
                    0 => further.idle_looks + 1,
                    _ => 0,
                };
                let keep = further.idle_looks < IDLE_LOOKS;
                if !keep {
                    idle.push(Arc::clone(&further.connection));
                }
                keep
            });
            if state.further.is_empty() && idle.is_empty() {
                state.looked_after = false;
                return;
            }
        }
        for connection in idle {
            tracing::debug!(
                target_host = connection.target(),
                "an idle further connection is closed"
            );
            connection.close().await;
        }
    }
}

/// The servers in use, each once. One pool per runtime: a connection never leaves the runtime that opened it.
#[derive(Debug, Default)]
pub struct SshPool {
    hosts: Mutex<HashMap<String, Weak<SshHost>>>,
}

impl SshPool {
    /// The host for these settings, shared with whoever asked for the same user, address, identities and trust.
    pub fn host(&self, settings: ConnectionSettings) -> Arc<SshHost> {
        let mut hosts = lock(&self.hosts);
        hosts.retain(|_, host| host.strong_count() > 0);
        let key = settings.identity();
        if let Some(host) = hosts.get(&key).and_then(Weak::upgrade) {
            return host;
        }
        let host = SshHost::new(settings);
        hosts.insert(key, Arc::downgrade(&host));
        host
    }
}
