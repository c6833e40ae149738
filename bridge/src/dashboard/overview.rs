//! The daemon at a glance.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Board;
use crate::daemon::{Daemon, Entry, SessionState, Watched};
use crate::upstream::UpstreamSettings;

/// A connection attempt counts for so long.
const FRESH: Duration = Duration::from_secs(10);
/// The page waits so long for one.
const TRYING: Duration = Duration::from_secs(2);
/// Upstreams that are tried; more are only counted.
const MOST: usize = 16;
/// Rows of sessions by target and tunnel.
const MOST_PLACES: usize = 40;

/// What became of the last connection attempt to each upstream.
#[derive(Debug, Default)]
pub(super) struct Upstreams(Mutex<HashMap<String, Tried>>);

#[derive(Clone, Debug)]
struct Tried {
    at: Instant,
    took: Duration,
    fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct UpstreamShown {
    /// As the configuration calls it.
    name: Option<String>,
    origin: String,
    sessions: usize,
    /// `answers`, `unreachable`, or `unused` where no session speaks to it.
    state: &'static str,
    detail: Option<String>,
    connect_us: Option<u64>,
}

pub(super) async fn overview(State(board): State<Board>) -> Json<Value> {
    let daemon = &board.daemon;
    let entries = daemon.sessions();
    let upstreams = board.upstreams.shown(daemon, &entries).await;
    let watched = daemon.events().watched();
    let places = places(&entries);
    Json(json!({
        "status": daemon.status(),
        "total": watched.total(),
        "course": watched.course(),
        "step_seconds": Watched::step_seconds(),
        "most_sessions": daemon.settings().most_sessions,
        "audit": match (daemon.audit_folder(), daemon.audit_fault()) {
            (None, _) => json!({ "state": "off" }),
            (Some(_), None) => json!({ "state": "writes" }),
            (Some(_), Some(fault)) => json!({ "state": "fails", "detail": fault }),
        },
        "upstreams": upstreams,
        "more_places": places.len().saturating_sub(MOST_PLACES),
        "places": places.into_iter().take(MOST_PLACES).collect::<Vec<_>>(),
        "silent": silent(&entries),
    }))
}

/// Sessions by where they are and how they are reached, the most first.
fn places(entries: &[Arc<Entry>]) -> Vec<Value> {
    let mut places: BTreeMap<(String, String), BTreeMap<&str, usize>> = BTreeMap::new();
    for entry in entries {
        let state = entry.state();
        if state == SessionState::Ended {
            continue;
        }
        let shown = entry.shown();
        let tunnel = shown.tunnel.unwrap_or_else(|| "not yet".to_owned());
        let states = places.entry((family(&shown.target), tunnel)).or_default();
        *states.entry(state.name()).or_default() += 1;
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, states)| std::cmp::Reverse(states.values().sum::<usize>()));
    places
        .into_iter()
        .map(|((target, tunnel), states)| {
            let all: usize = states.values().sum();
            json!({ "target": target, "tunnel": tunnel, "sessions": all, "states": states })
        })
        .collect()
}

/// Sandboxes come and go: what they have in common is their provider.
fn family(target: &str) -> String {
    match target.split_once(':') {
        Some((provider, rest)) if !rest.starts_with("//") => provider.to_owned(),
        Some(_) | None => target.to_owned(),
    }
}

/// Open sessions whose run has made no call yet.
fn silent(entries: &[Arc<Entry>]) -> usize {
    let open = |entry: &&Arc<Entry>| entry.state() == SessionState::Ready;
    let quiet = |entry: &&Arc<Entry>| entry.shown().traffic.callbacks == 0;
    entries.iter().filter(open).filter(quiet).count()
}

impl Upstreams {
    async fn shown(&self, daemon: &Daemon, entries: &[Arc<Entry>]) -> Vec<UpstreamShown> {
        let mut used: BTreeMap<String, (UpstreamSettings, usize)> = BTreeMap::new();
        for entry in entries {
            if entry.state() == SessionState::Ended {
                continue;
            }
            if let Some(settings) = entry.upstream() {
                let upstream = used
                    .entry(settings.origin())
                    .or_insert_with(|| (settings.clone(), 0));
                upstream.1 += 1;
            }
        }
        let tried = self.tried(&used).await;
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (name, upstream) in &daemon.settings().upstreams {
            if let Ok(settings) = UpstreamSettings::parse(&upstream.url, None) {
                names.entry(settings.origin()).or_insert_with(|| name.clone());
            }
        }
        let unused = names.iter().filter(|(origin, _)| !used.contains_key(*origin));
        let unused = unused.map(|(origin, name)| UpstreamShown {
            name: Some(name.clone()),
            origin: origin.clone(),
            sessions: 0,
            state: "unused",
            detail: None,
            connect_us: None,
        });
        let used = used.iter().map(|(origin, (_, sessions))| {
            let tried = tried.get(origin);
            let fault = tried.and_then(|tried| tried.fault.clone());
            UpstreamShown {
                name: names.get(origin).cloned(),
                origin: origin.clone(),
                sessions: *sessions,
                state: match (tried, &fault) {
                    (None, _) => "not_tried",
                    (Some(_), None) => "answers",
                    (Some(_), Some(_)) => "unreachable",
                },
                connect_us: tried
                    .filter(|_| fault.is_none())
                    .map(|tried| u64::try_from(tried.took.as_micros()).unwrap_or(u64::MAX)),
                detail: fault,
            }
        });
        used.chain(unused).collect()
    }

    /// Tries those whose last attempt is too old, all at the same time; whoever asks meanwhile waits for the same.
    async fn tried(&self, used: &BTreeMap<String, (UpstreamSettings, usize)>) -> HashMap<String, Tried> {
        let mut known = self.0.lock().await;
        known.retain(|origin, _| used.contains_key(origin));
        let stale = |origin: &&String| known.get(*origin).is_none_or(|tried| tried.at.elapsed() > FRESH);
        let attempts = used.keys().filter(stale).take(MOST).filter_map(|origin| {
            let (settings, _) = used.get(origin)?;
            Some(async move {
                let began = Instant::now();
                let fault = match tokio::time::timeout(TRYING, settings.probe()).await {
                    Ok(Ok(())) => None,
                    Ok(Err(why)) => Some(why),
                    Err(_) => Some(format!("no connection within {} s", TRYING.as_secs())),
                };
                let tried = Tried {
                    at: Instant::now(),
                    took: began.elapsed(),
                    fault,
                };
                (origin.clone(), tried)
            })
        });
        let attempts: Vec<_> = attempts.collect();
        known.extend(join_all(attempts).await);
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::family;

    #[test]
    fn sandboxes_of_one_provider_are_one_place_and_hosts_are_not() {
        assert_eq!(family("e2b:i8f2k"), "e2b");
        assert_eq!(family("ssh://me@host:22"), "ssh://me@host:22");
        assert_eq!(family("local"), "local");
    }
}
