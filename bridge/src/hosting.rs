//! The host's side of one session alone, for a gateway that somebody else started.
//!
//! Here: [`HostRequest`] and [`Hosted`]: the same session and the same callbacks as everywhere, on a tunnel that is
//! given. Not here: targets and runners (`app.rs`), what an operator types (`cli/host.rs`).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use policy::{Limits, RateLimit, TokenDigest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::{Status, StatusReporter, Tunnel, TunnelEnd};
use uuid::Uuid;

use crate::app::OpenError;
use crate::audit::{Audit, Identities, SessionAudit};
use crate::secrets::LiveSecret;
use crate::session::budget::Budget;
use crate::session::live::LiveRules;
use crate::session::state::StateFolder;
use crate::session::{PROCESS_BODY_BYTES, Session, SessionParts, Shared};
use crate::upstream::{Upstream, UpstreamSettings};

/// Callbacks under way get so long to end.
const DRAINING: Duration = Duration::from_secs(5);
/// The tunnel promises to be gone within five seconds.
const TAKING_DOWN: Duration = Duration::from_secs(6);

/// What a hosted session shall be.
pub(crate) struct HostRequest {
    pub(crate) upstream: UpstreamSettings,
    pub(crate) credential: LiveSecret,
    pub(crate) run_id: String,
    pub(crate) rules: LiveRules,
    pub(crate) limits: Limits,
    pub(crate) rate: Option<RateLimit>,
    /// What callers must show.
    pub(crate) token: TokenDigest,
    pub(crate) tunnel: Box<dyn Tunnel>,
    /// Held for as long as the session lives.
    pub(crate) state: Option<StateFolder>,
    /// Where every callback is written down.
    pub(crate) audit: Option<Arc<Audit>>,
    /// Where the gateway is, as the audit names it.
    pub(crate) target: String,
}

/// A session whose gateway is somebody else's. Dropped without [`Self::close`], its tunnel is cut off at once.
#[derive(Debug)]
pub(crate) struct Hosted {
    session: Arc<Session>,
    pub(crate) status: watch::Receiver<Status>,
    task: JoinHandle<TunnelEnd>,
    stop: CancellationToken,
    audit: Option<Arc<Audit>>,
    _state: Option<StateFolder>,
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hosted {
    /// Begins to serve; the gateway may come later.
    ///
    /// # Errors
    ///
    /// [`OpenError::Configuration`] for an upstream or a run id that cannot be used.
    pub(crate) fn begin(request: HostRequest) -> Result<Self, OpenError> {
        let run_id = HeaderValue::from_str(&request.run_id)
            .map_err(|_| OpenError::Configuration("the run id must be one line of visible ASCII".into()))?;
        let upstream = Upstream::new(&request.upstream, request.credential)
            .map_err(|error| OpenError::Configuration(error.to_string()))?;
        let id = Uuid::now_v7();
        let whose = Identities {
            run: Some(request.run_id),
            ..Identities::default()
        };
        let begun = request
            .audit
            .as_ref()
            .map(|audit| SessionAudit::begin(audit, id, &whose, &request.target));
        let begun = begun.transpose();
        let session = Session::of(
            id,
            SessionParts {
                run_id,
                tunnel: request.tunnel.name(),
                rules: request.rules,
                limits: request.limits,
                rate: request.rate,
                upstream,
                token: request.token,
                audit: begun.map_err(|error| OpenError::Configuration(error.to_string()))?,
                process_bodies: Budget::new(PROCESS_BODY_BYTES),
                shared: Shared::default(),
            },
            None,
        );
        let (reporter, status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(request.tunnel.serve(session.callbacks(), reporter, stop.clone()));
        Ok(Self {
            session,
            status,
            task,
            stop,
            audit: request.audit,
            _state: request.state,
        })
    }

    /// Waits until the tunnel ends by itself. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where it never worked.
    pub(crate) async fn ended(&mut self) -> Result<(), OpenError> {
        match (&mut self.task).await {
            Ok(TunnelEnd::Stopped) => Ok(()),
            Ok(TunnelEnd::Refused { reason, detail }) => Err(OpenError::Refused { reason, detail }),
            Ok(TunnelEnd::Unreachable(detail) | TunnelEnd::StoppedUnclean(detail)) => {
                Err(OpenError::Unreachable(detail))
            }
            Err(error) => Err(OpenError::Unreachable(format!("the tunnel failed: {error}"))),
        }
    }

    /// Ends the session in order: callbacks under way get five seconds.
    ///
    /// # Errors
    ///
    /// One line saying whose outcome was given up.
    pub(crate) async fn close(mut self) -> Result<(), String> {
        let open = self.session.drain(DRAINING).await;
        self.stop.cancel();
        let late =
            !self.task.is_finished() && tokio::time::timeout(TAKING_DOWN, &mut self.task).await.is_err();
        if let Some(hand) = &self.session.audit {
            hand.ends("closed");
        }
        if let Some(audit) = self.audit.take() {
            // It waits for the disk.
            let closed = tokio::task::spawn_blocking(move || audit.close());
            if let Ok(Ok(Err(error))) = tokio::time::timeout(TAKING_DOWN, closed).await {
                return Err(format!("the audit's last records are not signed: {error}"));
            }
        }
        if late {
            return Err("the tunnel did not end in time".to_owned());
        }
        if open > 0 {
            return Err(format!(
                "{open} callbacks were given up while their outcome was open"
            ));
        }
        Ok(())
    }
}
