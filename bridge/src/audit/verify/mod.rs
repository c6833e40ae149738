//! Whether an audit is as it was written, and what is not.
//!
//! Here: [`verify`] of a folder, [`verify_segments`] of whatever holds segments, and what they find. Nothing is changed
//! and a daemon may be writing. Not here: the walk along the chain (`chain.rs`, `ends.rs`).
//!
//! What is found without help from outside: every record changed, missing, reordered or added up to the newest head, a
//! segment that is missing, an end that lies before the head, a chain that was built anew without the key. A folder put
//! back whole to an earlier state, its head with it, is in order by itself: that is found with an [`Anchor`].

mod chain;
mod ends;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Serialize;

use super::folder::{segment_path, segments};
use super::head::Head;
use super::key::AuditKey;
use super::line::{Hash, hex, parse_hash};
use super::settings::AuditError;
use chain::Walk;

/// As many findings are told; the rest is counted.
const MOST_FINDINGS: usize = 100;

/// What holds the segments of an audit.
pub trait Segments {
    /// Their numbers, in their order.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    fn numbers(&self) -> Result<Vec<u64>, AuditError>;
    /// One of them.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    fn open(&self, number: u64) -> io::Result<Box<dyn BufRead + '_>>;
    /// The head's file, if there is one.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    fn head(&self) -> Result<Option<Vec<u8>>, AuditError>;
}

/// A record that was known elsewhere: what `paperclip-bridge audit head` printed at an earlier time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The record's number.
    pub seq: u64,
    pub(super) hash: Hash,
}

impl Anchor {
    /// Reads `SEQ:HASH`, or the JSON that `audit head --json` prints.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(head) = Head::parse(text.as_bytes()) {
            return Some(Self {
                seq: head.seq,
                hash: head.hash()?,
            });
        }
        let (seq, hash) = text.split_once(':')?;
        Some(Self {
            seq: seq.parse().ok()?,
            hash: parse_hash(hash)?,
        })
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A record is not as it was written.
    RecordChanged,
    /// Records are not there.
    RecordsMissing,
    /// A record stands in another place.
    RecordMoved,
    /// A segment is not there, and no signed record says that it was removed.
    SegmentMissing,
    /// A segment does not begin with a record signed by the key.
    SegmentUnsigned,
    /// What is left behind the last record of a segment is not what its successor found there.
    RestChanged,
    /// The audit ends before the record that the head has signed.
    TailCut,
    /// The record that the head has signed is another one: the chain was built anew.
    ChainRebuilt,
    /// The head is not signed with the key.
    HeadUnsigned,
    /// There is no head.
    HeadMissing,
    /// The audit is not the one that the anchor belongs to, or an earlier state of it.
    AnchorMismatch,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RecordChanged => "record_changed",
            Self::RecordsMissing => "records_missing",
            Self::RecordMoved => "record_moved",
            Self::SegmentMissing => "segment_missing",
            Self::SegmentUnsigned => "segment_unsigned",
            Self::RestChanged => "rest_changed",
            Self::TailCut => "tail_cut",
            Self::ChainRebuilt => "chain_rebuilt",
            Self::HeadUnsigned => "head_unsigned",
            Self::HeadMissing => "head_missing",
            Self::AnchorMismatch => "anchor_mismatch",
        })
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// In which segment; absent where it concerns the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<u64>,
    /// At which line of it, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Which record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// In words.
    pub what: String,
}

/// Something that happens without anybody's will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// `torn_tail`, `unsealed_end`, `anchor_removed` or `nothing_written`.
    pub kind: &'static str,
    /// In which segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<u64>,
    /// In words.
    pub what: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What is wrong, at most a hundred.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: u64,
    /// What happens without anybody's will.
    pub warnings: Vec<Warning>,
    /// Segments looked at.
    pub segments: u64,
    /// Records looked at.
    pub records: u64,
    /// The first record that is there; earlier ones were removed in order.
    pub first_seq: u64,
    /// The last record that is there.
    pub last_seq: u64,
    /// Its hash, in hexadecimal: with its number the anchor of this state.
    pub last_hash: String,
    /// The record that the head has signed; later ones were not signed yet.
    pub sealed_seq: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn find(&mut self, kind: FindingKind, place: Place, what: String) {
        if self.findings.len() >= MOST_FINDINGS {
            self.more_findings += 1;
            return;
        }
        self.findings.push(Finding {
            kind,
            segment: place.segment,
            line: place.line,
            seq: place.seq,
            what,
        });
    }

    fn warn(&mut self, kind: &'static str, segment: Option<u64>, what: String) {
        self.warnings.push(Warning { kind, segment, what });
    }
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    segment: Option<u64>,
    line: Option<u64>,
    seq: Option<u64>,
}

/// Verifies the audit in a folder, also while it is written. Reads all of it once, a line at a time.
///
/// # Errors
///
/// [`AuditError`] where it cannot be read. What is wrong in it is no error but a finding.
pub fn verify(folder: &Path, key: &AuditKey, anchor: Option<&Anchor>) -> Result<Report, AuditError> {
    // Retention may remove a segment between the listing and the reading.
    let mut tries = 3;
    loop {
        tries -= 1;
        match verify_segments(&Folder(folder), key, anchor) {
            Err(AuditError::Io { path, .. }) if tries > 0 && !path.exists() && folder.exists() => {}
            verified => return verified,
        }
    }
}

/// The same of whatever holds segments.
///
/// # Errors
///
/// As [`verify`](fn@verify).
pub fn verify_segments(
    segments: &dyn Segments,
    key: &AuditKey,
    anchor: Option<&Anchor>,
) -> Result<Report, AuditError> {
    let mut report = Report::default();
    // The head first: what is written meanwhile lies behind it.
    let head = segments.head()?;
    let numbers = segments.numbers()?;
    if numbers.is_empty() && head.is_none() {
        report.warn("nothing_written", None, "there is no audit here".into());
    }
    let signed = match &head {
        Some(text) => {
            let head = Head::parse(text).filter(|head| head.signed_by(key) && head.hash().is_some());
            if head.is_none() {
                let what = "the head is not signed with this key".to_owned();
                report.find(FindingKind::HeadUnsigned, Place::default(), what);
            }
            head
        }
        None => {
            if !numbers.is_empty() {
                let what = "there are segments, and no head".to_owned();
                report.find(FindingKind::HeadMissing, Place::default(), what);
            }
            None
        }
    };
    let mut walk = Walk::new(key, signed.as_ref(), anchor, report);
    walk.all(segments, &numbers)?;
    let mut report = walk.finish();
    report.segments = u64::try_from(numbers.len()).unwrap_or(u64::MAX);
    report.sealed_seq = signed.map_or(0, |head| head.seq);
    Ok(report)
}

#[derive(Debug)]
struct Folder<'a>(&'a Path);

impl Segments for Folder<'_> {
    fn numbers(&self) -> Result<Vec<u64>, AuditError> {
        segments(self.0)
    }

    fn open(&self, number: u64) -> io::Result<Box<dyn BufRead + '_>> {
        let file = File::open(segment_path(self.0, number))?;
        Ok(Box::new(BufReader::with_capacity(64 * 1024, file)))
    }

    fn head(&self) -> Result<Option<Vec<u8>>, AuditError> {
        Head::read(self.0)
    }
}

/// A segment that cannot be read, by its name in the folder where it has one.
fn unreadable(number: u64, error: io::Error) -> AuditError {
    AuditError::io(&segment_path(Path::new(""), number), error)
}

fn shown(hash: &Hash) -> String {
    hex(hash)
}
