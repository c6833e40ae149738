//! Where a command runs.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use runners::RunnerError;

use super::{Subject, sh, told};

pub async fn the_default_folder_is_there(subject: &Subject) {
    let folder = subject.says("pwd").await;

    assert!(folder.starts_with('/'), "{folder}");
    assert_eq!(subject.says("pwd").await, folder, "it is always the same");
}

pub async fn the_given_folder_is_taken(subject: &Subject) {
    let base = subject.folder().await;
    for name in ["plain", "a b'c$(x)`y`;é\"", "-dash", "new\nline"] {
        let folder = format!("{base}/{name}");
        let mut make = sh("mkdir -- \"$1\"");
        make.args.extend(["sh".to_owned(), folder.clone()]);
        assert!(subject.run(make).await.success());
        let mut execution = sh("pwd");
        execution.cwd = Some(folder.clone());

        let result = subject.run(execution).await;

        assert_eq!(
            String::from_utf8_lossy(&result.stdout),
            format!("{folder}\n"),
            "{}",
            told(&result)
        );
    }
}

pub async fn a_missing_folder_is_named_and_nothing_runs(subject: &Subject) {
    let base = subject.folder().await;
    subject.says(&format!("echo >{base}/file")).await;
    for missing in [format!("{base}/not there"), format!("{base}/file")] {
        let mut execution = sh(&format!("touch {base}/ran"));
        execution.cwd = Some(missing.clone());

        match subject.try_run(execution).await {
            Ok(result) => {
                assert_eq!(result.exit_code, Some(126), "{}", told(&result));
                let said = String::from_utf8_lossy(&result.stderr).into_owned();
                assert!(said.contains(&missing), "{said}");
            }
            Err(error) => {
                assert!(matches!(error, RunnerError::Invalid(_)), "{error:?}");
                assert!(error.to_string().contains(&missing), "{error}");
            }
        }
        assert_eq!(subject.says(&format!("ls {base}")).await, "file");
    }
}
