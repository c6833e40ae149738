//! Many daemons that hold leases, half of them giving theirs back, all killed at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use runners::fake::{Call, LeaseState};

use super::Leased;
use crate::binary::Bridge;
use crate::eventually;

/// How long reaping may take at most.
const LIMIT: Duration = Duration::from_secs(60);

/// What one kill made of so many leases.
#[derive(Debug)]
pub struct Killed {
    /// Leases that were held.
    pub leases: usize,
    /// Given back before the kill, by the provider's own log.
    pub released_before: usize,
    /// Still at the provider after the kill.
    pub left: usize,
    /// Entries that the daemons left in their book.
    pub written_down: usize,
    /// What did not hold.
    pub violations: Vec<String>,
}

/// Opens `leases` sessions on one state folder, tells every other one to end, kills all of them `after` that, and lets
/// two processes at once reap what is left.
///
/// # Panics
///
/// Where a session does not open.
pub async fn round(leases: usize, after: Duration) -> Killed {
    let world = Leased::new().await;
    // Slow enough that a kill finds some before, some in and some behind their release.
    let latency = r#"latencyMs={"release":150}"#;
    let opening = (0..leases).map(|number| {
        let run = format!("run-{number}");
        let world = &world;
        async move { world.open_run(&run, "fake:", &["--provider", latency]).await }
    });
    let mut open: Vec<Bridge> = Vec::new();
    for opened in futures_util::future::join_all(opening).await {
        open.push(
            opened.unwrap_or_else(|ended| panic!("`open` ended with {:?}: {}", ended.code, ended.stderr)),
        );
    }
    for bridge in open.iter_mut().step_by(2) {
        bridge.running.close_stdin();
    }
    tokio::time::sleep(after).await;
    for bridge in &open {
        bridge.running.signal("KILL");
    }
    for bridge in open {
        bridge.running.finish().await;
    }

    let mut killed = Killed {
        leases,
        released_before: world.calls(Call::Release).len(),
        left: world.present().len(),
        written_down: world.entries().len(),
        violations: vec![],
    };
    killed.nothing_is_lost(&world).await;
    let (one, other) = tokio::join!(world.leases(["reap"]), world.leases(["reap"]));
    if one.0.code != Some(0) || other.0.code != Some(0) {
        killed.violations.push(format!(
            "reaping ended with {:?} and {:?}",
            one.0.code, other.0.code
        ));
    }
    killed.everything_was_released_once(&world).await;
    killed
}

impl Killed {
    /// What is at the provider stands in the book.
    async fn nothing_is_lost(&mut self, world: &Leased) {
        let (_, listed) = world.leases(["ls"]).await;
        let entries = listed["leases"].as_array().cloned().unwrap_or_default();
        let written: Vec<_> = entries.iter().filter_map(|entry| entry["id"].as_str()).collect();
        for (id, _) in world.present() {
            if !written.contains(&id.as_str()) {
                self.violations
                    .push(format!("{id} is held and stands in no book"));
            }
        }
        let in_use = entries.iter().filter(|entry| entry["in_use"] == true).count();
        if in_use > 0 {
            self.violations
                .push(format!("{in_use} entries are in use, and nobody lives"));
        }
    }

    async fn everything_was_released_once(&mut self, world: &Leased) {
        let mut releases: BTreeMap<String, usize> = BTreeMap::new();
        for entry in world.calls(Call::Release) {
            *releases.entry(entry.lease.unwrap_or_default()).or_default() += 1;
        }
        let leases = world.cloud().leases().unwrap_or_default();
        if leases.len() != self.leases {
            self.violations.push(format!("{} leases were made", leases.len()));
        }
        for (id, state) in leases {
            let times = releases.get(&id).copied().unwrap_or_default();
            if state != LeaseState::Gone || times != 1 {
                self.violations
                    .push(format!("{id} is {state:?} after {times} releases"));
            }
        }
        // A gateway of a killed daemon ends by itself; its sandbox is removed with everything in it.
        let emptied = eventually(LIMIT, "the folders are empty", || {
            (world.entries().is_empty() && world.sandboxes().is_empty()).then_some(())
        });
        emptied.await;
    }
}
