//! The toolbox of one sandbox: which call goes where.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::http::{Answer, Asked, answer, error};
use super::world::Shared;
use super::{execute, files, session, terminal};

/// A call to the toolbox of a started sandbox.
pub(super) struct Inside {
    pub(super) shared: Arc<Shared>,
    pub(super) id: String,
    pub(super) home: PathBuf,
    pub(super) env: BTreeMap<String, String>,
}

impl Inside {
    /// A path of the sandbox; a relative one starts at its home.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }
}

pub(super) async fn route(shared: &Arc<Shared>, asked: Asked) -> Answer {
    let now = shared.now();
    let key = asked.segments.get(1).map(String::as_str).unwrap_or_default();
    let Some(id) = shared.find(key) else {
        return error(404, "NOT_FOUND", "Sandbox not found");
    };
    let started = shared.with(&id, |sandbox| {
        sandbox.last_activity = now;
        (sandbox.state == "started").then(|| (sandbox.home(), sandbox.env.clone()))
    });
    let Some(Some((home, env))) = started else {
        return error(400, "BAD_REQUEST", "no IP address found. Is the Sandbox started?");
    };
    let inside = Inside {
        shared: Arc::clone(shared),
        id,
        home,
        env,
    };
    let (method, path) = asked.route(2);
    let (method, path) = (method.to_owned(), path.join("/"));
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["version"] => answer(200, &json!({"version": "v0.0.0-fake"})),
        ["work-dir" | "user-home-dir"] => answer(200, &json!({"dir": inside.home})),
        ["process", "execute"] => execute::run(&inside, &asked.json()).await,
        ["process", "session", rest @ ..] => session::route(&inside, asked, &method, rest).await,
        ["process", "pty", rest @ ..] => terminal::route(&inside, asked, &method, rest),
        ["files", rest @ ..] => files::route(&inside, &asked, &method, rest),
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}
