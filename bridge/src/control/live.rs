//! What happens in the daemon, as it happens: server-sent events.
//!
//! A reader that is slower than what happens is told how many events it missed, and goes on with the next.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;
use uuid::Uuid;

use super::problem::Problem;
use super::sessions::query;
use crate::daemon::{Daemon, Event};

/// Which events.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only of this session.
    session: Option<Uuid>,
    /// Only of this run.
    run: Option<String>,
    /// Only callbacks that were denied, and tokens on the wrong channel.
    denied: bool,
}

impl Wanted {
    fn takes(&self, event: &Event) -> bool {
        self.session.is_none_or(|session| session == event.session())
            && self.run.as_deref().is_none_or(|run| event.run_id() == Some(run))
            && (!self.denied || event.is_denial())
    }
}

/// Tells of sessions and callbacks as they happen.
///
/// Each event has its name in `event` and a JSON object in `data`; `missed` says how many a slow reader did not get.
#[utoipa::path(
    get, path = "/v1/events", tag = "daemon", params(Wanted),
    responses(
        (status = 200, description = "Does not end by itself.", body = Event, content_type = "text/event-stream"),
        (status = 400, description = "The query is not understood.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(daemon): State<Arc<Daemon>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<axum::response::sse::Event, Infallible>>>, Problem> {
    let wanted = query(wanted)?;
    let heard = daemon.events().listen();
    let stream = unfold((heard, wanted), |(mut heard, wanted)| async move {
        let told = next(&mut heard, &wanted).await?;
        Some((Ok(told), (heard, wanted)))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

async fn next(heard: &mut Receiver<Arc<Event>>, wanted: &Wanted) -> Option<axum::response::sse::Event> {
    loop {
        let (name, data) = match heard.recv().await {
            Ok(event) if wanted.takes(&event) => (event.name(), serde_json::to_string(&*event)),
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => (
                "missed",
                serde_json::to_string(&serde_json::json!({ "event": "missed", "missed": missed })),
            ),
            Err(RecvError::Closed) => return None,
        };
        match data {
            // JSON on one line.
            Ok(data) => return Some(axum::response::sse::Event::default().event(name).data(data)),
            Err(error) => tracing::warn!(%error, "an event could not be told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::Events;
    use crate::session::observer::{Observer as _, Seen};

    fn seen(path: &str) -> Seen<'_> {
        Seen {
            session: Uuid::nil(),
            run_id: "r",
            request_id: Uuid::nil(),
            method: "GET",
            path,
            rule: "",
            verdict: "deny",
            status: 403,
            code: "route_not_allowed",
            answer_bytes: 0,
            duration: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_how_many_events_it_missed_and_goes_on() {
        let events = Events::default();
        let mut heard = events.listen();
        for _ in 0..1025 {
            events.callback(seen("/api/x"));
        }

        let told = next(&mut heard, &Wanted::default()).await.unwrap();
        let after = next(&mut heard, &Wanted::default()).await.unwrap();

        let shown = format!("{told:?}");
        assert!(shown.contains("missed") && shown.contains('1'), "{shown}");
        assert!(format!("{after:?}").contains("callback"), "{after:?}");
    }

    #[tokio::test]
    async fn only_what_is_wanted_is_told() {
        let events = Events::default();
        let mut heard = events.listen();
        events.callback(seen("/api/first"));
        events.callback(Seen {
            run_id: "other",
            ..seen("/api/second")
        });
        let wanted = Wanted {
            run: Some("other".to_owned()),
            denied: true,
            session: Some(Uuid::nil()),
        };

        let told = next(&mut heard, &wanted).await.unwrap();

        assert!(format!("{told:?}").contains("/api/second"), "{told:?}");
    }
}
