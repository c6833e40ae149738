//! `file:PATH`: a file that nobody else can read.
//!
//! Here: the file's checks, all of them on what was opened, so that a link's target is what is checked. Also what
//! `cred:` reads (`systemd.rs`). A file is looked at (one `stat`) at each use and read again once it has changed, so it
//! belongs on a local disk and is best replaced by renaming.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::Fault;
use super::place::{Mark, Place, Reading, Surroundings};
use super::reference::Kind;

pub(crate) static KIND: Kind = Kind {
    name: "file",
    form: "file:PATH",
    parse,
};

/// A longer file holds no secret of ours.
const MAX_BYTES: u64 = 64 * 1024;

/// Others' rights that a file must not give: group and others may neither read nor write.
pub(super) const NOBODY_ELSE: u32 = 0o066;

fn parse(path: &str) -> Result<Arc<dyn Place>, &'static str> {
    if path.is_empty() || path.contains('\0') {
        return Err("PATH is the path of a file");
    }
    Ok(Arc::new(SecretFile(PathBuf::from(path))))
}

#[derive(Debug)]
struct SecretFile(PathBuf);

impl Place for SecretFile {
    fn mark(&self, _: &Surroundings) -> Option<Mark> {
        mark(&self.0)
    }

    fn read<'a>(&'a self, _: &'a Surroundings) -> Reading<'a> {
        Box::pin(std::future::ready(read(&self.0, NOBODY_ELSE)))
    }
}

/// The mark of whatever is at `path` now.
pub(super) fn mark(path: &Path) -> Option<Mark> {
    std::fs::metadata(path).ok().as_ref().map(mark_of)
}

fn mark_of(seen: &Metadata) -> Mark {
    Mark::File {
        identity: [seen.dev(), seen.ino(), seen.len()],
        times: [seen.mtime(), seen.mtime_nsec(), seen.ctime(), seen.ctime_nsec()],
    }
}

/// Reads a regular file of ours or root's that gives nobody any of the rights in `forbidden`.
pub(super) fn read(path: &Path, forbidden: u32) -> Result<(Zeroizing<String>, Option<Mark>), Fault> {
    let failed = |error: std::io::Error| {
        let place = path.display();
        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
            Fault::Missing(format!("there is no file {place}"))
        } else {
            Fault::Unusable(format!("cannot read {place}: {error}"))
        }
    };
    // Without NONBLOCK, opening a pipe would wait for its writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let seen = file.metadata().map_err(failed)?;
    check(path, &seen, forbidden)?;
    let text = read_text(file, seen.len()).map_err(failed)?;
    let text = text.ok_or_else(|| {
        Fault::Unusable(format!(
            "{} is longer than {MAX_BYTES} bytes or not UTF-8",
            path.display()
        ))
    })?;
    Ok((text, Some(mark_of(&seen))))
}

fn check(path: &Path, seen: &Metadata, forbidden: u32) -> Result<(), Fault> {
    let refused = |why: String| Err(Fault::Unusable(format!("{} {why}", path.display())));
    if !seen.is_file() {
        return refused("is not a regular file".into());
    }
    let us = rustix::process::geteuid().as_raw();
    if seen.uid() != us && seen.uid() != 0 {
        return refused(format!(
            "belongs to user {}; it must belong to us (user {us}) or root",
            seen.uid()
        ));
    }
    if seen.mode() & forbidden != 0 {
        return refused(format!(
            "can be read or written by others (mode {:03o}); run chmod 600 on it",
            seen.mode() & 0o777
        ));
    }
    Ok(())
}

/// The whole text; `None` if it is too long or not UTF-8.
fn read_text(file: File, length: u64) -> std::io::Result<Option<Zeroizing<String>>> {
    // Room for all of it at once: a buffer that grows would leave pieces behind unwiped.
    let room = usize::try_from(length.min(MAX_BYTES)).unwrap_or_default() + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Ok(None);
    }
    Ok(std::str::from_utf8(&bytes)
        .ok()
        .map(|text| Zeroizing::new(text.to_owned())))
}
