//! What a session tells of its writes, against what the upstream saw.
//!
//! Here: `/_bridge/outcome/key:…` of each write that was not answered, and `/_bridge/outcomes`. Not here: the writes
//! ([`super::callers`]).

use std::collections::HashSet;

use paperclip_bridge_tests::Agent;
use paperclip_bridge_tests::upstream::Seen;
use serde_json::Value;

use super::callers::Tally;

/// So many of the newest writes a session tells in one list.
const TOLD: usize = 50;

/// The keys that reached the upstream, in that order.
fn reached(seen: &[Seen]) -> Vec<&str> {
    seen.iter()
        .filter_map(|request| request.header("idempotency-key"))
        .collect()
}

/// Writes of one session that reached the upstream and were not answered so, of which it cannot tell what became.
pub(crate) async fn untold(tally: &Tally, session: usize, seen: &[Seen], agent: &Agent) -> Vec<String> {
    let reached: HashSet<&str> = reached(seen).into_iter().collect();
    let unanswered = tally
        .calls
        .iter()
        .filter(|call| call.session == session && call.came != Ok(200));
    let keys = unanswered.filter_map(|call| call.key.as_deref());
    let mut untold = vec![];
    for key in keys.filter(|key| reached.contains(key)) {
        let told = agent.get(&format!("/_bridge/outcome/key:{key}")).await;
        let outcome = told.map(|answer| answer.json()["outcome"].as_str().unwrap_or("unknown").to_owned());
        if !matches!(outcome.as_deref(), Ok("answered" | "indeterminate")) {
            untold.push(format!("what became of {key} is told as {outcome:?}"));
        }
    }
    untold
}

/// What is wrong with the list of the newest writes of one session.
///
/// - `slack`: so many may have reached the upstream in another order than they were sent in.
pub(crate) async fn mislisted(
    tally: &Tally,
    session: usize,
    seen: &[Seen],
    agent: &Agent,
    slack: usize,
) -> Vec<String> {
    let answer = match agent.get("/_bridge/outcomes").await {
        Ok(answer) if answer.status == 200 => answer.json(),
        other => return vec![format!("the newest outcomes of session {session}: {other:?}")],
    };
    let listed: Vec<&Value> = answer["outcomes"].as_array().into_iter().flatten().collect();
    let of_this: HashSet<&str> = tally
        .calls
        .iter()
        .filter(|call| call.session == session)
        .filter_map(|call| call.key.as_deref())
        .collect();
    let reached: Vec<&str> = reached(seen)
        .into_iter()
        .filter(|key| of_this.contains(key))
        .collect();
    let told: HashSet<&str> = listed
        .iter()
        .filter_map(|one| one["idempotency_key"].as_str())
        .collect();
    let mut wrong = vec![];
    if listed.len() > TOLD || listed.len() < TOLD.min(reached.len()) {
        wrong.push(format!(
            "session {session} lists {} of {} writes",
            listed.len(),
            reached.len()
        ));
    }
    // What was sent and did not arrive stands in the list, too.
    let others = told.iter().filter(|key| !reached.contains(key)).count();
    let due = TOLD.saturating_sub(others + slack);
    let missing = reached.iter().rev().take(due).filter(|key| !told.contains(*key));
    wrong.extend(missing.map(|key| format!("session {session} does not list {key}")));
    for one in &listed {
        let (key, outcome) = (one["idempotency_key"].as_str(), one["outcome"].as_str());
        let arrived = key.is_some_and(|key| reached.contains(&key));
        if !key.is_some_and(|key| of_this.contains(key)) {
            wrong.push(format!("session {session} lists what it never sent: {one}"));
        }
        match outcome {
            Some("answered") if arrived => {}
            Some("indeterminate") => {}
            Some("not_sent") if !arrived => {}
            _ => wrong.push(format!(
                "session {session} lists {key:?} as {outcome:?}; it arrived: {arrived}"
            )),
        }
    }
    wrong
}
