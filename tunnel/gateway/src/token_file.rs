//! The file by which another token takes the place of the one that a gateway was started with, while it runs.
//!
//! Here: [`TokenFile`]: made at the start with the digest that holds, looked at with each check of a token, and its removal
//! at the end. That it is there tells the daemon that this gateway follows it. Not here: who writes another line into it:
//! a command of our daemon's, by rename.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use wire::names::variable;

use crate::settings::Environment;
use crate::token::digest_of;

/// A longer file says nothing to us.
const MAX_BYTES: u64 = 256;

/// Which token holds, by what stands in a file.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    /// Marks what is meant for this gateway, and for no other that was there before or comes after it.
    start: String,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    digest: [u8; 32],
    /// Of the file that was read last.
    mark: Option<Mark>,
}

/// Tells one writing of the file from another: each makes a new file.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(file: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl TokenFile {
    /// Makes the file in the place of any other.
    ///
    /// - `start`: one word.
    pub(crate) fn make(path: PathBuf, start: &str, digest: [u8; 32]) -> io::Result<Self> {
        let word = !start.is_empty() && start.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !word {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is no nonce, or it is no word",
            ));
        }
        let mut part = path.clone().into_os_string();
        part.push(format!(".{}", std::process::id()));
        let part = PathBuf::from(part);
        let written = write(&part, &line(start, &digest)).and_then(|()| fs::rename(&part, &path));
        if written.is_err() {
            // Most often there is none.
            let _ = fs::remove_file(&part);
        }
        written?;
        Ok(Self {
            path,
            start: start.to_owned(),
            held: Mutex::new(Held { digest, mark: None }),
        })
    }

    /// Of the token that holds now. What cannot be read or understood leaves the one that was read before.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(now) = fs::symlink_metadata(&self.path)
            && held.mark.as_ref() != Some(&Mark::of(&now))
            && let Ok((mark, text)) = read(&self.path)
        {
            held.mark = Some(mark);
            held.digest = self.understood(&text).unwrap_or(held.digest);
        }
        held.digest
    }

    fn understood(&self, text: &str) -> Option<[u8; 32]> {
        let (start, hex) = text.strip_suffix('\n')?.split_once(' ')?;
        digest_of(hex).filter(|_| start == self.start)
    }
}

/// Removes the file of a gateway that ends, if it is still its own: a successor has written its own over it.
pub(crate) fn remove(environment: &Environment) {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let (Some(path), Some(start)) = (get(variable::TOKEN_FILE), get(variable::NONCE)) else {
        return;
    };
    let own = read(Path::new(path)).is_ok_and(|(_, text)| text.split(' ').next() == Some(start));
    if own {
        // What cannot be removed says nothing to anybody else, and goes with the folder or by the next sweep.
        let _ = fs::remove_file(path);
    }
}

fn line(start: &str, digest: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    let mut line = format!("{start} ");
    for byte in digest {
        // Writing to a string cannot fail.
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    line
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Left by a process of the same number.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// A regular file that is no link, as far as it is not too long; opening a fifo must not wait.
fn read(path: &Path) -> io::Result<(Mark, String)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok((Mark::of(&metadata), String::from_utf8(bytes).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: [u8; 32] = [1; 32];
    const SECOND: [u8; 32] = [2; 32];

    fn made() -> (tempfile::TempDir, PathBuf, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file = TokenFile::make(path.clone(), "ab12", FIRST).unwrap();
        (folder, path, file)
    }

    /// As the daemon's command does it.
    fn put(path: &Path, text: &str) {
        let part = path.with_extension("part");
        fs::write(&part, text).unwrap();
        fs::rename(part, path).unwrap();
    }

    #[test]
    fn the_file_is_private_and_says_what_holds() {
        let (_folder, path, file) = made();

        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("ab12 {}\n", "01".repeat(32))
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(file.digest(), FIRST);
    }

    #[test]
    fn another_line_is_taken_as_often_as_it_changes_and_stays_when_the_file_goes() {
        let (_folder, path, file) = made();

        for digest in [SECOND, FIRST, SECOND] {
            put(&path, &line("ab12", &digest));
            assert_eq!(file.digest(), digest);
            assert_eq!(file.digest(), digest);
        }
        fs::remove_file(&path).unwrap();

        assert_eq!(file.digest(), SECOND);
    }

    #[test]
    fn what_is_not_a_line_for_this_gateway_leaves_the_digest_before() {
        let (_folder, path, file) = made();
        put(&path, &line("ab12", &SECOND));
        assert_eq!(file.digest(), SECOND);
        let whole = line("ab12", &FIRST);

        for text in [
            String::new(),
            whole.trim_end().to_owned(),
            line("ab13", &FIRST),
            line("", &FIRST),
            whole.replace("01", "0g"),
            whole.replacen("01", "", 1),
            whole.replacen("01", "0101", 1),
            format!("{whole}x"),
            format!(" {whole}"),
            format!("{}{whole}", "a".repeat(300)),
            format!("{whole}{}", "a".repeat(300)),
        ] {
            put(&path, &text);
            assert_eq!(file.digest(), SECOND, "{text:?}");
        }
        put(&path, &whole);
        assert_eq!(file.digest(), FIRST);
    }

    #[test]
    fn a_link_a_folder_and_a_fifo_are_not_read() {
        let (folder, path, file) = made();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, line("ab12", &SECOND)).unwrap();

        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(file.digest(), FIRST);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(file.digest(), FIRST);
        fs::remove_dir(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(file.digest(), FIRST);
    }

    #[test]
    fn a_start_that_is_no_word_and_a_folder_that_is_not_there_make_no_file() {
        let folder = tempfile::tempdir().unwrap();

        for start in ["", "a b", "a\n"] {
            assert!(TokenFile::make(folder.path().join("token"), start, FIRST).is_err());
        }
        assert!(TokenFile::make(folder.path().join("no/token"), "ab12", FIRST).is_err());

        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_file_of_this_gateway_is_removed() {
        let (_folder, path, file) = made();
        let of = |start: &str| {
            Environment::from([
                (variable::TOKEN_FILE.to_owned(), path.display().to_string()),
                (variable::NONCE.to_owned(), start.to_owned()),
            ])
        };

        for start in ["", "ab1", "ab13"] {
            remove(&of(start));
            assert!(path.exists(), "{start}");
        }
        put(&path, &line("ab12", &SECOND));
        remove(&of("ab12"));

        assert!(!path.exists());
        assert_eq!(file.digest(), FIRST);
        remove(&of("ab12"));
    }
}
