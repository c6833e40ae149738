//! The control plane: sandboxes are made, found, prolonged, paused and ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::State;
use super::reply::{self, Reply};
use super::sandbox::{self, Sandbox};

/// Of a list without a limit.
const PAGE: usize = 100;

/// Answers one call. `path` is without a query.
pub(super) fn answer(state: &State, method: &str, path: &str, query: &str, key: &str, body: &[u8]) -> Reply {
    let (path, new) = match path.strip_prefix("/v2") {
        Some(path) => (path, true),
        None => (path, false),
    };
    if new && state.switches.is_old() {
        let body = reply::full("404 page not found\n");
        return Ok(reply::with_type(http::StatusCode::NOT_FOUND, "text/plain", body));
    }
    if key != *state.lock_key() {
        return reply::fault(401, "Invalid API key");
    }
    let request = if body.is_empty() {
        json!({})
    } else {
        match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(error) => return reply::fault(400, &format!("Error when parsing request: {error}")),
        }
    };
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (method, parts.as_slice()) {
        ("POST", ["sandboxes"]) => create(state, &request, if new { 300 } else { 15 }),
        ("GET", ["sandboxes"]) => list(state, query),
        (_, ["sandboxes", id, rest @ ..]) => match state.sandbox(id) {
            None => reply::fault(
                404,
                &format!("sandbox {id:?} doesn't exist or you don't have access to it"),
            ),
            Some(sandbox) => one(state, &sandbox, method, rest, new, &request),
        },
        _ => reply::fault(404, "no such path"),
    }
}

fn create(state: &State, request: &Value, default: u64) -> Reply {
    if request["templateID"].as_str().is_none_or(str::is_empty) {
        return reply::fault(400, "templateID is required");
    }
    let lifetime = seconds(request, "timeout").unwrap_or(default);
    let sandbox = Sandbox::new(request, Duration::from_secs(lifetime), &state.clock);
    let brief = sandbox.brief();
    state.add(sandbox);
    reply::json(201, &brief)
}

fn one(
    state: &State,
    sandbox: &Arc<Sandbox>,
    method: &str,
    rest: &[&str],
    new: bool,
    request: &Value,
) -> Reply {
    let id = &sandbox.id;
    let running = sandbox.state() == sandbox::State::Running;
    let lifetime = seconds(request, "timeout").map(Duration::from_secs);
    match (method, rest) {
        ("GET", []) => reply::json(200, &sandbox.detail()),
        ("DELETE", []) => {
            state.remove(id);
            reply::empty(204)
        }
        ("POST", ["connect"]) => {
            let Some(lifetime) = lifetime.or(new.then_some(Duration::from_secs(300))) else {
                return reply::fault(400, "timeout is required");
            };
            go_on(sandbox, lifetime);
            reply::json(if running { 200 } else { 201 }, &sandbox.brief())
        }
        ("POST", ["resume"]) => {
            if running {
                return reply::fault(409, &format!("sandbox {id} is already running"));
            }
            go_on(sandbox, lifetime.unwrap_or(Duration::from_secs(15)));
            reply::json(201, &sandbox.brief())
        }
        ("POST", ["pause"]) => {
            if !running {
                return reply::fault(409, &format!("sandbox {id} is already paused"));
            }
            sandbox.pause(request["memory"].as_bool().unwrap_or(true));
            reply::empty(204)
        }
        ("POST", ["timeout"]) => match lifetime {
            None => reply::fault(400, "timeout is required"),
            Some(_) if !running => reply::fault(404, &format!("sandbox {id} is not running")),
            Some(lifetime) => {
                sandbox.live_for(lifetime, false);
                reply::empty(204)
            }
        },
        ("POST", ["refreshes"]) => {
            let duration = seconds(request, "duration").unwrap_or(15);
            sandbox.live_for(Duration::from_secs(duration), true);
            reply::empty(204)
        }
        _ => reply::fault(404, "no such path"),
    }
}

fn go_on(sandbox: &Sandbox, lifetime: Duration) {
    let paused = sandbox.state() == sandbox::State::Paused;
    if paused {
        sandbox.resume();
    }
    sandbox.live_for(lifetime, !paused);
}

fn list(state: &State, query: &str) -> Reply {
    let query = parameters(query);
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let wanted = parameters(text("metadata"));
    let states: Vec<&str> = text("state")
        .split(',')
        .filter(|state| !state.is_empty())
        .collect();
    let mut found: Vec<Value> = state
        .all()
        .iter()
        .filter(|sandbox| {
            wanted
                .iter()
                .all(|(key, value)| sandbox.metadata.get(key) == Some(value))
        })
        .map(|sandbox| sandbox.listed())
        .filter(|one| states.is_empty() || states.contains(&one["state"].as_str().unwrap_or_default()))
        .collect();
    found.sort_by_key(|one| one["sandboxID"].to_string());
    let from: usize = text("nextToken").parse().unwrap_or(0);
    let limit = text("limit").parse().unwrap_or(PAGE).min(PAGE);
    let page: Vec<Value> = found.iter().skip(from).take(limit).cloned().collect();
    let mut reply = reply::json(200, &Value::from(page))?;
    if from + limit < found.len() {
        let token = (from + limit).to_string().parse().expect("digits");
        reply.headers_mut().insert("x-next-token", token);
    }
    Ok(reply)
}

fn seconds(request: &Value, name: &str) -> Option<u64> {
    request[name].as_u64()
}

/// A query, decoded.
pub(super) fn parameters(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = vec![];
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                let digits = String::from_utf8_lossy(&digits).into_owned();
                u8::from_str_radix(&digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
