//! What a callback leaves in the audit, where there is one.
//!
//! Here: [`Trail`], which writes the attempt once and the outcome once, and the digests of bodies up to a size. Not here:
//! the form of the records (`audit/session.rs`), when each is due (`record.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::{Denial, RuleId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::forward::is_safe;
use super::refusal::Refusal;
use super::throttle::{Admitted, Payload};
use crate::audit::{Attempt, Ended, SessionAudit, Verdict};
use crate::session::Session;
use crate::session::ledger::Outcome;

const REFUSED: Refusal = Refusal::Unavailable {
    why: "the bridge cannot write its audit log at the moment; nothing was sent",
};

/// One callback's hand on the audit.
#[derive(Debug)]
pub(super) struct Trail {
    hand: Arc<SessionAudit>,
    /// The attempt's record, once it is written.
    attempt: Option<u64>,
    /// The attempt was written, or let through unwritten.
    begun: bool,
    denied_by: Option<RuleId>,
    request_bytes: u64,
    request: Option<Tap>,
    answer: Option<BodyDigest>,
    dispatched: Option<Instant>,
    unsafe_dispatched: bool,
    replied: Option<Instant>,
    upstream: bool,
}

/// What the audit has promised of an attempt and not kept yet.
#[derive(Debug)]
pub(crate) struct Confirmation {
    hand: Arc<SessionAudit>,
    seq: u64,
    safe: bool,
}

impl Confirmation {
    /// It is kept when this returns.
    ///
    /// # Errors
    ///
    /// It cannot be; nothing may be sent.
    pub(super) async fn wait(self) -> Result<(), Refusal> {
        let kept = self.hand.commit(self.seq, self.safe).await;
        kept.map_err(|_| REFUSED)
    }
}

/// What the record knows of a callback and its trail does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) request_id: Uuid,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
}

/// What the record knows of its end.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) status: u16,
    pub(super) code: &'a str,
    pub(super) broken: &'a str,
    pub(super) answer_bytes: u64,
    pub(super) began: Instant,
}

impl Trail {
    pub(super) fn of(session: &Session) -> Option<Box<Self>> {
        let hand = Arc::clone(session.audit.as_ref()?);
        Some(Box::new(Self {
            hand,
            attempt: None,
            begun: false,
            denied_by: None,
            request_bytes: 0,
            request: None,
            answer: None,
            dispatched: None,
            unsafe_dispatched: false,
            replied: None,
            upstream: false,
        }))
    }

    pub(super) fn allowed(&mut self, told: Told<'_>, rule: &str, route: &str) -> Result<(), Refusal> {
        self.begin(told, route, Verdict::Allow { rule })
    }

    pub(super) fn reported(&mut self, told: Told<'_>, route: &str, denial: &Denial) -> Result<(), Refusal> {
        let reason = denial.reason.to_string();
        let verdict = Verdict::Report {
            rule: denial.rule.as_ref().map_or("", RuleId::as_str),
            reason: &reason,
        };
        self.begin(told, route, verdict)
    }

    pub(super) fn own(&mut self, told: Told<'_>) -> Result<(), Refusal> {
        self.begin(told, "", Verdict::Own)
    }

    pub(super) fn denied_by(&mut self, rule: Option<&RuleId>) {
        self.denied_by = rule.cloned();
    }

    /// A refusal is what it is, also where it cannot be written down: nothing was sent.
    pub(super) fn refused(&mut self, told: Told<'_>, refusal: &Refusal) {
        self.upstream = refusal.is_the_upstreams();
        if self.begun {
            return;
        }
        let reason = refusal.reason();
        let rule = self.denied_by.take();
        let verdict = Verdict::Deny {
            code: refusal.code(),
            reason: &reason,
            rule: rule.as_ref().map_or("", RuleId::as_str),
            policy: refusal.is_policys(),
        };
        let _unwritten = self.begin(told, "", verdict);
    }

    fn begin(&mut self, told: Told<'_>, route: &str, verdict: Verdict<'_>) -> Result<(), Refusal> {
        let attempt = Attempt {
            request_id: told.request_id,
            method: told.method,
            route,
            path: told.path,
            verdict,
        };
        match self.hand.attempt(&attempt) {
            Ok(seq) => {
                self.attempt = seq;
                self.begun = true;
                Ok(())
            }
            Err(_) => Err(REFUSED),
        }
    }

    /// Right before the dispatch: what the audit promises of its record is true when this returns.
    ///
    /// For an unsafe callback that is left to [`Confirmation`]: it waits for the disk beside the ledger.
    pub(super) async fn dispatches(&mut self, admitted: &mut Admitted) -> Result<(), Refusal> {
        let safe = is_safe(&admitted.request.method);
        let digests = self.hand.digests(safe);
        let most_bytes = self.hand.digest_bytes();
        match &admitted.payload {
            Payload::None => {}
            Payload::Held(bytes) => {
                self.request_bytes = bytes.len() as u64;
                let tap = digests.then(|| Tap::of(most_bytes));
                self.request = tap.inspect(|tap| tap.add(bytes));
            }
            Payload::Declared(control, length) => {
                self.request_bytes = *length;
                if digests && *length <= most_bytes {
                    let tap = Tap::of(most_bytes);
                    control.tapped_by(tap.clone());
                    self.request = Some(tap);
                }
            }
        }
        self.answer = digests.then(|| BodyDigest::of(most_bytes));
        if let Some(seq) = self.attempt {
            let confirmation = Confirmation {
                hand: Arc::clone(&self.hand),
                seq,
                safe,
            };
            if safe {
                confirmation.wait().await?;
            } else {
                admitted.confirmation = Some(confirmation);
            }
        }
        self.dispatched = Some(Instant::now());
        self.unsafe_dispatched = !safe;
        Ok(())
    }

    /// The dispatch has come back, with the upstream's answer or without.
    pub(super) fn replied(&mut self, upstream: bool) {
        self.replied = Some(Instant::now());
        self.upstream = upstream;
    }

    /// A piece of the answer's body.
    pub(super) fn passes(&mut self, data: &[u8]) {
        if let Some(digest) = &mut self.answer {
            digest.add(data);
        }
    }

    pub(super) fn ended(self, told: Told<'_>, end: &End<'_>, session: &Session) {
        let since = |from: Instant, to: Instant| micros(to.saturating_duration_since(from));
        let whole = end.broken.is_empty() && self.upstream;
        self.hand.outcome(&Ended {
            request_id: told.request_id,
            status: end.status,
            code: end.code,
            upstream: self.upstream,
            broken: end.broken,
            request_bytes: self.request_bytes,
            answer_bytes: end.answer_bytes,
            request_sha256: self.request.as_ref().and_then(Tap::digest),
            answer_sha256: self.answer.filter(|_| whole).and_then(BodyDigest::finish),
            duration_us: since(end.began, Instant::now()),
            dispatched_us: self.dispatched.map(|at| since(end.began, at)),
            upstream_us: self
                .dispatched
                .zip(self.replied)
                .map(|(sent, back)| since(sent, back)),
        });
        if self.unsafe_dispatched && self.replied.is_none() {
            // It may still run. Whoever comes second, here or where it ends, sees what the other left.
            session.delivers(told.request_id, false);
            settled(session, &self.hand, told.request_id);
        }
    }
}

/// The outcome of an unsafe callback is known: written down where its caller has gone before that.
pub(super) fn settled_late(session: &Session, request_id: Uuid) {
    if let Some(hand) = &session.audit {
        settled(session, hand, request_id);
    }
}

fn settled(session: &Session, hand: &SessionAudit, request_id: Uuid) {
    let mut text = Uuid::encode_buffer();
    let id = request_id.hyphenated().encode_lower(&mut text);
    let Some(entry) = session
        .ledger
        .look_up(id)
        .filter(|entry| entry.delivered == Some(false))
    else {
        return;
    };
    match entry.outcome {
        Outcome::InFlight => {}
        Outcome::Answered { status } => hand.settled(request_id, "answered", Some(status)),
        Outcome::NotSent => hand.settled(request_id, "not_sent", None),
        Outcome::Indeterminate { .. } => hand.settled(request_id, "indeterminate", None),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The digest of a body that others send.
#[derive(Clone, Debug)]
pub(super) struct Tap(Arc<Mutex<BodyDigest>>);

impl Tap {
    fn of(most_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(BodyDigest::of(most_bytes))))
    }

    pub(super) fn add(&self, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(data);
    }

    fn digest(&self) -> Option<[u8; 32]> {
        let digest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        digest.clone().finish()
    }
}

/// A SHA-256 of a body that is not too long for one.
#[derive(Clone, Debug)]
pub(super) struct BodyDigest {
    hash: Sha256,
    bytes: u64,
    most_bytes: u64,
}

impl BodyDigest {
    fn of(most_bytes: u64) -> Self {
        Self {
            hash: Sha256::default(),
            bytes: 0,
            most_bytes,
        }
    }

    fn add(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if self.bytes <= self.most_bytes {
            self.hash.update(data);
        }
    }

    /// `None` for an empty body, and for one that is too long.
    fn finish(self) -> Option<[u8; 32]> {
        (self.bytes > 0 && self.bytes <= self.most_bytes).then(|| self.hash.finalize().into())
    }
}
