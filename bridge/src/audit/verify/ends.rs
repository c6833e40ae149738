//! Where the walk began and where it ended, against what is signed.
//!
//! Here: the first record that is there against what was removed in order, the last against the head and the anchor, and
//! what is missing between. Not here: the walk (`chain.rs`).

use super::chain::Walk;
use super::{FindingKind, Place, Report, shown};
use crate::audit::line::Hash;

impl Walk<'_> {
    pub(super) fn finish(mut self) -> Report {
        self.settle(None);
        self.beginning();
        for (from, to, place) in std::mem::take(&mut self.gaps) {
            let what = if from + 1 == to {
                format!("record {from} is missing before this line")
            } else {
                format!("records {from} to {} are missing before this line", to - 1)
            };
            let place = Place {
                seq: Some(from),
                ..place
            };
            self.report.find(FindingKind::RecordsMissing, place, what);
        }
        let last = self.last;
        let last_seq = last.map_or(0, |last| last.seq);
        self.report.last_seq = last_seq;
        self.report.last_hash = shown(&last.map_or_else(Hash::default, |last| last.hash));
        self.end(last.map(|last| last.place).unwrap_or_default(), last_seq);
        self.report
    }

    /// The first record that is there must be the first of all, or follow what was removed in order.
    fn beginning(&mut self) {
        let Some(first_segment) = self.first_segment else {
            return;
        };
        let place = Place {
            segment: Some(first_segment),
            line: Some(1),
            seq: self.first.map(|(seq, _)| seq),
        };
        let before = self.removed.iter().find(|removed| removed.0 + 1 == first_segment);
        let (seq, hash) = match before {
            Some((_, seq, hash)) => (*seq, *hash),
            None if first_segment == 1 => (0, Hash::default()),
            None => {
                let what = format!(
                    "the audit begins with segment {first_segment}, and no signed record says that what was before is removed"
                );
                self.report.find(FindingKind::SegmentMissing, place, what);
                return;
            }
        };
        let Some((first, prev)) = self.first else { return };
        if first != seq + 1 {
            let what = format!("record {} is missing before this line", seq + 1);
            self.report.find(FindingKind::RecordsMissing, place, what);
        } else if prev != hash {
            self.changed(place);
        }
    }

    /// The end against the head and the anchor.
    fn end(&mut self, place: Place, last_seq: u64) {
        if let Some(head) = self.head.filter(|head| head.seq > 0) {
            let at = Place {
                segment: Some(head.segment),
                line: None,
                seq: Some(head.seq),
            };
            match self.at_head {
                Some(hash) if head.hash() == Some(hash) => {}
                Some(_) => {
                    let what = format!("record {} is not the one that the head has signed", head.seq);
                    self.report.find(FindingKind::ChainRebuilt, at, what);
                }
                None if head.seq > last_seq => {
                    let what = format!(
                        "the audit ends with record {last_seq}, and the head has signed record {}",
                        head.seq
                    );
                    self.report.find(FindingKind::TailCut, place, what);
                }
                None => {
                    let what = format!(
                        "record {}, which the head has signed, is not in segment {}",
                        head.seq, head.segment
                    );
                    self.report.find(FindingKind::ChainRebuilt, at, what);
                }
            }
        }
        let Some(anchor) = self.anchor.filter(|anchor| anchor.seq > 0) else {
            return;
        };
        match self.at_anchor {
            Some(hash) if hash == anchor.hash => {}
            None if anchor.seq < self.report.first_seq => {
                let what = format!(
                    "record {} was removed with its segment, so it cannot be compared",
                    anchor.seq
                );
                self.report.warn("anchor_removed", None, what);
            }
            Some(_) => {
                let at = Place {
                    seq: Some(anchor.seq),
                    ..Place::default()
                };
                let what = format!("record {} is not the one that was expected", anchor.seq);
                self.report.find(FindingKind::AnchorMismatch, at, what);
            }
            None => {
                let what = format!(
                    "the audit ends with record {last_seq}, and record {} was expected in it",
                    anchor.seq
                );
                self.report.find(FindingKind::AnchorMismatch, place, what);
            }
        }
    }
}
