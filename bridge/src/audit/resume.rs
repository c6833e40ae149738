//! What an earlier process left: where the chain goes on.
//!
//! Here: [`find`], which reads from the head's segment to the end. A segment that does not hold what the head signed is
//! refused: to write on would sign what somebody has changed. What was written after the head and is not whole counts
//! for nothing; its digest goes into the next segment's first record. Not here: all that lies before the head's segment
//! (`verify/`); the chain from the head back covers it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::AuditError;
use super::folder::segment_path;
use super::head::Head;
use super::key::AuditKey;
use super::line::{Hash, hex};
use super::lines::{Ended, Lines, Link, OPENED, Opened, Piece, hash_of, signed};

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) seq: u64,
    pub(super) hash: Hash,
    /// The newest segment's number; 0 where there is none.
    pub(super) segment: u64,
    pub(super) after: Vec<Ended>,
}

pub(super) fn find(folder: &Path, key: &AuditKey, head: &Head, segments: &[u64]) -> Result<Left, AuditError> {
    let tampered = |what: String| AuditError::Tampered {
        folder: folder.to_owned(),
        what,
    };
    let head_hash = head
        .hash()
        .ok_or_else(|| tampered("the head names no hash".into()))?;
    let mut left = Left {
        seq: 0,
        hash: Hash::default(),
        segment: head.segment.saturating_sub(1),
        after: Vec::new(),
    };
    // Before the first segment the chain is known; later, its signed first record tells where it stands.
    let mut known = head.segment == 0;
    let mut reached = head.seq == 0;
    for number in segments.iter().copied().filter(|number| *number >= head.segment) {
        if number != left.segment + 1 {
            return Err(tampered(format!("segment {} is missing", left.segment + 1)));
        }
        left.segment = number;
        let path = segment_path(folder, number);
        let file = File::open(&path).map_err(|error| AuditError::io(&path, error))?;
        let mut lines = Lines::new(BufReader::new(file));
        let mut records = 0_u64;
        let rest = loop {
            let piece = lines.next().map_err(|error| AuditError::io(&path, error))?;
            let link = Link::parse(lines.line()).filter(|link| {
                piece == Piece::Line
                    && if records == 0 {
                        let opened = signed::<Opened>(key, OPENED, lines.line());
                        let first = opened.is_some_and(|opened| opened.segment == number);
                        first && (!known || (link.seq == left.seq + 1 && link.prev == left.hash))
                    } else {
                        link.seq == left.seq + 1 && link.prev == left.hash
                    }
            });
            let Some(link) = link else {
                break lines
                    .rest(Some(piece))
                    .map_err(|error| AuditError::io(&path, error))?;
            };
            left.seq = link.seq;
            left.hash = hash_of(lines.line());
            known = true;
            records += 1;
            if left.seq == head.seq {
                if left.hash != head_hash || number != head.segment {
                    return Err(tampered(format!(
                        "record {} is not the one that was signed",
                        head.seq
                    )));
                }
                reached = true;
            }
        };
        if !reached {
            return Err(tampered(format!(
                "segment {number} breaks off after record {}, and the head has signed record {}",
                left.seq, head.seq
            )));
        }
        if records > 0 {
            left.after.clear();
        }
        left.after.push(Ended {
            segment: number,
            records,
            torn_bytes: rest.bytes,
            torn_sha256: (rest.bytes > 0).then(|| hex(&rest.sha256)),
        });
    }
    if !reached {
        return Err(tampered(format!(
            "segment {} is missing, and the head has signed record {} in it",
            head.segment, head.seq
        )));
    }
    Ok(left)
}
