//! The control API: sandboxes made, found, moved from state to state, and deleted.

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Answer, Asked, answer, error};
use super::world::{Sandbox, Shared, random_name};

pub(super) fn route(shared: &Arc<Shared>, asked: &Asked) -> Answer {
    let (method, path) = asked.route(1);
    match (method, path.as_slice()) {
        ("POST", ["sandbox"]) => create(shared, &asked.json()),
        ("GET", ["sandbox"]) => list(shared, asked),
        (method, ["sandbox", key, rest @ ..]) => match shared.find(key) {
            Some(id) => one(shared, method, &id, rest),
            None => gone(key),
        },
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}

fn one(shared: &Arc<Shared>, method: &str, id: &str, rest: &[&str]) -> Answer {
    match (method, rest) {
        ("GET", []) => show(shared, id),
        ("DELETE", []) => {
            shared.end_processes(id);
            change(shared, id, |_| Some(("destroying", "destroyed")))
        }
        ("POST", ["start"]) => change(shared, id, |state| match state {
            "stopped" | "paused" | "archived" => Some(("starting", "started")),
            "started" => Some(("started", "started")),
            _ => None,
        }),
        ("POST", ["stop"]) => end(shared, id, ("stopping", "stopped")),
        ("POST", ["pause"]) => end(shared, id, ("pausing", "paused")),
        ("POST", ["archive"]) => change(shared, id, |state| {
            (state == "stopped").then_some(("archiving", "archived"))
        }),
        ("POST", ["recover"]) => change(shared, id, |state| {
            (state == "error").then_some(("starting", "started"))
        }),
        ("POST", [interval, minutes]) => set_interval(shared, id, interval, minutes),
        ("GET", ["toolbox-proxy-url"]) => answer(200, &json!({"url": format!("{}/toolbox", shared.origin)})),
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}

fn create(shared: &Arc<Shared>, request: &Value) -> Answer {
    if request
        .get("snapshot")
        .is_some_and(|name| name == "no-such-snapshot")
    {
        return error(400, "BAD_REQUEST", "Snapshot no-such-snapshot not found");
    }
    let name = request.get("name").and_then(Value::as_str).unwrap_or_default();
    if !name.is_empty() && shared.find(name).is_some() {
        return error(409, "CONFLICT", "Sandbox with this name already exists");
    }
    let id = random_name();
    let sandbox = Sandbox::new(&id, request, shared.now(), shared.settings.transition);
    // The answer says `creating`, whatever the clock says.
    let body = described(shared, &id, &sandbox);
    shared.world().sandboxes.insert(id, sandbox);
    answer(200, &body)
}

fn list(shared: &Arc<Shared>, asked: &Asked) -> Answer {
    let wanted: Value = asked
        .query("labels")
        .and_then(|labels| serde_json::from_str(labels).ok())
        .unwrap_or_default();
    let number = |key: &str, default: usize| {
        asked
            .query(key)
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    };
    let (from, limit) = (number("cursor", 0), number("limit", 100));
    let ids: Vec<String> = shared.world().sandboxes.keys().cloned().collect();
    let matching: Vec<Value> = ids
        .iter()
        .filter_map(|id| {
            shared.with(id, |sandbox| {
                let labels = wanted.as_object().into_iter().flatten();
                let all = labels
                    .into_iter()
                    .all(|(key, value)| sandbox.labels.get(key) == Some(value));
                all.then(|| described(shared, id, sandbox))
            })?
        })
        .collect();
    let next = (matching.len() > from + limit).then(|| (from + limit).to_string());
    let items: Vec<&Value> = matching.iter().skip(from).take(limit).collect();
    answer(200, &json!({"items": items, "nextCursor": next}))
}

fn show(shared: &Arc<Shared>, id: &str) -> Answer {
    let body = shared.with(id, |sandbox| described(shared, id, sandbox));
    body.map_or_else(|| gone(id), |body| answer(200, &body))
}

fn end(shared: &Arc<Shared>, id: &str, states: (&'static str, &'static str)) -> Answer {
    let answer = change(shared, id, |state| {
        (state == "started" || state == states.1).then_some(states)
    });
    if answer.status() == 200 {
        shared.end_processes(id);
    }
    answer
}

/// Moves a sandbox on: `to` gives, for the present state, the next one and what that becomes by itself.
fn change(
    shared: &Arc<Shared>,
    id: &str,
    to: impl FnOnce(&str) -> Option<(&'static str, &'static str)>,
) -> Answer {
    let at = shared.now() + shared.settings.transition;
    let changed = shared.with(id, |sandbox| {
        let Some((now, later)) = to(sandbox.state) else {
            let message = format!("Sandbox is in state {}", sandbox.state);
            return error(409, "CONFLICT", &message);
        };
        sandbox.state = now;
        sandbox.next = Some((at, later));
        sandbox.last_activity = at;
        answer(200, &described(shared, id, sandbox))
    });
    changed.unwrap_or_else(|| gone(id))
}

fn set_interval(shared: &Arc<Shared>, id: &str, interval: &str, minutes: &str) -> Answer {
    let Ok(minutes) = minutes.parse::<i64>() else {
        return error(400, "BAD_REQUEST", "minutes must be a number");
    };
    let set = shared.with(id, |sandbox| {
        match interval {
            "autostop" => sandbox.auto_stop = minutes.unsigned_abs(),
            "autoarchive" => sandbox.auto_archive = minutes,
            "autodelete" => sandbox.auto_delete = minutes,
            "ttl" => {}
            _ => return error(404, "NOT_FOUND", "Cannot find the path"),
        }
        answer(200, &described(shared, id, sandbox))
    });
    set.unwrap_or_else(|| gone(id))
}

fn gone(key: &str) -> Answer {
    error(
        404,
        "NOT_FOUND",
        &format!("Sandbox with ID or name {key} not found"),
    )
}

fn described(shared: &Shared, id: &str, sandbox: &Sandbox) -> Value {
    json!({
        "id": id,
        "name": sandbox.name,
        "organizationId": "org",
        "user": "daytona",
        "env": sandbox.env,
        "labels": sandbox.labels,
        "public": false,
        "networkBlockAll": false,
        "target": sandbox.target,
        "snapshot": sandbox.snapshot,
        "cpu": 1, "gpu": 0, "memory": 1, "disk": 1,
        "state": sandbox.state,
        "desiredState": sandbox.next.map_or(sandbox.state, |(_, state)| state),
        "recoverable": false,
        "autoStopInterval": sandbox.auto_stop,
        "autoArchiveInterval": sandbox.auto_archive,
        "autoDeleteInterval": sandbox.auto_delete,
        "toolboxProxyUrl": format!("{}/toolbox", shared.origin),
        "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z",
    })
}
