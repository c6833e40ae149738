//! One callback after another, and many at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::world::{BIG, Setting, World, empty, full, get, within};

async fn json(response: http::Response<hyper::body::Incoming>) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_callback_is_handed_over_as_the_caller_wrote_it() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let port = world.ready().await;
    let request = Request::post("http://gateway.invalid/")
        .header("authorization", "Bearer t")
        .header("x-pcbridge-host", URL_SAFE_NO_PAD.encode("a b"))
        .header("x-pcbridge-target", URL_SAFE_NO_PAD.encode("/about"))
        .header("content-length", "3")
        .body(full("abc"))
        .unwrap();

    let about = json(gateway.send.send_request(request).await.unwrap()).await;

    assert_eq!(about["method"], "POST");
    assert_eq!(about["host"], "a b");
    assert_eq!(about["authorization"], "Bearer t");
    assert_eq!(about["own"], false);
    assert_eq!(about["length"], 3);
    assert_eq!(about["proof"], "Token");
    assert_eq!(about["listening"], format!("Tcp {{ port: {port} }}"));
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_script_tells_no_host_and_a_body_of_unknown_length_none() {
    let mut world = World::new(Setting {
        is_script: true,
        ..Setting::default()
    });
    let mut gateway = world.gateway().await;
    let pieces = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"abc")))]);
    let request = Request::post("http://bridge.internal:80/about")
        .body(http_body_util::StreamBody::new(pieces).boxed_unsync())
        .unwrap();

    let about = json(gateway.send.send_request(request).await.unwrap()).await;

    assert_eq!(about["host"], Value::Null);
    assert_eq!(about["length"], Value::Null);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_stream_costs_itself_only() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let request = Request::get("http://h/x")
        .header("x-pcbridge-target", "L2E")
        .body(empty())
        .unwrap();

    let refused = gateway.send.send_request(request).await.unwrap();
    let next = gateway.get("/refuse").await;

    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(json(refused).await["code"], "malformed_request");
    assert_eq!(next.status(), StatusCode::FORBIDDEN);
    assert_eq!(world.agents.served.load(Ordering::SeqCst), 1);
    world.stopped().await;
}

#[tokio::test]
async fn ten_mebibytes_pass_both_ways_unchanged() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let body: Bytes = (0..10 * 1024 * 1024_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let request = Request::post("http://127.0.0.1:1/echo")
        .body(full(body.clone()))
        .unwrap();

    let response = gateway.send.send_request(request).await.unwrap();
    let back = response.into_body().collect().await.unwrap().to_bytes();

    assert!(back == body);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;

    gateway.send.ready().await.unwrap();
    // The reset may overtake the head.
    let broken = match gateway.send.send_request(get("/broken")).await {
        Ok(answer) => answer.into_body().collect().await.map(|_| ()),
        Err(error) => Err(error),
    };

    assert!(broken.is_err());
    assert_eq!(gateway.get("/refuse").await.status(), 403);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_takes_its_callback_along() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    gateway.send.ready().await.unwrap();
    let hanging = tokio::spawn(gateway.send.send_request(get("/hang")));
    let open = world.agents.open.clone();
    until("it hangs", || open.load(Ordering::SeqCst) == 1).await;

    hanging.abort();

    until("it is dropped", || open.load(Ordering::SeqCst) == 0).await;
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn slow_readers_and_unread_bodies_do_not_hold_up_the_others() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let mut unread_answers = Vec::new();
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..8 {
        unread_answers.push(gateway.get("/big").await);
        let request = Request::post("http://127.0.0.1:1/unread")
            .body(full(vec![b'u'; BIG]))
            .unwrap();
        uploads.spawn(gateway.send.send_request(request));
    }
    let open = world.agents.open.clone();
    until("the uploads hang", || open.load(Ordering::SeqCst) == 8).await;

    let started = Instant::now();
    let request = Request::post("http://127.0.0.1:1/echo")
        .body(full(vec![b'e'; 512 * 1024]))
        .unwrap();
    let answer = gateway.send.send_request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();

    assert_eq!(body.len(), 512 * 1024);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    drop(unread_answers);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_reset_after_half_a_minute_and_costs_itself_only() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let unread = gateway.get("/big").await;
    let slow = gateway.get("/big").await;
    let started = Instant::now();

    let slow = tokio::spawn(async move {
        let (mut body, mut came) = (slow.into_body(), 0);
        while let Some(frame) = body.frame().await {
            came += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
        came
    });
    tokio::time::sleep(Duration::from_secs(40)).await;
    let mut body = unread.into_body();
    let cut = loop {
        match body.frame().await.expect("no end of it") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };

    assert!(format!("{cut:?}").contains("CANCEL"), "{cut:?}");
    assert_eq!(slow.await.unwrap(), BIG);
    assert!(
        started.elapsed() > Duration::from_secs(60),
        "the other was no slow one"
    );
    assert_eq!(gateway.get("/echo").await.status(), 200);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_breaks_off_after_half_a_minute() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    sender.send(Bytes::from_static(b"some")).await.unwrap();
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(http_body::Frame::data(piece)), receiver))
    });
    let request = Request::post("http://127.0.0.1:1/echo")
        .body(http_body_util::StreamBody::new(pieces).boxed_unsync())
        .unwrap();
    let started = Instant::now();

    let answer = gateway.send.send_request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();

    assert_eq!(body, "the body came too slowly");
    assert_eq!(started.elapsed().as_secs(), 30);
    drop(sender);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn streams_at_the_same_time_have_their_limit() {
    for (is_script, limit) in [(true, 4), (false, 256)] {
        let mut world = World::new(Setting {
            is_script,
            ..Setting::default()
        });
        let mut gateway = world.gateway().await;
        let mut hanging = tokio::task::JoinSet::new();
        // The first answer tells that the host's settings have come.
        gateway.get("/refuse").await;
        for _ in 0..limit + 3 {
            hanging.spawn(gateway.send.send_request(get("/hang")));
        }
        let open = world.agents.open.clone();
        until("as many as may", || open.load(Ordering::SeqCst) == limit).await;

        tokio::time::sleep(Duration::from_secs(3)).await;

        assert_eq!(open.load(Ordering::SeqCst), limit);
        world.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn agents_that_give_up_by_the_hundred_do_not_cost_the_connection() {
    let mut world = World::new(Setting::default());
    let mut gateway = world.gateway().await;
    for _ in 0..2000 {
        gateway.send.ready().await.unwrap();
        let given_up = gateway.send.send_request(get("/hang"));
        tokio::select! {
            biased;
            answer = given_up => panic!("{answer:?}"),
            () = tokio::task::yield_now() => {}
        }
    }

    assert_eq!(gateway.get("/refuse").await.status(), 403);
    assert_eq!(world.target.starts.lock().unwrap().len(), 1);
    let open = world.agents.open.clone();
    until("all are dropped", || open.load(Ordering::SeqCst) == 0).await;
    world.stopped().await;
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
