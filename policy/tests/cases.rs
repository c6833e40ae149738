//! Runs every case table under `policy/cases/` but that of signed requests, which `envelope.rs` runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use policy::TargetFault;
use policy::cases::{self, CaseResult};

#[cfg(test)]
fn all() -> Vec<(PathBuf, CaseResult)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cases");
    let mut results = Vec::new();
    for entry in fs::read_dir(folder).expect("policy/cases exists") {
        let path = entry.expect("readable").path();
        // Tables of another shape, with tests of their own.
        if path.ends_with("envelope.toml") || path.ends_with("replies.toml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("UTF-8");
        match cases::run(&text) {
            Ok(ran) => results.extend(ran.into_iter().map(|result| (path.clone(), result))),
            Err(mistakes) => panic!("{}", mistakes.in_file(&path.display().to_string())),
        }
    }
    results
}

#[test]
fn every_case_table_says_what_policy_does() {
    let results = all();

    let failed: Vec<String> = results
        .iter()
        .filter(|(_, result)| !result.passed)
        .map(|(path, result)| format!("{}: {result}", path.display()))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(results.len() >= 300, "only {} cases ran", results.len());
}

#[test]
fn every_fault_of_a_target_has_a_case() {
    let results = all();

    let seen: BTreeSet<&str> = results.iter().map(|(_, result)| result.found.reason).collect();
    let unseen: Vec<&str> = TargetFault::ALL
        .iter()
        .map(|fault| fault.code())
        .filter(|code| !seen.contains(code))
        .collect();
    assert_eq!(unseen, Vec::<&str>::new());
}

#[test]
fn nothing_that_must_stay_denied_is_in_any_pack() {
    let text = include_str!("../cases/must_stay_denied.toml");

    for pack in policy::Pack::all() {
        let rules = policy::Rules::from_pack(*pack);
        for result in cases::run_with(text, Some(&rules)).expect("no mistakes") {
            assert_eq!(result.found.verdict, "deny", "{}: {result}", pack.name());
        }
    }
}

#[test]
fn a_wrong_expectation_fails_and_says_what_was_found() {
    let text = r#"
        [[case]]
        name = "agents read themselves"
        method = "GET"
        target = "/api/agents/me"
        verdict = "deny"
    "#;

    let results = cases::run(text).expect("no mistakes");

    let [result] = results.as_slice() else {
        panic!("{results:?}")
    };
    assert!(!result.passed);
    let rule = "paperclip-2026.916 GET /api/agents/me";
    let wanted = "FAIL line 2: agents read themselves: expected deny, found allow, reason allow_rule";
    assert_eq!(result.to_string(), format!("{wanted}, rule {rule}, nearest none"));
}

#[test]
fn mistakes_in_a_case_table_are_told_at_their_lines() {
    let text = r#"now = 5
pack = "paperclip-2026.915"
[[case]]
method = "GET"
verdict = "maybe"
[[case]]
method = "GET"
target = "/a"
verdict = "refuse"
reason = "dot_segmnt"
colour = "red"
[[case]]
method = "GET"
target = "/a"
verdict = "deny"
rules = """
[[deny]]
method = "GET"
path = "a"
"""
"#;

    let mistakes = cases::run(text).expect_err("has mistakes");

    let lines: Vec<usize> = mistakes.iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, [1, 2, 3, 5, 10, 11, 19], "{mistakes}");
    assert!(
        mistakes.to_string().contains("did you mean `dot_segment`?"),
        "{mistakes}"
    );
    assert!(
        mistakes
            .to_string()
            .contains("there is no pack `paperclip-2026.915`"),
        "{mistakes}"
    );
}

#[test]
fn a_table_without_cases_is_a_mistake() {
    let mistakes = cases::run("").expect_err("nothing to run");

    assert_eq!(
        mistakes.in_file("cases.toml").to_string(),
        "cases.toml:1: there is no case; write one as `[[case]]`"
    );
}
