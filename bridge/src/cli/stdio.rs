//! Our own standard streams, for the command of `run` and the answers of every command.
//!
//! Here: printing that does not panic when nobody reads; stdin by a thread of its own, so that a terminal nobody types
//! into cannot hold up our exit; output of the target's command, passed on as it comes. Not here: the log (`telemetry`).

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use runners::{OutputSink, OutputStream};
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::exit::{Exit, Failure};

/// Prints an answer. A reader that went away (`| head`) is no error.
///
/// # Errors
///
/// Code 1 where standard output cannot be written for another reason, such as a full disk.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, "cannot write to standard output").because(error))
        }
        _ => Ok(()),
    }
}

/// Prints one line of JSON.
///
/// # Errors
///
/// As [`print()`].
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

/// A value of ours as JSON.
///
/// # Errors
///
/// Code 1 where it cannot be written so, which none of ours is.
pub(crate) fn as_value(value: &impl serde::Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(value)
        .map_err(|error| Failure::new(Exit::Failed, "cannot write JSON").because(error))
}

/// Says something to the operator outside of the log. Errors are of no use: it is the last place to say them.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "paperclip-bridge: {text}");
}

/// Bytes read from stdin at a time, and how many such pieces wait to be sent.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES: usize = 4;

/// Our standard input as it comes.
#[derive(Debug)]
pub(crate) struct Stdin {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Stdin {
    /// Starts reading; call it once, and only when the input is wanted.
    ///
    /// The thread ends at end of input, when this is dropped and the next piece comes, or with the process.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub(crate) fn read() -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let piece = match stdin.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => Ok(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self {
            pieces,
            rest: Bytes::new(),
        })
    }

    /// Waits until the input ends, and drops what comes until then.
    ///
    /// Cancel safe.
    pub(crate) async fn closed(&mut self) {
        while let Some(Ok(_)) = self.pieces.recv().await {}
    }
}

impl AsyncRead for Stdin {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.pieces.poll_recv(context)) {
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.rest.len().min(into.remaining());
        into.put_slice(self.rest.get(..length).unwrap_or_default());
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// Passes the command's output on to our own, piece by piece.
///
/// When one of ours is closed, the command is cancelled, as a program in a shell pipe would be by `SIGPIPE`.
#[derive(Debug)]
pub(crate) struct PassOn {
    cancel: CancellationToken,
    failed: Mutex<Option<io::Error>>,
}

impl PassOn {
    /// Cancels `cancel` when our output is gone.
    #[must_use]
    pub(crate) fn new(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            failed: Mutex::new(None),
        }
    }

    /// Why output could not be passed on, if so.
    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        self.failed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }
}

impl OutputSink for PassOn {
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Off the runtime's thread: a pager that does not read must not stop the callbacks.
            let written = match stream {
                OutputStream::Stdout => write(tokio::io::stdout(), &bytes).await,
                OutputStream::Stderr => write(tokio::io::stderr(), &bytes).await,
            };
            if let Err(error) = written {
                *self
                    .failed
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                self.cancel.cancel();
            }
        })
    }
}

async fn write(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
