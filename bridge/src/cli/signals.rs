//! The signals that end a session: Ctrl-C, `SIGTERM`, `SIGHUP`. A daemon reads its configuration again at the last.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::{Exit, Failure};

/// Waits for the operator's wish to end; made before anything is opened, so that no signal is lost.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

/// A wish to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Ctrl-C.
    Interrupt,
    /// `SIGTERM`.
    Terminate,
    /// The terminal went away.
    HangUp,
}

/// What a signal asks of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To end.
    End(Ending),
    /// To read its configuration again.
    Reload,
}

impl Ending {
    /// The signal's number.
    #[must_use]
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

impl Signals {
    /// Takes the signals over from their default of ending the process at once.
    ///
    /// # Errors
    ///
    /// Code 1 where the system does not let us.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let take = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Exit::Failed, "cannot listen for signals").because(error))
        };
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }

    /// What a daemon is asked for next. Cancel safe.
    pub(crate) async fn next_wish(&mut self) -> Wish {
        match self.next().await {
            Ending::HangUp => Wish::Reload,
            ending @ (Ending::Interrupt | Ending::Terminate) => Wish::End(ending),
        }
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Interrupt,
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.hang_up.recv() => Ending::HangUp,
        }
    }
}
