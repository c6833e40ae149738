//! Many commands at once on one real OpenSSH server that allows ten sessions a connection, which is what it comes with.

use std::sync::Arc;
use std::time::Duration;

use paperclip_bridge_tests::conformance::Recorder;
use paperclip_bridge_tests::sshd::{self, Sshd};
use paperclip_bridge_tests::{can_run, within};
use runners::ssh::{SshHost, SshRunner};
use runners::{CommandManagedRuntimeRunner as _, Execution, Killed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ssh::settings;

const COMMANDS: usize = 20;
/// A machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn twenty_long_commands_run_at_once_are_all_ended_and_their_connections_are_closed_again() {
    if !can_run(sshd::here()) {
        return;
    }
    let server = Sshd::builder().line("MaxSessions 10").start();
    let mut settings = settings(&server);
    settings.limits.further_look = Duration::from_millis(50);
    let host = SshHost::new(settings);
    let cancel = CancellationToken::new();
    let mut running = JoinSet::new();
    let mut recorders = Vec::new();
    for _ in 0..COMMANDS {
        let recorder = Recorder::new();
        let mut execution = Execution::new("sh", ["-c", "echo runs; sleep 300"]);
        execution.output = Some(Arc::<Recorder>::clone(&recorder));
        execution.cancel = cancel.clone();
        let runner = SshRunner::new(Arc::clone(&host));
        running.spawn(async move { runner.execute(execution).await });
        recorders.push(recorder);
    }

    for recorder in &recorders {
        recorder.says("runs").await;
    }

    // Eight on each, and one place kept for ending one.
    assert_eq!(host.further_connections().await, 2);
    let at_once = Execution::new("sh", ["-c", "echo one more"]);
    let more = SshRunner::new(Arc::clone(&host)).execute(at_once).await;
    assert_eq!(more.expect("there is room for one more").stdout, b"one more\n");
    cancel.cancel();
    while let Some(ended) = within(LIMIT, "the commands end", running.join_next()).await {
        let result = ended.expect("no panic").expect("no command is refused");
        assert!(result.cancelled);
        assert_eq!(result.killed, Some(Killed::Group));
    }
    assert_eq!(host.owed(), 0);
    within(LIMIT, "idle further connections are closed", async {
        while host.further_connections().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let again = Execution::new("sh", ["-c", "echo still here"]);
    let again = SshRunner::new(Arc::clone(&host)).execute(again).await;
    assert_eq!(again.expect("the first connection stays").stdout, b"still here\n");
    assert_eq!(host.further_connections().await, 0);
}

#[tokio::test]
async fn a_command_is_ended_where_every_connection_is_full_of_commands() {
    if !can_run(sshd::here()) {
        return;
    }
    let server = Sshd::builder().line("MaxSessions 10").start();
    let host = SshHost::new(settings(&server));
    let (others, one) = (CancellationToken::new(), CancellationToken::new());
    let mut running = JoinSet::new();
    for number in 0..8 {
        let recorder = Recorder::new();
        let mut execution = Execution::new("sh", ["-c", "echo runs; sleep 300"]);
        execution.output = Some(Arc::<Recorder>::clone(&recorder));
        execution.cancel = if number == 0 { one.clone() } else { others.clone() };
        let runner = SshRunner::new(Arc::clone(&host));
        running.spawn(async move { runner.execute(execution).await });
        recorder.says("runs").await;
    }

    one.cancel();
    let ended = within(LIMIT, "it is ended", running.join_next()).await;

    let result = ended.expect("one ends").expect("no panic").expect("a result");
    assert_eq!((result.cancelled, result.killed), (true, Some(Killed::Group)));
    assert_eq!(
        host.further_connections().await,
        0,
        "it was ended over the place that is kept for that"
    );
    others.cancel();
    while let Some(ended) = within(LIMIT, "the others end", running.join_next()).await {
        assert!(ended.expect("no panic").expect("a result").cancelled);
    }
}
