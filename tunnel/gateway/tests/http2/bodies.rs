//! Bodies, both ways: size, pace and ends that are none.

use bytes::Bytes;
use h2::Reason;
use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::caller::{call, raw, request};
use super::gateway::ours;
use super::host::{self, echo, full};
use super::within;

fn ten_mebibytes() -> Bytes {
    (0..10_usize << 20)
        .map(|at| u8::try_from(at * 31 % 251).expect("a byte"))
        .collect()
}

#[tokio::test]
async fn ten_mebibytes_go_both_ways_unchanged() {
    let (gateway, channel) = ours().await;
    let _host = host::hyper(channel, echo);
    let body = ten_mebibytes();

    let answer = call(gateway.port, request("POST", "/", body.clone()))
        .await
        .expect("whole");

    assert_eq!(answer.status(), 200);
    assert!(*answer.body() == body, "{} bytes came back", answer.body().len());
}

#[tokio::test]
async fn a_body_in_chunks_comes_back_whole() {
    let (gateway, channel) = ours().await;
    let _host = host::hyper(channel, |request| async move {
        assert!(!request.headers().contains_key("content-length"));
        let body = request.into_body().collect().await.expect("whole").to_bytes();
        Response::new(full(body))
    });

    let answer = raw(
        gateway.port,
        b"POST / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\nConnection: close\r\n\
          Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: dropped\r\n\r\n",
    )
    .await;

    assert!(answer.ends_with("\r\n\r\nhello world"), "{answer}");
}

#[tokio::test]
async fn an_answer_of_unknown_length_that_is_reset_is_never_ended_cleanly() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (gateway, channel) = ours().await;
        let mut host = host::h2(channel).await;

        let mut caller = TcpStream::connect(("127.0.0.1", gateway.port))
            .await
            .expect("a connection");
        caller
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\r\n")
            .await
            .expect("room");
        let (_, mut respond) = host::next(&mut host).await;
        let mut answer = respond.send_response(Response::new(()), false).expect("open");
        answer
            .send_data(Bytes::from_static(b"half of it"), false)
            .expect("room");
        let _host = host::drive(host);
        let mut came = Vec::new();
        while !came.ends_with(b"half of it\r\n") {
            came.push(within(caller.read_u8()).await.expect("its first half"));
        }
        answer.send_reset(reason);

        let mut rest = Vec::new();
        let _ended = within(caller.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{reason:?}: {}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_broken_answer_that_ends_with_its_connection_ends_in_a_reset() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;
    let mut caller = TcpStream::connect(("127.0.0.1", gateway.port))
        .await
        .expect("a connection");
    caller
        .write_all(b"GET / HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\r\n")
        .await
        .expect("room");
    let (_, mut respond) = host::next(&mut host).await;
    let mut answer = respond.send_response(Response::new(()), false).expect("open");
    answer
        .send_data(Bytes::from_static(b"half of it"), false)
        .expect("room");
    let _host = host::drive(host);
    let mut came = Vec::new();
    while !came.ends_with(b"\r\n\r\nhalf of it") {
        came.push(within(caller.read_u8()).await.expect("its first half"));
    }
    let head = String::from_utf8_lossy(&came).to_lowercase();
    assert!(
        !head.contains("content-length") && !head.contains("chunked"),
        "{head}"
    );

    answer.send_reset(Reason::INTERNAL_ERROR);

    let end = within(caller.read(&mut [0; 8])).await;
    let kind = end.expect_err("no end of file").kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_whole_answer_that_ends_with_its_connection_ends_in_order() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;
    let caller = tokio::spawn(async move {
        raw(
            gateway.port,
            b"GET / HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\r\n",
        )
        .await
    });
    let (_, mut respond) = host::next(&mut host).await;
    let mut answer = respond.send_response(Response::new(()), false).expect("open");
    let _host = host::drive(host);
    answer
        .send_data(Bytes::from_static(b"all of it"), false)
        .expect("room");
    answer.send_data(Bytes::new(), true).expect("room");

    let came = within(caller).await.expect("no panic");

    assert!(came.ends_with("\r\n\r\nall of it"), "{came}");
}

#[tokio::test]
async fn an_early_answer_is_whole_although_the_upload_is_not() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;

    let caller = tokio::spawn(call(gateway.port, request("POST", "/", ten_mebibytes())));
    let (request, mut respond) = host::next(&mut host).await;
    let answer = Response::builder().status(413).body(()).expect("an answer");
    let mut answer = respond.send_response(answer, false).expect("open");
    answer
        .send_data(Bytes::from_static(b"too large"), true)
        .expect("room");
    // The body is given up, as a server does that has said all it has to say: RST_STREAM with NO_ERROR.
    drop((request, respond, answer));
    let _host = host::drive(host);

    let answer = within(caller).await.expect("no panic").expect("whole");
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_ref()),
        (413, b"too large".as_slice())
    );
}

#[tokio::test]
async fn a_broken_body_resets_its_stream_and_the_caller_is_told() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;

    let port = gateway.port;
    let caller = tokio::spawn(async move {
        raw(
            port,
            b"POST / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\
              Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nX\r\n",
        )
        .await
    });
    let (request, _respond) = host::next(&mut host).await;
    let (_, mut body) = request.into_parts();
    let ended = tokio::select! {
        ended = within(async { loop { match body.data().await { Some(Ok(_)) => {} ended => return ended } } }) => ended,
        _ = host.accept() => panic!("the connection stays"),
    };

    let error = ended.expect("no end of the body").expect_err("a reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let _host = host::drive(host);
    let answer = within(caller).await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.contains("a chunk size is not plain hexadecimal"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_caller_who_does_not_read_stalls_nobody_else() {
    let (gateway, channel) = ours().await;
    let _host = host::hyper(channel, |request| async move {
        let size = if request.uri().path() == "/big" {
            32 << 20
        } else {
            4
        };
        Response::new(full(vec![b'x'; size]))
    });

    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port))
            .await
            .expect("a connection");
        stream
            .write_all(b"GET /big HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\r\n")
            .await
            .expect("room");
        stream.read_u8().await.expect("the answer has begun");
        slow.push(stream);
    }

    for _ in 0..50 {
        let answer = call(gateway.port, request("GET", "/small", ""))
            .await
            .expect("whole");
        assert_eq!(answer.body().as_ref(), b"xxxx");
    }
}

#[tokio::test]
async fn a_caller_who_leaves_takes_the_stream_along() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;

    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port))
        .await
        .expect("a connection");
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\nContent-Length: 9\r\n\r\nhalf",
        )
        .await
        .expect("room");
    let (_request, mut respond) = host::next(&mut host).await;
    drop(stream);

    let reset = tokio::select! {
        reset = within(std::future::poll_fn(|cx| respond.poll_reset(cx))) => reset,
        _ = host.accept() => panic!("the connection stays"),
    };
    assert_eq!(reset.expect("a reset"), Reason::CANCEL);
}
