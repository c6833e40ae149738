//! The walk along the chain, from the first record that is there to the last.
//!
//! Here: [`Walk`]. A record whose `prev` does not fit leaves two in doubt, itself and the one before; the next record
//! tells which. Not here: its two ends (`ends.rs`). After a finding the walk goes on from the record it stands at, so that one change is one finding.

use super::{Anchor, FindingKind, Place, Report, Segments, unreadable};
use crate::audit::head::Head;
use crate::audit::key::AuditKey;
use crate::audit::line::{Hash, hex, parse_hash};
use crate::audit::lines::{Ended, Lines, Link, OPENED, Opened, Piece, REMOVED, Removed, hash_of, signed};
use crate::audit::settings::AuditError;

pub(super) struct Walk<'a> {
    key: &'a AuditKey,
    pub(super) head: Option<&'a Head>,
    pub(super) anchor: Option<&'a Anchor>,
    pub(super) report: Report,
    /// The newest record of the chain so far.
    pub(super) last: Option<At>,
    /// The record that stands right before; where it fits into the chain, that is `last`.
    doubt: Option<Doubt>,
    /// Numbers that were passed over: from, and up to but without.
    pub(super) gaps: Vec<(u64, u64, Place)>,
    /// The oldest segment that is there.
    pub(super) first_segment: Option<u64>,
    /// Number and predecessor of the first record that is there.
    pub(super) first: Option<(u64, Hash)>,
    /// Segments that were removed in order: the last of each, with its last record.
    pub(super) removed: Vec<(u64, u64, Hash)>,
    /// What was found where the head and the anchor point to.
    pub(super) at_head: Option<Hash>,
    pub(super) at_anchor: Option<Hash>,
}

/// A record of the chain.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) seq: u64,
    pub(super) hash: Hash,
    pub(super) place: Place,
    /// Already said to be wrong: the next one's `prev` will not fit.
    wrong: bool,
}

/// A record does not name the one before.
pub(super) struct Doubt {
    before: Place,
    this: Place,
    hash: Hash,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        key: &'a AuditKey,
        head: Option<&'a Head>,
        anchor: Option<&'a Anchor>,
        report: Report,
    ) -> Self {
        Self {
            key,
            head,
            anchor,
            report,
            last: None,
            doubt: None,
            gaps: Vec::new(),
            first_segment: None,
            first: None,
            removed: Vec::new(),
            at_head: None,
            at_anchor: None,
        }
    }

    pub(super) fn all(&mut self, segments: &dyn Segments, numbers: &[u64]) -> Result<(), AuditError> {
        let mut declared: Vec<Ended> = Vec::new();
        for number in numbers {
            let mut lines = Lines::new(
                segments
                    .open(*number)
                    .map_err(|error| unreadable(*number, error))?,
            );
            let piece = lines.next().map_err(|error| unreadable(*number, error))?;
            if piece == Piece::Line
                && let Some(opened) = signed::<Opened>(self.key, OPENED, lines.line())
            {
                declared.extend(opened.after);
            }
        }
        self.first_segment = numbers.first().copied();
        let mut before: Option<u64> = None;
        for number in numbers.iter().copied() {
            if let Some(missing) = before.map(|before| before + 1).filter(|next| *next < number) {
                let what = if missing + 1 == number {
                    format!("segment {missing} is missing")
                } else {
                    format!("segments {missing} to {} are missing", number - 1)
                };
                let place = Place {
                    segment: Some(missing),
                    ..Place::default()
                };
                self.report.find(FindingKind::SegmentMissing, place, what);
                // What was in it is missing with it.
                self.settle(None);
                self.last = None;
            }
            before = Some(number);
            let ended = declared.iter().find(|ended| ended.segment == number);
            let reader = segments.open(number).map_err(|error| unreadable(number, error))?;
            self.segment(number, Lines::new(reader), ended)
                .map_err(|error| unreadable(number, error))?;
        }
        Ok(())
    }

    fn segment<R: std::io::BufRead>(
        &mut self,
        number: u64,
        mut lines: Lines<R>,
        ended: Option<&Ended>,
    ) -> std::io::Result<()> {
        let mut line = 0_u64;
        loop {
            if let Some(ended) = ended.filter(|ended| ended.records == line) {
                let rest = lines.rest(None)?;
                let digest = (rest.bytes > 0).then(|| hex(&rest.sha256));
                self.rest(number, line, rest.bytes, digest.as_deref(), ended);
                return Ok(());
            }
            let piece = lines.next()?;
            line += 1;
            let place = Place {
                segment: Some(number),
                line: Some(line),
                seq: None,
            };
            match piece {
                Piece::Line => self.record(place, line == 1, lines.line()),
                Piece::TooLong => {
                    lines.skip_line()?;
                    self.unreadable_record(place, Hash::default());
                }
                Piece::Torn => {
                    let bytes = lines.line().len();
                    let what = format!(
                        "the last {bytes} bytes are no whole record: its writer was ended, or is writing"
                    );
                    self.report.warn("torn_tail", Some(number), what);
                    return Ok(());
                }
                Piece::End => return Ok(()),
            }
        }
    }

    /// What lies behind a segment's records, against what its successor's first record says.
    fn rest(&mut self, number: u64, line: u64, bytes: u64, digest: Option<&str>, ended: &Ended) {
        let place = Place {
            segment: Some(number),
            line: Some(line + 1),
            seq: None,
        };
        if bytes != ended.torn_bytes || digest != ended.torn_sha256.as_deref() {
            let what = format!(
                "behind its {line} records stand {bytes} bytes that are not the {} its successor found",
                ended.torn_bytes
            );
            self.report.find(FindingKind::RestChanged, place, what);
        } else if bytes > 0 {
            let what = format!("the last {bytes} bytes are no whole record: its writer was ended");
            self.report.warn("torn_tail", Some(number), what);
        }
    }

    fn record(&mut self, place: Place, first_of_segment: bool, line: &[u8]) {
        let hash = hash_of(line);
        let Some(link) = Link::parse(line) else {
            self.unreadable_record(place, hash);
            return;
        };
        let place = Place {
            seq: Some(link.seq),
            ..place
        };
        self.report.records += 1;
        let mut proven = false;
        if first_of_segment {
            let opened = signed::<Opened>(self.key, OPENED, line);
            proven = opened
                .as_ref()
                .is_some_and(|opened| Some(opened.segment) == place.segment);
            let sealed = opened.and_then(|opened| opened.sealed_seq);
            if let Some(sealed) = sealed.filter(|sealed| sealed + 1 < link.seq) {
                let what = format!(
                    "records {} to {} were not signed when their writer was ended",
                    sealed + 1,
                    link.seq - 1
                );
                self.report.warn("unsealed_end", place.segment, what);
            }
            if !proven {
                let what = "the segment does not begin with a record that the key has signed".to_owned();
                self.report.find(FindingKind::SegmentUnsigned, place, what);
            }
        } else if link.kind == REMOVED {
            self.removal(place, line);
        }
        self.link(place, &link, hash, proven);
    }

    /// Takes a record into the chain, or says why it does not belong there.
    fn link(&mut self, place: Place, link: &Link<'_>, hash: Hash, proven: bool) {
        self.settle(Some(link));
        let Some(last) = self.last else {
            if self.first.is_none() {
                self.first = Some((link.seq, link.prev));
                self.report.first_seq = link.seq;
            }
            self.take(place, link.seq, hash, false);
            return;
        };
        let linked = link.prev == last.hash || last.wrong;
        match link.seq.checked_sub(last.seq + 1) {
            Some(0) if linked => self.take(place, link.seq, hash, false),
            Some(0) if proven => {
                self.changed(last.place);
                self.take(place, link.seq, hash, false);
            }
            Some(0) => {
                self.doubt = Some(Doubt {
                    before: last.place,
                    this: place,
                    hash,
                });
                self.take(place, link.seq, hash, false);
            }
            // Its link is right, so it is its number that was changed.
            _ if linked && !last.wrong => {
                self.changed(place);
                self.take(place, last.seq + 1, hash, true);
            }
            Some(_) => {
                self.gaps.push((last.seq + 1, link.seq, place));
                self.take(place, link.seq, hash, false);
            }
            None => self.moved(place, link.seq),
        }
    }

    /// A record whose number has been passed already.
    fn moved(&mut self, place: Place, seq: u64) {
        let gap = self
            .gaps
            .iter()
            .position(|(from, to, _)| (*from..*to).contains(&seq));
        if let Some((from, to, at)) = gap.map(|at| self.gaps.swap_remove(at)) {
            if from < seq {
                self.gaps.push((from, seq, at));
            }
            if seq + 1 < to {
                self.gaps.push((seq + 1, to, at));
            }
            let what = format!("record {seq} stands behind later ones");
            self.report.find(FindingKind::RecordMoved, place, what);
        } else {
            let what = format!("record {seq} stands here once more, or with another's number");
            self.report.find(FindingKind::RecordChanged, place, what);
        }
    }

    fn take(&mut self, place: Place, seq: u64, hash: Hash, wrong: bool) {
        self.last = Some(At {
            seq,
            hash,
            place,
            wrong,
        });
        if self
            .head
            .is_some_and(|head| head.seq == seq && Some(head.segment) == place.segment)
        {
            self.at_head = Some(hash);
        }
        if self.anchor.is_some_and(|anchor| anchor.seq == seq) {
            self.at_anchor = Some(hash);
        }
    }

    /// A line that is no record takes the place of one.
    fn unreadable_record(&mut self, place: Place, hash: Hash) {
        self.settle(None);
        self.report.records += 1;
        let seq = self.last.map(|last| last.seq + 1);
        let place = Place { seq, ..place };
        self.report
            .find(FindingKind::RecordChanged, place, "the line is no record".into());
        if let Some(seq) = seq {
            self.take(place, seq, hash, true);
        }
    }

    /// Says which of two records was changed, once the next one is known.
    pub(super) fn settle(&mut self, next: Option<&Link<'_>>) {
        let Some(doubt) = self.doubt.take() else { return };
        let signed_head = self.head.filter(|head| Some(head.seq) == doubt.this.seq);
        let intact = match (next, signed_head) {
            (Some(next), _) => next.prev == doubt.hash,
            (None, Some(head)) => head.hash() == Some(doubt.hash),
            (None, None) => true,
        };
        if intact {
            self.changed(doubt.before);
        } else {
            self.changed(doubt.this);
            if let Some(last) = &mut self.last {
                last.wrong = true;
            }
        }
    }

    pub(super) fn changed(&mut self, place: Place) {
        let what = match place.seq {
            Some(seq) => format!("record {seq} is not as it was written"),
            None => "the record is not as it was written".to_owned(),
        };
        self.report.find(FindingKind::RecordChanged, place, what);
    }

    fn removal(&mut self, place: Place, line: &[u8]) {
        let removed = signed::<Removed>(self.key, REMOVED, line);
        match removed
            .and_then(|removed| Some((removed.segment, removed.last_seq, parse_hash(&removed.last_hash)?)))
        {
            Some(removed) => self.removed.push(removed),
            None => self.changed(place),
        }
    }
}
