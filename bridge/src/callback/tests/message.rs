//! What came as a message: each refusal, each outcome, and what becomes of a body that nobody wants.

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tunnel::{AgentMessage, BodyError, CallerProof, MessageBody};

use super::ways::{Ask, LONG, Sent, pieces_of, small};
use super::*;

#[tokio::test]
async fn every_refusal_of_a_message_has_its_code_and_reaches_nobody() {
    let world = world(small(), ok).await;
    let to = |method, target| Ask::to(&world, method, target);
    let post = || to("POST", "/api/issues/1/comments");
    let long: &'static str = format!("/api/issues/{}", "x".repeat(200)).leak();
    let many = (0..12).fold(to("GET", "/api/agents/me"), |ask, _| ask.header("x-a", "1"));

    for (ask, expected) in [
        (to("GET", long), refused(431, "head_too_large")),
        (many, refused(431, "head_too_large")),
        (
            to("GET", "/api/agents/me").header("x-a", LONG),
            refused(431, "head_too_large"),
        ),
        (
            Ask {
                body: Sent::Declared(b"{}".to_vec()),
                ..to("GET", "/api/agents/me")
            },
            refused(400, "malformed_request"),
        ),
        (
            Ask {
                host: "evil".into(),
                ..to("GET", "/api/agents/me")
            },
            refused(421, "host_mismatch"),
        ),
        (
            Ask {
                token: None,
                ..to("GET", "/api/agents/me")
            },
            refused(401, "invalid_token"),
        ),
        (to("OPTIONS", "*"), refused(400, "path_not_canonical")),
        (to("GET", ""), refused(400, "path_not_canonical")),
        (
            to("CONNECT", "/api/agents/me"),
            refused(400, "path_not_canonical"),
        ),
        (to("GET", "/api/a#b"), refused(400, "path_not_canonical")),
        (to("GET", "/api/\u{e4}"), refused(400, "path_not_canonical")),
        (to("GET", "/api/a\r\nx: y"), refused(400, "path_not_canonical")),
        (to("GET", "/api/secrets"), refused(403, "route_not_allowed")),
        (to("GET", "/_bridge/nothing"), refused(404, "unknown_bridge_path")),
        (to("GET", "/_bridge/outcome/x"), refused(404, "outcome_unknown")),
        (
            Ask {
                body: Sent::Declared(b"x".to_vec()),
                ..post().header("content-type", "text/plain")
            },
            refused(415, "content_type_not_allowed"),
        ),
        (post().json(&"1".repeat(65)), refused(413, "body_too_large")),
        (
            Ask {
                body: Sent::Chunked(vec![b'1'; 65]),
                ..post().header("content-type", "application/json")
            },
            refused(413, "body_too_large"),
        ),
        (
            post().json("{}").header("idempotency-key", ""),
            refused(400, "malformed_request"),
        ),
    ] {
        assert_eq!(world.code_of(&ask).await, expected, "{ask:?}");
    }
    assert_eq!(world.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn raw_bytes_of_a_target_are_judged_as_they_came() {
    let world = world(Shape::default(), ok).await;
    let mut message = Ask::to(&world, "GET", "/").message();
    message.target = Bytes::from_static(b"/api/\xff\xfe");

    let answer = world.hand_over(message).await;

    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_host_that_is_not_told_and_a_token_that_the_gateway_keeps_are_no_faults() {
    let world = world(Shape::default(), ok).await;
    let mut message = Ask::to(&world, "GET", "/api/agents/me").message();
    message.host = None;
    message.proof = CallerProof::Channel;
    message.headers.remove("authorization");

    let answer = world.hand_over(message).await;

    assert_eq!(answer.status(), 200);
    let seen = world.seen().remove(0).to_ascii_lowercase();
    assert!(seen.contains("authorization: bearer real-credential"), "{seen}");
}

#[tokio::test]
async fn a_message_on_a_unix_socket_has_its_own_name() {
    let world = world(Shape::default(), ok).await;
    let on_socket = |host: &str| AgentMessage {
        host: Some(Bytes::from(host.to_owned())),
        listening: Listening::Unix {
            path: "/run/agent.sock".into(),
        },
        ..Ask::to(&world, "GET", "/api/agents/me").message()
    };

    assert_eq!(world.hand_over(on_socket("localhost")).await.status(), 200);
    assert_eq!(
        world
            .hand_over(on_socket(&format!("127.0.0.1:{PORT}")))
            .await
            .status(),
        421
    );
}

#[tokio::test]
async fn a_body_of_unknown_length_is_held_whole_before_anything_is_sent() {
    let world = world(Shape::default(), ok).await;
    let message = |pieces: Vec<Result<Bytes, BodyError>>| AgentMessage {
        body: pieces_of(pieces),
        ..Ask::to(&world, "POST", "/api/issues/1/comments")
            .header("content-type", "application/json")
            .message()
    };
    let piece = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));

    let cut = world
        .hand_over(message(vec![piece("{\"a\""), Err("reset".into())]))
        .await;
    assert_eq!((cut.status().as_u16(), world.seen().len()), (400, 0));

    let whole = world
        .hand_over(message(vec![piece("{\"a\""), piece(":1}")]))
        .await;
    assert_eq!(whole.status(), 200);
    assert!(world.seen()[0].ends_with("{\"a\":1}"), "{:?}", world.seen());
    assert_eq!(world.session.bodies.held(), 0);
}

#[tokio::test]
async fn a_message_whose_answer_is_lost_is_indeterminate_and_can_be_looked_up() {
    async fn vanish(_: String, stream: TcpStream) -> Option<TcpStream> {
        drop(stream);
        None
    }
    let world = world(Shape::default(), vanish).await;
    let write = Ask::to(&world, "POST", "/api/issues/1/comments")
        .json("{}")
        .header("idempotency-key", "k");

    let answer = world.hand_over(write.message()).await;

    assert_eq!(answer.status(), 409);
    assert_eq!(answer.headers()["x-paperclip-bridge-outcome"], "indeterminate");
    let entry = world
        .as_message(&Ask::to(&world, "GET", "/_bridge/outcome/key:k"))
        .await;
    assert!(entry.body.contains("indeterminate"), "{entry:?}");
    assert_eq!(
        world.code_of(&Ask::to(&world, "GET", "/api/agents/me")).await,
        refused(502, "upstream_failed")
    );
    assert_eq!(world.seen().len(), 2, "neither was sent twice");
}

#[tokio::test]
async fn an_upload_that_breaks_off_after_its_dispatch_is_indeterminate() {
    let world = world(Shape::default(), ok).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let exact = Exact(StreamBody::new(frames).boxed_unsync(), 100);
    let message = AgentMessage {
        body: exact.boxed_unsync(),
        ..Ask::to(&world, "POST", "/api/issues/1/comments")
            .header("content-type", "application/json")
            .message()
    };

    let sending = async {
        sender
            .send(Ok(Frame::data(Bytes::from_static(b"{\"half"))))
            .await
            .unwrap();
        sender.send(Err("the stream was reset".into())).await.unwrap();
    };
    let (answer, ()) = tokio::join!(world.hand_over(message), sending);

    assert_eq!(answer.status(), 409);
}

/// A body with a declared length that may be a lie.
struct Exact(MessageBody, u64);

impl http_body::Body for Exact {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.1)
    }
}

#[tokio::test]
async fn an_answer_to_a_read_streams_and_a_cut_one_is_an_error() {
    async fn half(_: String, stream: TcpStream) -> Option<TcpStream> {
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half").await?;
        None
    }
    let world = world(Shape::default(), half).await;

    let mut answer = world
        .hand_over(Ask::to(&world, "GET", "/api/agents/me").message())
        .await;

    assert_eq!(answer.status(), 200);
    assert_eq!(http_body::Body::size_hint(answer.body()).exact(), Some(100));
    let first = answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "{\"half");
    assert!(answer.body_mut().frame().await.unwrap().is_err(), "never whole");
}

#[tokio::test]
async fn answers_that_have_no_body_have_none_as_messages_either() {
    async fn by_path(request: String, stream: TcpStream) -> Option<TcpStream> {
        let answer = match request.split(' ').nth(1).unwrap() {
            "/api/issues/none" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/api/issues/same" => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
        };
        say(stream, answer).await
    }
    let world = world(Shape::default(), by_path).await;

    for (method, target, expected) in [
        ("GET", "/api/issues/none", 204),
        ("GET", "/api/issues/same", 304),
        ("HEAD", "/api/nothing", 403),
    ] {
        let answer = world.hand_over(Ask::to(&world, method, target).message()).await;
        assert_eq!(answer.status(), expected, "{method} {target}");
        let body = answer.into_body();
        assert!(http_body::Body::is_end_stream(&body), "{method} {target}");
    }
}

#[tokio::test]
async fn a_message_that_is_dropped_does_not_keep_the_ledger_from_learning() {
    async fn slow(_: String, stream: TcpStream) -> Option<TcpStream> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(stream, "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await
    }
    let world = world(Shape::default(), slow).await;
    let write = Ask::to(&world, "POST", "/api/issues/1/comments")
        .json("{}")
        .header("idempotency-key", "gone");

    tokio::select! {
        _ = world.hand_over(write.message()) => panic!("nobody was to wait for it"),
        () = async { while world.seen().is_empty() { tokio::task::yield_now().await; } } => {}
    }

    while world.session.ledger.open_count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let entry = world
        .as_message(&Ask::to(&world, "GET", "/_bridge/outcome/key:gone"))
        .await;
    assert!(
        entry.body.contains("answered") && entry.body.contains("201"),
        "{entry:?}"
    );
}

#[tokio::test]
async fn a_session_that_is_cut_answers_its_messages_and_says_which_may_be_repeated() {
    async fn silence(_: String, stream: TcpStream) -> Option<TcpStream> {
        let _open = stream;
        std::future::pending().await
    }
    let world = world(Shape::default(), silence).await;
    let read = Ask::to(&world, "GET", "/api/agents/me");
    let write = Ask::to(&world, "POST", "/api/issues/1/comments").json("{}");

    let ending = async {
        while world.seen().len() < 2 {
            tokio::task::yield_now().await;
        }
        world.session.drain(Duration::ZERO).await
    };
    let (read, write, open) = tokio::join!(world.code_of(&read), world.code_of(&write), ending);

    assert_eq!(read, refused(503, "unavailable"));
    assert_eq!(write, refused(409, "outcome_indeterminate"));
    assert_eq!(open, 1);
}

#[tokio::test]
async fn an_unread_body_of_a_refused_message_is_read_and_dropped() {
    let world = world(Shape::default(), ok).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let message = AgentMessage {
        body: StreamBody::new(frames).boxed_unsync(),
        ..Ask::to(&world, "POST", "/api/nothing").message()
    };

    let answer = world.hand_over(message).await;
    assert_eq!(answer.status(), 403);

    for _ in 0..100 {
        let sent = sender.send(Ok(Frame::data(Bytes::from_static(&[0; 1000]))));
        tokio::time::timeout(Duration::from_secs(5), sent)
            .await
            .unwrap()
            .unwrap();
    }
}
