//! From options to a session that is ready; `run` and `open` start here.
//!
//! Here: the order of the checks and their exit codes, and the watch on the tunnel's status. Not here: what the session
//! is then used for.

use tokio::sync::watch;
use tunnel::{Listening, Status};

use crate::app::{App, OpenError, OpenSession};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::SessionOptions;
use crate::cli::secrets::check_credential;
use crate::cli::signals::Signals;

/// Whether the session of a predecessor may be gone on with, whose token nobody here knows any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Its agent may still be running.
    Yes,
    /// A new command needs a new token.
    No,
}

/// Opens the session that the options ask for.
///
/// # Errors
///
/// Code 2 or 3 before anything is connected to; 4 when upstream or target is not reachable or refuses; 1 when a signal
/// came first.
pub(crate) async fn open(
    app: &App,
    options: &SessionOptions,
    resume: Resume,
    signals: &mut Signals,
) -> Result<OpenSession, Failure> {
    let mut request = options.request()?;
    request.resume = resume == Resume::Yes;
    app.check(&request.target).map_err(failure)?;
    check_credential(&request.credential).await?;
    if !options.no_upstream_check {
        request.upstream.probe().await.map_err(|reason| {
            Failure::new(Exit::Unreachable, reason).hint("--no-upstream-check opens the session all the same")
        })?;
    }
    // Boxed: opening is by far the largest future here.
    let opening = Box::pin(app.open(request));
    tokio::select! {
        opened = opening => opened.inspect(tell_ladder).map_err(failure),
        ending = signals.next() => {
            Err(Failure::new(Exit::Failed, format!("interrupted by signal {} before the session was open", ending.number())))
        }
    }
}

/// Says once, in words, what was tried before the tunnel that was taken.
fn tell_ladder(session: &OpenSession) {
    let taken = session.tunnel;
    for attempt in &session.ladder {
        let ms = u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            tunnel = attempt.tunnel,
            reason = attempt.reason,
            ms,
            taken,
            "{attempt}; {taken} taken"
        );
    }
}

pub(crate) fn failure(error: OpenError) -> Failure {
    let exit = match &error {
        OpenError::Configuration(_) => Exit::Configuration,
        OpenError::Unreachable(_) | OpenError::Refused { .. } | OpenError::LeaseLost(_) => Exit::Unreachable,
    };
    match error {
        OpenError::Refused { reason, detail } => {
            Failure::new(exit, format!("the target refuses what is needed ({reason})")).hint(detail)
        }
        OpenError::Configuration(text) | OpenError::Unreachable(text) => Failure::new(exit, text),
        lost @ OpenError::LeaseLost(_) => Failure::new(exit, lost.to_string()),
    }
}

/// Logs every change of the tunnel until it is over for good.
///
/// Cancel safe. Returns when nobody can report a change any more, that is, when the tunnel has ended.
pub(crate) async fn watch(tunnel: &'static str, mut status: watch::Receiver<Status>) {
    loop {
        log_status(tunnel, &status.borrow_and_update());
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn log_status(tunnel: &'static str, status: &Status) {
    match status {
        Status::Starting => tracing::debug!(tunnel, "tunnel starting"),
        Status::Ready {
            listening,
            verified_loopback,
        } => {
            let place = match listening {
                Listening::Tcp { port } => format!("port {port}"),
                Listening::Unix { path } => format!("unix socket {}", path.display()),
                Listening::Url { url, .. } => url.clone(),
            };
            match verified_loopback {
                Some(true) => {
                    tracing::info!(tunnel, listening = place, loopback = "verified", "tunnel ready")
                }
                Some(false) => {
                    tracing::warn!(
                        tunnel,
                        listening = place,
                        loopback = "no",
                        "tunnel ready and reachable from other machines"
                    );
                }
                None => tracing::info!(tunnel, listening = place, loopback = "unverified", "tunnel ready"),
            }
        }
        Status::Reconnecting { reason, detail } => {
            tracing::warn!(tunnel, reason, detail, "tunnel reconnecting")
        }
        Status::Degraded { reason, detail } => tracing::warn!(tunnel, reason, detail, "tunnel degraded"),
    }
}

/// Ends the session in order and says what may be left behind.
///
/// # Errors
///
/// Code 1 with the text that says so.
pub(crate) async fn close(session: OpenSession) -> Result<(), Failure> {
    session.close().await.map_err(|left| {
        let failure = Failure::new(Exit::Failed, format!("the session did not end cleanly: {left}"));
        match left.on_target {
            Some(_) => failure.hint("check the target for a listener that is still there; its token is void"),
            None => failure,
        }
    })
}
