//! A signed event stream, cut into what its signatures cover.
//!
//! Here: [`SignedStream`], which takes a stream's bytes apart into events as the Worker writes them, and checks the
//! signatures of its parts and of its end. Not here: what events mean (`follow`).
//!
//! What is signed is bytes, so there is one reading of them only: an event ends with an empty line, and lines end with a
//! line feed. A carriage return, which the Worker never writes, could hide an event from the count and is refused.

use sha2::{Digest as _, Sha256};

use super::demand::Demand;

/// Follows the signatures of one stream.
#[derive(Debug)]
pub(super) struct SignedStream {
    demand: Demand,
    content_type: String,
    whole: Sums,
    part: Sums,
    parts: u64,
    line_end: bool,
}

/// SHA-256 of bytes so far, and of those in front of the event that has begun.
#[derive(Debug, Default)]
struct Sums {
    now: Sha256,
    before_event: Sha256,
}

impl SignedStream {
    pub(super) fn new(demand: Demand, content_type: String) -> Self {
        Self {
            demand,
            content_type,
            whole: Sums::default(),
            part: Sums::default(),
            parts: 0,
            line_end: false,
        }
    }

    /// The bytes of at most one event from the front of `bytes`, whether it ends there, and the rest.
    ///
    /// # Errors
    ///
    /// A byte that the Worker never writes.
    pub(super) fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<(&'a [u8], bool, &'a [u8]), String> {
        let mut ends = false;
        let mut count = 0;
        for byte in bytes {
            count += 1;
            if *byte == b'\r' {
                return Err("its events hold a carriage return, which the Worker never writes".to_owned());
            }
            ends = *byte == b'\n' && self.line_end;
            self.line_end = *byte == b'\n' && !ends;
            if ends {
                break;
            }
        }
        let (event, rest) = bytes.split_at(count);
        self.whole.now.update(event);
        self.part.now.update(event);
        Ok((event, ends, rest))
    }

    /// The event that began is over and was no signature.
    pub(super) fn pass(&mut self) {
        self.whole.before_event = self.whole.now.clone();
        self.part.before_event = self.part.now.clone();
    }

    /// Checks the signature of a part; the event with it has just ended.
    pub(super) fn is_part(&mut self, presented: &str) -> bool {
        self.parts += 1;
        let digest = std::mem::take(&mut self.part).before_event.finalize();
        self.demand.is_met(
            200,
            &self.content_type,
            Some(self.parts),
            digest.into(),
            presented,
        )
    }

    /// Checks the signature in the last event.
    pub(super) fn is_end(&self, presented: &str) -> bool {
        let digest = self.whole.before_event.clone().finalize();
        self.demand
            .is_met(200, &self.content_type, None, digest.into(), presented)
    }

    /// A stream without signatures counts all the same.
    pub(super) fn is_lenient(&self) -> bool {
        self.demand.lenient
    }

    /// No part of it was signed yet.
    pub(super) fn is_silent(&self) -> bool {
        self.parts == 0
    }
}
