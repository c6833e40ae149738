//! HTTP/1 as it is accepted from an agent: delimited strictly, refused where two readers could disagree.
//!
//! Here: the framing without IO, and the gate that drives it in front of hyper's HTTP/1 server; daemon and gateway use
//! the same. Not here: hyper itself, and what a target may look like: that is the caller's [`TargetJudge`].

mod framing;
mod gate;

pub use framing::{Fault, Framing, HeadLimits, HeadSeen, MAX_HEADERS, Step, TargetJudge};
pub use gate::{Gate, LINGER_BYTES, LINGER_TIME, Note, Notes, Waits};
