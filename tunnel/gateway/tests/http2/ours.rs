//! What our daemon sees of a call, and what a caller sees of its answer.

use std::sync::{Arc, Mutex};

use http::{Request, Response};

use super::caller::{call, json, raw, request};
use super::gateway::{Channel, ours};
use super::host::{self, Host, full};

type Heads = Arc<Mutex<Vec<Request<()>>>>;

/// A host that keeps the heads it sees and answers 200.
fn keeping(channel: Channel) -> (Host, Heads) {
    let heads = Heads::default();
    let kept = Arc::clone(&heads);
    let host = host::hyper(channel, move |request| {
        let (head, _) = request.into_parts();
        kept.lock()
            .expect("unpoisoned")
            .push(Request::from_parts(head, ()));
        std::future::ready(Response::new(full("seen")))
    });
    (host, heads)
}

#[tokio::test]
async fn the_host_sees_what_the_caller_sent() {
    let (gateway, channel) = ours().await;
    let (_host, heads) = keeping(channel);

    let answer = raw(
        gateway.port,
        b"PATCH /a/../b%2F?x=%00&y HTTP/1.1\r\nHost: 127.0.0.1:40000\r\nauthorization: bearer the-token\r\n\
          X-Twice: 1\r\nX-Twice: 2\r\nX-Mine: m\r\nConnection: close, x-mine\r\nTE: trailers\r\n\
          x-pcbridge-host: forged\r\nx-pcbridge-target: forged\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await;

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nseen"), "{answer}");
    let heads = heads.lock().expect("unpoisoned");
    let [head] = heads.as_slice() else {
        panic!("one stream, not {}", heads.len());
    };
    assert_eq!(head.method(), "PATCH");
    assert_eq!(head.uri().to_string(), "http://127.0.0.1:40000/a/../b%2F?x=%00&y");
    let mut fields: Vec<(&str, &str)> = head
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            ("authorization", "bearer the-token"),
            ("content-length", "2"),
            ("x-twice", "1"),
            ("x-twice", "2")
        ]
    );
}

#[tokio::test]
async fn what_no_pseudo_header_can_carry_arrives_encoded() {
    let (gateway, channel) = ours().await;
    let (_host, heads) = keeping(channel);
    let table = [
        (
            "GET http://x/y#z",
            "h",
            "http://h/",
            None,
            Some("aHR0cDovL3gveSN6"),
        ),
        ("HEAD /?\"", "h", "http://h/", None, Some("Lz8i")),
        ("OPTIONS *", "h", "http://h/", None, Some("Kg")),
        ("GET /", "u@h", "http://gateway.invalid/", Some("dUBo"), None),
    ];

    for (line, host, ..) in table {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer the-token\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(gateway.port, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{line}: {answer}");
        assert_eq!(
            answer.ends_with("seen"),
            !line.starts_with("HEAD"),
            "{line}: {answer}"
        );
    }

    let heads = heads.lock().expect("unpoisoned");
    assert_eq!(heads.len(), table.len());
    for (head, (line, _, uri, host, target)) in heads.iter().zip(table) {
        let field = |name: &str| {
            head.headers()
                .get(name)
                .map(|value| value.to_str().expect("text"))
        };
        assert!(
            line.starts_with(head.method().as_str()),
            "{line}: {}",
            head.method()
        );
        assert_eq!(head.uri().to_string(), uri, "{line}");
        assert_eq!(
            (field("x-pcbridge-host"), field("x-pcbridge-target")),
            (host, target),
            "{line}"
        );
    }
}

#[tokio::test]
async fn without_the_token_the_host_sees_nothing() {
    let (gateway, channel) = ours().await;
    let (_host, heads) = keeping(channel);

    for value in ["Bearer other", "Bearer", "Basic the-token", "Bearer the-token "] {
        let mut wrong = request("POST", "/", vec![0; 3 << 20]);
        wrong
            .headers_mut()
            .insert("authorization", value.parse().expect("a value"));
        let answer = call(gateway.port, wrong).await;
        // hyper trims a value's end, so the last of them is the token after all.
        if value.ends_with(' ') {
            assert_eq!(answer.expect("an answer").status(), 200);
            continue;
        }
        let answer = answer.expect("an answer, although the body was not read");
        assert_eq!(answer.status(), 401, "{value}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        let body = json(&answer);
        assert_eq!(body["code"], "invalid_token");
        assert_eq!(
            (&body["decided_by"], &body["retryable"]),
            (&"bridge".into(), &false.into())
        );
        assert_eq!(
            body["request_id"],
            answer.headers()["x-paperclip-bridge-request-id"]
                .to_str()
                .expect("text")
        );
    }

    assert_eq!(heads.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test]
async fn a_head_that_two_readers_could_disagree_about_is_refused_here() {
    let (gateway, channel) = ours().await;
    let (_host, heads) = keeping(channel);
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(33 << 10));
    let table = [
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request", "malformed_request"),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400 Bad Request",
            "malformed_request",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n",
            "417 Expectation Failed",
            "expectation_failed",
        ),
        (
            long.as_str(),
            "431 Request Header Fields Too Large",
            "head_too_large",
        ),
        (
            "CONNECT h:80 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\nConnection: close\r\n\r\n",
            "400 Bad Request",
            "path_not_canonical",
        ),
    ];

    for (head, status, code) in table {
        let answer = raw(gateway.port, head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    }

    assert!(heads.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn answers_pass_through_as_they_are() {
    let (gateway, channel) = ours().await;
    let _host = host::hyper(channel, |request| async move {
        let builder = Response::builder()
            .header("x-paperclip-bridge-request-id", "the-id")
            .header("set-cookie", "a")
            .header("set-cookie", "b");
        let builder = match request.uri().path() {
            "/204" => builder.status(204),
            "/304" => builder.status(304).header("etag", "\"7\""),
            "/head" => builder.status(200).header("content-length", "7"),
            _ => builder
                .status(409)
                .header("x-paperclip-bridge-outcome", "indeterminate"),
        };
        let body = if request.uri().path() == "/409" {
            "conflict"
        } else {
            ""
        };
        builder.body(full(body)).expect("an answer")
    });

    for (method, path, status, length) in [
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, None),
        ("HEAD", "/head", 200, Some("7")),
        ("POST", "/409", 409, Some("8")),
    ] {
        let answer = call(gateway.port, request(method, path, ""))
            .await
            .expect("whole");
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(
            answer
                .headers()
                .get("content-length")
                .map(|value| value.to_str().expect("text")),
            length,
            "{path}"
        );
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2, "{path}");
        assert_eq!(answer.headers()["x-paperclip-bridge-request-id"], "the-id");
        assert_eq!(
            answer.headers().contains_key("x-paperclip-bridge-outcome"),
            path == "/409"
        );
        assert_eq!(answer.body().is_empty(), path != "/409", "{path}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (gateway, channel) = ours().await;
    let _host = host::hyper(channel, |request| async move {
        let path = request.uri().path().to_owned();
        Response::new(full(format!("<{path}>")))
    });

    let mut requests = String::new();
    for number in 0..20 {
        let last = if number == 19 { "Connection: close\r\n" } else { "" };
        requests +=
            &format!("GET /{number} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer the-token\r\n{last}\r\n");
    }
    let answers = raw(gateway.port, requests.as_bytes()).await;

    let seen: Vec<&str> = answers
        .split("<")
        .skip(1)
        .filter_map(|part| part.split('>').next())
        .collect();
    let expected: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
    assert_eq!(seen, expected);
}
