//! The examples in `docs/policy.md` are what they say.

use policy::{PolicyFile, Reason, Rules, TargetFault, cases};

const DOCUMENT: &str = include_str!("../../docs/policy.md");

/// The fenced blocks whose opening line ends in `kind`.
fn blocks(kind: &str) -> Vec<&'static str> {
    let opening = format!("```{kind}\n");
    DOCUMENT
        .split(opening.as_str())
        .skip(1)
        .filter_map(|rest| rest.split("```\n").next())
        .collect()
}

#[test]
fn every_rule_file_in_the_document_compiles() {
    let files = blocks("toml");

    assert!(files.len() >= 3);
    for text in files {
        let file = PolicyFile::parse(text).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
        let rules = Rules::load(None, Some(&file)).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
        assert!(!rules.is_empty());
    }
}

#[test]
fn every_case_in_the_document_passes() {
    let tables = blocks("toml cases");

    assert!(!tables.is_empty());
    for text in tables {
        for result in cases::run(text).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}")) {
            assert!(result.passed, "{result}");
        }
    }
}

#[test]
fn every_reason_of_a_denial_is_documented() {
    for reason in [
        Reason::DenyRule,
        Reason::NoRule,
        Reason::Constraint,
        Reason::Expired,
    ] {
        assert!(DOCUMENT.contains(&format!("| `{}` |", reason.code())), "{reason}");
    }
    assert!(DOCUMENT.contains(TargetFault::DotSegment.code()));
}
