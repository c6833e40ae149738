//! Several executions of one runner.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use runners::Input;

use super::{Subject, sh, told};

pub async fn eight_at_once_do_not_mix(subject: &Subject) {
    let each = (0..8_u8).map(|number| async move {
        let mut execution = sh("n=0; while [ $n -lt 300 ]; do echo \"$MINE $n\"; echo \"$MINE\" >&2; n=$((n+1)); done; cat; exit \"$MINE\"");
        execution.env.insert("MINE".to_owned(), number.to_string());
        execution.stdin = Input::Bytes(Bytes::from(format!("input {number}\n")));
        let result = subject.run(execution).await;

        let wanted: String = (0..300).map(|n| format!("{number} {n}\n")).collect();
        assert_eq!(
            String::from_utf8_lossy(&result.stdout),
            format!("{wanted}input {number}\n")
        );
        assert_eq!(
            String::from_utf8_lossy(&result.stderr),
            format!("{number}\n").repeat(300)
        );
        assert_eq!(result.exit_code, Some(i32::from(number)), "{}", told(&result));
    });

    join_all(each).await;
}

pub async fn a_long_one_does_not_hold_up_short_ones(subject: &Subject) {
    if !subject.runner().capabilities().concurrent {
        return;
    }
    let folder = subject.folder().await;
    let long = sh(&format!(
        "until [ -e {folder}/go ]; do sleep 0.05; done; echo long"
    ));

    let (long, ()) = tokio::join!(subject.run(long), async {
        // It ends only after these.
        for number in 0..10 {
            assert_eq!(subject.says(&format!("echo {number}")).await, number.to_string());
        }
        subject.says(&format!("touch {folder}/go")).await;
    });

    assert_eq!(long.stdout, b"long\n");
}

pub async fn ending_one_leaves_the_other(subject: &Subject) {
    if !subject.runner().capabilities().concurrent {
        return;
    }
    let folder = subject.folder().await;
    let staying = sh(&format!(
        "until [ -e {folder}/go ]; do sleep 0.05; done; echo stayed"
    ));
    let mut ended = sh("exec sleep 987");
    ended.timeout = Some(Duration::from_millis(500));

    let (staying, ()) = tokio::join!(subject.run(staying), async {
        assert!(subject.run(ended).await.timed_out);
        subject.says(&format!("touch {folder}/go")).await;
    });

    assert_eq!(staying.stdout, b"stayed\n", "{}", told(&staying));
}

pub async fn many_in_a_row_leave_nothing_behind(subject: &Subject) {
    for number in 0..30 {
        assert_eq!(subject.says(&format!("echo {number}")).await, number.to_string());
    }
}
