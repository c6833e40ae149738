//! Arguments arrive as they are, whatever is between us and the program.

#![expect(missing_docs, reason = "the name of a case is its sentence")]

use runners::Execution;

use super::{Subject, sh, told};

/// Everything that some shell, JSON, URL or protocol line is known to trip over.
pub(super) const ODD: [&str; 24] = [
    "",
    " ",
    "a b",
    "-n",
    "--",
    "-e\\n",
    "$HOME",
    "$(echo x)",
    "`echo x`",
    "a'b",
    "a\"b",
    "'\"'\"'",
    "\\",
    "\\\\n\\t",
    "*",
    "~",
    "{a,b}",
    "a\nb\n",
    "\r\n\t\u{7}\u{1b}[0m",
    "!$ !! #x",
    "a;b|c&d>e<f",
    "%s%n%%41",
    "é€😀\u{202e}",
    "pcb 0123456789abcdef 1 group 5",
];

/// Prints each of its arguments between brackets.
const PRINT_ALL: &str = "for one; do printf '<%s>' \"$one\"; done";

async fn arrive(subject: &Subject, wanted: &[String]) {
    let args = ["-c", PRINT_ALL, "sh"]
        .map(str::to_owned)
        .into_iter()
        .chain(wanted.iter().cloned());
    let mut execution = Execution::new("sh", args);
    execution.keep_output = 4 * 1024 * 1024;

    let result = subject.run(execution).await;

    let text: String = wanted.iter().map(|one| format!("<{one}>")).collect();
    assert!(result.success(), "{}", told(&result));
    assert!(result.stdout == text.as_bytes(), "{}", told(&result));
}

pub async fn odd_arguments_arrive_as_they_are(subject: &Subject) {
    arrive(subject, &ODD.map(str::to_owned)).await;
}

pub async fn an_argument_of_100_kib_arrives(subject: &Subject) {
    arrive(subject, &["0123456789abcde ".repeat(6400)]).await;
}

pub async fn a_thousand_arguments_arrive(subject: &Subject) {
    let many: Vec<String> = (0..1000).map(|number| format!("arg {number}")).collect();

    arrive(subject, &many).await;
}

pub async fn a_script_with_every_sign_is_run_as_it_is(subject: &Subject) {
    let script = "x='it'\"'\"'s'\ny=\"$x \\\"q\\\" \\$HOME\"\n# a comment\ncase $y in it*) printf '%s|' \"$y\" \"${x%s}\" \"$((6*7))\";; esac\nprintf '%s' \"`echo back`\" | tr a-z A-Z";

    let result = subject.run(sh(script)).await;

    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "it's \"q\" $HOME|it'|42|BACK",
        "{}",
        told(&result)
    );
}

pub async fn a_program_with_an_odd_path_is_run(subject: &Subject) {
    let folder = subject.folder().await;
    let program = format!("{folder}/a b'c$(x);é");
    let mut write = sh("printf '#!/bin/sh\\necho \"run $1\"\\n' >\"$1\"; chmod 700 \"$1\"");
    write.args.extend(["sh".to_owned(), program.clone()]);
    assert!(subject.run(write).await.success());

    let result = subject.run(Execution::new(program, ["it's"])).await;

    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "run it's\n",
        "{}",
        told(&result)
    );
}
