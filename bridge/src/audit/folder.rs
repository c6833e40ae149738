//! The audit's folder: names of segments.
//!
//! Here: how a segment is called, and which there are. Not here: what is in them.

use std::io;
use std::path::{Path, PathBuf};

use super::AuditError;

/// A segment's file.
pub(super) fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:010}.jsonl"))
}

/// The numbers of all segments, in their order; other files are none of ours.
pub(super) fn segments(folder: &Path) -> Result<Vec<u64>, AuditError> {
    let fault = |error: io::Error| AuditError::io(folder, error);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".jsonl"))
            .and_then(|digits| digits.parse::<u64>().ok())
            .filter(|number| *number > 0 && segment_path(folder, *number).file_name() == Some(&name));
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}
