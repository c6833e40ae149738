//! Why a callback was answered as it was: each check that it passed, the one that stopped it, and the rules.
//!
//! The checks stand in the order in which `callback/` makes them; which of them stopped a callback follows from the
//! code of its answer. The rules are asked again as they stand now, by the same function as `policy explain`.

use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use policy::explain::Explanation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Board;
use crate::control::{Problem, query};

/// A check, what stops a callback there, and what it asks.
struct Check {
    name: &'static str,
    codes: &'static [&'static str],
    asks: &'static str,
}

const CHECKS: [Check; 9] = [
    Check {
        name: "Head and framing",
        codes: &[
            "malformed_request",
            "request_timeout",
            "expectation_failed",
            "head_too_large",
        ],
        asks: "one unambiguous HTTP/1.1 request, within its limits and in time",
    },
    Check {
        name: "Host",
        codes: &["host_mismatch"],
        asks: "a Host of this session",
    },
    Check {
        name: "Token",
        codes: &["invalid_token"],
        asks: "this session's token, on this session's channel",
    },
    Check {
        name: "Path",
        codes: &["path_not_canonical"],
        asks: "a path in its one canonical form",
    },
    Check {
        name: "Route",
        codes: &["route_not_allowed"],
        asks: "a rule that allows it, and none that denies it",
    },
    Check {
        name: "Content type",
        codes: &["content_type_not_allowed"],
        asks: "JSON, or a form where the route takes files",
    },
    Check {
        name: "Size",
        codes: &["body_too_large"],
        asks: "a body within the session's limit",
    },
    Check {
        name: "Rate and room",
        codes: &["rate_limited", "unavailable"],
        asks: "calls within every limit, and room for the body",
    },
    Check {
        name: "Upstream",
        codes: &[
            "upstream_unreachable",
            "upstream_failed",
            "upstream_timeout",
            "outcome_indeterminate",
        ],
        asks: "one whole answer, in time",
    },
];

/// Where the rules are asked.
const ROUTE: usize = 4;

/// Codes of answers that the bridge gives by itself, below `/_bridge/`.
const OWN: &[&str] = &["unknown_bridge_path", "outcome_unknown"];

/// A callback as the live view has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    session: Uuid,
    method: String,
    path: String,
    verdict: String,
    code: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Step {
    name: &'static str,
    /// `passed`, `stopped`, `not_reached` or `not_needed`.
    state: &'static str,
    asks: &'static str,
}

pub(super) async fn explain(
    State(board): State<Board>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let asked = query(asked)?;
    let session = board
        .daemon
        .session(asked.session)
        .and_then(|entry| entry.session());
    let of_policy = asked.verdict != "own" && !asked.path.is_empty();
    let rules: Option<Explanation> = session.filter(|_| of_policy).map(|session| {
        let now = session.rules.load();
        policy::explain::explain(&now.rules, &asked.method, asked.path.as_bytes(), now_unix())
    });
    let allowed = asked.verdict == "allow";
    // Other checks than the rules deny, too.
    let by_rules = allowed || stopped_at(&asked.code) == Some(ROUTE);
    let note = match &rules {
        Some(told) if by_rules && told.is_allowed() != allowed => {
            Some("the rules have changed since: this is what they say now")
        }
        None if of_policy => Some("its session is over, and its rules went with it"),
        Some(_) | None => None,
    };
    Ok(Json(
        json!({ "steps": steps(&asked.verdict, &asked.code), "policy": rules, "note": note }),
    ))
}

fn stopped_at(code: &str) -> Option<usize> {
    CHECKS.iter().position(|check| check.codes.contains(&code))
}

fn steps(verdict: &str, code: &str) -> Vec<Step> {
    let stopped = stopped_at(code);
    let own = verdict == "own" || OWN.contains(&code);
    CHECKS
        .iter()
        .enumerate()
        .map(|(index, check)| Step {
            name: check.name,
            state: match stopped {
                Some(stopped) if index == stopped => "stopped",
                Some(stopped) if index > stopped => "not_reached",
                _ if own && index >= ROUTE => "not_needed",
                Some(_) | None => "passed",
            },
            asks: check.asks,
        })
        .collect()
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(verdict: &str, code: &str) -> Vec<&'static str> {
        steps(verdict, code).iter().map(|step| step.state).collect()
    }

    #[test]
    fn a_callback_is_stopped_where_its_code_says() {
        let denied = states("deny", "route_not_allowed");

        assert_eq!(denied[..4], ["passed"; 4]);
        assert_eq!(denied[4], "stopped");
        assert_eq!(denied[5..], ["not_reached"; 4]);
        assert_eq!(states("allow", ""), ["passed"; 9]);
        assert_eq!(states("deny", "invalid_token")[2], "stopped");
        assert_eq!(states("allow", "outcome_indeterminate")[8], "stopped");
    }

    #[test]
    fn what_is_asked_of_the_bridge_itself_needs_no_rule() {
        let own = states("own", "");

        assert_eq!(own[..4], ["passed"; 4]);
        assert_eq!(own[4..], ["not_needed"; 5]);
    }
}
