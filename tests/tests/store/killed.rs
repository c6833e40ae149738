//! A process that is killed in the middle of its inserts.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use bridge::store::{EntryOutcome, SessionFilter, StoreUrl};
use uuid::Uuid;

use crate::ground::{LONG, folder, opened};

/// Killed after so many have been confirmed; more may have been written.
const CONFIRMED: [usize; 3] = [1, 137, 700];

#[tokio::test]
async fn a_killed_process_leaves_a_store_with_every_entry_that_was_confirmed() {
    for confirmed in CONFIRMED {
        let folder = folder();
        let mut writer = Command::new(env!("CARGO_BIN_EXE_bench-store"))
            .args(["insert", "--count", "1000"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut ids: Vec<Uuid> = lines
            .by_ref()
            .take(confirmed)
            .map(|line| line.unwrap().parse().unwrap())
            .collect();
        writer.kill().unwrap();
        assert!(!writer.wait().unwrap().success());
        // What was in the pipe was confirmed too; the last line may be torn.
        ids.extend(
            lines
                .map_while(Result::ok)
                .filter_map(|line| line.parse::<Uuid>().ok()),
        );

        let store = opened(StoreUrl::Sqlite, &folder).await.unwrap();
        let sessions = store.sessions(SessionFilter::default()).await.unwrap();
        assert_eq!(sessions.len(), 1);
        for id in &ids {
            assert!(
                store.entry(*id).await.unwrap().is_some(),
                "{id} of {} is lost",
                ids.len()
            );
        }
        let resumed = store.resume(store.daemon(), LONG).await.unwrap();
        let marked = store
            .mark_indeterminate(&resumed[0].0, "daemon_killed")
            .await
            .unwrap();

        assert!(
            ids.len() >= confirmed && marked >= ids.len() as u64,
            "{marked} {}",
            ids.len()
        );
        let recent = store.recent_entries(sessions[0].id, 2_000).await.unwrap();
        assert_eq!(recent.len() as u64, marked);
        assert!(
            recent
                .iter()
                .all(|entry| matches!(entry.outcome, EntryOutcome::Indeterminate { .. }))
        );
    }
}
