//! Standard input and output as the channel to the host.
//!
//! Here: the cheapest way to read and write what the two happen to be. Pipes and sockets are waited for by the kernel;
//! anything else (a terminal, a file, `/dev/null`) goes through threads that block, because whether a descriptor blocks is
//! a property of the open file, and a terminal is open in the parent, too. Not here: what is read and written.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::fs::{FileType, fstat};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Bytes that come from the host.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes that go to the host.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Room asked of the kernel for a pipe; it may give less.
const PIPE_SIZE: usize = 1024 * 1024;

/// Opens both.
///
/// # Errors
///
/// When a descriptor is closed or cannot be waited for.
pub(super) fn open() -> io::Result<(Input, Output)> {
    Ok((input()?, output()?))
}

fn input() -> io::Result<Input> {
    let stdin = io::stdin();
    let kind = kind(stdin.as_fd())?;
    Ok(if kind == FileType::Fifo {
        Box::new(pipe::Receiver::from_owned_fd(widened(stdin.as_fd())?)?)
    } else if kind == FileType::Socket {
        Box::new(socket(stdin.as_fd())?)
    } else {
        Box::new(tokio::io::stdin())
    })
}

fn output() -> io::Result<Output> {
    let stdout = io::stdout();
    let kind = kind(stdout.as_fd())?;
    Ok(if kind == FileType::Fifo {
        Box::new(pipe::Sender::from_owned_fd(widened(stdout.as_fd())?)?)
    } else if kind == FileType::Socket {
        Box::new(socket(stdout.as_fd())?)
    } else {
        Box::new(tokio::io::stdout())
    })
}

fn kind(fd: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// A second descriptor of the pipe, which is made as large as may be.
fn widened(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // A small pipe is slower and nothing else.
    let _size = rustix::pipe::fcntl_setpipe_size(fd, PIPE_SIZE);
    fd.try_clone_to_owned()
}

fn socket(fd: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd.try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
