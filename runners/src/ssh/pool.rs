//! The connections to one server, and the servers in use.
//!
//! Here: [`SshHost`], which keeps one connection for everything and opens further ones only for commands that the
//! first has no room for; and [`SshPool`], which hands out one host per server and identity. Not here: retrying; who
//! needs a connection decides how long to try (with [`super::backoff`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;

use super::channel::ChannelIo;
use super::connection::{Connection, OpenError, SessionGuard};
use super::exec;
use super::settings::ConnectionSettings;
use crate::RunnerError;
use crate::shell::kill::KILL_GRACE;
use crate::shell::{KillOutcome, StartedProcess};

/// Commands on one connection before another is opened: sshd's `MaxSessions` is 10 by default, and a kill needs room.
const SESSIONS_PER_CONNECTION: usize = 8;
/// Connections that may be open beside the first.
const FURTHER_CONNECTIONS: usize = 8;
/// Commands that may be owed an end.
const OWED_LIMIT: usize = 256;

/// One server that we log in to as one user.
#[derive(Debug)]
pub struct SshHost {
    settings: ConnectionSettings,
    state: tokio::sync::Mutex<State>,
    failures: AtomicU64,
    owed: Mutex<Vec<StartedProcess>>,
    settling: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    first: Option<Arc<Connection>>,
    /// They live as long as a command runs on them.
    further: Vec<Weak<Connection>>,
    last_failure: String,
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
            state: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
            owed: Mutex::default(),
            settling: Mutex::default(),
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
    pub(super) async fn session(self: &Arc<Self>) -> Result<Session, RunnerError> {
        let mut passed_over = Vec::new();
        // Each round uses up one connection that turned out to be full.
        for _ in 0..=FURTHER_CONNECTIONS {
            let (connection, guard) = self.place(&passed_over).await?;
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
                    // With nothing else running on it, it is not a matter of room.
                    if connection.sessions_in_use() == 0 {
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
        passed_over: &[Arc<Connection>],
    ) -> Result<(Arc<Connection>, SessionGuard), RunnerError> {
        let has_room = |connection: &Arc<Connection>| {
            connection.sessions_in_use() < SESSIONS_PER_CONNECTION
                && connection.end_reason().is_none()
                && !passed_over.iter().any(|full| Arc::ptr_eq(full, connection))
        };
        let first = self.connection().await?;
        // Held while a further connection opens: whoever else needs one waits, and then finds room on it.
        let mut state = self.state.lock().await;
        state.further.retain(|further| further.strong_count() > 0);
        let further = state.further.iter().filter_map(Weak::upgrade);
        if let Some(connection) = std::iter::once(first).chain(further).find(has_room) {
            let guard = connection.reserve();
            return Ok((connection, guard));
        }
        if state.further.len() >= FURTHER_CONNECTIONS {
            return Err(self.full());
        }
        let connection = Connection::open(&self.settings).await?;
        state.further.push(Arc::downgrade(&connection));
        let guard = connection.reserve();
        Ok((connection, guard))
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
        for connection in first.into_iter().chain(further.iter().filter_map(Weak::upgrade)) {
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
