//! Standard input and output as the channel to the host.
//!
//! Here: the cheapest way to read and write what the two happen to be. Pipes and sockets are waited for by the kernel;
//! anything else (a terminal, a file, `/dev/null`) goes through threads that block, because whether a descriptor blocks is
//! a property of the open file, and a terminal is open in the parent, too. Not here: what is read and written.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
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
        // It only reads, and is woken for that alone, which a stream of both directions is not.
        Box::new(pipe::Receiver::from_owned_fd_unchecked(socket(stdin.as_fd())?)?)
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
        Box::new(SocketOutput::new(stdout.as_fd())?)
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

/// A second descriptor of the socket, which does not block.
fn socket(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = fd.try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Writes a socket and waits for room only where there is none: the kernel tells of room each time the host has read, and
/// an ordinary stream would wake for it.
struct SocketOutput {
    fd: OwnedFd,
    /// Waits for room.
    full: Option<pipe::Sender>,
}

impl SocketOutput {
    fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            fd: socket(fd)?,
            full: None,
        })
    }

    /// - `now`: writes without waiting.
    /// - `waiting`: the same where it can wait.
    fn poll(
        &mut self,
        now: impl FnOnce(&OwnedFd) -> rustix::io::Result<usize>,
        waiting: impl FnOnce(Pin<&mut pipe::Sender>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let full = match &mut self.full {
            Some(full) => full,
            none => match now(&self.fd) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    // It only writes, and is woken for that alone.
                    none.insert(pipe::Sender::from_owned_fd_unchecked(self.fd.try_clone()?)?)
                }
                done => return Poll::Ready(Ok(done?)),
            },
        };
        let written = ready!(waiting(Pin::new(full)));
        self.full = None;
        Poll::Ready(written)
    }
}

impl AsyncWrite for SocketOutput {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll(
            |fd| rustix::io::write(fd, bytes),
            |full| full.poll_write(cx, bytes),
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(
            |fd| rustix::io::writev(fd, bytes),
            |full| full.poll_write_vectored(cx, bytes),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write)?))
    }
}
