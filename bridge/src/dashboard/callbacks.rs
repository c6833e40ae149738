//! Callbacks on the dashboard: the newest and then those that come, and all of a session's as a file.
//!
//! The stream ends when the login does, and when the listener is closed. Not here: the verdicts explained (`explained.rs`).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event as Told, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use futures_util::stream::{iter, unfold};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

use super::sessions::named;
use super::{Board, gate};
use crate::audit::export::{har_entry, har_frame};
use crate::audit::query::{Filter, read};
use crate::control::{Problem, query};
use crate::daemon::Event;

/// So often it is looked whether the login still holds; a proxy sees that the stream lives.
const LOOKING: Duration = Duration::from_secs(5);
/// Pieces of a file that wait for a slow reader, and how large one is.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 * 1024;

/// Which callbacks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    session: Option<Uuid>,
    /// Text that is in the run's id.
    run: String,
    denied: bool,
    /// Words that are all in its method, path, rule or code.
    route: String,
}

impl Wanted {
    fn takes(&self, event: &Event) -> bool {
        if self.session.is_some_and(|session| session != event.session())
            || !event.run_id().unwrap_or_default().contains(self.run.trim())
            || (self.denied && !event.is_denial())
        {
            return false;
        }
        let text = match event {
            Event::Callback {
                method,
                path,
                rule,
                code,
                ..
            } => format!("{method} {path} {rule} {code}").to_ascii_lowercase(),
            Event::WrongChannel { .. } => "wrong_channel".to_owned(),
            // The page asks for sessions by themselves.
            Event::Session { .. } => return false,
        };
        let wanted = self.route.to_ascii_lowercase();
        wanted.split_whitespace().all(|word| text.contains(word))
    }
}

/// The newest that there are, then `live`, then each as it ends.
pub(super) async fn events(
    State(board): State<Board>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Told, Infallible>>>, Problem> {
    let wanted = query(wanted)?;
    let place = place(&board.streams, "pages that follow callbacks")?;
    let cookie = gate::cookie(&headers).unwrap_or_default().to_vec();
    // First this, so that none is lost between the two; the page knows what it has by its id.
    let heard = board.daemon.events().listen();
    let newest = board.daemon.events().watched().newest();
    let mut before: Vec<_> = newest
        .iter()
        .filter(|event| wanted.takes(event))
        .filter_map(|event| told(event))
        .collect();
    before.push(Told::default().event("live").data("{}"));
    let follow = Follow {
        board,
        cookie,
        wanted,
        heard,
        _place: place,
    };
    let live = unfold(follow, |mut follow| async move {
        let told = follow.next().await?;
        Some((told, follow))
    });
    Ok(Sse::new(iter(before).chain(live).map(Ok)))
}

struct Follow {
    board: Board,
    cookie: Vec<u8>,
    wanted: Wanted,
    heard: Receiver<Arc<Event>>,
    /// Given back with the stream.
    _place: OwnedSemaphorePermit,
}

fn place(places: &Arc<Semaphore>, of: &str) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many",
            format!("there are too many {of} at the moment; close one, or try again later"),
        )
    })
}

impl Follow {
    /// What comes next; `None` where the stream is over.
    async fn next(&mut self) -> Option<Told> {
        loop {
            let heard = tokio::select! {
                () = self.board.stop.cancelled() => return None,
                heard = tokio::time::timeout(LOOKING, self.heard.recv()) => heard,
            };
            self.board.daemon.door().knows(&self.cookie, Instant::now())?;
            match heard {
                Err(_) => return Some(Told::default().comment("")),
                Ok(Ok(event)) if self.wanted.takes(&event) => {
                    if let Some(told) = told(&event) {
                        return Some(told);
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(RecvError::Lagged(missed))) => {
                    let data = json!({ "missed": missed }).to_string();
                    return Some(Told::default().event("missed").data(data));
                }
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }
}

fn told(event: &Event) -> Option<Told> {
    let data = serde_json::to_string(event).ok()?;
    Some(Told::default().event("callback").data(data))
}

/// What the audit holds of a session, as a HAR file.
pub(super) async fn har(State(board): State<Board>, Path(id): Path<String>) -> Result<Response, Problem> {
    let entry = named(&board.daemon, &id)?;
    let folder = board.daemon.audit_folder().ok_or_else(|| {
        Problem::new(
            StatusCode::CONFLICT,
            "no_audit",
            "the audit is off (`audit.enabled`), and nothing else keeps what a session did",
        )
    })?;
    let folder = folder.to_owned();
    let place = place(&board.files, "files being read")?;
    let filter = Filter {
        session: Some(entry.id().to_string()),
        ..Filter::default()
    };
    let (sender, pieces) = mpsc::channel::<Bytes>(PIECES);
    // Reading waits for the disk, and ends when nobody takes what it has read.
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let (front, back) = har_frame();
        let mut piece = front;
        let mut comma = "";
        let mut taken = true;
        let read = read(&folder, &filter, &mut |entry| {
            if let Some(entry) = har_entry(entry) {
                piece.push_str(comma);
                piece.push_str(&entry.to_string());
                comma = ",\n";
            }
            if piece.len() >= PIECE_BYTES {
                taken = sender.blocking_send(std::mem::take(&mut piece).into()).is_ok();
            }
            taken
        });
        match read {
            Ok(()) if taken => {
                piece.push_str(back);
                // Whoever asked may have gone.
                let _taken = sender.blocking_send(piece.into());
            }
            Ok(()) => {}
            // Cut, so that nobody takes it for whole JSON.
            Err(error) => {
                tracing::warn!(error = %crate::placing::with_causes(&error), "the audit cannot be read")
            }
        }
    });
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let name = format!("attachment; filename=\"session-{}.har\"", entry.id());
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callback(path: &str, verdict: &str) -> Event {
        Event::Callback {
            session: Uuid::nil(),
            at: String::new(),
            run_id: "run-7".to_owned(),
            request_id: Uuid::nil(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            rule: "paperclip-2026.916 POST /api/issues/{issue}/comments".to_owned(),
            verdict: verdict.to_owned(),
            status: 200,
            code: String::new(),
            answer_bytes: 0,
            duration_us: 0,
        }
    }

    #[test]
    fn a_filter_lets_through_what_it_names_and_nothing_else() {
        let comment = callback("/api/issues/PAP-1/comments", "allow");
        let wanted = |text: &str| -> Wanted { serde_json::from_str(text).unwrap() };

        for takes in [
            "{}",
            r#"{"run": "run-7"}"#,
            r#"{"route": "post {ISSUE}/comments"}"#,
            r#"{"route": "PAP-1"}"#,
            r#"{"session": "00000000-0000-0000-0000-000000000000"}"#,
        ] {
            assert!(wanted(takes).takes(&comment), "{takes}");
        }
        for leaves in [
            r#"{"run": "run-8"}"#,
            r#"{"route": "GET comments"}"#,
            r#"{"denied": true}"#,
            r#"{"session": "00000000-0000-0000-0000-000000000001"}"#,
        ] {
            assert!(!wanted(leaves).takes(&comment), "{leaves}");
        }
        assert!(wanted(r#"{"denied": true}"#).takes(&callback("/x", "deny")));
    }
}
