//! The seam by which a daemon hears what happens in its sessions.
//!
//! Here: [`Observer`], which is told and has no say. Not here: verdicts (`policy`), what a daemon makes of it (`daemon/`).

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

/// One callback that has ended, as the log has it: no query, no body, no secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) session: Uuid,
    pub(crate) run_id: &'a str,
    pub(crate) request_id: Uuid,
    pub(crate) method: &'a str,
    /// Canonical; empty where none could be read.
    pub(crate) path: &'a str,
    /// Empty where none allowed it.
    pub(crate) rule: &'a str,
    /// `allow`, `deny`, `report` where it is denied and let through, or `own` where it was asked of the bridge itself.
    pub(crate) verdict: &'static str,
    /// 0 where the caller had gone before one was known.
    pub(crate) status: u16,
    /// Of one of our own answers, else empty.
    pub(crate) code: &'static str,
    pub(crate) answer_bytes: u64,
    pub(crate) duration: Duration,
}

/// Is told; called in line with the callback, so that it returns at once and never blocks.
pub(crate) trait Observer: fmt::Debug + Send + Sync {
    /// A callback has ended.
    fn callback(&self, seen: Seen<'_>);

    /// A token that is not this session's was shown on its channel; the session whose it is, if it is one's.
    fn wrong_token(&self, session: Uuid, presented: &[u8]) -> Option<Uuid>;
}
