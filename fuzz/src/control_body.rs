//! Bodies of `POST /v1/sessions`.
//!
//! Laws: what is refused is a problem with a status of its own and a sentence, whose mistakes name fields that were given
//! or are missing; what is taken has known fields only, reads the same once written again, and does not show itself in a
//! log; and no long value is ever repeated, because a secret may stand in any of them.

use std::fmt::Write as _;

use bridge::control::{Problem, new_session};
use serde_json::Value;

/// A shorter value may stand in a message by chance.
const LONG: usize = 12;

/// Takes the bytes as a body.
///
/// # Panics
///
/// On a broken law.
pub fn control_body(data: &[u8]) {
    let given: Option<Value> = serde_json::from_slice(data).ok();
    let mut said = String::new();
    match new_session(data) {
        Ok(asked) => {
            let fields = given
                .as_ref()
                .and_then(Value::as_object)
                .expect("only an object is taken");
            let written = serde_json::to_value(&asked).expect("it can be written");
            for (name, value) in fields {
                assert_eq!(
                    written.get(name),
                    Some(value),
                    "{name} was not taken as it was given"
                );
            }
            let again = serde_json::to_vec(&asked).expect("it can be written");
            let again = new_session(&again).expect("what was written is read again");
            assert_eq!(serde_json::to_value(&again).expect("it can be written"), written);
            assert_eq!(format!("{asked:?}"), "NewSession { .. }");
            // Targets are told apart from each other in their own words; everything else is a place for secrets.
            for mistake in asked.faults().iter().filter(|mistake| mistake.field != "target") {
                assert!(fields.contains_key(&mistake.field), "{mistake:?}");
                write!(said, "{}", mistake.detail).expect("a text takes every write");
            }
        }
        Err(problem) => {
            holds_together(&problem, given.as_ref());
            said = problem.detail;
        }
    }
    for value in given.iter().flat_map(long_texts) {
        assert!(!said.contains(value), "{value:?} was repeated: {said}");
    }
}

fn holds_together(problem: &Problem, given: Option<&Value>) {
    let fields = given.and_then(Value::as_object);
    assert_eq!(
        problem.status,
        if fields.is_some() { 422 } else { 400 },
        "{problem:?}"
    );
    assert!(!problem.detail.is_empty() && problem.kind.ends_with(&problem.code));
    for mistake in &problem.mistakes {
        let known = fields.is_some_and(|fields| fields.contains_key(&mistake.field));
        assert!(known || mistake.field == "target", "{mistake:?}");
        assert!(!mistake.detail.is_empty());
    }
}

/// Texts that stand as values, at any depth, and are nowhere among the names of fields.
fn long_texts(value: &Value) -> Vec<&str> {
    let mut names = Vec::new();
    let mut texts = Vec::new();
    collect(value, &mut names, &mut texts);
    texts.retain(|text| {
        text.len() >= LONG && !names.iter().any(|name| name.contains(text)) && !is_of_ours(text)
    });
    texts
}

/// Words that our own messages hold.
fn is_of_ours(text: &str) -> bool {
    const OURS: [&str; 4] = [
        "it is missing; give where the agent runs, such as `local` or `ssh://user@host`",
        "there is no such field; did you mean",
        "give a whole number from 1 to 1024",
        "there is no such tunnel; give one of auto, ssh-reverse, http2_v1, queue_v1, local, worker",
    ];
    OURS.iter().any(|ours| ours.contains(text))
}

fn collect<'a>(value: &'a Value, names: &mut Vec<&'a str>, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => list.iter().for_each(|one| collect(one, names, texts)),
        Value::Object(fields) => {
            for (name, value) in fields {
                names.push(name);
                collect(value, names, texts);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
