//! A session that is ready, and its end in order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use policy::{Token, TokenDigest};
use runners::{CommandManagedRuntimeRunner, SecretText};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::ladder::Attempt;
use tunnel::launch::{ChangeFault, SharedToken};
use tunnel::queue::LeaveQueue;
use tunnel::{Listening, ProcessPlace, Status, TunnelEnd};
use uuid::Uuid;

use super::OpenError;
use super::environment::{Told, variables};
use crate::placing::{self, Reach};
use crate::session::Session;
use crate::session::state::{LeftGateway, LeftLease, LeftProcess, SessionRecord, StateFolder};
use crate::upstream::UpstreamSettings;

/// Callbacks under way get so long to end when a session is closed.
const DRAINING: Duration = Duration::from_secs(5);
/// The tunnel gets so long to take its listener down; it promises five seconds.
pub(super) const TAKING_DOWN: Duration = Duration::from_secs(6);

/// The name of the tunnel that ends at a relay.
const RELAY: &str = tunnel::worker::NAME;

/// A session that is ready, and everything its owner needs.
///
/// Dropped without [`Self::close`], its tunnel is cut off at once, without waiting for anything.
#[derive(Debug)]
pub struct OpenSession {
    /// Our name of it.
    pub id: Uuid,
    /// What the agent calls, such as `http://127.0.0.1:40123`, or `unix:PATH`.
    pub url: String,
    /// The agent's throw-away token, behind a relay within the bearer that the relay asks for; printed once. `None` where a
    /// predecessor of this process gave it out.
    pub token: Option<SecretText>,
    /// The tunnel that was taken, such as `ssh-reverse`.
    pub tunnel: &'static str,
    /// The better tunnels that were tried before, and why they were not taken.
    pub ladder: Vec<Attempt>,
    /// Where a `queue_v1` lies on the target.
    pub queue_directory: Option<String>,
    /// The run id that was taken.
    pub run_id: String,
    /// The Paperclip API that it speaks to.
    pub(crate) upstream: UpstreamSettings,
    /// Runs commands on the target.
    pub runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// Told of every change of the tunnel.
    pub status: watch::Receiver<Status>,
    pub(super) left: WhatIsLeft,
    pub(super) gateway_token: SharedToken,
    pub(super) session: Arc<Session>,
    pub(super) reach: Reach,
    pub(super) state: Option<StateFolder>,
    pub(super) serving: Serving,
}

/// What a session would leave on its target if this process ended now.
#[derive(Debug)]
pub(super) struct WhatIsLeft {
    pub(super) listening: Listening,
    /// Told by the tunnel, also after a reconnect.
    pub(super) process: ProcessPlace,
    pub(super) gateway: Option<LeftGateway>,
    pub(super) lease: Option<LeftLease>,
    pub(super) leave: LeaveQueue,
}

/// The tunnel at work; ends with its owner.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) task: JoinHandle<TunnelEnd>,
    pub(super) stop: CancellationToken,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a session's end has left behind, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// What may still be on the target, or whose outcome was given up.
    pub on_target: Option<String>,
    /// What the provider has not confirmed.
    pub owed: Option<String>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.on_target.iter().chain(&self.owed);
        if let Some(first) = lines.next() {
            f.write_str(first)?;
        }
        lines.try_for_each(|line| write!(f, "; {line}"))
    }
}

impl std::error::Error for Left {}

impl Left {
    fn on_target(line: String) -> Self {
        Self {
            on_target: Some(line),
            owed: None,
        }
    }
}

impl OpenSession {
    /// What the agent's process is given, all of it named `PAPERCLIP_*`. `PAPERCLIP_API_KEY` is the token, and left out
    /// where only the agent knows it; over `queue_v1` the queue's directory is among it, as Paperclip's own host has it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        variables(Told {
            url: &self.url,
            token: self.token.as_ref().map(SecretText::expose),
            run_id: &self.run_id,
            tunnel: self.tunnel,
            queue: self.queue_directory.as_deref(),
        })
    }

    /// The provider's own name of the lease that the session stands on, if it stands on one.
    #[must_use]
    pub fn lease(&self) -> Option<&str> {
        self.reach.lease().map(|held| held.lease.id.as_str())
    }

    /// Returns when the lease under the session is lost, with the provider's words; never for other targets. Cancel safe.
    pub fn lease_lost(&self) -> impl Future<Output = String> + use<> {
        let loss = self.reach.lease().map(crate::leases::HeldLease::loss);
        async move {
            match loss {
                Some(loss) => loss.wait().await,
                None => std::future::pending().await,
            }
        }
    }

    /// What a successor of this process needs to go on with it; `None` once its token is void.
    ///
    /// To be asked for anew when the status has become [`Status::Ready`] again, and after another token was taken.
    #[must_use]
    pub fn record(&self) -> Option<SessionRecord> {
        self.session.token().map(|digest| self.record_of(digest))
    }

    pub(super) fn record_of(&self, digest: TokenDigest) -> SessionRecord {
        let WhatIsLeft {
            listening,
            process,
            gateway,
            lease,
            ..
        } = &self.left;
        let record = SessionRecord::new(
            self.id,
            self.runner.target(),
            self.tunnel,
            &self.run_id,
            digest.to_bytes(),
        );
        SessionRecord {
            process: process.process().map(|process| LeftProcess {
                pid: process.pid,
                start: process.start,
            }),
            gateway: *gateway,
            queue_directory: self.queue_directory.clone(),
            lease: lease.clone(),
            ..record.listening(listening, &self.url)
        }
    }

    /// Told of every change of the ledger and the token; the daemon's own side of it.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether another token can take the place of the first one: a peer's script in the sandbox needs the text of the one
    /// that it was started with, and knows no other.
    pub(crate) fn can_take_token(&self) -> bool {
        self.left.gateway != Some(LeftGateway::Script)
    }

    /// Has a gateway of ours on the target take this token in place of the one that it holds. Nothing to be done without one.
    ///
    /// # Errors
    ///
    /// [`ChangeFault`]: which one holds now.
    ///
    /// # Cancel safety
    ///
    /// As [`SharedToken::change`].
    pub(crate) async fn gateway_takes(&self, digest: TokenDigest) -> Result<(), ChangeFault> {
        match self.left.gateway {
            Some(LeftGateway::Own) => self.gateway_token.change(digest.to_bytes()).await,
            Some(LeftGateway::Script) | None => Ok(()),
        }
    }

    /// What the agent shows for a token that is about to become the session's.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(crate) async fn shown(&self, token: &Token) -> Result<SecretText, OpenError> {
        let relay = self.reach.lease().and_then(|held| held.relay.as_ref());
        super::shown(relay.filter(|_| self.tunnel == RELAY), token).await
    }

    /// Cuts the agent's side at once and takes the listener down; see [`Session::revoke`]. [`Self::close_within`] is
    /// still to be called, and waits for the outcome of what was dispatched.
    pub(crate) fn revoke(&self) {
        self.session.revoke();
        self.serving.stop.cancel();
    }

    /// Ends this process's part in order and leaves the session for a successor, which goes on with [`Self::record`]:
    /// callbacks under way get `patience`, then what listens on the target is taken down. The gateway of a queue stays,
    /// with what waits in it, and so does a lease.
    ///
    /// # Errors
    ///
    /// [`Left`]: what could not be done in order; a successor takes that up, too.
    pub(crate) async fn leave_within(self, patience: Duration) -> Result<(), Left> {
        let Self {
            session,
            left,
            reach,
            mut serving,
            runner,
            tunnel,
            ..
        } = self;
        let ended = if tunnel == placing::QUEUE {
            // It takes nothing up from now on; what waits is answered by the successor, not refused by us.
            let _first = left.leave.set(patience);
            serving.stop.cancel();
            let ended = tokio::time::timeout(patience + TAKING_DOWN, &mut serving.task).await;
            session.drain(DRAINING.min(patience)).await;
            ended
        } else {
            session.drain(patience).await;
            serving.stop.cancel();
            tokio::time::timeout(TAKING_DOWN, &mut serving.task).await
        };
        if let Some(audit) = &session.audit {
            audit.ends("left to a successor");
        }
        drop(runner);
        let gone_with = match reach {
            Reach::Ssh(host) if Arc::strong_count(&host) == 1 => {
                host.close().await;
                GoneWith::Connection
            }
            Reach::Local | Reach::Ssh(_) => GoneWith::Nothing,
            Reach::Leased(held) => {
                held.leave().await;
                GoneWith::Nothing
            }
        };
        left_by(ended, gone_with).map_or(Ok(()), |left| Err(Left::on_target(left)))
    }

    /// Ends this process's part at once, because another daemon may have the session: its agent is cut, and nothing on the
    /// target is touched that the other one may use by now.
    pub(crate) async fn abandon(self) {
        let Self {
            session,
            reach,
            mut serving,
            tunnel,
            ..
        } = self;
        session.revoke();
        if matches!(tunnel, "http2_v1" | placing::QUEUE) {
            // Its gateway goes by the session's name, and may be the other daemon's.
            serving.task.abort();
        }
        serving.stop.cancel();
        let _ended = tokio::time::timeout(TAKING_DOWN, &mut serving.task).await;
        if let Some(audit) = &session.audit {
            audit.ends("taken over");
        }
        if let Reach::Leased(held) = reach {
            held.leave().await;
        }
    }

    /// Whether it can be gone on with: not where the lease under it is lost.
    pub(crate) fn can_be_left(&self) -> bool {
        !self.reach.lease().is_some_and(crate::leases::HeldLease::is_lost)
    }

    /// Ends the session in order: no new callbacks, those under way get five seconds, the listener on the target is
    /// taken down, which gets five more, and a lease is given back.
    ///
    /// # Errors
    ///
    /// [`Left`]: what is left on the target or owed.
    pub async fn close(self) -> Result<(), Left> {
        self.close_within(DRAINING).await
    }

    /// The same with another patience for the callbacks under way.
    ///
    /// # Errors
    ///
    /// As [`Self::close`].
    pub(crate) async fn close_within(self, patience: Duration) -> Result<(), Left> {
        let Self {
            session,
            reach,
            state,
            mut serving,
            runner,
            ..
        } = self;
        let open = session.drain(patience).await;
        serving.stop.cancel();
        let ended = tokio::time::timeout(TAKING_DOWN, &mut serving.task).await;
        if let Some(audit) = &session.audit {
            audit.ends("closed");
        }
        drop(runner);
        let (gone_with, owed) = match reach {
            Reach::Ssh(host) if Arc::strong_count(&host) == 1 => {
                host.close().await;
                (GoneWith::Connection, None)
            }
            Reach::Local | Reach::Ssh(_) => (GoneWith::Nothing, None),
            Reach::Leased(held) => {
                let lost = held.is_lost();
                match held.give_back().await {
                    Ok(()) => (GoneWith::Sandbox, None),
                    Err(owed) if lost => (GoneWith::Sandbox, Some(owed)),
                    Err(owed) => (GoneWith::Nothing, Some(owed)),
                }
            }
        };
        let on_target = left_by(ended, gone_with);
        if on_target.is_some() || owed.is_some() {
            return Err(Left { on_target, owed });
        }
        if let Some(Err(error)) = state.map(|state| state.forget()) {
            return Err(Left::on_target(error.to_string()));
        }
        if open > 0 {
            return Err(Left::on_target(format!(
                "{open} callbacks were given up while their outcome was open"
            )));
        }
        Ok(())
    }
}

/// What took the listener on the target with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoneWith {
    Nothing,
    /// What a server will not take down by itself goes with its connection.
    Connection,
    /// Everything.
    Sandbox,
}

/// What a tunnel's end leaves, where it leaves something.
pub(super) fn left_by(
    ended: Result<Result<TunnelEnd, tokio::task::JoinError>, tokio::time::error::Elapsed>,
    gone_with: GoneWith,
) -> Option<String> {
    match ended {
        _ if gone_with == GoneWith::Sandbox => None,
        Ok(Ok(TunnelEnd::StoppedUnclean(left))) if gone_with == GoneWith::Nothing => Some(left),
        Ok(Ok(
            TunnelEnd::Stopped
            | TunnelEnd::StoppedUnclean(_)
            | TunnelEnd::Refused { .. }
            | TunnelEnd::Unreachable(_),
        )) => None,
        Ok(Err(error)) => Some(format!("the tunnel failed: {error}")),
        Err(_) => Some("the tunnel did not end in time; its listener may still be there".to_owned()),
    }
}
