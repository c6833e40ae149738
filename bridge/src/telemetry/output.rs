//! The writing end of the log: never panics, never blocks the daemon for long.
//!
//! Here: what happens when nobody reads our standard error. A closed pipe is ignored; a full one is waited for once,
//! for [`PATIENCE`], then events are dropped and counted until there is room again, and a line says how many.
//! Not here: how a line looks (`mod.rs`).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long one event may wait for room in a full pipe before events are dropped.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Most bytes that a pipe which has room takes without blocking (`PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// Events that were lost since the process started because nobody read our standard error.
pub fn dropped_events() -> u64 {
    DROPPED_EVER.load(Ordering::Relaxed)
}

static DROPPED_EVER: AtomicU64 = AtomicU64::new(0);

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Output {
    stream: Stream,
    /// Writes to it never wait for anybody, so that there is no need to ask.
    always_room: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum Stream {
    Stderr(io::Stderr),
    #[cfg(test)]
    File(File),
}

#[derive(Debug, Default)]
struct State {
    /// Lost since the last line that got through.
    dropped: u64,
    /// The last line was cut, so the next one starts on a fresh line.
    torn: bool,
}

impl Output {
    /// Our standard error.
    pub(crate) fn stderr() -> Self {
        Self::new(Stream::Stderr(io::stderr()))
    }

    #[cfg(test)]
    pub(crate) fn file(file: File) -> Self {
        Self::new(Stream::File(file))
    }

    fn new(stream: Stream) -> Self {
        let mut output = Self {
            stream,
            always_room: false,
            state: Mutex::default(),
        };
        output.always_room = never_blocks(output.as_fd());
        output
    }

    /// Writes one line, or drops it. Lines of several threads never mix.
    ///
    /// `notice` makes the line that says how many were lost; it is asked for once there is room again.
    pub(crate) fn write(&self, line: &[u8], notice: impl FnOnce(u64) -> String) {
        // A panic while writing leaves nothing half done that the next line would trip over.
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let patience = if state.dropped == 0 {
            PATIENCE
        } else {
            Duration::ZERO
        };
        if state.dropped > 0 && self.has_room(Duration::ZERO) {
            let notice = format!("{}{}", if state.torn { "\n" } else { "" }, notice(state.dropped));
            if self.put(notice.as_bytes(), Duration::ZERO) == notice.len() {
                *state = State::default();
            }
        }
        let written = self.put(line, patience);
        if written < line.len() {
            state.dropped += 1;
            state.torn |= written > 0;
            DROPPED_EVER.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many bytes got out. A reader that is gone took them all: there is nobody to tell.
    fn put(&self, bytes: &[u8], patience: Duration) -> usize {
        let mut written = 0;
        for piece in bytes.chunks(PIECE_BYTES) {
            if !self.has_room(patience) {
                return written;
            }
            match self.write_all(piece) {
                Ok(()) => written += piece.len(),
                // A non-blocking descriptor (shared with another program) that filled up meanwhile.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return written,
                Err(_) => return bytes.len(),
            }
        }
        written
    }

    fn write_all(&self, piece: &[u8]) -> io::Result<()> {
        match &self.stream {
            Stream::Stderr(stderr) => stderr.lock().write_all(piece),
            #[cfg(test)]
            Stream::File(file) => (&*file).write_all(piece),
        }
    }

    /// Waits until a write would not block.
    fn has_room(&self, patience: Duration) -> bool {
        if self.always_room {
            return true;
        }
        let limit = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut descriptors = [PollFd::new(self, PollFlags::OUT)];
        // An error or a hang-up is for the write to find.
        rustix::io::retry_on_intr(|| poll(&mut descriptors, Some(&limit))).is_ok_and(|ready| ready > 0)
    }
}

/// Whether this is a file on a disk or `/dev/null`.
fn never_blocks(descriptor: BorrowedFd<'_>) -> bool {
    // Linux's numbers: major 1, minor 3.
    const NULL_DEVICE: u64 = 0x103;
    let Ok(file) = descriptor.try_clone_to_owned().map(File::from) else {
        return false;
    };
    file.metadata().is_ok_and(|metadata| {
        metadata.is_file() || (metadata.file_type().is_char_device() && metadata.rdev() == NULL_DEVICE)
    })
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Stderr(stderr) => stderr.as_fd(),
            #[cfg(test)]
            Stream::File(file) => file.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_costs_one_wait_and_the_loss_is_told_later() {
        let (mut reader, output) = pipe();
        let line = [b'x'; 1000];
        let started = Instant::now();
        for _ in 0..1000 {
            output.write(&line, notice);
        }
        assert!(started.elapsed() < 3 * PATIENCE, "{:?}", started.elapsed());

        let mut room = vec![0; 64 * 1024];
        let _ = reader.read(&mut room).unwrap();
        output.write(b"after\n", notice);
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();

        assert!(rest.contains(" were lost\n"), "{rest:?}");
        assert!(rest.ends_with("after\n"), "{rest:?}");
    }

    #[test]
    fn a_reader_that_is_gone_costs_nothing() {
        let (reader, output) = pipe();
        drop(reader);
        let started = Instant::now();

        for _ in 0..1000 {
            output.write(b"line\n", notice);
        }

        assert!(started.elapsed() < PATIENCE);
    }

    fn notice(dropped: u64) -> String {
        format!("{dropped} were lost\n")
    }

    fn pipe() -> (io::PipeReader, Output) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Output::file(File::from(OwnedFd::from(writer))))
    }
}
