//! What a callback may do: the pure decision core of paperclip-bridge.
//!
//! Here: the one canonical form of a request target ([`path`]), route templates and rules ([`route`],
//! [`pack`], [`mod@file`], [`rules`]), the [`verdict`] on a callback and its explanation in words
//! ([`explain`]), header and content-type lists, sizes, Host pins, tokens and rates as values; signed requests
//! between the daemon and a Worker ([`envelope`]).
//!
//! Not here: IO, clocks, threads, randomness. Time and bytes are arguments; `no_std` makes the compiler
//! keep it so. Logging, counting and auditing a verdict is the caller's work.
//!
//! Read next: [`rules::Rules::decide`] is the function everything else serves.
//!
//! ```
//! use policy::{Ask, Pack, Rules, Target, Verdict};
//!
//! let rules = Rules::from_pack(Pack::newest());
//! let target = Target::parse(b"/api/issues/PAP-1?view=full").expect("canonical");
//! let verdict = rules.decide(&Ask { method: "GET", target: &target, now_unix: 1_790_000_000 });
//! assert!(matches!(verdict, Verdict::Allow(_)));
//! ```

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod path;
pub mod route;
pub mod rule;
pub mod pack;
pub mod file;
pub mod rules;
mod layers;
pub mod verdict;
pub mod explain;
pub mod headers;
pub mod content_type;
pub mod size;
pub mod host;
pub mod token;
pub mod envelope;
pub mod rate;
pub mod mistakes;
pub mod cases;
pub mod reference;
mod nearest;
mod reader;
mod suggest;
mod time;

pub use file::{FileLimits, PackChoice, PolicyFile};
pub use host::HostPins;
pub use mistakes::{Mistake, Mistakes};
pub use pack::Pack;
pub use path::{Target, TargetFault};
pub use rate::RateLimit;
pub use route::Template;
pub use rule::{Effect, Method, RuleView};
pub use rules::{Ask, Rules};
pub use size::Limits;
pub use token::{Token, TokenDigest};
pub use verdict::{Denial, Mode, Permit, Reason, RuleId, Ruling, Verdict};
