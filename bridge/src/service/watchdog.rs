//! The watchdog: a sign of life at half of the time after which the service manager restarts us.
//!
//! Here: [`watch`]. A sign is given only after the runtime has turned and the registry's lock was had, which is what
//! every callback and every operator needs. Not here: what else may be wrong (`/readyz`): a restart would not mend it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Notifier;
use crate::daemon::Daemon;

/// Gives signs of life until `stop`; returns at once where no service manager waits for them.
pub(crate) async fn watch(daemon: Arc<Daemon>, notifier: Notifier, stop: CancellationToken) {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let interval = patience / 2;
    while tokio::time::timeout(interval, stop.cancelled()).await.is_err() {
        match sessions(&daemon, interval / 2).await {
            Some(sessions) => notifier.alive(standing(sessions)).await,
            None => tracing::error!(
                "the registry of sessions does not answer; the watchdog is not told that we live"
            ),
        }
    }
}

/// The daemon in a line, for `systemctl status`.
pub(super) fn standing(sessions: usize) -> String {
    match sessions {
        1 => "1 session".to_owned(),
        sessions => format!("{sessions} sessions"),
    }
}

/// Sessions that live; `None` where the registry does not say within the limit.
async fn sessions(daemon: &Arc<Daemon>, limit: Duration) -> Option<usize> {
    let daemon = Arc::clone(daemon);
    // A lock that is never given back must not take the runtime with it.
    let asked = tokio::task::spawn_blocking(move || daemon.living());
    tokio::time::timeout(limit, asked).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registry_whose_lock_is_kept_gives_no_sign_of_life() {
        let daemon = crate::daemon::tests::daemon(1);
        assert_eq!(sessions(&daemon, Duration::from_secs(20)).await, Some(0));
        let (held, release) = crate::daemon::tests::locked(&daemon);

        let kept = sessions(&daemon, Duration::from_millis(20)).await;

        assert_eq!(kept, None);
        release.send(()).unwrap();
        held.join().unwrap();
        assert_eq!(sessions(&daemon, Duration::from_secs(20)).await, Some(0));
    }
}
