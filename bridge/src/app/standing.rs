//! A target that is held while its tunnels are tried on it, one after another.
//!
//! Here: [`Standing`], which `probe` looks around on, and [`Tried`], one tunnel of it. Not here: what is looked for
//! (`probe/`), sessions for agents (`mod.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use policy::Token;
use runners::ssh::SshHost;
use runners::{CommandManagedRuntimeRunner, RunnerError, Shell};
use tunnel::Status;
use uuid::Uuid;

use super::environment::{Told, variables};
use super::opened::{GoneWith, TAKING_DOWN, left_by};
use super::{App, Begun, Ground, OpenError, SessionRequest, TunnelChoice};
use crate::placing::{self, Place, Reach};
use crate::session::identity::Identity;

/// A probe's own calls get so long to end with their tunnel.
const DRAINING: Duration = Duration::from_secs(1);

/// A target and what stands between us and it; a lease is held until [`Self::leave`] or the drop.
pub(crate) struct Standing {
    ground: Ground,
}

/// One tunnel that is ready.
pub(crate) struct Tried {
    begun: Begun,
    run_id: String,
    token: Option<Token>,
}

impl App {
    /// Takes the target of the request, as a session would, and opens none on it. An SSH host is not connected to yet.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    ///
    /// # Cancel safety
    ///
    /// As [`Self::open`].
    pub(crate) async fn stand(&self, request: SessionRequest) -> Result<Standing, OpenError> {
        let Place { runner, reach } = placing::place(&request, self).await?;
        let ground = Ground {
            request,
            runner,
            reach,
            state: None,
        };
        Ok(Standing { ground })
    }
}

impl Standing {
    /// What was asked for.
    pub(crate) fn request(&self) -> &SessionRequest {
        &self.ground.request
    }

    /// Runs commands on the target.
    pub(crate) fn runner(&self) -> &Arc<dyn CommandManagedRuntimeRunner> {
        &self.ground.runner
    }

    /// The shell of our scripts there.
    pub(crate) fn shell(&self) -> Shell {
        self.ground.reach.shell()
    }

    /// The connection, where the target has one.
    pub(crate) fn ssh(&self) -> Option<&Arc<SshHost>> {
        match &self.ground.reach {
            Reach::Ssh(host) => Some(host),
            Reach::Local | Reach::Leased(_) => None,
        }
    }

    /// The provider's own name of the lease, where the target is one.
    pub(crate) fn lease(&self) -> Option<&str> {
        self.ground.reach.lease().map(|held| held.lease.id.as_str())
    }

    /// In the provider's words, once one of our commands has met the loss of the lease.
    pub(crate) fn lease_lost(&self) -> Option<String> {
        let heard = self.ground.reach.lease()?.loss_heard();
        heard.borrow().clone()
    }

    /// The tunnels that the target may have, best first; the one that was demanded, if one was.
    pub(crate) fn tunnels(&self) -> Vec<TunnelChoice> {
        let demanded = &self.ground.request.tunnel;
        if !matches!(demanded, TunnelChoice::Auto) {
            return vec![demanded.clone()];
        }
        let best = match &self.ground.reach {
            Reach::Local => Some(TunnelChoice::Local),
            Reach::Ssh(_) => Some(TunnelChoice::SshReverse),
            Reach::Leased(held) => held.relay.is_some().then_some(TunnelChoice::Worker),
        };
        best.into_iter()
            .chain([TunnelChoice::Http2, TunnelChoice::Queue])
            .collect()
    }

    /// Connects and logs in, where there is something to log in to.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Unreachable`] with what failed.
    pub(crate) async fn connect(&self) -> Result<(), RunnerError> {
        match self.ssh() {
            Some(host) => host.connection().await.map(drop),
            None => Ok(()),
        }
    }

    /// Brings up this tunnel and no other.
    ///
    /// # Errors
    ///
    /// Why it is not to be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts what it had begun.
    pub(crate) async fn try_tunnel(&mut self, app: &App, tunnel: TunnelChoice) -> Result<Tried, OpenError> {
        self.ground.request.tunnel = tunnel;
        let ground = &self.ground;
        let identity = Identity::choose(&ground.request, None, None, ground.runner.target())?;
        let begun = app.begin(ground, &identity).await?;
        Ok(Tried {
            begun,
            run_id: ground.request.run_id.clone(),
            token: identity.token,
        })
    }

    /// Ends the connection, or gives the lease back.
    ///
    /// # Errors
    ///
    /// What is owed, in one line.
    pub(crate) async fn leave(self) -> Result<(), String> {
        let Ground { runner, reach, .. } = self.ground;
        drop(runner);
        match reach {
            Reach::Local => Ok(()),
            Reach::Ssh(host) => {
                host.close().await;
                Ok(())
            }
            Reach::Leased(held) => held.give_back().await,
        }
    }
}

impl Tried {
    /// The session's id, which `/_bridge/whoami` tells.
    pub(crate) fn session(&self) -> Uuid {
        self.begun.session.id
    }

    /// What an agent would be given.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let queue = self.begun.queue.get();
        let url = self.url();
        variables(Told {
            url: &url,
            // A relay wants more in front of the session's own.
            token: self.begun.token.as_ref().map(runners::SecretText::expose),
            run_id: &self.run_id,
            tunnel: self.begun.ladder.current,
            queue: queue.map(String::as_str),
        })
    }

    /// What an agent would call.
    pub(crate) fn url(&self) -> String {
        super::url(&self.begun.listening)
    }

    /// The token, to keep it out of what is told.
    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Whether the listener was seen to be on loopback, where that could be seen.
    pub(crate) fn verified_loopback(&self) -> Option<bool> {
        match &*self.begun.status.borrow() {
            Status::Ready {
                verified_loopback, ..
            } => *verified_loopback,
            Status::Starting | Status::Reconnecting { .. } | Status::Degraded { .. } => None,
        }
    }

    /// Takes it down, and says what may be left of it.
    pub(crate) async fn close(self) -> Option<String> {
        let Begun {
            session, mut serving, ..
        } = self.begun;
        session.drain(DRAINING).await;
        serving.stop.cancel();
        let ended = tokio::time::timeout(TAKING_DOWN, &mut serving.task).await;
        left_by(ended, GoneWith::Nothing)
    }
}
