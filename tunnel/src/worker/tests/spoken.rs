//! What is spoken on a connection, on memory.

use super::*;

#[tokio::test]
async fn a_callback_goes_out_as_it_came_and_its_answer_comes_back_whole() {
    let mut world = world(agent(|message| async move {
        assert_eq!(
            (message.method.as_str(), &message.target[..]),
            ("POST", &b"/api/x"[..])
        );
        assert_eq!(message.host.as_deref(), Some(&b"relay.example"[..]));
        assert_eq!(message.headers["authorization"], "Bearer t");
        assert_eq!(http_body::Body::size_hint(&message.body).exact(), Some(5));
        let body = message.body.collect().await.unwrap().to_bytes();
        Response::builder().status(201).body(whole(body)).unwrap()
    }))
    .await;

    let head = asked(
        "POST",
        "/api/x",
        &[("authorization", "Bearer t"), ("content-length", "5")],
    );
    world.worker.ask(1, false, head).await;
    for (bytes, end) in [("12", false), ("345", true)] {
        let bytes = Bytes::from_static(bytes.as_bytes());
        world
            .worker
            .say(&[Frame::Data {
                stream: 1,
                end,
                bytes,
            }])
            .await;
    }

    assert_eq!(world.worker.answer().await, (1, 201, b"12345".to_vec(), Ok(())));
}

#[tokio::test]
async fn an_answer_waits_for_credit_and_takes_no_more_than_it_has() {
    let size = 1024 * 1024_usize;
    let mut world = world(agent(move |_| async move { Response::new(whole(vec![7; size])) })).await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;
    let mut came = 0;
    let mut given = usize::try_from(STREAM_WINDOW).unwrap();

    while came < size {
        if let Frame::Data { bytes, .. } = world.worker.hear().await.unwrap() {
            came += bytes.len();
            assert!(came <= given, "{came} of {given}");
        }
        if came == given {
            // Nothing more may be under way.
            world.worker.say(&[Frame::Ping(*b"nothing?")]).await;
            assert_eq!(world.worker.hear().await, Ok(Frame::Pong(*b"nothing?")));
            given += 100_000;
            world
                .worker
                .say(&[Frame::Window {
                    stream: 1,
                    credit: 100_000,
                }])
                .await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_is_reset_and_never_ended() {
    let mut world = world(agent(|_| async {
        let pieces = [
            Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
            Err(BodyError::from("the upstream broke")),
        ];
        Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync())
    }))
    .await;

    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    let (_, _, body, end) = world.worker.answer().await;
    assert_eq!((body, end), (b"half".to_vec(), Err(ResetCode::Internal)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_is_reset() {
    let mut world = world(agent(|_| pending())).await;

    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Timeout));
}

/// Says so when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_caller_that_has_gone_ends_its_callback() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let mut world = world(agent(move |_| {
        let dropped = Dropped(Arc::clone(&told));
        async move {
            let _dropped = dropped;
            pending().await
        }
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;

    let text = "gone".to_owned();
    let code = ResetCode::Cancel;
    world
        .worker
        .say(&[Frame::Reset {
            stream: 1,
            code,
            text,
        }])
        .await;

    gone.notified().await;
}

#[tokio::test]
async fn a_body_whose_caller_has_gone_never_looks_whole() {
    let (ends, mut ended) = mpsc::channel(1);
    let mut world = world(agent(move |message: AgentMessage| {
        let ends = ends.clone();
        // As the bridge does with what it has dispatched: it goes on without the stream's task.
        drop(tokio::spawn(async move {
            ends.send(message.body.collect().await.is_ok()).await
        }));
        pending()
    }))
    .await;
    world.worker.ask(1, false, asked("POST", "/", &[])).await;
    let bytes = Bytes::from_static(b"half");
    world
        .worker
        .say(&[Frame::Data {
            stream: 1,
            end: false,
            bytes,
        }])
        .await;

    let text = String::new();
    let code = ResetCode::Cancel;
    world
        .worker
        .say(&[Frame::Reset {
            stream: 1,
            code,
            text,
        }])
        .await;

    assert_eq!(ended.recv().await, Some(false));
}

#[tokio::test]
async fn a_worker_that_sends_beyond_its_credit_loses_that_stream_alone() {
    let mut world = world(agent(|message: AgentMessage| async move {
        if message.method == http::Method::GET {
            return Response::new(whole("here"));
        }
        let _unread = message.body;
        pending().await
    }))
    .await;
    world.worker.ask(1, false, asked("POST", "/", &[])).await;

    for _ in 0..5 {
        let bytes = Bytes::from(vec![0; 65_536]);
        world
            .worker
            .say(&[Frame::Data {
                stream: 1,
                end: false,
                bytes,
            }])
            .await;
    }

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Flow));
    world.worker.ask(2, true, asked("GET", "/", &[])).await;
    assert_eq!(world.worker.answer().await, (2, 200, b"here".to_vec(), Ok(())));
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_had_no_effect() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let mut world = world(agent(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        pending()
    }))
    .await;

    for stream in 1..=u32::try_from(STREAMS).unwrap() + 1 {
        world.worker.ask(stream, true, asked("GET", "/", &[])).await;
    }

    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Refused));
    assert_eq!(served.load(Ordering::Relaxed), STREAMS);
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection_with_4400() {
    let head = || asked("GET", "/", &[]);
    let open = |stream| Frame::RequestHead {
        stream,
        end: true,
        head: head(),
    };
    let rows: [(&str, Vec<Frame>); 6] = [
        ("jump back", vec![open(2), open(1)]),
        ("twice", vec![open(1), open(1)]),
        (
            "data of no stream",
            vec![Frame::Data {
                stream: 1,
                end: true,
                bytes: Bytes::new(),
            }],
        ),
        ("hello twice", vec![Frame::Hello(hello())]),
        (
            "credit without end",
            vec![
                open(1),
                Frame::Window {
                    stream: 1,
                    credit: u32::MAX,
                },
            ],
        ),
        (
            "an answer",
            vec![Frame::ResponseHead {
                stream: 1,
                end: true,
                head: super::frame::ResponseHead {
                    status: 200,
                    headers: vec![],
                },
            }],
        ),
    ];
    for (what, frames) in rows {
        let mut world = world(agent(|_| pending())).await;

        world.worker.say(&frames).await;

        assert_eq!(world.worker.hear().await, Err(code::PROTOCOL), "{what}");
        assert!(
            matches!(world.served.await.unwrap(), ServeEnd::Over(Over::Broken(_))),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_text_that_is_no_pong_ends_the_connection_with_4400() {
    let mut world = world(agent(|_| pending())).await;

    world
        .worker
        .socket
        .send(Message::Text("hi".into()))
        .await
        .unwrap();

    assert_eq!(world.worker.hear().await, Err(code::PROTOCOL));
}

#[tokio::test]
async fn an_unsafe_callback_that_comes_again_is_not_served_again() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let mut world = world(agent(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            let answer = Response::builder().header("x-paperclip-bridge-request-id", "r-1");
            answer.body(whole("done")).unwrap()
        }
    }))
    .await;
    let head = || asked("POST", "/api/x", &[("x-request-id", "q-1")]);
    world.worker.ask(1, true, head()).await;
    assert_eq!(world.worker.answer().await.1, 200);

    world.worker.ask(2, true, head()).await;

    let (_, status, body, _) = world.worker.answer().await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["code"]), (409, &"outcome_indeterminate".into()));
    assert_eq!(body["request_id"], "r-1");
    assert_eq!(served.load(Ordering::Relaxed), 1);
    world
        .worker
        .ask(3, true, asked("GET", "/api/x", &[("x-request-id", "q-1")]))
        .await;
    assert_eq!(world.worker.answer().await.1, 200);
}

#[tokio::test]
async fn a_malformed_head_is_answered_and_not_served() {
    let mut world = world(agent(|_| async { unreachable!() })).await;

    let head = asked("POST", "/", &[("content-length", "1"), ("content-length", "2")]);
    world.worker.ask(1, false, head).await;

    let (_, status, body, _) = world.worker.answer().await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["code"]), (400, &"malformed_request".into()));
}

#[tokio::test]
async fn a_stop_finishes_what_is_open_and_takes_nothing_new() {
    let go = Arc::new(Notify::new());
    let (wait, begun) = (Arc::clone(&go), Arc::new(Notify::new()));
    let begins = Arc::clone(&begun);
    let mut world = world(agent(move |_| {
        let wait = Arc::clone(&wait);
        begins.notify_one();
        async move {
            wait.notified().await;
            Response::new(whole("done"))
        }
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/", &[])).await;
    begun.notified().await;

    world.stop.cancel();

    assert!(matches!(
        world.worker.hear().await,
        Ok(Frame::GoAway { last_stream: 1, .. })
    ));
    world.worker.ask(2, true, asked("GET", "/", &[])).await;
    assert_eq!(world.worker.answer().await.3, Err(ResetCode::Refused));
    go.notify_one();
    assert_eq!(world.worker.answer().await.2, b"done");
    assert_eq!(world.worker.hear().await, Err(code::NORMAL));
    assert_eq!(world.served.await.unwrap(), ServeEnd::Stopped { cut: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_any_more_is_lost() {
    let mut world = world(agent(|_| pending())).await;
    let mut pings = 0;

    // It reads, and does not answer.
    while let Some(Ok(message)) = world.worker.socket.next().await {
        pings += usize::from(message == Message::Text("ping".into()));
    }

    assert!(matches!(
        world.served.await.unwrap(),
        ServeEnd::Over(Over::Lost(_))
    ));
    assert_eq!(pings, 2);
}

#[tokio::test]
async fn a_worker_that_goes_away_is_left_once_all_is_finished() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let mut world = world(agent(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Response::new(whole("done"))
        }
    }))
    .await;
    let away = Frame::GoAway {
        last_stream: 1,
        code: 0,
        text: String::new(),
    };
    let open = Frame::RequestHead {
        stream: 1,
        end: true,
        head: asked("GET", "/", &[]),
    };
    world.worker.say(&[open, away]).await;

    go.notify_one();

    assert_eq!(world.worker.answer().await.2, b"done");
    assert_eq!(world.worker.hear().await, Err(code::NORMAL));
    assert_eq!(world.served.await.unwrap(), ServeEnd::MovedOn);
}

#[tokio::test]
async fn one_slow_reader_does_not_keep_the_others_waiting() {
    let mut world = world(agent(|message: AgentMessage| async move {
        let size = if message.target == "/big" {
            8 * 1024 * 1024
        } else {
            10
        };
        Response::new(whole(vec![1; size]))
    }))
    .await;
    world.worker.ask(1, true, asked("GET", "/big", &[])).await;

    for stream in 2..50 {
        world.worker.ask(stream, true, asked("GET", "/small", &[])).await;
        let ended =
            |frame: &Frame| matches!(frame, Frame::Data { stream: of, end: true, .. } if *of == stream);
        while !ended(&world.worker.hear().await.unwrap()) {}
    }
}
