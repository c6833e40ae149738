//! The service manager: what it hands over, and what it is told.
//!
//! Here: [`Notifier`], which says where the daemon stands (sd_notify(3)). In `sockets` the listeners that systemd opened
//! for us, in `watchdog` the sign of life. Without a service manager all of it does nothing. Not here: the unit files
//! (`bridge/packaging`). Read next: `sockets`.

mod sockets;
mod watchdog;

use std::time::Duration;

use sd_notify::NotifyState;

pub(crate) use sockets::Passed;
pub(crate) use watchdog::watch;

/// A service manager that does not take our word by then is not waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Tells the service manager where the daemon stands; to nobody where `NOTIFY_SOCKET` is not set.
///
/// Each call returns once the word is out, so that words arrive in the order of the calls. One that does not get through
/// is logged and not repeated: what the daemon does never hangs on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notifier;

impl Notifier {
    /// It serves: after its start, and after a reload, also one that was refused.
    pub async fn ready(self, status: String) {
        self.tell(move || say(&[NotifyState::Ready, NotifyState::Status(&status)]))
            .await;
    }

    /// It reads its configuration anew. [`Self::ready`] has to follow.
    pub async fn reloading(self) {
        self.tell(|| {
            say(&[
                NotifyState::Reloading,
                // systemd tells by it that this reload is the one that it asked for.
                NotifyState::monotonic_usec_now()?,
                NotifyState::Status("reading the configuration anew"),
            ])
        })
        .await;
    }

    /// It ends, and may take this long.
    pub async fn stopping(self, at_most: Duration) {
        let microseconds = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
        self.tell(move || {
            say(&[
                NotifyState::Stopping,
                NotifyState::ExtendTimeoutUsec(microseconds),
                NotifyState::Status("ending in order"),
            ])
        })
        .await;
    }

    /// It lives.
    async fn alive(self, status: String) {
        self.tell(move || say(&[NotifyState::Watchdog, NotifyState::Status(&status)]))
            .await;
    }

    /// Sending to a full socket blocks, so it is not done on the thread that serves.
    async fn tell(self, send: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
        let sent = tokio::time::timeout(TOLD_WITHIN, tokio::task::spawn_blocking(send)).await;
        let fault = match sent {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("its socket takes nothing within {TOLD_WITHIN:?}"),
        };
        tracing::warn!(
            fault,
            "the service manager could not be told where the daemon stands"
        );
    }
}

fn say(words: &[NotifyState<'_>]) -> std::io::Result<()> {
    sd_notify::notify(words)
}
