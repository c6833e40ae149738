//! The audit: what every callback asked, what was decided, and what became of it, so that nobody can change it unseen.
//!
//! Here: [`Audit`], which writes records in line and signs heads from a thread of its own; [`SessionAudit`], what a
//! session writes; [`verify`](fn@verify), which finds whatever was changed; [`query`] and [`export`], which read. Not
//! here: when a record is due (`callback/record.rs`), what an operator types (`cli/audit/`). `docs/audit.md` shows the
//! form of a record.
//!
//! A folder holds segments of JSON lines (`0000000001.jsonl`, …), a signed `head`, a `lock` and, unless an operator
//! names another, the `key`. Each record names the SHA-256 of the line before it; the first of each segment is signed,
//! and the head signs the newest that is on the disk. Nothing that was written is written again.

mod settings;
mod line;
mod key;
mod head;
mod folder;
mod lines;
mod writer;
mod state;
mod resume;
mod sealer;
mod retention;
mod session;
mod verify;
pub mod query;
pub mod export;

pub use head::Head;
pub use key::AuditKey;
pub use line::Line;
pub(crate) use session::{Attempt, Ended, Verdict};
pub use session::{Identities, SessionAudit};
pub use settings::{AuditError, AuditSettings, BodyDigest, Durability, OnFailure};
pub use verify::{Anchor, Finding, FindingKind, Report, Segments, Warning, verify, verify_segments};
pub use writer::{Audit, AuditCounts};

#[cfg(test)]
mod tests;
