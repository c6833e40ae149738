//! Losses, returns, and the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tunnel::http2::preface::PREFACE;
use tunnel::{Status, TunnelEnd};

use crate::callbacks::until;
use crate::world::{Setting, World, full, get, play};

#[tokio::test(start_paused = true)]
async fn a_lost_gateway_comes_back_on_its_port_and_its_callbacks_are_let_go() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let port = world.ready().await;
    let request = Request::post("http://127.0.0.1:1/hang").body(full("x")).unwrap();
    gateway.send.ready().await.unwrap();
    let under_way = tokio::spawn(gateway.send.send_request(request));
    let open = world.agents.open.clone();
    until("it is under way", || open.load(Ordering::SeqCst) == 1).await;

    gateway.die();

    assert!(under_way.await.unwrap().is_err());
    let mut next = world.gateway().await;
    until("it is let go", || open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(world.ready().await, port);
    assert_eq!(next.start.port(), port);
    assert_eq!(
        next.start.variables["PCBRIDGE_GATEWAY_TOKEN_SHA256"],
        gateway.start.variables["PCBRIDGE_GATEWAY_TOKEN_SHA256"]
    );
    assert_ne!(
        next.start.variables["PAPERCLIP_BRIDGE_NONCE"],
        gateway.start.variables["PAPERCLIP_BRIDGE_NONCE"]
    );
    assert_eq!(next.get("/refuse").await.status(), 403);
    assert!(matches!(world.stopped().await, TunnelEnd::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_taken_meanwhile_is_waited_for_and_no_other_is_used() {
    let dies_unready = || play(|_, stdio| async move { drop(stdio) });
    let (sender, gateways) = tokio::sync::mpsc::channel(16);
    let first = sender.clone();
    let works = play(move |start, mut stdio| {
        let sender = first.clone();
        async move {
            stdio.write_all(start.ready().as_bytes()).await.unwrap();
            crate::world::speak(start, stdio, sender).await;
        }
    });
    let mut world = World::new(Setting {
        plays: vec![works, dies_unready(), dies_unready(), dies_unready()],
        gateways: Some((sender, gateways)),
        ..Setting::default()
    });
    let gateway = world.gateway().await;
    let port = world.ready().await;
    world.target.port_is_taken.store(true, Ordering::SeqCst);

    gateway.die();
    let status = world
        .wait("degraded", |status| matches!(status, Status::Degraded { .. }))
        .await;

    let Status::Degraded { reason, detail } = status else {
        panic!("{status:?}")
    };
    assert_eq!(reason, "port_taken");
    assert!(detail.contains(&port.to_string()), "{detail}");
    let again = world.gateway().await;
    assert_eq!(again.start.port(), port);
    assert_eq!(world.ready().await, port);
    let starts = world.target.starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 5);
    assert!(starts.iter().all(|start| start.port() == port));
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_vanished_from_its_folder_is_put_back() {
    let (sender, gateways) = tokio::sync::mpsc::channel(16);
    let first = sender.clone();
    let works = play(move |start, mut stdio| {
        let sender = first.clone();
        async move {
            stdio.write_all(start.ready().as_bytes()).await.unwrap();
            crate::world::speak(start, stdio, sender).await;
        }
    });
    let gone = play(|_, stdio| async move { drop(stdio) });
    let mut world = World::new(Setting {
        plays: vec![works, gone],
        gateways: Some((sender, gateways)),
        ..Setting::default()
    });
    let gateway = world.gateway().await;
    world.ready().await;

    gateway.die();
    world.gateway().await;
    world.ready().await;

    assert_eq!(world.target.installs.load(Ordering::SeqCst), 2);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_away_for_an_hour_is_found_again() {
    let mut world = World::new(Setting::default());
    let gateway = world.gateway().await;
    let port = world.ready().await;
    world.target.is_reachable.store(false, Ordering::SeqCst);

    gateway.die();
    world
        .wait("away", |status| {
            matches!(
                status,
                Status::Reconnecting {
                    reason: "unreachable",
                    ..
                }
            )
        })
        .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    world.target.is_reachable.store(true, Ordering::SeqCst);

    world.gateway().await;
    assert_eq!(world.ready().await, port);
    world.stopped().await;
}

/// READY, the preface and empty settings, and then whatever is given; reads all the same.
fn mute(settings_only: bool) -> crate::world::Play {
    play(move |start, mut stdio| async move {
        stdio.write_all(start.ready().as_bytes()).await.unwrap();
        stdio.write_all(PREFACE).await.unwrap();
        stdio.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut buffer = [0; 4096];
        if settings_only {
            while stdio.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        } else {
            std::future::pending::<()>().await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_answers_no_ping_is_lost_within_half_a_minute() {
    for settings_only in [true, false] {
        let mut world = World::new(Setting {
            plays: vec![mute(settings_only)],
            ..Setting::default()
        });
        world.ready().await;
        let started = Instant::now();

        world.gateway().await;

        let took = started.elapsed();
        assert!(
            took >= Duration::from_secs(20) && took <= Duration::from_secs(31),
            "{took:?}"
        );
        world.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_callbacks_finish_and_tells_the_gateway_to_go() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    world.ready().await;
    assert_eq!(gateway.get("/refuse").await.status(), 403);
    let (target, started) = (world.target.clone(), Instant::now());

    let end = world.stopped().await;

    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(target.ends.load(Ordering::SeqCst), 1);
    until("told to go", || gateway.is_told_to_go()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_streams_that_hang_takes_five_seconds_at_most() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..50 {
        gateway.send.ready().await.unwrap();
        hanging.spawn(gateway.send.send_request(get("/hang")));
    }
    let (open, started) = (world.agents.open.clone(), Instant::now());
    until("they hang", || open.load(Ordering::SeqCst) == 50).await;

    let end = world.stopped().await;

    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert!(
        started.elapsed() <= Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(open.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_target_is_away_says_what_may_be_left() {
    let mut world = World::new(Setting::default());
    let gateway = world.gateway().await;
    world.ready().await;
    world.target.is_reachable.store(false, Ordering::SeqCst);
    gateway.die();
    world
        .wait("away", |status| matches!(status, Status::Reconnecting { .. }))
        .await;

    let end = world.stopped().await;

    assert!(
        matches!(&end, TunnelEnd::StoppedUnclean(detail) if detail.contains("may still be there")),
        "{end:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn dropping_the_tunnel_cuts_the_channel_and_every_callback() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    gateway.send.ready().await.unwrap();
    let hanging = tokio::spawn(gateway.send.send_request(get("/hang")));
    let open = world.agents.open.clone();
    until("it hangs", || open.load(Ordering::SeqCst) == 1).await;

    world.serving.abort();

    assert!(hanging.await.unwrap().is_err());
    until("it is dropped", || open.load(Ordering::SeqCst) == 0).await;
}
