//! The registry by itself: bounds, wishes, and what is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tunnel::Status;

use super::table::MOST_ENDED;
use super::*;
use crate::secrets::SecretSettings;
use crate::session::observer::{Observer as _, Seen};

/// One that has made no session yet.
pub(crate) fn daemon(most_sessions: usize) -> Arc<Daemon> {
    set_up(|settings| settings.most_sessions = most_sessions)
}

fn set_up(otherwise: impl FnOnce(&mut DaemonSettings)) -> Arc<Daemon> {
    let ops = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut settings = DaemonSettings::new(PathBuf::from("/nonexistent"), ops);
    otherwise(&mut settings);
    Daemon::new(
        settings,
        Secrets::new(SecretSettings::default(), |_| Some("secret".to_owned())),
        None,
        None,
    )
}

/// A thread that has the registry's lock, until it is told to give it back.
pub(crate) fn locked(daemon: &Arc<Daemon>) -> (std::thread::JoinHandle<()>, std::sync::mpsc::SyncSender<()>) {
    let daemon = Arc::clone(daemon);
    let ((told, has), (release, wait)) = (std::sync::mpsc::sync_channel(1), std::sync::mpsc::sync_channel(1));
    let holder = std::thread::spawn(move || {
        let _table = daemon.table();
        told.send(()).unwrap();
        wait.recv().unwrap();
    });
    has.recv().unwrap();
    (holder, release)
}

fn local() -> NewSession {
    NewSession {
        target: "local".to_owned(),
        upstream: Some("http://127.0.0.1:1".to_owned()),
        no_upstream_check: Some(true),
        heartbeat: Some(NO_HEARTBEAT.to_owned()),
        ..NewSession::default()
    }
}

async fn created(daemon: &Arc<Daemon>) -> Created {
    daemon.create(local(), 0, true, Told::AtOnce).await.unwrap()
}

pub(crate) fn kept() -> Kept {
    let now = SystemTime::now();
    Kept {
        session: Uuid::now_v7(),
        asked: local(),
        uid: 0,
        run_id: "r".to_owned(),
        created: now,
        expires: now,
        heartbeat: None,
        token_sha256: String::new(),
        shown: false,
        place: None,
    }
}

fn entry() -> Arc<Entry> {
    Entry::new(kept(), Arc::default(), None, TokenDigest::of(b"token"), None)
}

mod coming_back;

#[tokio::test]
async fn a_daemon_that_is_full_takes_no_session_until_one_has_ended() {
    let daemon = daemon(1);
    let first = created(&daemon).await;
    first.opened.await.unwrap().unwrap();

    let refused = daemon.create(local(), 0, true, Told::AtOnce).await.unwrap_err();

    assert!(matches!(refused, CreateError::Full(1)), "{refused}");
    first.entry.end(Ending::Revoked);
    while daemon.living() > 0 {
        tokio::task::yield_now().await;
    }
    created(&daemon).await.opened.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_daemon_that_drains_closes_what_it_has_and_takes_nothing_on() {
    let daemon = daemon(8);
    let first = created(&daemon).await;
    first.opened.await.unwrap().unwrap();

    daemon.begin_drain();

    let refused = daemon.create(local(), 0, true, Told::AtOnce).await.unwrap_err();
    assert!(matches!(refused, CreateError::Draining), "{refused}");
    daemon.drained().await;
    assert_eq!(first.entry.state(), SessionState::Ended);
    assert_eq!(first.entry.standing().reason, Some("drained"));
}

#[tokio::test]
async fn a_daemon_without_metrics_counts_no_callback() {
    for (metrics, counted) in [(true, 1), (false, 0)] {
        let daemon = set_up(|settings| settings.metrics = metrics);
        let opened = created(&daemon).await.opened.await.unwrap().unwrap();

        let head = b"GET /api/agents/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut stream = tokio::net::TcpStream::connect(opened.url.unwrap().trim_start_matches("http://"))
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, head)
            .await
            .unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)
            .await
            .unwrap();

        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        let text = daemon.metrics.text();
        assert_eq!(text.matches("callbacks_total{").count(), counted, "{text}");
        assert_eq!(daemon.metrics_text().is_some(), metrics);
    }
}

#[tokio::test]
async fn what_a_session_is_kept_as_holds_no_secret_and_is_read_again() {
    let daemon = daemon(8);
    let made = created(&daemon).await;
    let token = made.opened.await.unwrap().unwrap().token.unwrap();

    let text = serde_json::to_string(&made.entry.kept).unwrap();

    assert!(!text.contains(&token), "{text}");
    let read: Kept = serde_json::from_str(&text).unwrap();
    assert_eq!(read.session, made.entry.id());
    assert_eq!(read.asked.target, "local");
}

#[tokio::test]
async fn only_so_many_sessions_that_have_ended_are_kept() {
    let mut table = Table::default();
    let last = entry();
    for _ in 0..MOST_ENDED {
        table.ended.push_back((Instant::now(), entry()));
    }
    table.ended.push_back((Instant::now(), Arc::clone(&last)));

    table.forget_old(Duration::from_hours(24));

    assert_eq!(table.ended.len(), MOST_ENDED);
    assert_eq!(table.ended.back().unwrap().1.id(), last.id());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_ended_is_kept_for_as_long_as_was_said() {
    let mut table = Table::default();
    table.ended.push_back((Instant::now(), entry()));

    let day = Duration::from_hours(24);
    tokio::time::advance(day).await;
    table.forget_old(day);
    assert_eq!(table.ended.len(), 1);
    tokio::time::advance(Duration::from_millis(1)).await;
    table.forget_old(day);

    assert!(table.ended.is_empty());
}

#[tokio::test]
async fn a_wish_that_cuts_wins_over_one_that_waits_and_the_first_of_a_kind_stays() {
    let entry = entry();
    let wished = |entry: &Entry| entry.ending().borrow().clone();

    entry.end(Ending::Drained);
    entry.end(Ending::Expired);
    assert_eq!(wished(&entry), Some(Ending::Drained));
    entry.end(Ending::Revoked);
    assert_eq!(wished(&entry), Some(Ending::Revoked));
    entry.end(Ending::HeartbeatMissed);
    entry.end(Ending::Drained);

    assert_eq!(wished(&entry), Some(Ending::Revoked));
}

#[tokio::test]
async fn a_session_that_is_ending_is_not_ready_again_and_one_that_has_ended_is_nothing_else() {
    use super::state::Standing;

    let entry = entry();
    let ready = || {
        Standing::of(&Status::Reconnecting {
            reason: "connection_lost",
            detail: String::new(),
        })
    };

    entry.stands(Standing::new(SessionState::Draining, Some("revoked"), None));
    entry.stands(ready());
    assert_eq!(entry.state(), SessionState::Draining);
    entry.stands(Standing::new(SessionState::Ended, Some("revoked"), None));
    entry.stands(ready());
    entry.stands(Standing::new(SessionState::Ended, Some("expired"), None));

    assert_eq!(entry.standing().reason, Some("revoked"));
}

#[tokio::test]
async fn a_token_is_looked_for_among_all_sessions_only_while_it_holds() {
    let events = Events::default();
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let digest = policy::TokenDigest::of(b"token");
    events.token_of(other, digest);

    assert_eq!(events.wrong_token(other, b"token"), None);
    assert_eq!(events.wrong_token(one, b"nobody's"), None);
    assert_eq!(events.wrong_channels(), 0);
    assert_eq!(events.wrong_token(one, b"token"), Some(other));
    assert_eq!(events.wrong_channels(), 1);
    events.forget_token(digest);
    assert_eq!(events.wrong_token(one, b"token"), None);

    assert_eq!(events.wrong_channels(), 1);
}

#[test]
fn callbacks_are_counted_whether_anybody_listens_or_not() {
    let events = Events::default();
    let seen = Seen {
        session: Uuid::now_v7(),
        run_id: "r",
        request_id: Uuid::now_v7(),
        method: "GET",
        path: "/api/x",
        rule: "",
        verdict: "deny",
        status: 403,
        code: "route_not_allowed",
        answer_bytes: 0,
        duration: Duration::ZERO,
    };

    events.callback(seen);
    let mut heard = events.listen();
    events.callback(Seen {
        verdict: "allow",
        ..seen
    });

    assert_eq!(events.callbacks(), (2, 1));
    let told = heard.try_recv().unwrap();
    assert!(!told.is_denial() && told.run_id() == Some("r") && told.name() == "callback");
    assert!(heard.try_recv().is_err());
}
