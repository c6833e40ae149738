//! What a session writes: its own beginning and end, and for each callback an attempt and an outcome.
//!
//! Here: [`SessionAudit`] and the members of these records. No token, credential, query value or body is among them. Not
//! here: when each is due (`callback/record.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::line::Line;
use super::settings::{AuditError, BodyDigest};
use super::writer::Audit;

/// Whom a session belongs to, as whoever opened it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// The run.
    pub run: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// The company.
    pub company: Option<String>,
    /// The issue.
    pub issue: Option<String>,
    /// The environment.
    pub environment: Option<String>,
}

/// One session's hand on the audit. Dropped, it writes the session's end, if nobody did.
#[derive(Debug)]
pub struct SessionAudit {
    audit: Arc<Audit>,
    /// The members that name the session, in an attempt and in all else.
    who: String,
    session: String,
    ended: AtomicBool,
}

/// A callback before it is dispatched.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) request_id: Uuid,
    pub(crate) method: &'a str,
    /// The template that matched.
    pub(crate) route: &'a str,
    /// Canonical, without the query; empty where there is none in canonical form.
    pub(crate) path: &'a str,
    pub(crate) verdict: Verdict<'a>,
}

/// What was decided.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict<'a> {
    Allow {
        rule: &'a str,
    },
    Deny {
        code: &'a str,
        reason: &'a str,
        /// The rule that policy names.
        rule: &'a str,
        /// By policy, else by the bridge.
        policy: bool,
    },
    /// Policy denies it, and it is let through all the same.
    Report {
        /// The rule that policy names.
        rule: &'a str,
        reason: &'a str,
    },
    /// Asked of the bridge itself.
    Own,
}

/// A callback that has ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) request_id: Uuid,
    pub(crate) status: u16,
    /// Of one of our own answers.
    pub(crate) code: &'a str,
    /// Whether the upstream gave the answer.
    pub(crate) upstream: bool,
    /// Why it did not end whole.
    pub(crate) broken: &'a str,
    pub(crate) request_bytes: u64,
    pub(crate) answer_bytes: u64,
    pub(crate) request_sha256: Option<[u8; 32]>,
    pub(crate) answer_sha256: Option<[u8; 32]>,
    pub(crate) duration_us: u64,
    /// From its arrival to its dispatch.
    pub(crate) dispatched_us: Option<u64>,
    /// From its dispatch until the upstream's answer could be passed on.
    pub(crate) upstream_us: Option<u64>,
}

impl SessionAudit {
    /// Writes that a session begins.
    ///
    /// - `target`: in the operator's words, without a secret.
    ///
    /// # Errors
    ///
    /// [`AuditError`]; the session must not begin then, unless failures are let through.
    pub fn begin(
        audit: &Arc<Audit>,
        session: Uuid,
        identities: &Identities,
        target: &str,
    ) -> Result<Arc<Self>, AuditError> {
        let Identities {
            run,
            agent,
            company,
            issue,
            environment,
        } = identities;
        let mut short = String::new();
        let mut line = Line(&mut short);
        line.text("session", &session.to_string());
        line.text_if("run", run.as_deref().unwrap_or_default());
        let mut who = short.clone();
        let mut line = Line(&mut who);
        line.text_if("agent", agent.as_deref().unwrap_or_default());
        line.text_if("company", company.as_deref().unwrap_or_default());
        line.text_if("issue", issue.as_deref().unwrap_or_default());
        line.text_if("environment", environment.as_deref().unwrap_or_default());
        let written = audit.append("session_started", |line| {
            line.members(&who);
            line.text("target", target);
        });
        match written {
            Err(error) if !audit.inner().lets_through() => return Err(error),
            Ok(_) | Err(_) => {}
        }
        Ok(Arc::new(Self {
            audit: Arc::clone(audit),
            who,
            session: short,
            ended: AtomicBool::new(false),
        }))
    }

    /// Writes that the session can be used, and by which tunnel.
    pub fn ready(&self, tunnel: &str) {
        self.event("session_ready", |line| line.text("tunnel", tunnel));
    }

    /// Writes that the token of another session, `owner`, was shown on this session's channel.
    pub fn wrong_channel(&self, owner: Uuid) {
        self.event("wrong_channel", |line| line.text("owner", &owner.to_string()));
    }

    /// Writes something else that happened to the session. `kind` is a plain word.
    pub fn event(&self, kind: &'static str, fill: impl FnOnce(&mut Line<'_>)) {
        // A failure is counted, and the next callback is refused for it.
        let _written = self.audit.append(kind, |line| {
            line.members(&self.who);
            fill(line);
        });
    }

    /// Writes that the session has ended, and why, in a plain word; only the first time.
    pub fn ends(&self, reason: &'static str) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.event("session_ended", |line| line.text("reason", reason));
        }
    }

    /// Writes what a callback asks and what is decided; the record's number.
    ///
    /// # Errors
    ///
    /// The callback must be refused. `Ok(None)` where it is not written and let through all the same.
    pub(crate) fn attempt(&self, attempt: &Attempt<'_>) -> Result<Option<u64>, AuditError> {
        let written = self.audit.append("attempt", |line| {
            line.members(&self.who);
            line.text("request_id", &attempt.request_id.to_string());
            line.text("method", attempt.method);
            line.text_if("route", attempt.route);
            line.text_if("path", attempt.path);
            match attempt.verdict {
                Verdict::Allow { rule } => {
                    line.text("verdict", "allow");
                    line.text("rule", rule);
                    line.text("decided_by", "policy");
                }
                Verdict::Deny {
                    code,
                    reason,
                    rule,
                    policy,
                } => {
                    line.text("verdict", "deny");
                    line.text_if("rule", rule);
                    line.text("code", code);
                    line.text_if("reason", reason);
                    line.text("decided_by", if policy { "policy" } else { "bridge" });
                }
                Verdict::Report { rule, reason } => {
                    line.text("verdict", "report");
                    line.text_if("rule", rule);
                    line.text("reason", reason);
                    line.text("decided_by", "policy");
                }
                Verdict::Own => {
                    line.text("verdict", "own");
                    line.text("decided_by", "bridge");
                }
            }
        });
        match written {
            Ok(seq) => Ok(Some(seq)),
            Err(_) if self.audit.inner().lets_through() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until what is promised of the attempt is true.
    ///
    /// # Errors
    ///
    /// The callback must be refused.
    pub(crate) async fn commit(&self, seq: u64, safe: bool) -> Result<(), AuditError> {
        match self.audit.commit(seq, safe).await {
            Err(error) if !self.audit.inner().lets_through() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes what became of a callback.
    pub(crate) fn outcome(&self, ended: &Ended<'_>) {
        let _written = self.audit.append("outcome", |line| {
            line.members(&self.session);
            line.text("request_id", &ended.request_id.to_string());
            line.number("status", ended.status.into());
            line.text_if("code", ended.code);
            line.text("decided_by", if ended.upstream { "upstream" } else { "bridge" });
            line.text_if("broken", ended.broken);
            line.number("request_bytes", ended.request_bytes);
            line.number("answer_bytes", ended.answer_bytes);
            if let Some(hash) = &ended.request_sha256 {
                line.hash("request_sha256", hash);
            }
            if let Some(hash) = &ended.answer_sha256 {
                line.hash("answer_sha256", hash);
            }
            line.number("duration_us", ended.duration_us);
            if let Some(time) = ended.dispatched_us {
                line.number("dispatched_us", time);
            }
            if let Some(time) = ended.upstream_us {
                line.number("upstream_us", time);
            }
        });
    }

    /// Writes what became of an unsafe callback whose caller had gone before that was known.
    pub(crate) fn settled(&self, request_id: Uuid, outcome: &str, status: Option<u16>) {
        let _written = self.audit.append("settled", |line| {
            line.members(&self.session);
            line.text("request_id", &request_id.to_string());
            line.text("outcome", outcome);
            if let Some(status) = status {
                line.number("status", status.into());
            }
        });
    }

    /// Longer bodies are not digested.
    pub(crate) fn digest_bytes(&self) -> u64 {
        self.audit.settings().body_digest_bytes
    }

    /// Whether bodies of such callbacks are to be digested.
    pub(crate) fn digests(&self, safe: bool) -> bool {
        match self.audit.settings().body_digest {
            BodyDigest::Off => false,
            BodyDigest::Unsafe => !safe,
            BodyDigest::All => true,
        }
    }
}

impl Drop for SessionAudit {
    fn drop(&mut self) {
        self.ends("dropped");
    }
}
