//! The life of one session in the daemon, as one task: it is opened, watched over and ended.
//!
//! Here: [`Life`], which nobody else moves from state to state. Deadlines are slept for, never polled: an idle session
//! wakes nobody up. Not here: what a session is (`session/`), how it is opened (`app/`).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::{Either, select};
use policy::TokenDigest;
use tokio::sync::{SemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use super::entry::{Entry, Order, RotateError};
use super::events::Events;
use super::settings::LiveSettings;
use super::shown::Opened;
use super::state::{Ending, SessionState, Standing};
use crate::app::{App, OpenError, OpenSession, SessionRequest};
use crate::session::identity::fresh_token;
use crate::telemetry::metrics::Metrics;

/// A session whose callers were cut waits so much longer than the deadline of what was dispatched.
const SLACK: Duration = Duration::from_secs(1);
/// Late heartbeats of all sessions are looked for together, at most so much later: else a thousand sessions would wake
/// the process eleven times a second.
const TOGETHER: Duration = Duration::from_secs(1);

/// Why a session was not opened, with what the operator can do about it.
#[derive(Clone, Debug)]
pub(crate) struct NotOpened {
    /// Stable.
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

/// One session's task.
pub(super) struct Life {
    pub(super) app: Arc<App>,
    pub(super) entry: Arc<Entry>,
    pub(super) events: Arc<Events>,
    pub(super) metrics: Arc<Metrics>,
    /// How the daemon is set up at the moment.
    pub(super) settings: LiveSettings,
    /// At the daemon's planned end it is left to a successor.
    pub(super) leaves: bool,
    /// When its time is over.
    pub(super) expires: Instant,
}

impl Life {
    /// Opens the session, tells whoever asked for it, and ends when it has ended.
    ///
    /// - `turn`: given back once it is open, or will never be.
    pub(super) async fn live(
        mut self,
        // Boxed: it is large and gone once the session is open, and this future keeps room for what it is given.
        request: Box<SessionRequest>,
        check_upstream: bool,
        turn: Option<SemaphorePermit<'_>>,
        asked: oneshot::Sender<Result<Opened, NotOpened>>,
    ) {
        let digest = request.named.as_ref().map(|named| named.token.digest());
        // What a session does once is boxed here and below: a thousand of them are kept that only wait, and a future is
        // as large as the largest step that it holds in line.
        let opened = Box::pin(self.opening(request, check_upstream)).await;
        drop(turn);
        let end = match opened {
            Ok(session) => {
                Box::pin(self.tells(&session, asked)).await;
                self.until_its_end(session, digest).await
            }
            Err(why) => {
                digest
                    .into_iter()
                    .for_each(|token| self.events.forget_token(token));
                let end = Standing::new(SessionState::Ended, Some(why.reason), Some(why.detail.clone()));
                let _told = asked.send(Err(why));
                end
            }
        };
        self.over(end);
    }

    /// Opens it, unless somebody wishes that it end before.
    async fn opening(
        &self,
        request: Box<SessionRequest>,
        check_upstream: bool,
    ) -> Result<Box<OpenSession>, NotOpened> {
        let mut ending = self.entry.ending();
        let wish = Box::pin(wished(&mut ending));
        match select(wish, Box::pin(open(&self.app, *request, check_upstream))).await {
            Either::Left((ending, _)) => Err(NotOpened {
                reason: ending.reason(),
                detail: "the session was ended before it was open".to_owned(),
            }),
            Either::Right((opened, _)) => opened.map(Box::new),
        }
    }

    async fn tells(&self, session: &OpenSession, asked: oneshot::Sender<Result<Opened, NotOpened>>) {
        let opened = self.is_open(session).await;
        // Whoever asked may not have waited.
        let _told = asked.send(Ok(opened));
    }

    /// Nothing is left of it in this process.
    pub(super) fn over(&self, end: Standing) {
        self.entry.refuse_orders();
        self.metrics.session_ended(end.reason.unwrap_or_default());
        self.entry.stands(end);
    }

    /// Its agent can call.
    pub(super) async fn is_open(&self, session: &OpenSession) -> Opened {
        let opened = Opened::of(session);
        self.entry.opened(&opened, Arc::clone(&session.session().ledger));
        self.entry.served_by(session);
        self.entry.takes_place(session.record());
        self.metrics.session_opened(session.tunnel);
        self.entry.written_down().await;
        self.entry.stands(Standing::new(SessionState::Ready, None, None));
        opened
    }

    /// Watches over an open session until it has ended.
    pub(super) async fn until_its_end(
        &mut self,
        session: Box<OpenSession>,
        digest: Option<TokenDigest>,
    ) -> Standing {
        self.entry.shares_its_host(self.app.neighbours.look(&session));
        let (ending, token) = self.watch_over(&session, digest).await;
        let end = Box::pin(self.close(session, ending)).await;
        token
            .into_iter()
            .for_each(|token| self.events.forget_token(token));
        end
    }

    /// Until there is a reason to end it. With the token that is the session's then.
    async fn watch_over(
        &mut self,
        session: &OpenSession,
        mut token: Option<TokenDigest>,
    ) -> (Ending, Option<TokenDigest>) {
        let mut ending = self.entry.ending();
        let mut status = session.status.clone();
        let mut lost = Box::pin(session.lease_lost());
        loop {
            self.entry.stands(Standing::of(&status.borrow_and_update()));
            // After a reconnect another process serves it on its target.
            self.entry.takes_place(session.record());
            let deadline = self.deadline();
            tokio::select! {
                biased;
                ending = wished(&mut ending) => return (ending, token),
                why = &mut lost => return (Ending::LeaseLost(why), token),
                () = tokio::time::sleep_until(deadline) => {
                    if let Some(ending) = self.overdue() {
                        return (ending, token);
                    }
                }
                changed = status.changed() => {
                    if changed.is_err() {
                        return (Ending::TunnelEnded, token);
                    }
                }
                order = self.entry.next_order() => match order {
                    Order::Rotate(answer) => {
                        // A target that does not answer must not keep it from being ended.
                        let rotated = tokio::select! {
                            biased;
                            ending = wished(&mut ending) => return (ending, token),
                            rotated = Box::pin(self.rotate(session, &mut token)) => rotated,
                        };
                        // It holds all the same: whoever asked can ask again.
                        let _told = answer.send(rotated);
                    }
                },
            }
        }
    }

    /// Until it is over without anybody's word.
    pub(super) async fn out_of_time(&self) -> Ending {
        loop {
            tokio::time::sleep_until(self.deadline()).await;
            if let Some(ending) = self.overdue() {
                return ending;
            }
        }
    }

    /// When there is something to look at without anybody's word.
    fn deadline(&self) -> Instant {
        match self.silence() {
            Some(silence) => self
                .expires
                .min(together(self.entry.heard() + silence, TOGETHER.min(silence / 4))),
            None => self.expires,
        }
    }

    fn overdue(&self) -> Option<Ending> {
        let now = Instant::now();
        if now >= self.expires {
            return Some(Ending::Expired);
        }
        let silence = self.silence()?;
        (now >= self.entry.heard() + silence).then_some(Ending::HeartbeatMissed)
    }

    fn silence(&self) -> Option<Duration> {
        let misses = self.settings.load().misses;
        self.entry.kept.heartbeat.map(|heartbeat| heartbeat * misses)
    }

    async fn rotate(
        &self,
        session: &OpenSession,
        token: &mut Option<TokenDigest>,
    ) -> Result<String, RotateError> {
        if !session.can_take_token() {
            return Err(RotateError::Script(session.tunnel));
        }
        if session.session().is_ours().is_err() {
            return Err(RotateError::NotOurs);
        }
        let fresh = fresh_token().map_err(RotateError::Failed)?;
        let shown = session
            .shown(&fresh)
            .await
            .map_err(|error| RotateError::Failed(error.to_string()))?;
        let digest = fresh.digest();
        // First, so that nothing here holds a token that the gateway refuses. No waiting from here until it holds.
        session.gateway_takes(digest).await?;
        self.events.token_of(self.entry.id(), digest);
        session.session().takes_token(digest);
        self.entry.takes_token(digest);
        if let Some(before) = token.replace(digest) {
            self.events.forget_token(before);
        }
        // Before it is told: an agent that has it must not lose it with this process.
        self.entry.takes_place(session.record());
        self.entry.written_down().await;
        Ok(shown.expose().to_owned())
    }

    /// How long callbacks under way get where it ends in order.
    fn patience(&self, ending: &Ending) -> Duration {
        let settings = self.settings.load();
        match ending {
            Ending::Drained => settings.drain,
            Ending::Expired
            | Ending::Revoked
            | Ending::OwnerGone
            | Ending::HeartbeatMissed
            | Ending::TunnelEnded
            | Ending::TakenOver
            | Ending::LeaseLost(_) => settings.session_drain,
        }
    }

    /// Whether another daemon may have it by now: then nothing on its target is ours to end, unless it is over for all.
    fn is_late(&self, ending: &Ending) -> bool {
        let late = || self.entry.hold().is_some_and(|hold| hold.check().is_err());
        match ending {
            Ending::Revoked | Ending::Expired | Ending::TakenOver => false,
            Ending::OwnerGone
            | Ending::HeartbeatMissed
            | Ending::Drained
            | Ending::TunnelEnded
            | Ending::LeaseLost(_) => late(),
        }
    }

    /// Ends it in order, or cuts it first; a wish that cuts may still come while it ends.
    async fn close(&mut self, session: Box<OpenSession>, ending: Ending) -> Standing {
        let ending = if self.is_late(&ending) {
            Ending::TakenOver
        } else {
            ending
        };
        let (reason, detail) = (ending.reason(), ending.detail());
        let in_order = self.patience(&ending);
        // Whoever still waits for an order of his hears that it is over.
        self.entry.refuse_orders();
        if ending == Ending::TakenOver {
            session.abandon().await;
            return Standing::new(SessionState::Ended, Some(reason), detail).leaving();
        }
        let leaves = self.leaves && ending == Ending::Drained && session.can_be_left();
        // Before the state is told: who reads `draining` may rely on it.
        if ending.cuts() {
            session.revoke();
            self.entry.ends_for_good().await;
        }
        self.entry.stands(Standing::new(
            SessionState::Draining,
            Some(reason),
            detail.clone(),
        ));
        let behind = Arc::clone(session.session());
        let patience = if ending.cuts() {
            behind.upstream.deadlines.total + SLACK
        } else {
            in_order
        };
        let mut ending = self.entry.ending();
        let cut = async move {
            if wished_to_cut(&mut ending).await {
                behind.revoke();
            }
            std::future::pending::<()>().await;
        };
        if leaves {
            let left = Box::pin(session.leave_within(patience)).await.err();
            let detail = left.map(|left| format!("the session was not left in order: {left}"));
            return Standing::new(SessionState::Ended, Some(reason), detail).leaving();
        }
        let left = tokio::select! {
            closed = Box::pin(session.close_within(patience)) => closed.err(),
            () = cut => None,
        };
        let detail = match left {
            Some(left) => Some(format!("the session did not end cleanly: {left}")),
            None => detail,
        };
        Standing::new(SessionState::Ended, Some(reason), detail)
    }
}

/// The next of the moments that all sessions share, which lie `apart`.
fn together(at: Instant, apart: Duration) -> Instant {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = at.saturating_duration_since(*BEGIN).as_nanos();
    let over = since.checked_rem(apart.as_nanos()).unwrap_or_default();
    let wait = if over == 0 { 0 } else { apart.as_nanos() - over };
    at + Duration::from_nanos(u64::try_from(wait).unwrap_or_default())
}

/// Returns once somebody wishes that it end. Cancel safe.
pub(super) async fn wished(ending: &mut watch::Receiver<Option<Ending>>) -> Ending {
    let wish = ending.wait_for(Option::is_some).await;
    // Nobody can wish for anything any more.
    wish.ok()
        .and_then(|ending| ending.clone())
        .unwrap_or(Ending::Revoked)
}

/// The same for a wish that cuts. `false`: there will be none.
async fn wished_to_cut(ending: &mut watch::Receiver<Option<Ending>>) -> bool {
    ending
        .wait_for(|ending| ending.as_ref().is_some_and(Ending::cuts))
        .await
        .is_ok()
}

async fn open(app: &App, request: SessionRequest, check_upstream: bool) -> Result<OpenSession, NotOpened> {
    let not_opened = |reason, detail| Err(NotOpened { reason, detail });
    if let Err(error) = request.credential.get().await {
        let reason = if error.may_pass() {
            "credential_unreachable"
        } else {
            "configuration"
        };
        let error: &dyn std::error::Error = &error;
        return not_opened(
            reason,
            format!(
                "no credential for the Paperclip API: {}",
                crate::placing::with_causes(error)
            ),
        );
    }
    if check_upstream && let Err(why) = request.upstream.probe().await {
        return not_opened("upstream_unreachable", why);
    }
    app.open(request).await.map_err(NotOpened::from)
}

impl From<OpenError> for NotOpened {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Configuration(detail) => Self {
                reason: "configuration",
                detail,
            },
            OpenError::Unreachable(detail) => Self {
                reason: "target_unreachable",
                detail,
            },
            OpenError::Refused { reason, detail } => Self { reason, detail },
            lost @ OpenError::LeaseLost(_) => Self {
                reason: "lease_lost",
                detail: lost.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that this makes.
    fn size_of<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn a_session_that_only_waits_holds_no_room_for_what_it_does_once() {
        let future = size_of(Life::live);
        let entry = std::mem::size_of::<Entry>();

        // A thousand sessions are to cost 16 MiB with everything; these two are most of what is ours.
        assert!(future <= 1_536, "{future}");
        assert!(entry <= 1_536, "{entry}");
    }

    #[test]
    fn sessions_that_are_late_at_different_times_are_looked_at_in_one_moment() {
        let begin = Instant::now();
        together(begin, TOGETHER);

        let moments: std::collections::BTreeSet<Instant> = (0..1000)
            .map(|number| begin + Duration::from_millis(number * 3))
            .map(|at| {
                let moment = together(at, TOGETHER);
                assert!(at <= moment && moment < at + TOGETHER);
                moment
            })
            .collect();

        assert!(moments.len() <= 4, "{}", moments.len());
    }
}
