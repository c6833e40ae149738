//! Removing old segments.
//!
//! Here: [`pass`], at each start and each new segment: what is too old, or too much, is named in a signed record, and
//! removed once a head has signed that. `verify` so tells a segment that was removed in order from one that is missing.
//! Oldest first, so one record stands for all before it.

use std::fs::File;
use std::io::BufReader;
use std::ops::RangeInclusive;
use std::time::SystemTime;

use super::AuditError;
use super::folder::{segment_path, segments};
use super::line::{Hash, hex};
use super::lines::{Lines, Link, Piece, REMOVED};
use super::state::{Inner, State};

/// What fails here is said in the log and tried again with the next segment.
pub(super) fn pass(inner: &Inner, state: &mut State) {
    if let Err(error) = remove(inner, state) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "old segments of the audit are not removed"
        );
    }
}

fn remove(inner: &Inner, state: &mut State) -> Result<(), AuditError> {
    let settings = &inner.settings;
    if settings.keep_age.is_none() && settings.keep_bytes.is_none() {
        return Ok(());
    }
    let now = SystemTime::now();
    let mut old = Vec::new();
    let mut total = 0_u64;
    for number in segments(&settings.folder)? {
        let path = segment_path(&settings.folder, number);
        if state.doomed.contains(&path) || number >= state.segment {
            continue;
        }
        let seen = std::fs::metadata(&path).map_err(|error| AuditError::io(&path, error))?;
        let ended = seen.modified().map_err(|error| AuditError::io(&path, error))?;
        total = total.saturating_add(seen.len());
        old.push((
            number,
            path,
            seen.len(),
            now.duration_since(ended).unwrap_or_default(),
        ));
    }
    for (number, path, bytes, age) in old {
        let why = if settings.keep_age.is_some_and(|keep| age > keep) {
            "age"
        } else if settings.keep_bytes.is_some_and(|keep| total > keep) {
            "bytes"
        } else {
            break;
        };
        let (seq, prev) = first_link(inner, number + 1..=state.segment)?;
        inner.write(state, REMOVED, Some(REMOVED), |line| {
            line.number("segment", number);
            line.number("last_seq", seq.saturating_sub(1));
            line.hash("last_hash", &prev);
            line.number("bytes", bytes);
            line.text("reason", why);
        })?;
        tracing::info!(
            segment = number,
            reason = why,
            last_hash = hex(&prev),
            "a segment of the audit is removed"
        );
        total = total.saturating_sub(bytes);
        state.doomed_through = state.seq;
        state.doomed.push(path);
    }
    Ok(())
}

/// Number and predecessor of the first record in these segments; a killed process may have left one without any.
fn first_link(inner: &Inner, numbers: RangeInclusive<u64>) -> Result<(u64, Hash), AuditError> {
    for number in numbers {
        let path = segment_path(&inner.settings.folder, number);
        let fault = |error| AuditError::io(&path, error);
        let mut lines = Lines::new(BufReader::new(File::open(&path).map_err(fault)?));
        let piece = lines.next().map_err(fault)?;
        if let Some(link) = Link::parse(lines.line()).filter(|_| piece == Piece::Line) {
            return Ok((link.seq, link.prev));
        }
    }
    Err(AuditError::Folder(
        "no segment after the oldest holds a record".into(),
    ))
}
