//! The fake's time: the real one, and what a test added to it.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;

/// Ends of processes, lifetimes of sandboxes and keep-alives go by this clock.
#[derive(Debug)]
pub struct Clock {
    ahead: watch::Sender<Duration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            ahead: watch::Sender::new(Duration::ZERO),
        }
    }
}

impl Clock {
    /// Now, in the fake.
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + *self.ahead.borrow()
    }

    /// Lets this much time pass at once.
    pub fn advance(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += by);
    }

    /// Waits until that time has come, by passing or by [`Self::advance`].
    pub(super) async fn sleep_until(&self, at: SystemTime) {
        let mut ahead = self.ahead.subscribe();
        loop {
            let left = at.duration_since(self.now()).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = ahead.changed() => {}
            }
        }
    }
}
