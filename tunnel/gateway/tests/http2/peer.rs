//! The published order, statuses and texts, in place of Paperclip's own gateway.

use bytes::Bytes;
use h2::Reason;
use http::Response;
use http_body_util::BodyExt;

use super::caller::{call, json, raw, request};
use super::gateway::peer;
use super::host::{self, echo, full};
use super::within;

#[tokio::test]
async fn the_token_is_asked_for_in_the_published_words() {
    let (gateway, channel) = peer(&[]).await;
    let _host = host::hyper(channel, echo);

    for value in ["bearer the-token", "Bearer other", "Bearer  the-token"] {
        let mut wrong = request("GET", "/", "");
        wrong
            .headers_mut()
            .insert("authorization", value.parse().expect("a value"));
        let answer = call(gateway.port, wrong).await.expect("an answer");
        assert_eq!(answer.status(), 401, "{value}");
        assert_eq!(answer.body(), r#"{"error":"Invalid bridge token."}"#);
        assert!(!answer.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn the_host_sees_the_published_stream() {
    let (gateway, channel) = peer(&[]).await;
    let _host = host::hyper(channel, |request| async move {
        let mut seen: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        seen.sort_unstable();
        let uri = request.uri().to_string();
        let body = request.into_body().collect().await.expect("whole").to_bytes();
        Response::builder()
            .status(201)
            .header("etag", "\"7\"")
            .body(full(format!("{uri}\n{}\n{}", seen.join("\n"), body.len())))
            .expect("an answer")
    });

    let answer = raw(
        gateway.port,
        b"POST http://x/a/../b/%2e/c?d#e HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\n\
          Accept: a\r\nAccept: b\r\nContent-Type: text/plain\r\nCookie: c\r\nIf-Match: m\r\n\
          Content-Length: 2\r\nConnection: close\r\n\r\nhi",
    )
    .await;

    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    assert!(answer.contains("\r\netag: \"7\"\r\n"), "{answer}");
    assert!(
        answer.ends_with(
            "\r\n\r\nhttp://bridge.internal/b/c?d\naccept: a, b\nauthorization: Bearer the-token\n\
             content-type: text/plain\nif-match: m\n2"
        ),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_over_the_limit_is_502_and_the_ledger_is_503() {
    let (gateway, channel) = peer(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "1000")]).await;
    let _host = host::hyper(channel, echo);

    let fits = call(gateway.port, request("POST", "/", vec![b'x'; 1000]))
        .await
        .expect("whole");
    let over = call(gateway.port, request("POST", "/", vec![b'x'; 1001]))
        .await
        .expect("an answer");

    assert_eq!((fits.status().as_u16(), fits.body().len()), (200, 1000));
    assert_eq!(over.status(), 502);
    assert_eq!(
        json(&over)["error"],
        "Bridge request body exceeded the configured size limit."
    );
}

#[tokio::test]
async fn an_indeterminate_outcome_is_409_whatever_its_status() {
    let (gateway, channel) = peer(&[]).await;
    let _host = host::hyper(channel, |request| async move {
        Response::builder()
            .status(504)
            .header(
                "x-paperclip-bridge-outcome",
                request.uri().path().trim_start_matches('/'),
            )
            .body(full("lost"))
            .expect("an answer")
    });

    for (outcome, status) in [("indeterminate", 409), ("other", 504)] {
        let path = format!("/{outcome}");
        let answer = call(gateway.port, request("POST", &path, ""))
            .await
            .expect("whole");
        assert_eq!(
            (answer.status().as_u16(), answer.body().as_ref()),
            (status, b"lost".as_slice())
        );
        assert_eq!(answer.headers()["x-paperclip-bridge-outcome"], outcome);
    }
}

#[tokio::test]
async fn a_stream_without_an_answer_is_502() {
    for (reason, text) in [
        (Reason::NO_ERROR, None),
        (
            Reason::INTERNAL_ERROR,
            Some("The bridge stream ended before its response was complete."),
        ),
        (
            Reason::REFUSED_STREAM,
            Some("The bridge stream ended before its response was complete."),
        ),
    ] {
        let (gateway, channel) = peer(&[]).await;
        let mut host = host::h2(channel).await;

        let caller = tokio::spawn(call(gateway.port, request("POST", "/", "")));
        let (_, mut respond) = host::next(&mut host).await;
        respond.send_reset(reason);
        let _host = host::drive(host);

        let answer = within(caller).await.expect("no panic").expect("an answer");
        assert_eq!(answer.status(), 502, "{reason:?}");
        match text {
            None => assert!(answer.body().is_empty()),
            Some(text) => assert_eq!(json(&answer)["error"], text),
        }
    }
}

#[tokio::test]
async fn half_an_answer_is_502_and_not_a_whole_one() {
    let (gateway, channel) = peer(&[]).await;
    let mut host = host::h2(channel).await;

    let caller = tokio::spawn(call(gateway.port, request("GET", "/", "")));
    let (_, mut respond) = host::next(&mut host).await;
    let mut answer = respond.send_response(Response::new(()), false).expect("open");
    answer
        .send_data(Bytes::from_static(b"half"), false)
        .expect("room");
    answer.send_reset(Reason::NO_ERROR);
    let _host = host::drive(host);

    assert_eq!(
        within(caller)
            .await
            .expect("no panic")
            .expect("an answer")
            .status(),
        502
    );
}
