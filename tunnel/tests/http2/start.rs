//! From the start to the first callback, or to a reason by name.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tunnel::http2::preface::PREFACE;
use tunnel::{Status, TunnelEnd};

use crate::world::{Play, Setting, TOKEN, World, play, speak};

fn says(text: impl Fn(&str) -> Vec<u8> + Clone + Send + Sync + 'static) -> Play {
    play(move |start, mut stdio| {
        let text = text.clone();
        async move {
            let _ = stdio.write_all(&text(&start.ready())).await;
            let mut rest = Vec::new();
            let _ = stdio.read_to_end(&mut rest).await;
            // Nothing but the variables was written before READY was accepted.
            assert!(rest.is_empty(), "{rest:?}");
        }
    })
}

fn exits() -> Play {
    play(|_, stdio| async move { drop(stdio) })
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_told_its_port_and_the_tokens_digest_and_serves() {
    let mut world = World::new(Setting::default());

    let mut gateway = world.gateway().await;
    let port = world.ready().await;
    let status = gateway.get("/refuse").await.status();

    assert_eq!(status, 403);
    assert_eq!(gateway.start.port(), port);
    assert!((20_000..32_000).contains(&port));
    let variables = &gateway.start.variables;
    assert!(!variables.contains_key("PAPERCLIP_BRIDGE_TOKEN"));
    assert_eq!(variables["PCBRIDGE_GATEWAY_TOKEN_SHA256"].len(), 64);
    assert_eq!(variables["PAPERCLIP_BRIDGE_HOST"], "127.0.0.1");
    assert_eq!(variables["PAPERCLIP_BRIDGE_MAX_BODY_BYTES"], "10551296");
    assert!(matches!(world.stopped().await, TunnelEnd::Stopped));
}

#[tokio::test(start_paused = true)]
async fn the_peers_script_is_given_the_token_itself() {
    let mut world = World::new(Setting {
        is_script: true,
        ..Setting::default()
    });

    let gateway = world.gateway().await;

    assert_eq!(gateway.start.variables["PAPERCLIP_BRIDGE_TOKEN"], TOKEN);
    assert!(
        !gateway
            .start
            .variables
            .contains_key("PCBRIDGE_GATEWAY_TOKEN_SHA256")
    );
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn every_failure_before_the_connection_has_its_name() {
    let other = |ready: &str| ready.replace("nonce\":\"", "nonce\":\"0").into_bytes();
    let rows: Vec<(&str, Play)> = vec![
        ("contaminated", says(|_| vec![b'x'; 300_000])),
        (
            "contaminated",
            says(|ready| [vec![b'\n'; 300_000], ready.into()].concat()),
        ),
        ("ready_nonce_mismatch", says(other)),
        ("ready_timeout", says(|_| b"welcome\n".to_vec())),
        (
            "ready_timeout",
            says(|ready| ready.replace(":2,", ":3,").into_bytes()),
        ),
        ("ready_timeout", says(|ready| ready.trim_end().into())),
        // The preface ahead of READY counts for nothing.
        ("ready_timeout", says(|_| PREFACE.to_vec())),
        (
            "preface_missing",
            says(|ready| [PREFACE, b"\n".as_slice(), ready.as_bytes()].concat()),
        ),
        ("preface_missing", says(|ready| ready.into())),
        (
            "preface_missing",
            says(|ready| [ready.as_bytes(), &vec![b'x'; 300_000]].concat()),
        ),
        (
            "preface_missing",
            play(|start, mut stdio| async move {
                stdio.write_all(start.ready().as_bytes()).await.unwrap();
            }),
        ),
        ("ready_invalid", exits()),
    ];
    for (at, (expected, act)) in rows.into_iter().enumerate() {
        let world = World::new(Setting {
            plays: vec![act],
            then_works: false,
            ..Setting::default()
        });
        let target = world.target.clone();

        let (reason, detail) = world.refusal().await;

        assert_eq!(reason, expected, "row {at}: {detail}");
        assert_eq!(
            target.ends.load(Ordering::SeqCst),
            1,
            "row {at}: what is left is cleared away"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn noise_around_ready_is_passed_over() {
    let (sender, gateways) = mpsc::channel(16);
    let noisy = sender.clone();
    let act = play(move |start, mut stdio| {
        let sender = noisy.clone();
        async move {
            let noise = format!(
                "Last login: today\nPRI * HTTP/2.0\r\n\r\n\x1b[?2004l\r{}warning: x\r\n",
                start.ready()
            );
            // In small pieces: no read of the host's ends where a line does.
            for piece in noise.as_bytes().chunks(7) {
                stdio.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            speak(start, stdio, sender).await;
        }
    });
    let mut world = World::new(Setting {
        plays: vec![act],
        gateways: Some((sender, gateways)),
        ..Setting::default()
    });

    let mut gateway = world.gateway().await;

    assert_eq!(gateway.get("/refuse").await.status(), 403);
    assert_eq!(world.target.starts.lock().unwrap().len(), 1);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_ends_at_once_is_tried_on_other_ports() {
    let mut world = World::new(Setting {
        plays: vec![exits(), exits()],
        ..Setting::default()
    });

    let gateway = world.gateway().await;
    let port = world.ready().await;

    let tried: Vec<u16> = world
        .target
        .starts
        .lock()
        .unwrap()
        .iter()
        .map(|start| start.port())
        .collect();
    assert_eq!(tried.len(), 3);
    assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 3, "{tried:?}");
    assert_eq!(tried[2], port);
    drop(gateway);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_port_that_must_be_kept_is_refused_by_name_when_it_is_taken() {
    let world = World::new(Setting {
        plays: vec![exits()],
        then_works: false,
        port: Some(23_456),
        ..Setting::default()
    });
    world.target.port_is_taken.store(true, Ordering::SeqCst);
    let target = world.target.clone();

    let (reason, detail) = world.refusal().await;

    assert_eq!(reason, "port_taken");
    assert!(detail.contains("23456"), "{detail}");
    let starts = target.starts.lock().unwrap();
    assert!(starts.iter().all(|start| start.port() == 23_456));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_cannot_be_reached_is_said_to_be_so() {
    let world = World::new(Setting {
        is_reachable: false,
        ..Setting::default()
    });

    let end = world.end().await;

    assert!(
        matches!(&end, TunnelEnd::Unreachable(detail) if detail.contains("the test says so")),
        "{end:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_gateway_is_not_ready_yet_clears_it_away() {
    let mut world = World::new(Setting {
        plays: vec![says(|_| Vec::new())],
        then_works: false,
        ..Setting::default()
    });
    let target = world.target.clone();
    crate::world::within("it is started", async {
        while target.starts.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(*world.status.borrow_and_update(), Status::Starting);

    let end = world.stopped().await;

    assert!(matches!(end, TunnelEnd::Stopped), "{end:?}");
    assert_eq!(target.ends.load(Ordering::SeqCst), 1);
}
