//! How a started command tells its pid: one marked line on stderr, taken out before anyone sees it.
//!
//! Here: the line's grammar and the incremental reader. Not here: who prints it ([`super::remote`]) and who uses it
//! ([`super::kill`]).
//!
//! The line is `pcb NONCE PID group|leader START` or `pcb NONCE no-directory`. The nonce is random and new for each
//! command, so that no output of a profile or of the command can pass for it.

use bytes::{Bytes, BytesMut};

/// What a pid stands for when it is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// It leads a process group of its own: all of that can be ended.
    Group,
    /// It shares its group with others and the target has no `setsid`: only itself can be ended.
    LeaderOnly,
}

/// A process on the target, known well enough to end it and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedProcess {
    /// Its process id on the target.
    pub pid: u32,
    /// What may be ended with it.
    pub scope: Scope,
    /// When it started, in the target's own words (field 22 of `/proc/PID/stat`, else what `ps` says); `None` where
    /// the target tells neither, and then a reused pid cannot be told from the process.
    pub start: Option<String>,
}

/// What the wrapper said before it became the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The command is about to run as this process.
    Started(StartedProcess),
    /// The working directory cannot be entered; nothing was run. What follows on stderr says why.
    NoDirectory,
}

/// Bytes of stderr searched for the report before the reader gives up.
pub const SEARCH_LIMIT_BYTES: usize = 64 * 1024;
/// Longest accepted line from `pcb` to its end.
const LINE_LIMIT_BYTES: usize = 160;

/// Takes the report out of a stream of stderr chunks.
///
/// Noise of a login profile ahead of it passes through. After the report, or after [`SEARCH_LIMIT_BYTES`] without
/// one, chunks pass through untouched and uncopied.
#[derive(Debug)]
pub struct ReportReader {
    mark: Vec<u8>,
    held: BytesMut,
    released_bytes: usize,
    searching: bool,
    report: Option<Report>,
}

impl ReportReader {
    /// A reader for the command with this nonce.
    #[must_use]
    pub fn new(nonce: &str) -> Self {
        Self {
            mark: format!("pcb {nonce} ").into_bytes(),
            held: BytesMut::new(),
            released_bytes: 0,
            searching: true,
            report: None,
        }
    }

    /// The report, once it came.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Whether the reader still waits for a report.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        self.searching
    }

    /// Takes the next chunk and returns what is to be passed on, which may be nothing.
    pub fn feed(&mut self, chunk: Bytes) -> Bytes {
        if !self.searching {
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        let mut passed = BytesMut::new();
        while self.searching {
            let Some(at) = find(&self.held, &self.mark) else {
                let kept = longest_overlap(&self.held, &self.mark);
                self.release(self.held.len() - kept, &mut passed);
                break;
            };
            self.release(at, &mut passed);
            match self
                .held
                .iter()
                .take(LINE_LIMIT_BYTES)
                .position(|byte| *byte == b'\n')
            {
                Some(end) => {
                    let line = self.held.split_to(end + 1);
                    self.report = line.get(self.mark.len()..end).and_then(parse);
                    if self.report.is_some() {
                        self.searching = false;
                    } else {
                        // Somebody's echo of the script, say: output like any other.
                        self.released_bytes += line.len();
                        passed.extend_from_slice(&line);
                    }
                }
                None if self.held.len() >= LINE_LIMIT_BYTES => self.release(self.mark.len(), &mut passed),
                None => break,
            }
        }
        if self.searching && self.released_bytes >= SEARCH_LIMIT_BYTES {
            self.searching = false;
        }
        if !self.searching {
            passed.unsplit(self.held.split());
        }
        passed.freeze()
    }

    /// Ends the search and returns what was still held back; to be called at the end of stderr.
    pub fn finish(&mut self) -> Bytes {
        self.searching = false;
        self.held.split().freeze()
    }

    fn release(&mut self, count: usize, passed: &mut BytesMut) {
        self.released_bytes += count;
        passed.unsplit(self.held.split_to(count));
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// The length of the longest end of `text` that `word` may continue.
fn longest_overlap(text: &[u8], word: &[u8]) -> usize {
    let longest = text.len().min(word.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|length| word.get(..*length).is_some_and(|start| text.ends_with(start)))
        .unwrap_or(0)
}

fn parse(line: &[u8]) -> Option<Report> {
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["no-directory"] => Some(Report::NoDirectory),
        [pid, scope, start] => {
            let pid = pid
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| pid.parse::<u32>().ok())??;
            // 0 and 1 as a group would mean our own group and every process.
            if pid < 2 || i32::try_from(pid).is_err() {
                return None;
            }
            let scope = match *scope {
                "group" => Scope::Group,
                "leader" => Scope::LeaderOnly,
                _ => return None,
            };
            let start = match *start {
                "-" => None,
                start if is_start(start) => Some(start.to_owned()),
                _ => return None,
            };
            Some(Report::Started(StartedProcess { pid, scope, start }))
        }
        _ => None,
    }
}

/// Only what may stand unquoted in a script: the value comes back in the kill command.
fn is_start(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 48
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b':' || byte == b'.')
}
