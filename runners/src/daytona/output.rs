//! A command's two outputs, read page by page from their files in the sandbox.
//!
//! Here: [`Output`], what was read, kept and handed on. Not here: the calls. A session's followed log would bring
//! output sooner, but it is made for text: NUL bytes vanish, line ends are added, and a marker in the data is taken
//! for one. Files keep every byte, and what was written is still there after a time-out.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::script::{Ended, Job};
use super::toolbox::Ran;
use crate::{OutputSink, OutputStream};

/// What a page said of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Ended(Ended),
    /// Its group is gone and it left no exit code.
    Dead,
    /// There is no folder of it: not yet, or not any more.
    Gone,
}

/// One answer of [`Job::page`].
#[derive(Debug)]
pub(super) struct Page {
    pub(super) state: State,
    /// All that is wanted has been read, and the folder is removed.
    pub(super) taken: bool,
    sizes: [u64; 2],
    bytes: [Vec<u8>; 2],
}

impl Page {
    /// Reads an answer; none where it is not one.
    pub(super) fn read(ran: &Ran, job: &Job) -> Option<Self> {
        let (first, mut lines) = ran.after(&job.mark())?;
        let mut words = first.split_ascii_whitespace();
        let state = match words.next()? {
            "gone" => State::Gone,
            "dead" => State::Dead,
            "-" => State::Running,
            word => State::Ended(Job::ended(word)?),
        };
        let sizes = [words.next()?.parse().ok()?, words.next()?.parse().ok()?];
        let taken = words.next()? == "1";
        let mut bytes = || STANDARD.decode(lines.next().unwrap_or_default().trim()).ok();
        Some(Self {
            state,
            taken,
            sizes,
            bytes: [bytes()?, bytes()?],
        })
    }
}

/// What became of both outputs so far.
pub(super) struct Output {
    sink: Option<Arc<dyn OutputSink>>,
    keep_bytes: usize,
    read_bytes: [u64; 2],
    kept: [Vec<u8>; 2],
    sizes: [u64; 2],
}

impl Output {
    pub(super) fn new(sink: Option<Arc<dyn OutputSink>>, keep_bytes: usize) -> Self {
        Self {
            sink,
            keep_bytes,
            read_bytes: [0; 2],
            kept: [vec![], vec![]],
            sizes: [0; 2],
        }
    }

    /// How much of each was read.
    pub(super) fn read_bytes(&self) -> [u64; 2] {
        self.read_bytes
    }

    /// How much of each is wanted at all: without a sink, what is kept.
    pub(super) fn wanted(&self) -> [u64; 2] {
        match self.sink {
            Some(_) => [u64::MAX; 2],
            None => [u64::try_from(self.keep_bytes).unwrap_or(u64::MAX); 2],
        }
    }

    pub(super) async fn take(&mut self, page: Page) {
        self.sizes = page.sizes;
        let streams = [OutputStream::Stdout, OutputStream::Stderr];
        let outputs = self.kept.iter_mut().zip(&mut self.read_bytes);
        for ((bytes, stream), (kept, read)) in page.bytes.into_iter().zip(streams).zip(outputs) {
            if bytes.is_empty() {
                continue;
            }
            *read += u64::try_from(bytes.len()).unwrap_or_default();
            let room = self.keep_bytes.saturating_sub(kept.len());
            kept.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
            if let Some(sink) = &self.sink {
                sink.chunk(stream, Bytes::from(bytes)).await;
            }
        }
    }

    /// What is kept of stdout and stderr, and whether that is not all.
    pub(super) fn finish(self) -> ([Vec<u8>; 2], bool) {
        let longer = |(kept, size): (&Vec<u8>, &u64)| u64::try_from(kept.len()).unwrap_or_default() < *size;
        let truncated = self.kept.iter().zip(&self.sizes).any(longer);
        (self.kept, truncated)
    }
}
