//! Sessions of one daemon that another goes on with, here in one process.

use std::net::TcpListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::holding::Left;
use super::super::state::Standing;
use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn keeping() -> Arc<Daemon> {
    let ops = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut settings = DaemonSettings::new(PathBuf::from("/nonexistent"), ops);
    settings.keeps_sessions = true;
    Daemon::new(
        settings,
        Secrets::new(SecretSettings::default(), |_| Some("secret".to_owned())),
        None,
        None,
    )
}

/// What a session is after a daemon's planned end, through the form in which it is written down; with its token.
async fn left(asked: NewSession) -> (Kept, String) {
    let daemon = keeping();
    let created = daemon.create(asked, 0, true, Told::AtOnce).await.unwrap();
    created.opened.await.unwrap().unwrap();
    daemon.begin_drain();
    daemon.drained().await;
    let standing = created.entry.standing();
    assert_eq!(
        (standing.state, standing.reason, standing.is_over_for_good()),
        (SessionState::Ended, Some("drained"), false)
    );
    let text = serde_json::to_string(&created.entry.kept_now()).unwrap();
    let token = created.token.unwrap();
    assert!(!text.contains(&token), "{text}");
    (serde_json::from_str(&text).unwrap(), token)
}

fn taken<const N: usize>(sessions: [Kept; N]) -> Vec<Left> {
    let without_a_store = |kept| Left {
        kept,
        hold: None,
        revoked: false,
    };
    sessions.into_iter().map(without_a_store).collect()
}

fn port(kept: &Kept) -> u16 {
    kept.place.as_ref().unwrap().port.unwrap()
}

async fn until(entry: &Entry, state: SessionState, reason: Option<&str>) -> Standing {
    let mut watched = entry.watch();
    let stands = watched.wait_for(|standing| standing.state == state && standing.reason == reason);
    match tokio::time::timeout(LIMIT, stands).await {
        Ok(standing) => standing.unwrap().clone(),
        Err(_) => panic!("not {state:?} {reason:?}: {:?}", entry.standing()),
    }
}

/// The status of a call that no upstream is needed for.
async fn whoami(port: u16, token: &str) -> String {
    let mut agent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let head = format!(
        "GET /_bridge/whoami HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    agent.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    agent.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_session_comes_back_at_its_port_with_its_name_and_token() {
    let (kept, token) = left(local()).await;
    let (session, port) = (kept.session, port(&kept));
    let daemon = keeping();

    daemon.bring_back(taken([kept]));

    let entry = daemon.session(session).unwrap();
    until(&entry, SessionState::Ready, None).await;
    let answer = whoami(port, &token).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(&session.to_string()),
        "{answer}"
    );
    assert!(whoami(port, "pcb_other").await.starts_with("HTTP/1.1 401"));
    assert_eq!(entry.shown().url, Some(format!("http://127.0.0.1:{port}")));
    // It can be left and taken up again as often as one likes.
    daemon.begin_drain();
    daemon.drained().await;
    let again = keeping();
    again.bring_back(taken([entry.kept_now()]));
    until(&again.session(session).unwrap(), SessionState::Ready, None).await;
    assert!(whoami(port, &token).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_rotated_token_is_the_one_that_comes_back() {
    let first = keeping();
    let created = first.create(local(), 0, true, Told::AtOnce).await.unwrap();
    created.opened.await.unwrap().unwrap();
    let rotated = created.entry.rotate().await.unwrap();
    first.begin_drain();
    first.drained().await;
    let kept = created.entry.kept_now();
    let (session, port) = (kept.session, port(&kept));
    let second = keeping();

    second.bring_back(taken([kept]));

    until(&second.session(session).unwrap(), SessionState::Ready, None).await;
    assert!(whoami(port, &rotated).await.starts_with("HTTP/1.1 200"));
    assert!(
        whoami(port, &created.token.unwrap())
            .await
            .starts_with("HTTP/1.1 401")
    );
}

#[tokio::test]
async fn a_port_that_somebody_took_is_waited_for_and_never_another_one_is_taken() {
    let (kept, token) = left(local()).await;
    let (session, port) = (kept.session, port(&kept));
    let squatter = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let daemon = keeping();

    daemon.bring_back(taken([kept]));

    let entry = daemon.session(session).unwrap();
    let standing = until(&entry, SessionState::Degraded, Some("port_taken")).await;
    assert!(standing.detail.unwrap().contains(&port.to_string()));
    drop(squatter);
    until(&entry, SessionState::Ready, None).await;
    assert!(whoami(port, &token).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_socket_is_listened_on_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let asked = NewSession {
        unix_socket: Some(path.display().to_string()),
        ..local()
    };
    let (kept, _) = left(asked).await;
    assert!(!path.exists());
    let session = kept.session;
    let daemon = keeping();

    daemon.bring_back(taken([kept]));

    until(&daemon.session(session).unwrap(), SessionState::Ready, None).await;
    assert!(path.exists());
}

#[tokio::test]
async fn what_its_configuration_cannot_say_any_more_is_told_and_waited_for() {
    let (mut kept, _) = left(local()).await;
    kept.asked.policy = Some("/nonexistent/policy.toml".to_owned());
    let session = kept.session;
    let daemon = keeping();

    daemon.bring_back(taken([kept]));

    let entry = daemon.session(session).unwrap();
    let standing = until(&entry, SessionState::Degraded, Some("configuration")).await;
    assert!(standing.detail.unwrap().contains("/nonexistent/policy.toml"));
    // The end of the daemon leaves it to the next one.
    daemon.begin_drain();
    daemon.drained().await;
    let standing = entry.standing();
    assert_eq!(
        (standing.state, standing.reason, standing.is_over_for_good()),
        (SessionState::Ended, Some("drained"), false)
    );
}

#[tokio::test]
async fn who_is_revoked_or_out_of_time_before_he_is_back_does_not_come_back() {
    let (kept, _) = left(local()).await;
    let (late, never) = (
        Kept {
            session: Uuid::now_v7(),
            expires: SystemTime::now() - Duration::from_secs(1),
            ..kept.clone()
        },
        Kept {
            session: Uuid::now_v7(),
            shown: false,
            place: None,
            ..kept.clone()
        },
    );
    let _taken = TcpListener::bind(("127.0.0.1", port(&kept))).unwrap();
    let daemon = keeping();
    let sessions = [kept.session, late.session, never.session];

    daemon.bring_back(taken([kept, late, never]));

    let [first, late, never] = sessions.map(|session| daemon.session(session).unwrap());
    until(&first, SessionState::Degraded, Some("port_taken")).await;
    first.end(Ending::Revoked);
    for (entry, reason) in [(&first, "revoked"), (&late, "expired"), (&never, "restarted")] {
        let standing = until(entry, SessionState::Ended, Some(reason)).await;
        assert!(standing.is_over_for_good(), "{reason}");
    }
}

#[tokio::test]
async fn a_session_that_was_being_opened_is_opened_with_the_token_that_was_shown() {
    let token = "pcb_shown-at-once";
    let asked = |more: fn(&mut Kept)| {
        let mut kept = Kept {
            expires: SystemTime::now() + Duration::from_secs(600),
            token_sha256: hex(TokenDigest::of(token.as_bytes()).to_bytes()),
            shown: true,
            ..kept()
        };
        more(&mut kept);
        kept
    };
    let [begun, wrong, revoked] = [
        asked(|_| {}),
        asked(|kept| kept.asked.policy = Some("/nonexistent/policy.toml".to_owned())),
        asked(|_| {}),
    ];
    let sessions = [begun.session, wrong.session, revoked.session];
    let daemon = keeping();
    let mut left = taken([begun, wrong, revoked]);
    left[2].revoked = true;

    daemon.bring_back(left);

    let [begun, wrong, revoked] = sessions.map(|session| daemon.session(session).unwrap());
    until(&begun, SessionState::Ready, None).await;
    let kept = begun.kept_now();
    assert_eq!(kept.place.as_ref().unwrap().run_id, "r");
    assert!(whoami(port(&kept), token).await.starts_with("HTTP/1.1 200"));
    assert!(whoami(port(&kept), "pcb_other").await.starts_with("HTTP/1.1 401"));
    // A mistake of the configuration is told as it is to whoever makes a session.
    let standing = until(&wrong, SessionState::Ended, Some("configuration")).await;
    assert!(standing.is_over_for_good());
    until(&revoked, SessionState::Ended, Some("revoked")).await;
}

#[tokio::test]
async fn a_session_on_a_host_that_cannot_be_reached_is_reconnecting_until_its_time_is_over() {
    let (mut kept, _) = left(local()).await;
    let folder = tempfile::tempdir().unwrap();
    let known_hosts = folder.path().join("known_hosts");
    std::fs::write(&known_hosts, "").unwrap();
    kept.asked.target = "ssh://a@127.0.0.1:1".to_owned();
    kept.asked.known_hosts = Some(known_hosts.display().to_string());
    kept.expires = SystemTime::now() + Duration::from_secs(2);
    let place = kept.place.as_mut().unwrap();
    place.target = "ssh://a@127.0.0.1:1".to_owned();
    place.tunnel = "ssh-reverse".to_owned();
    let session = kept.session;
    let daemon = keeping();

    daemon.bring_back(taken([kept]));

    let entry = daemon.session(session).unwrap();
    until(&entry, SessionState::Reconnecting, Some("target_unreachable")).await;
    until(&entry, SessionState::Ended, Some("expired")).await;
}
