//! Where configuration text comes from.
//!
//! Here: the seam that lets tests and fuzz targets do without a disk, and the disk itself.

use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::lines::FILE_LIMIT_BYTES;
use super::pattern;

/// Gives the content of configuration files.
pub trait ConfigFiles: fmt::Debug {
    /// The content, or `None` where there is no such file.
    ///
    /// # Errors
    ///
    /// A file that exists and cannot be read.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// The files that a pattern of `Include` names, sorted. A path without `*` and `?` is itself.
    fn expand(&self, pattern: &Path) -> Vec<PathBuf>;
}

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFiles;

impl ConfigFiles for DiskFiles {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read as _;
        // Asked before opening: opening a pipe waits for its writer.
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) if path == Path::new("/dev/null") => return Ok(None),
            Ok(_) => return Err(io::Error::other("not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        // One byte more than the parser takes, so that it sees the excess.
        let file = std::fs::File::open(path)?;
        let mut text = Vec::new();
        file.take(FILE_LIMIT_BYTES as u64 + 1).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    fn expand(&self, pattern: &Path) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::new()];
        for component in pattern.components() {
            let wild = match component {
                Component::Normal(name) => name.to_str().filter(|name| name.contains(['*', '?'])),
                Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
            };
            found = match wild {
                None => found.into_iter().map(|path| path.join(component)).collect(),
                Some(wild) => found
                    .iter()
                    .flat_map(|directory| children(directory, wild))
                    .collect(),
            };
        }
        found
    }
}

/// Entries of `directory` that match, sorted; hidden ones only if the pattern says so. None if it cannot be listed.
fn children(directory: &Path, wild: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with('.') == wild.starts_with('.') && pattern::matches(wild, name))
        .collect();
    names.sort();
    names.into_iter().map(|name| directory.join(name)).collect()
}
