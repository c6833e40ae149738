//! How sessions of an earlier process come back.
//!
//! Here: [`Daemon::bring_back`], and the life of a session until its agent can call again at the very place that it
//! knows: the same name, token, port or socket, or none. One that had no place yet is opened as it was asked for. Not here: who wrote the sessions down, and what became of
//! callbacks that were under way; what is done on a target (`placing/`, the tunnels). Read next: `life`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use policy::TokenDigest;
use runners::ssh::Backoff;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::asked::Understood;
use super::entry::Entry;
use super::holding::Left;
use super::life::{Life, NotOpened, wished};
use super::state::{Ending, SessionState, Standing};
use super::{CreateError, Daemon};
use crate::app::{
    GatewayChoice, GivenToken, Named, OpenSession, SessionRecord, SessionRequest, TunnelChoice,
};
use crate::leases::LeaseBook;
use crate::session::state::unhex;

/// Sessions that are being opened at the same moment; each has its connection and a few commands under way.
pub(super) const AT_ONCE: usize = 256;
/// Why a session is starting that an earlier process had, or why it has ended.
const RESTARTED: &str = "restarted";
/// What ended while nobody was there gets so long to be cleared away.
const CLEARING: Duration = Duration::from_secs(60);

impl Daemon {
    /// Takes sessions of an earlier process up again, each by a task of its own that opens it as soon as it can.
    ///
    /// They are `starting`, reason `restarted`, and count as heard of now. What the configuration says today holds for
    /// them. A session that had not been open yet is opened from what it was asked to be, where its token is known already.
    pub(crate) fn bring_back(self: &Arc<Self>, sessions: Vec<Left>) {
        // All of them before any is opened, so that nobody gives back what another one stands on.
        for lease in sessions
            .iter()
            .filter_map(|left| left.kept.place.as_ref()?.lease.as_ref())
        {
            self.app.leases.spared.spare(&lease.provider, &lease.id);
        }
        for Left { kept, .. } in &sessions {
            if let Some(place) = &kept.place {
                let _reserved = self.place_again(kept.session, place);
            }
        }
        for left in sessions {
            self.bring_one_back(left);
        }
    }

    fn bring_one_back(self: &Arc<Self>, Left { kept, hold, revoked }: Left) {
        let (id, place) = (kept.session, kept.place.clone());
        let digest = unhex(&kept.token_sha256)
            .or_else(|| place.as_ref()?.digest())
            .map(TokenDigest::from_bytes);
        let back = match (place, digest) {
            (Some(place), Some(digest)) => Back::To(Box::new(place), digest),
            (None, Some(digest)) if kept.shown => Back::ToItsBeginning(digest),
            (Some(_) | None, _) => Back::Never,
        };
        // One that nobody shows, where there is none.
        let digest = digest.unwrap_or_else(|| TokenDigest::from_bytes([0; 32]));
        let left = kept.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let entry = Entry::new(kept, Arc::clone(&self.events), hold, digest, Some(RESTARTED));
        {
            let mut table = self.table();
            // It was lost here before, and is ours again.
            table.ended.retain(|(_, before)| before.id() != id);
            table.living.insert(id, Arc::clone(&entry));
        }
        if let Some(holding) = &self.holding {
            holding.holds(&entry);
        }
        if revoked {
            entry.end(Ending::Revoked);
        } else if self.is_draining() {
            entry.end(Ending::Drained);
        }
        if !matches!(back, Back::Never) {
            self.events.token_of(id, digest);
        }
        let life = Life {
            app: Arc::clone(&self.app),
            entry,
            events: Arc::clone(&self.events),
            metrics: Arc::clone(&self.metrics),
            leaves: self.settings().keeps_sessions,
            settings: Arc::clone(&self.settings),
            expires: Instant::now() + left,
        };
        let daemon = Arc::clone(self);
        self.lives.spawn(async move {
            match back {
                Back::To(place, digest) => Box::pin(life.come_back(&daemon, *place, digest)).await,
                Back::ToItsBeginning(digest) => life.begin_again(&daemon, digest).await,
                Back::Never => {
                    life.over(Standing::new(
                        SessionState::Ended,
                        Some(RESTARTED),
                        Some(NOBODY_KNOWS.to_owned()),
                    ));
                    daemon.give_leases_back();
                }
            }
            daemon.over(id);
        });
    }

    /// What the session is asked to be, by the configuration of now.
    async fn asked_again(&self, entry: &Entry) -> Result<Understood, NotOpened> {
        let kept = &entry.kept;
        let understood = self.understood(&kept.asked).await;
        let mut understood = understood.map_err(|error| NotOpened {
            reason: "configuration",
            detail: told(error),
        })?;
        let request = &mut understood.request;
        request.run_id.clone_from(&kept.run_id);
        request.whose = kept.asked.whose();
        request.hold = entry.hold().cloned();
        Ok(understood)
    }

    /// The same for one that has a place.
    async fn asked_back(&self, entry: &Entry, place: &SessionRecord) -> Result<SessionRequest, NotOpened> {
        let Understood { mut request, .. } = self.asked_again(entry).await?;
        request.returns = Some(place.clone());
        request.passed = self.place_again(entry.id(), place);
        Ok(request)
    }

    /// A session that never was may have left its lease in the book.
    fn give_leases_back(&self) {
        match LeaseBook::existing(&self.settings().state_dir) {
            Ok(Some(book)) => self.app.reap(&book, &self.secrets),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the book of leases cannot be looked through"),
        }
    }
}

/// What an earlier process left of a session.
#[derive(Debug)]
enum Back {
    /// It was open.
    To(Box<SessionRecord>, TokenDigest),
    /// It was being opened, and its agent may have its token.
    ToItsBeginning(TokenDigest),
    /// It was being opened for somebody who was to be told its token once it is open.
    Never,
}

/// Why such a session is not opened again.
const NOBODY_KNOWS: &str = "it was not open yet when the daemon ended, and its token had not been shown to anybody; make \
                            a new one";

impl Life {
    /// Opens it as it was asked for, once, and ends when it has ended.
    async fn begin_again(self, daemon: &Arc<Daemon>, digest: TokenDigest) {
        let turn = daemon.returning.acquire().await.ok();
        let Understood {
            mut request,
            check_upstream,
            ..
        } = match daemon.asked_again(&self.entry).await {
            Ok(understood) => understood,
            Err(why) => {
                self.events.forget_token(digest);
                return self.over(Standing::new(
                    SessionState::Ended,
                    Some(why.reason),
                    Some(why.detail),
                ));
            }
        };
        if needs_the_token(&request) {
            self.events.forget_token(digest);
            return self.over(Standing::new(
                SessionState::Ended,
                Some(RESTARTED),
                Some(SCRIPT_NEEDS_IT.to_owned()),
            ));
        }
        request.named = Some(Named {
            id: self.entry.id(),
            token: GivenToken::Digest(digest),
        });
        daemon.place_for_agent(self.entry.id(), &mut request);
        // Whoever asked for it was told at once.
        let (nobody, _) = oneshot::channel();
        Box::pin(self.live(Box::new(request), check_upstream, turn, nobody)).await;
    }

    /// Opens it at its place as soon as that can be had, and ends when it has ended.
    async fn come_back(mut self, daemon: &Arc<Daemon>, place: SessionRecord, digest: TokenDigest) {
        let end = match Box::pin(self.until_back(daemon, &place)).await {
            Ok(session) => {
                if let Some(lease) = &place.lease {
                    // Its task has it, so that no reaper can.
                    self.app.leases.spared.forget(&lease.provider, &lease.id);
                }
                Box::pin(self.is_open(&session)).await;
                tracing::info!(session = %session.id, tunnel = session.tunnel, "a session of an earlier process is back");
                self.until_its_end(session, Some(digest)).await
            }
            Err(end) => {
                self.events.forget_token(digest);
                if end.is_over_for_good() {
                    Box::pin(self.clear(daemon, &place)).await;
                }
                end
            }
        };
        self.over(end);
    }

    /// Tries until it is open, or how it ended before.
    async fn until_back(
        &self,
        daemon: &Arc<Daemon>,
        place: &SessionRecord,
    ) -> Result<Box<OpenSession>, Standing> {
        let mut ending = self.entry.ending();
        let over = async {
            tokio::select! {
                biased;
                ending = wished(&mut ending) => ending,
                ending = self.out_of_time() => ending,
            }
        };
        tokio::pin!(over);
        let mut backoff = Backoff::default();
        loop {
            // Boxed: opening is by far the largest future here, and is gone once it is done.
            let tried = tokio::select! {
                biased;
                ending = &mut over => return Err(self.not_back(&ending)),
                tried = Box::pin(self.try_again(daemon, place)) => tried,
            };
            let why = match tried {
                Ok(session) => return Ok(Box::new(session)),
                Err(why) => why,
            };
            if matches!(why.reason, "token_not_kept" | "lease_lost") {
                return Err(Standing::new(
                    SessionState::Ended,
                    Some(why.reason),
                    Some(why.detail),
                ));
            }
            let state = match why.reason {
                "target_unreachable" => SessionState::Reconnecting,
                _ => SessionState::Degraded,
            };
            tracing::debug!(
                session = %self.entry.id(),
                reason = why.reason,
                detail = why.detail,
                "a session of an earlier process is not back yet"
            );
            self.entry
                .stands(Standing::new(state, Some(why.reason), Some(why.detail)));
            tokio::select! {
                biased;
                ending = &mut over => return Err(self.not_back(&ending)),
                () = tokio::time::sleep(backoff.next_jittered()) => {}
            }
        }
    }

    async fn try_again(&self, daemon: &Daemon, place: &SessionRecord) -> Result<OpenSession, NotOpened> {
        let _turn = daemon.returning.acquire().await;
        let request = daemon.asked_back(&self.entry, place).await?;
        // Neither the credential nor the Paperclip API is asked for first: an agent is told of them by each answer.
        Ok(self.app.open(request).await?)
    }

    fn not_back(&self, ending: &Ending) -> Standing {
        let end = Standing::new(SessionState::Ended, Some(ending.reason()), ending.detail());
        if *ending == Ending::TakenOver || self.leaves && *ending == Ending::Drained {
            return end.leaving();
        }
        end
    }

    /// What it left on its target is nobody's any more.
    async fn clear(&self, daemon: &Arc<Daemon>, place: &SessionRecord) {
        let cleared = async {
            match daemon.asked_back(&self.entry, place).await {
                Ok(request) => Box::pin(self.app.clear_left(request, place)).await,
                Err(why) => {
                    tracing::warn!(session = %place.session, detail = why.detail, "what a session left on its target ends by itself");
                }
            }
        };
        if tokio::time::timeout(CLEARING, cleared).await.is_err() {
            tracing::warn!(session = %place.session, "what a session left on its target could not be cleared away in time");
        }
    }
}

/// Whether only a gateway serves it that must be told the token itself.
fn needs_the_token(request: &SessionRequest) -> bool {
    let script = matches!(request.gateway, GatewayChoice::Script(_));
    script && matches!(request.tunnel, TunnelChoice::Http2 | TunnelChoice::Queue)
}

/// Why such a session is not opened again.
const SCRIPT_NEEDS_IT: &str = "it was not open yet when the daemon ended, and its gateway is a script, which needs the \
                               token itself; only its digest was kept, so make a new one";

/// Everything that is wrong, in one line.
fn told(error: CreateError) -> String {
    match error {
        CreateError::Mistakes(mistakes) => mistakes
            .into_iter()
            .map(|mistake| match mistake.field.as_str() {
                "" => mistake.detail,
                field => format!("{field}: {}", mistake.detail),
            })
            .collect::<Vec<_>>()
            .join("; "),
        error @ (CreateError::Reserved(_)
        | CreateError::Draining
        | CreateError::Full(_)
        | CreateError::Unwritten(_)
        | CreateError::Failed(_)) => error.to_string(),
    }
}
