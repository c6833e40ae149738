//! Sessions that come back after their daemon was killed, or ended as planned: the same URL and the same token.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::peer::{Release, installed, their_script};
use paperclip_bridge_tests::serving::{Serving, ServingBuilder, agent};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::Place;
use paperclip_bridge_tests::{Upstream, can_run, eventually, processes, user};

use super::SOON;
use crate::queue::{readable, server_with_node};
use crate::ssh_can_run;

const ME: &str = "/api/agents/me";

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `kill -9`.
    Killed,
    /// SIGTERM.
    Planned,
}

pub(super) const BOTH: [End; 2] = [End::Killed, End::Planned];

/// Ends the daemon and starts another on the same folder.
async fn restarted(serving: Serving, end: End) -> Serving {
    ended(serving, end).await.start().await
}

pub(super) async fn ended(serving: Serving, end: End) -> ServingBuilder {
    let Serving { running, folder, .. } = serving;
    running.signal(match end {
        End::Killed => "KILL",
        End::Planned => "TERM",
    });
    let finished = running.finish().await;
    if end == End::Planned {
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    Serving::in_folder(folder)
}

/// A session at the place, used once.
pub(super) async fn session(serving: &Serving, upstream: &Upstream, place: &Place, more: &[&str]) -> Opened {
    let opened = serving.session_at(place, upstream, more).await;
    let answer = agent(&opened).get(ME).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    opened
}

/// Its agent can call as before.
pub(super) async fn is_back(serving: &Serving, opened: &Opened) {
    let shown = serving.until(&opened.session, "ready").await;
    assert_eq!(shown["url"], opened.url.as_str());
    assert_eq!(shown["tunnel"], opened.tunnel.as_str());
    let answer = agent(opened).get(ME).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let stranger = paperclip_bridge_tests::Agent {
        token: "pcb_somebody-else".to_owned(),
        ..agent(opened)
    };
    assert_eq!(stranger.get(ME).await.unwrap().status, 401);
}

async fn comes_back(place: &Place, tunnel: &str) {
    let upstream = Upstream::start().await;
    for end in BOTH {
        let serving = Serving::start().await;
        let opened = session(&serving, &upstream, place, &["--tunnel", tunnel]).await;
        assert_eq!(opened.tunnel, tunnel);

        // Twice: what comes back can come back again.
        let serving = restarted(serving, end).await;
        is_back(&serving, &opened).await;
        let serving = restarted(serving, end).await;
        is_back(&serving, &opened).await;

        let shown = serving.ask(&["sessions", "revoke", &opened.session]).await;
        assert_eq!(shown["reason"], "revoked", "{end:?}");
        serving.until(&opened.session, "ended").await;
        assert!(agent(&opened).get(ME).await.is_err());
    }
}

pub(super) fn ssh() -> Option<Place> {
    ssh_can_run().then(|| Place::Ssh(Box::new(Sshd::start())))
}

pub(super) fn server(place: &Place) -> &Sshd {
    let Place::Ssh(server) = place else {
        panic!("no SSH server")
    };
    server
}

fn port(opened: &Opened) -> u16 {
    opened.url.rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_local_session_comes_back_at_its_port() {
    comes_back(&Place::Local, "local").await;
}

#[tokio::test]
async fn a_local_session_comes_back_at_its_socket() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock").display().to_string();
    for end in BOTH {
        let serving = Serving::start().await;
        let opened = session(&serving, &upstream, &Place::Local, &["--unix-socket", &socket]).await;

        let serving = restarted(serving, end).await;

        is_back(&serving, &opened).await;
    }
}

#[tokio::test]
async fn an_ssh_reverse_session_comes_back_at_its_port() {
    if let Some(place) = ssh() {
        comes_back(&place, "ssh-reverse").await;
    }
}

#[tokio::test]
async fn an_http2_session_comes_back_at_its_port() {
    if let Some(place) = ssh() {
        comes_back(&place, "http2_v1").await;
    }
}

#[tokio::test]
async fn a_queue_session_comes_back_at_its_port() {
    if let Some(place) = ssh() {
        comes_back(&place, "queue_v1").await;
    }
}

#[tokio::test]
async fn a_call_into_a_queue_while_there_is_no_daemon_is_answered_by_the_next() {
    let Some(place) = ssh() else { return };
    let upstream = Upstream::start().await;
    for end in BOTH {
        let serving = Serving::start().await;
        let opened = session(&serving, &upstream, &place, &["--tunnel", "queue_v1"]).await;
        let serving = ended(serving, end).await;
        let agent = agent(&opened);
        let waiting = tokio::spawn(async move { agent.get(ME).await });

        let serving = serving.start().await;

        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{end:?}: {}", answer.text());
        is_back(&serving, &opened).await;
    }
}

#[tokio::test]
async fn the_sshd_of_a_killed_daemon_that_holds_the_port_half_dead_is_ended() {
    let Some(place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &place, &["--tunnel", "ssh-reverse"]).await;
    let frozen = server(&place).freeze_sessions();

    let serving = restarted(serving, End::Killed).await;

    is_back(&serving, &opened).await;
    eventually(SOON, "what was frozen is gone", || {
        let all = processes::all();
        let left = |pid: &u32| all.iter().any(|one| one.pid == *pid && one.state == 'T');
        let listens = |pid: &u32| {
            processes::listening(*pid)
                .iter()
                .any(|at| at.port() == port(&opened))
        };
        (!frozen.iter().any(|pid| left(pid) && listens(pid))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_holds_the_port_on_a_host_without_proc_is_waited_for_and_told() {
    if !ssh_can_run() || !can_run(user::can_be_made()) || !can_run(program("unshare").map(drop)) {
        return;
    }
    let place = Place::Ssh(Box::new(Sshd::builder().without_proc().start()));
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &place, &["--tunnel", "ssh-reverse"]).await;
    let frozen = server(&place).freeze_sessions();

    let serving = restarted(serving, End::Killed).await;

    let shown = serving.until(&opened.session, "degraded").await;
    assert_eq!(shown["reason"], "port_held", "{shown}");
    // What it is must be asked of the host: nothing is ended on a guess.
    assert!(frozen.iter().all(|pid| processes::one(*pid).is_some()));
    let known = serving.ask(&["sessions", "env", &opened.session]).await["env"].clone();
    assert_eq!(known["PAPERCLIP_API_URL"], opened.url.as_str());
    for pid in frozen {
        processes::signal(pid, "KILL");
    }
    is_back(&serving, &opened).await;
}

#[tokio::test]
async fn a_session_behind_a_peers_script_ends_over_http2_and_comes_back_over_a_queue() {
    if !(ssh_can_run() && can_run(installed().map(drop)) && can_run(readable(installed().unwrap()))) {
        return;
    }
    let installed = installed().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = their_script(installed, Release::R916, folder.path());
    let gateway = format!("node:{}", script.display());
    let place = Place::Ssh(Box::new(server_with_node(installed, "")));
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let over = async |tunnel| {
        let more = ["--tunnel", tunnel, "--gateway", &gateway];
        session(&serving, &upstream, &place, &more).await
    };
    let (http2, queue) = (over("http2_v1").await, over("queue_v1").await);

    let serving = restarted(serving, End::Killed).await;

    let shown = serving.until(&http2.session, "ended").await;
    assert_eq!(shown["reason"], "token_not_kept", "{shown}");
    let detail = shown["detail"].as_str().unwrap();
    assert!(detail.contains("open a new session"), "{detail}");
    is_back(&serving, &queue).await;
    eventually(SOON, "its listener is gone", || {
        (!processes::anyone_listens(port(&http2))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_environment_of_a_session_that_is_not_back_is_what_it_was() {
    let Some(mut place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &place, &["--tunnel", "queue_v1"]).await;
    let mut known = serving.ask(&["sessions", "env", &opened.session]).await;
    let serving = ended(serving, End::Killed).await;
    let Place::Ssh(server) = &mut place else { return };
    server.stop();

    let serving = serving.start().await;

    serving.until(&opened.session, "reconnecting").await;
    assert_eq!(serving.ask(&["sessions", "env", &opened.session]).await, known);
    let env = known["env"].as_object_mut().unwrap();
    env.insert("PAPERCLIP_API_KEY".to_owned(), opened.token.clone().into());
    assert_eq!(serde_json::to_value(&opened.env).unwrap(), known["env"]);
    server.start_again();
    is_back(&serving, &opened).await;
}

#[tokio::test]
async fn a_port_that_somebody_else_took_is_waited_for() {
    let upstream = Upstream::start().await;
    for place in [Some(Place::Local), ssh()].into_iter().flatten() {
        let serving = Serving::start().await;
        let opened = session(&serving, &upstream, &place, &[]).await;
        let serving = ended(serving, End::Killed).await;
        let address = SocketAddr::from(([127, 0, 0, 1], port(&opened)));
        let taken = eventually(SOON, "the port is free", || TcpListener::bind(address).ok()).await;

        let serving = serving.start().await;

        let shown = serving.until(&opened.session, "degraded").await;
        assert_eq!(shown["reason"], "port_taken", "{shown}");
        assert_eq!(shown["url"], opened.url.as_str());
        drop(taken);
        is_back(&serving, &opened).await;
    }
}

#[tokio::test]
async fn a_session_whose_host_is_away_comes_back_once_that_is_there_again() {
    let Some(mut place) = ssh() else { return };
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &place, &[]).await;
    let serving = ended(serving, End::Killed).await;
    let Place::Ssh(server) = &mut place else { return };
    server.stop();

    let serving = serving.start().await;

    let shown = serving.until(&opened.session, "reconnecting").await;
    assert_eq!(shown["reason"], "target_unreachable");
    server.start_again();
    is_back(&serving, &opened).await;
}

#[tokio::test]
async fn what_was_revoked_does_not_come_back() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let revoked = session(&serving, &upstream, &Place::Local, &[]).await;
    let stays = session(&serving, &upstream, &Place::Local, &[]).await;
    serving.ask(&["sessions", "revoke", &revoked.session]).await;
    serving.until(&revoked.session, "ended").await;

    let serving = restarted(serving, End::Killed).await;

    is_back(&serving, &stays).await;
    assert!(agent(&revoked).get(ME).await.is_err());
    let listed = serving.ask(&["sessions", "ls"]).await;
    let living: Vec<_> = listed["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["state"] != "ended")
        .map(|one| one["session"].as_str().unwrap())
        .collect();
    assert_eq!(living, [stays.session.as_str()]);
}

#[tokio::test]
async fn a_drained_daemons_sessions_come_back_with_the_token_that_was_rotated() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = session(&serving, &upstream, &Place::Local, &["--heartbeat", "5s"]).await;
    let rotated = serving.ask(&["sessions", "rotate", &opened.session]).await;
    let drained = serving.ask(&["drain", "--wait"]).await;
    assert_eq!(drained["left"], 0);
    assert!(agent(&opened).get(ME).await.is_err());
    let Serving { running, folder, .. } = serving;
    assert_eq!(running.finish().await.code, Some(0));

    let serving = Serving::in_folder(folder).start().await;

    let again = Opened {
        token: rotated["token"].as_str().unwrap().to_owned(),
        ..opened.clone()
    };
    is_back(&serving, &again).await;
    assert_eq!(agent(&opened).get(ME).await.unwrap().status, 401);
    // It is heard of anew from the restart on, and ends where that stays out.
    let shown = tokio::time::timeout(Duration::from_secs(60), serving.until(&opened.session, "ended"));
    assert_eq!(shown.await.unwrap()["reason"], "heartbeat_missed");
}
