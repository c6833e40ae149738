//! Commands that are ended: their time is up, or nobody wants them any more.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use std::time::Duration;

use runners::{Execution, ExecutionResult};

use super::{Recorder, Subject, sh, told};

/// Runs what `make` makes with a time limit until its output shows that it got as far as it wanted.
async fn timed_out(subject: &Subject, make: impl Fn() -> Execution) -> ExecutionResult {
    for seconds in [1, 4, 16] {
        let mut execution = make();
        execution.timeout = Some(Duration::from_secs(seconds));
        let result = subject.run(execution).await;
        assert!(result.timed_out && !result.success(), "{}", told(&result));
        if result.stdout.ends_with(b"\n") {
            return result;
        }
    }
    panic!("it never came to say anything");
}

fn pids(result: &ExecutionResult) -> Vec<String> {
    String::from_utf8_lossy(&result.stdout)
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect()
}

pub async fn a_time_out_is_told_and_ends_the_command(subject: &Subject) {
    let result = timed_out(subject, || sh("echo $$; exec sleep 987")).await;

    assert!(result.timed_out && !result.cancelled, "{}", told(&result));
    assert_ne!(result.exit_code, Some(0), "{}", told(&result));
    assert!(result.killed.is_some(), "{}", told(&result));
    subject.until_gone(&pids(&result)[0]).await;
}

pub async fn a_time_out_ends_what_the_command_started(subject: &Subject) {
    // A child, and a grandchild whose parent is gone.
    let result = timed_out(subject, || {
        sh("sleep 987 & a=$!; b=$(sleep 986 >/dev/null 2>&1 & echo $!); echo \"$$ $a $b\"; wait")
    })
    .await;

    let all = pids(&result);
    assert_eq!(all.len(), 3, "{}", told(&result));
    for pid in all {
        subject.until_gone(&pid).await;
    }
}

pub async fn a_command_that_ignores_term_is_killed(subject: &Subject) {
    let result = timed_out(subject, || {
        sh("trap '' TERM; sleep 987 & echo \"$$ $!\"; while :; do sleep 987; done")
    })
    .await;

    for pid in pids(&result) {
        subject.until_gone(&pid).await;
    }
}

pub async fn a_command_within_its_time_is_left_alone(subject: &Subject) {
    let mut execution = sh("sleep 0.2; echo done; exit 5");
    execution.timeout = Some(super::LIMIT);

    let result = subject.run(execution).await;

    assert_eq!(
        (result.exit_code, result.timed_out, result.killed),
        (Some(5), false, None),
        "{}",
        told(&result)
    );
}

pub async fn the_longest_time_out_is_no_mistake(subject: &Subject) {
    for limit in [Duration::from_secs(60 * 60 * 24 * 30), Duration::MAX] {
        let mut execution = sh("echo done");
        execution.timeout = Some(limit);

        assert_eq!(subject.run(execution).await.stdout, b"done\n", "{limit:?}");
    }
}

pub async fn a_command_cancelled_before_its_start_is_not_started(subject: &Subject) {
    let folder = subject.folder().await;
    let execution = sh(&format!("touch {folder}/ran; sleep 987"));
    execution.cancel.cancel();

    let result = subject.run(execution).await;

    assert!(result.cancelled && !result.success(), "{}", told(&result));
    assert_eq!(subject.says(&format!("ls {folder}")).await, "");
}

pub async fn a_cancelled_command_and_its_children_end(subject: &Subject) {
    if !subject.runner().capabilities().concurrent {
        return;
    }
    let folder = subject.folder().await;
    let execution = sh(&format!(
        "sleep 987 & echo \"$$ $!\" >{folder}/new; mv {folder}/new {folder}/pids; wait"
    ));
    let cancel = execution.cancel.clone();

    let (result, ()) = tokio::join!(subject.run(execution), async {
        subject.until(&format!("[ -e {folder}/pids ]")).await;
        cancel.cancel();
    });

    assert!(
        result.cancelled && !result.timed_out && !result.success(),
        "{}",
        told(&result)
    );
    let all = subject.says(&format!("cat {folder}/pids")).await;
    for pid in all.split(' ') {
        subject.until_gone(pid).await;
    }
}

pub async fn what_was_said_before_the_end_by_force_is_kept(subject: &Subject) {
    if !subject.runner().capabilities().streaming_output {
        let result = timed_out(subject, || sh("echo early; echo why >&2; exec sleep 987")).await;
        assert_eq!(result.stdout, b"early\n", "{}", told(&result));
        return;
    }
    let sink = Recorder::new();
    let mut execution = sh("echo why >&2; echo early; exec sleep 987");
    execution.output = Some(sink.clone());
    let cancel = execution.cancel.clone();

    let (result, ()) = tokio::join!(subject.run(execution), async {
        sink.says("early").await;
        cancel.cancel();
    });

    assert!(result.cancelled, "{}", told(&result));
    assert_eq!(
        (result.stdout.as_slice(), result.stderr.as_slice()),
        (&b"early\n"[..], &b"why\n"[..])
    );
}

pub async fn the_runner_works_after_an_end_by_force(subject: &Subject) {
    let mut execution = sh("exec sleep 987");
    execution.timeout = Some(Duration::from_millis(300));
    assert!(subject.run(execution).await.timed_out);

    assert_eq!(subject.says("echo still here").await, "still here");
}
