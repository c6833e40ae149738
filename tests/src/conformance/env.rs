//! Variables: what arrives, what is refused, and who else may see them.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use std::collections::BTreeMap;

use bytes::Bytes;
use runners::{Input, RunnerError, SecretText};

use super::args::ODD;
use super::{Subject, sh, told};

/// A value that stands nowhere else.
const SECRET: &str = "s3cret-4c1d77e0b9";

/// Names that a target's own system sets; ours may have the same values.
const OF_THE_SYSTEM: [&str; 16] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "TERM", "TZ",
    "MAIL", "_", "HOSTNAME", "TMPDIR",
];

pub async fn odd_values_arrive_as_they_are(subject: &Subject) {
    let mut execution =
        sh("n=0; while [ $n -lt 24 ]; do eval \"printf '<%s>' \\\"\\$V_$n\\\"\"; n=$((n+1)); done");
    for (number, value) in ODD.iter().enumerate() {
        execution.env.insert(format!("V_{number}"), (*value).to_owned());
    }

    let result = subject.run(execution).await;

    let wanted: String = ODD.iter().map(|one| format!("<{one}>")).collect();
    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        wanted,
        "{}",
        told(&result)
    );
}

pub async fn a_value_of_64_kib_arrives(subject: &Subject) {
    let value = "0123456789abcde ".repeat(4096);
    let mut execution = sh("printf '%s' \"$LONG\"");
    execution.env.insert("LONG".to_owned(), value.clone());

    let result = subject.run(execution).await;

    assert!(result.stdout == value.as_bytes(), "{}", told(&result));
}

pub async fn a_bad_name_is_refused_and_nothing_runs(subject: &Subject) {
    let folder = subject.folder().await;
    for bad in [
        "",
        "1A",
        "A-B",
        "A B",
        "A=B",
        "A\n",
        "é",
        "A;touch x",
        "A.B",
        "A\0",
    ] {
        for secret in [false, true] {
            let mut execution = sh(&format!("touch {folder}/ran"));
            if secret {
                execution.secret_env.insert(bad.to_owned(), SecretText::new("x"));
            } else {
                execution.env.insert(bad.to_owned(), "x".to_owned());
            }

            let tried = subject.try_run(execution).await;

            assert!(
                matches!(tried, Err(RunnerError::Invalid(_))),
                "{bad:?}: {tried:?}"
            );
        }
    }
    assert_eq!(subject.says(&format!("ls {folder}")).await, "");
}

pub async fn a_variable_both_plain_and_secret_is_refused(subject: &Subject) {
    let mut execution = sh("true");
    execution.env.insert("A".to_owned(), "x".to_owned());
    execution
        .secret_env
        .insert("A".to_owned(), SecretText::new(SECRET));

    let error = subject
        .try_run(execution)
        .await
        .expect_err("it is one or the other");

    assert!(matches!(error, RunnerError::Invalid(_)), "{error:?}");
    assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
}

pub async fn secret_values_arrive_as_they_are(subject: &Subject) {
    let long = "x y".repeat(20_000);
    let values = BTreeMap::from([
        ("TOKEN", SECRET),
        ("EMPTY", ""),
        ("LINES", "a\n\nb\n"),
        ("QUOTES", "it's \"q\" \\ $HOME `x` $(y)"),
        ("WIDE", "é€😀"),
        ("LONG", &long),
    ]);
    let mut execution = sh(
        "for name in EMPTY LINES LONG QUOTES TOKEN WIDE; do eval \"printf '<%s>' \\\"\\${$name-absent}\\\"\"; done",
    );
    for (name, value) in &values {
        execution
            .secret_env
            .insert((*name).to_owned(), SecretText::new(*value));
    }

    let result = subject.run(execution).await;

    let wanted: String = values.values().map(|one| format!("<{one}>")).collect();
    assert!(result.stdout == wanted.as_bytes(), "{}", told(&result));
}

pub async fn secret_values_stand_in_no_argv(subject: &Subject) {
    let folder = subject.folder().await;
    // The value goes into the pattern file by a builtin, so that looking for it does not show it.
    let mut execution = sh(&format!(
        "printf '%s\\n' \"$TOKEN\" >{folder}/pattern; \
         for one in /proc/[0-9]*; do \
           if tr '\\000' '\\n' <$one/cmdline 2>/dev/null | grep -qF -f {folder}/pattern; then echo \"$one\"; fi; \
         done; grep -cF -f {folder}/pattern {folder}/pattern"
    ));
    execution
        .secret_env
        .insert("TOKEN".to_owned(), SecretText::new(SECRET));

    let result = subject.run(execution).await;

    // The count shows that the pattern was there to be found.
    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "1\n",
        "{}",
        told(&result)
    );
}

pub async fn secret_values_leave_stdin_to_the_command(subject: &Subject) {
    let mut execution = sh("printf '%s:' \"$TOKEN\"; cat");
    execution
        .secret_env
        .insert("TOKEN".to_owned(), SecretText::new("a\nb"));
    execution.stdin = Input::Bytes(Bytes::from_static(b"first\nsecond\n"));

    let result = subject.run(execution).await;

    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "a\nb:first\nsecond\n",
        "{}",
        told(&result)
    );
}

pub async fn one_execution_does_not_see_the_variables_of_another(subject: &Subject) {
    let mut first = sh("env; export LATER=set-by-the-first");
    first.env.insert("PLAIN_ONE".to_owned(), "plain-one".to_owned());
    first
        .secret_env
        .insert("TOKEN".to_owned(), SecretText::new(SECRET));

    let first = subject.run(first).await;
    let second = subject.run(sh("env; echo; set")).await;

    assert!(
        String::from_utf8_lossy(&first.stdout).contains(SECRET),
        "{}",
        told(&first)
    );
    let seen = String::from_utf8_lossy(&second.stdout).into_owned();
    for left in ["PLAIN_ONE", "plain-one", "set-by-the-first", SECRET] {
        assert!(
            !seen.contains(left),
            "{left} is seen by the next: {}",
            told(&second)
        );
    }
}

pub async fn nothing_of_our_own_environment_arrives(subject: &Subject) {
    let ours: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !OF_THE_SYSTEM.contains(&name.as_str()))
        .collect();
    assert!(
        ours.iter().any(|(name, _)| name == "CARGO_MANIFEST_DIR"),
        "cargo sets something that can be looked for"
    );

    let result = subject.run(sh("env")).await;

    let seen = String::from_utf8_lossy(&result.stdout).into_owned();
    for (name, value) in ours {
        let line = format!("{name}={value}");
        assert!(!seen.lines().any(|one| one == line), "{name} of ours arrived");
        assert!(
            !name.starts_with("CARGO") || !seen.contains(&name),
            "{name} arrived"
        );
    }
}

pub async fn a_usable_path_and_home_are_set(subject: &Subject) {
    let home = subject
        .says("cd && pwd && command -v sh >/dev/null && command -v cat >/dev/null")
        .await;

    assert!(home.starts_with('/'), "{home}");
}
