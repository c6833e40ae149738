//! How a command ends by itself, and what is not started at all.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use runners::{Execution, RunnerError};

use super::{Difference, Subject, sh, told};

pub async fn every_exit_code_arrives_as_it_is(subject: &Subject) {
    for code in [0, 1, 2, 42, 124, 126, 127, 128, 137, 255] {
        let result = subject.run(sh(&format!("exit {code}"))).await;

        assert_eq!(result.exit_code, Some(code), "{}", told(&result));
        assert_eq!(result.success(), code == 0);
        assert!(!result.timed_out && !result.cancelled && result.killed.is_none());
    }
}

pub async fn a_signal_that_ended_the_command_is_told(subject: &Subject) {
    for (name, number) in [("KILL", 9), ("TERM", 15), ("USR1", 10)] {
        let result = subject.run(sh(&format!("kill -s {name} $$; sleep 60"))).await;

        assert!(!result.success() && !result.timed_out, "{}", told(&result));
        if subject.differs(Difference::SignalAsExitCode) {
            assert_eq!(result.exit_code, Some(128 + number), "{}", told(&result));
        } else {
            assert_eq!(
                (result.exit_code, result.signal.as_deref()),
                (None, Some(name)),
                "{}",
                told(&result)
            );
        }
    }
}

pub async fn a_program_that_is_not_there_is_an_error_or_127(subject: &Subject) {
    let tried = subject
        .try_run(Execution::new("no-such-program-here", ["x"]))
        .await;

    match tried {
        Ok(result) => assert_eq!(result.exit_code, Some(127), "{}", told(&result)),
        Err(error) => assert!(error.to_string().contains("no-such-program-here"), "{error}"),
    }
}

pub async fn a_file_that_is_no_program_is_an_error_or_126(subject: &Subject) {
    let folder = subject.folder().await;
    let file = format!("{folder}/plain");
    subject
        .says(&format!("echo text >{file}; chmod 600 {file}"))
        .await;

    let tried = subject.try_run(Execution::new(file.as_str(), ["x"])).await;

    match tried {
        Ok(result) => assert_eq!(result.exit_code, Some(126), "{}", told(&result)),
        Err(error) => assert!(error.to_string().contains(&file), "{error}"),
    }
}

pub async fn what_no_program_can_be_given_is_refused(subject: &Subject) {
    let nul_in_cwd = {
        let mut execution = sh("true");
        execution.cwd = Some("/tmp\0".to_owned());
        execution
    };
    let nul_in_env = {
        let mut execution = sh("true");
        execution.env.insert("A".to_owned(), "a\0b".to_owned());
        execution
    };
    for bad in [
        Execution::new("", ["x"]),
        Execution::new("-c", ["true"]),
        Execution::new("ec\0ho", ["x"]),
        Execution::new("echo", ["a\0b"]),
        nul_in_cwd,
        nul_in_env,
    ] {
        let asked = format!("{bad:?}");
        let tried = subject.try_run(bad).await;

        assert!(
            matches!(tried, Err(RunnerError::Invalid(_))),
            "{asked}: {tried:?}"
        );
    }
}

pub async fn a_failed_command_is_a_result_with_its_output(subject: &Subject) {
    let result = subject.run(sh("echo said; echo why >&2; exit 3")).await;

    assert_eq!(
        (
            result.exit_code,
            result.stdout.as_slice(),
            result.stderr.as_slice()
        ),
        (Some(3), &b"said\n"[..], &b"why\n"[..])
    );
}
