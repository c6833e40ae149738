//! A pseudo-terminal and the process that it controls.

use std::fs::File;
use std::io;
use std::process::Stdio;
use std::sync::Weak;

use bytes::Bytes;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::Terminal;

/// Exit code where a signal ended the shell, as the daemon tells it.
const KILLED: i32 = 137;

/// The side of the terminal that is not the shell's.
#[derive(Debug)]
pub(super) struct Device {
    output: pipe::Receiver,
    input: pipe::Sender,
}

impl Device {
    /// Opens a terminal and starts `command` on it, which must take it as its controlling one.
    pub(super) fn start(mut command: Command, columns: u16, rows: u16) -> io::Result<(Self, Child)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&ours, size)?;
        let name = ptsname(&ours, Vec::new())?;
        let path = name.to_str().map_err(io::Error::other)?;
        let theirs = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )?;
        let theirs = File::from(theirs);
        command
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs.try_clone()?))
            .stderr(Stdio::from(theirs));
        let child = command.spawn()?;
        // The command holds the other side open; without it, the end of the shell is the end of the output.
        drop(command);
        rustix::io::ioctl_fionbio(&ours, true)?;
        // The safe way to have the runtime watch a descriptor; it need not be a pipe.
        let device = Self {
            output: pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?,
            input: pipe::Sender::from_owned_fd_unchecked(ours)?,
        };
        Ok((device, child))
    }

    /// Carries both directions until the last process has closed the terminal; gives the shell's exit code.
    pub(super) async fn run(
        self,
        mut child: Child,
        mut input: mpsc::Receiver<Bytes>,
        terminal: Weak<Terminal>,
    ) -> i32 {
        let reading = async {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count) = self.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                if let Some(terminal) = terminal.upgrade() {
                    terminal.hand_out(&Bytes::copy_from_slice(&buffer[..count])).await;
                }
            }
        };
        let writing = async {
            while let Some(chunk) = input.recv().await {
                if self.write_all(&chunk).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
        let status = child.wait().await;
        status.ok().and_then(|status| status.code()).unwrap_or(KILLED)
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.output.readable().await?;
            // Not `AsyncRead`: that takes a short read for an empty queue, and a terminal reads short at 4095 bytes.
            match self.output.try_read(buffer) {
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.input.writable().await?;
            match self.input.try_write(bytes) {
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                written => bytes = &bytes[written?..],
            }
        }
        Ok(())
    }
}
