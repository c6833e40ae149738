//! One stream of a command's events: what of it is signed, and when it may be left.
//!
//! Here: [`Stream`], which holds what earlier streams of the same command brought against this one, and waits for
//! signatures. Not here: what the events do (`follow`), what a signature covers (`signed`).

use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::exec::CLOSE_LIMIT;
use super::follow::Unfinished;
use super::signed::SignedStream;

/// The Worker says something at least that often.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long the signature of an ended command's output may take beyond [`CLOSE_LIMIT`]; the Worker gives two a second.
const PROOF_LIMIT: Duration = Duration::from_secs(10);

/// What was taken of one output.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) bytes: usize,
    sum: Sha256,
}

/// One stream of a command's events.
pub(super) struct Stream {
    /// Absent where nothing is signed.
    pub(super) signed: Option<SignedStream>,
    /// What earlier streams of the same command brought, and what of it this one has brought again.
    earlier: [Taken; 2],
    pub(super) again: [Taken; 2],
    /// Bytes of each output in this stream.
    pub(super) seen: [usize; 2],
    /// What the last event will say, under its signature.
    pub(super) told: Option<Told>,
    /// When it was known that the command has ended, though something may still hold its output.
    pub(super) ended: Option<Instant>,
    /// All output so far is signed.
    pub(super) rests: bool,
}

/// The data of the event in front of the last one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    event: String,
    pub(super) exit_code: Option<i32>,
    #[serde(default)]
    pub(super) timed_out: bool,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    pub(super) code: String,
}

/// The signature in an event.
#[derive(Deserialize)]
struct Signature {
    signature: Option<String>,
}

impl Taken {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.sum.update(bytes);
    }

    fn is(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.sum.clone().finalize() == other.sum.clone().finalize()
    }
}

impl Stream {
    /// - `earlier`: what earlier streams of the same command brought.
    pub(super) fn new(signed: Option<SignedStream>, earlier: &[Taken; 2]) -> Self {
        Self {
            signed,
            earlier: earlier.clone(),
            again: Default::default(),
            seen: [0; 2],
            told: None,
            ended: None,
            rests: true,
        }
    }

    /// Without a word until then it is given up.
    pub(super) fn silent_until(&self) -> Instant {
        match self.ended {
            None => Instant::now() + SILENCE,
            Some(ended) if self.may_conclude() => ended + CLOSE_LIMIT,
            Some(ended) => ended + CLOSE_LIMIT + PROOF_LIMIT,
        }
    }

    pub(super) fn closing_is_over(&self) -> bool {
        self.ended
            .is_some_and(|ended| Instant::now() >= ended + CLOSE_LIMIT)
    }

    /// That the command has ended is known, and signed where that is demanded.
    pub(super) fn may_conclude(&self) -> bool {
        let needs_none = |signed: &SignedStream| signed.is_lenient() && signed.is_silent();
        self.ended.is_some()
            && (self.signed.as_ref().is_none_or(needs_none) || (self.rests && self.repeats_earlier()))
    }

    /// What earlier streams brought was unsigned when they broke off; a signed one vouches for it by bringing it again.
    fn repeats_earlier(&self) -> bool {
        self.again
            .iter()
            .zip(&self.earlier)
            .all(|(again, earlier)| again.is(earlier))
    }

    pub(super) fn part(&mut self, data: &[u8]) -> Result<(), Unfinished> {
        let Some(signed) = &mut self.signed else {
            return Ok(());
        };
        let presented = signature(data);
        self.rests = presented.is_some_and(|presented| signed.is_part(&presented));
        self.rests.then_some(()).ok_or_else(not_signed)
    }

    /// What the event called `name`, the last one, says under its signature; `None` where none is demanded.
    pub(super) fn proven(&mut self, name: &str, data: &[u8]) -> Result<Option<Told>, Unfinished> {
        let Some(signed) = &self.signed else {
            return Ok(None);
        };
        let presented = signature(data);
        if presented.is_none() && signed.is_lenient() && signed.is_silent() {
            return Ok(None);
        }
        let met = presented.is_some_and(|presented| signed.is_end(&presented)) && self.repeats_earlier();
        match self.told.take() {
            Some(told) if met && told.event == name => Ok(Some(told)),
            Some(_) | None => Err(not_signed()),
        }
    }
}

/// Why nothing of the stream counts.
pub(super) fn not_signed() -> Unfinished {
    Unfinished::Unproven(
        "a command's events are not signed with signingKey: something on the way changed them, or plays the Worker"
            .to_owned(),
    )
}

/// The signature in an event's data; the last event may have been cut, and holds it in front.
fn signature(data: &[u8]) -> Option<String> {
    if let Ok(Signature { signature }) = serde_json::from_slice(data) {
        return signature;
    }
    let rest = data.strip_prefix(br#"{"signature":""#)?;
    let end = rest.iter().take(256).position(|byte| *byte == b'"')?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}
