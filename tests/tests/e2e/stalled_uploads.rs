//! An upstream that stops reading costs its own callers, not those beside them.

use std::io::Write;
use std::time::{Duration, Instant};

use paperclip_bridge_tests::{Script, World, eventually};

use crate::ssh_can_run;

const STALLED: &str = "/api/issues/STALLED/comments";
const UPLOADS: usize = 4;
const BODY_BYTES: usize = 10 * 1024 * 1024;

#[tokio::test]
async fn calls_beside_four_stalled_uploads_of_ten_mebibytes_all_succeed() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    world.upstream.on("POST", STALLED, Script::stall_before_body());
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..UPLOADS {
        let agent = world.agent();
        uploads.spawn(async move {
            agent
                .post(STALLED, &format!("\"{}\"", "x".repeat(BODY_BYTES - 2)))
                .await
        });
    }
    eventually(
        Duration::from_secs(30),
        "all uploads stand at the upstream",
        || (world.upstream.count() == UPLOADS).then_some(()),
    )
    .await;

    let mut times = vec![];
    for number in 0..300 {
        let started = Instant::now();
        let answer = world.agent().get("/api/agents/me").await;
        times.push(started.elapsed());
        assert_eq!(answer.map(|answer| answer.status), Ok(200), "call {number}");
    }

    assert!(
        uploads.try_join_next().is_none(),
        "an upload ended although its upstream stalls"
    );
    times.sort_unstable();
    // A figure for the reader; clocks are judged by the benchmark.
    let line = format!(
        "beside {UPLOADS} stalled uploads: p50 {:?}, p99 {:?}\n",
        times[150], times[297]
    );
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}
