//! What a caller is told when there is no answer: whether it may try again, above all.

use bytes::Bytes;
use h2::Reason;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use tokio::task::JoinHandle;

use super::caller::{call, json, request};
use super::gateway::{Channel, Gateway, ours};
use super::host;
use super::within;

type Calling = JoinHandle<Result<Response<Bytes>, hyper::Error>>;
type Taken = [(Request<h2::RecvStream>, SendResponse<Bytes>); 2];

/// Two callers whose streams the host has taken: a safe one and an unsafe one.
async fn two_under_way(
    gateway: &Gateway,
    host: &mut Connection<Channel, Bytes>,
) -> (Calling, Calling, Taken) {
    let get = tokio::spawn(call(gateway.port, request("GET", "/", "")));
    let first = host::next(host).await;
    let post = tokio::spawn(call(gateway.port, request("POST", "/", "")));
    let second = host::next(host).await;
    (get, post, [first, second])
}

#[tokio::test]
async fn a_lost_channel_is_retryable_for_a_safe_method_only() {
    let (mut gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;
    let (get, post, taken) = two_under_way(&gateway, &mut host).await;

    drop((taken, host));

    let get = within(get).await.expect("no panic").expect("an answer");
    let post = within(post).await.expect("no panic").expect("an answer");
    assert_eq!(get.status(), 502);
    assert_eq!(
        (&json(&get)["code"], &json(&get)["retryable"]),
        (&"upstream_failed".into(), &true.into())
    );
    assert_eq!(post.status(), 409);
    assert_eq!(post.headers()["x-paperclip-bridge-outcome"], "indeterminate");
    assert_eq!(
        (&json(&post)["code"], &json(&post)["retryable"]),
        (&"outcome_indeterminate".into(), &false.into())
    );
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_reset_after_the_request_left_is_retryable_for_a_safe_method_only() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (gateway, channel) = ours().await;
        let mut host = host::h2(channel).await;
        let (get, post, mut taken) = two_under_way(&gateway, &mut host).await;

        for (_, respond) in &mut taken {
            respond.send_reset(reason);
        }
        let _host = host::drive(host);

        assert_eq!(
            within(get).await.expect("no panic").expect("an answer").status(),
            502,
            "{reason:?}"
        );
        assert_eq!(
            within(post).await.expect("no panic").expect("an answer").status(),
            409,
            "{reason:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_stream_was_never_dispatched() {
    let (gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;
    let (get, post, mut taken) = two_under_way(&gateway, &mut host).await;

    for (_, respond) in &mut taken {
        respond.send_reset(Reason::REFUSED_STREAM);
    }
    let _host = host::drive(host);

    for call in [get, post] {
        let answer = within(call).await.expect("no panic").expect("an answer");
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(
            (&json(&answer)["code"], &json(&answer)["retryable"]),
            (&"unavailable".into(), &true.into())
        );
    }
}

#[tokio::test]
async fn goaway_lets_streams_finish_and_ends_the_gateway() {
    let (mut gateway, channel) = ours().await;
    let mut host = host::h2(channel).await;
    let (get, post, mut taken) = two_under_way(&gateway, &mut host).await;

    host.graceful_shutdown();
    for (_, respond) in &mut taken {
        respond.send_response(Response::new(()), true).expect("open");
    }
    drop(taken);
    let _host = host::drive(host);

    assert_eq!(
        within(get).await.expect("no panic").expect("an answer").status(),
        200
    );
    assert_eq!(
        within(post).await.expect("no panic").expect("an answer").status(),
        200
    );
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_stream_above_the_last_of_goaway_was_never_dispatched() {
    let (gateway, mut channel) = ours().await;

    // By hand: SETTINGS, then GOAWAY with last stream 1 once both streams are there, then the end.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    within(channel.write_all(&settings)).await.expect("room");
    let mut preface = [0; 24];
    within(channel.read_exact(&mut preface)).await.expect("a preface");
    let first = tokio::spawn(call(gateway.port, request("POST", "/", "")));
    within(headers_of(&mut channel, 1)).await;
    let second = tokio::spawn(call(gateway.port, request("POST", "/", "")));
    within(headers_of(&mut channel, 3)).await;
    let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    within(channel.write_all(&go_away)).await.expect("room");

    let second = within(second).await.expect("no panic").expect("an answer");
    assert_eq!(second.status(), 503);
    drop(channel);
    let first = within(first).await.expect("no panic").expect("an answer");
    assert_eq!(first.status(), 409);
}

#[tokio::test]
async fn an_answer_that_says_its_outcome_is_not_known_is_409_whatever_its_status() {
    for status in [504, 502, 200] {
        let (gateway, channel) = ours().await;
        let _host = host::hyper(channel, move |_| async move {
            let mut response = Response::new(host::full("what the API said"));
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            let outcome = http::HeaderValue::from_static("indeterminate");
            response
                .headers_mut()
                .insert("x-paperclip-bridge-outcome", outcome);
            response
        });

        let answer = call(gateway.port, request("POST", "/", "")).await.expect("whole");

        assert_eq!(answer.status(), 409, "{status}");
        assert_eq!(answer.headers()["x-paperclip-bridge-outcome"], "indeterminate");
        assert_eq!(answer.body().as_ref(), b"what the API said");
    }
}

/// Reads frames up to the HEADERS of a stream.
async fn headers_of(channel: &mut super::gateway::Channel, stream: u32) {
    use tokio::io::AsyncReadExt;
    loop {
        let mut head = [0; 9];
        channel.read_exact(&mut head).await.expect("a frame");
        let [l0, l1, l2, kind, _, id @ ..] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        channel.read_exact(&mut payload).await.expect("its payload");
        if (kind, u32::from_be_bytes(id)) == (1, stream) {
            return;
        }
    }
}

#[tokio::test]
async fn what_waits_for_a_free_stream_when_the_channel_goes_was_never_dispatched() {
    let (gateway, channel) = ours().await;
    let mut host = within(
        h2::server::Builder::new()
            .max_concurrent_streams(1)
            .handshake(channel),
    )
    .await
    .expect("an HTTP/2 client");
    let first = tokio::spawn(call(gateway.port, request("POST", "/1", "")));
    let taken = host::next(&mut host).await;
    let second = tokio::spawn(call(gateway.port, request("POST", "/2", "")));

    // The second is in the gateway once a later request has been answered there.
    let mut wrong = request("GET", "/", "");
    wrong.headers_mut().remove("authorization");
    assert_eq!(call(gateway.port, wrong).await.expect("an answer").status(), 401);
    tokio::task::yield_now().await;
    drop((taken, host));

    assert_eq!(
        within(first)
            .await
            .expect("no panic")
            .expect("an answer")
            .status(),
        409
    );
    match within(second).await.expect("no panic") {
        Ok(second) => assert_eq!(second.status(), 503),
        // Its connection was not accepted before the end.
        Err(error) => assert!(error.is_incomplete_message() || error.is_canceled(), "{error}"),
    }
}
