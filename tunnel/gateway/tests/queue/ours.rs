//! Under our own daemon: what goes into the queue, and what a caller is told.

use std::time::Duration;

use http::Method;
use wire::envelope::EnvelopeBody;

use crate::support::{Answer, Gateway, MAX_BODY, Request, mode, wait_for};

const SHORT: (&str, &str) = ("PAPERCLIP_BRIDGE_RESPONSE_TIMEOUT_MS", "300");

fn told(answer: &Answer) -> (u16, String, bool) {
    (
        answer.status,
        answer.json("code").as_str().unwrap().to_owned(),
        answer.json("retryable").as_bool().unwrap(),
    )
}

fn is(status: u16, code: &str, retryable: bool) -> (u16, String, bool) {
    (status, code.to_owned(), retryable)
}

#[test]
fn a_call_goes_to_the_host_as_it_came_and_its_answer_comes_back_whole() {
    let gateway = Gateway::ours(&[]);
    let request = Request::new("POST", "/api/../a%2Fb\"\\?q=1?&x=%zz")
        .header("x-own", "1")
        .header("X-Own", "2")
        .header("expect", "100-continue")
        .header("connection", "x-private")
        .header("x-private", "secret")
        .body(&[0, 255, 10, 13]);
    let call = gateway.call(request);

    let envelope = gateway.host().claim();
    gateway.host().answer(
        &envelope.id,
        201,
        &[
            ("etag", "\"7\""),
            ("set-cookie", "a=b"),
            ("connection", "etag"),
            ("content-length", "99"),
        ],
        &[1, 0, 254],
    );
    let answer = call.join().unwrap();

    assert_eq!(
        (envelope.method, envelope.path.as_str(), envelope.query.as_str()),
        (Method::POST, "/api/../a%2Fb\"\\", "?q=1?&x=%zz")
    );
    assert_eq!(envelope.host.as_deref(), Some("agent.test:4711"));
    let names: Vec<&str> = envelope.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(
        (names, envelope.headers["x-own"].to_str().unwrap()),
        (vec!["x-own"], "1, 2")
    );
    assert_eq!(envelope.body, EnvelopeBody::Base64(vec![0, 255, 10, 13].into()));
    assert_eq!((answer.status, answer.body.as_slice()), (201, &[1, 0, 254][..]));
    assert_eq!(
        (
            answer.header("set-cookie"),
            answer.header("etag"),
            answer.header("content-length")
        ),
        (Some("a=b"), None, Some("3"))
    );
    wait_for("the response to be removed", || {
        gateway.host().is_answer_gone(&envelope.id).then_some(())
    });
}

#[test]
fn targets_in_every_form_reach_the_host_unchanged() {
    let gateway = Gateway::ours(&[]);
    for (method, target) in [
        ("OPTIONS", "*"),
        ("GET", "http://other.test/x?y"),
        ("GET", "/?"),
        ("GET", "//a/b"),
        ("GET", "/a#b"),
    ] {
        let call = gateway.call(Request::new(method, target));
        let envelope = gateway.host().claim();
        gateway.host().answer(&envelope.id, 204, &[], b"");

        assert_eq!(
            (envelope.target().as_str(), call.join().unwrap().status),
            (target, 204)
        );
    }
}

#[test]
fn what_cannot_be_carried_is_refused_before_the_queue() {
    let gateway = Gateway::ours(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "4")]);
    let table = [
        (
            Request::new("GET", "/x").without_token(),
            is(401, "invalid_token", false),
        ),
        (
            Request::new("POST", "/x").body(b"12345"),
            is(413, "body_too_large", false),
        ),
        (
            Request::new("POST", "/x")
                .header("transfer-encoding", "chunked")
                .raw_body(b"5\r\n12345\r\n0\r\n\r\n"),
            is(413, "body_too_large", false),
        ),
        (
            Request::new("POST", "/x")
                .header("transfer-encoding", "chunked")
                .raw_body(b"zz\r\n"),
            is(400, "malformed_request", false),
        ),
    ];
    for (request, expected) in table {
        let answer = request.send(gateway.port);

        assert_eq!(told(&answer), expected);
        assert!(answer.header("x-paperclip-bridge-request-id").is_some());
    }
    assert_eq!(gateway.host().waiting(), Vec::<String>::new());
}

#[test]
fn what_the_published_gateway_reads_as_a_url_is_left_to_our_host_to_judge() {
    let gateway = Gateway::ours(&[]);
    for target in ["file:///x", "//:0/", "abc", "/%ff/%00"] {
        let call = gateway.call(Request::new("GET", target));
        let envelope = gateway.host().claim();
        gateway.host().answer(&envelope.id, 400, &[], b"{}");

        assert_eq!(
            (envelope.target().as_str(), call.join().unwrap().status),
            (target, 400)
        );
    }
}

#[test]
fn directories_and_files_are_the_users_alone() {
    let gateway = Gateway::ours(&[]);
    let call = gateway.call(Request::new("GET", "/x"));
    let envelope = gateway.host().see();

    for (path, expected) in [
        (gateway.queue(), 0o700),
        (gateway.queue().join("requests"), 0o700),
        (gateway.queue().join("responses"), 0o700),
        (gateway.queue().join("ready.json"), 0o600),
        (gateway.host().request_path(&envelope.id), 0o600),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    gateway.host().answer(&envelope.id, 200, &[], b"");
    assert_eq!(call.join().unwrap().status, 200);
}

#[test]
fn a_request_that_nobody_took_is_withdrawn_and_may_be_repeated() {
    let gateway = Gateway::ours(&[SHORT]);
    for method in ["GET", "POST"] {
        let answer = Request::new(method, "/x").send(gateway.port);

        assert_eq!(told(&answer), is(503, "unavailable", true));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(gateway.host().waiting(), Vec::<String>::new());
    }
}

#[test]
fn a_request_that_was_taken_and_not_answered_is_retryable_only_if_safe() {
    let gateway = Gateway::ours(&[SHORT]);
    for (method, expected, outcome) in [
        ("GET", is(504, "upstream_timeout", true), None),
        (
            "DELETE",
            is(409, "outcome_indeterminate", false),
            Some("indeterminate"),
        ),
    ] {
        let call = gateway.call(Request::new(method, "/x"));
        let envelope = gateway.host().claim();
        let answer = call.join().unwrap();

        assert_eq!(told(&answer), expected);
        assert_eq!(answer.header("x-paperclip-bridge-outcome"), outcome);
        // It comes after all, and is removed.
        gateway.host().answer(&envelope.id, 200, &[], b"late");
        wait_for("the late answer to be removed", || {
            gateway.host().is_answer_gone(&envelope.id).then_some(())
        });
    }
}

#[test]
fn an_indeterminate_answer_of_the_host_becomes_409() {
    let gateway = Gateway::ours(&[]);
    let call = gateway.call(Request::new("POST", "/x"));
    let envelope = gateway.host().claim();
    gateway.host().answer(
        &envelope.id,
        504,
        &[("x-paperclip-bridge-outcome", "indeterminate")],
        b"{}",
    );

    let answer = call.join().unwrap();

    assert_eq!(
        (answer.status, answer.header("x-paperclip-bridge-outcome")),
        (409, Some("indeterminate"))
    );
}

#[test]
fn a_response_that_is_no_sound_file_is_never_believed() {
    let gateway = Gateway::ours(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "10")]);
    let outside = gateway.folder.path().join("outside.json");
    for kind in [
        "symlink",
        "fifo",
        "directory",
        "oversize",
        "malformed",
        "empty",
        "other id",
        "body over the limit",
    ] {
        for (method, expected) in [
            ("GET", is(502, "upstream_failed", true)),
            ("POST", is(409, "outcome_indeterminate", false)),
        ] {
            let call = gateway.call(Request::new(method, "/x"));
            let (host, envelope) = (gateway.host(), gateway.host().claim());
            let path = host.response_path(&envelope.id);
            match kind {
                "symlink" => {
                    // What it points to would be a sound answer.
                    let answer = format!(
                        r#"{{"id":"{}","status":200,"headers":{{}},"body":"","completedAt":"t"}}"#,
                        envelope.id
                    );
                    std::fs::write(&outside, answer).unwrap();
                    std::os::unix::fs::symlink(&outside, &path).unwrap();
                }
                "fifo" => rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap(),
                "directory" => std::fs::create_dir(&path).unwrap(),
                "oversize" => host.answer_raw(&envelope.id, &vec![b' '; 6 * 10 + 65_537]),
                "malformed" => host.answer_raw(&envelope.id, b"{\"status\":200"),
                "empty" => host.answer_raw(&envelope.id, b""),
                "other id" => host.answer_raw(
                    &envelope.id,
                    br#"{"id":"x","status":200,"headers":{},"body":"","completedAt":"t"}"#,
                ),
                _ => host.answer(&envelope.id, 200, &[], b"12345678901"),
            }
            let answer = call.join().unwrap();

            assert_eq!(told(&answer), expected, "{kind}");
            if kind != "directory" {
                wait_for("it to be removed", || {
                    host.is_answer_gone(&envelope.id).then_some(())
                });
            }
        }
    }
}

#[test]
fn a_full_queue_refuses_and_recovers_by_itself() {
    let gateway = Gateway::ours(&[("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", "2")]);
    let host = gateway.host();
    let calls = [
        gateway.call(Request::new("GET", "/1")),
        gateway.call(Request::new("GET", "/2")),
    ];
    wait_for("two requests", || (host.waiting().len() == 2).then_some(()));

    assert_eq!(
        told(&Request::new("GET", "/3").send(gateway.port)),
        is(503, "unavailable", true)
    );
    for _ in &calls {
        let envelope = host.claim();
        host.answer(&envelope.id, 200, &[], b"");
    }
    assert!(calls.into_iter().all(|call| call.join().unwrap().status == 200));
    let call = gateway.call(Request::new("GET", "/4"));
    let envelope = host.claim();
    host.answer(&envelope.id, 200, &[], b"");
    assert_eq!(call.join().unwrap().status, 200);
}

#[test]
fn orphans_of_an_earlier_gateway_do_not_fill_the_queue_for_ever() {
    let gateway = Gateway::ours(&[("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", "1"), SHORT]);
    let orphan = gateway.host().request_path("orphan");
    std::fs::write(&orphan, "{}").unwrap();
    assert_eq!(
        told(&Request::new("GET", "/x").send(gateway.port)),
        is(503, "unavailable", true)
    );

    let old = std::time::SystemTime::now() - Duration::from_millis(2_400);
    std::fs::File::options()
        .write(true)
        .open(&orphan)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let call = gateway.call(Request::new("GET", "/x"));
    wait_for("the orphan to be removed", || (!orphan.exists()).then_some(()));
    let envelope = gateway.host().claim();
    gateway.host().answer(&envelope.id, 200, &[], b"");

    assert_eq!(call.join().unwrap().status, 200);
}

#[test]
fn sixty_four_callers_at_once_each_get_their_own_answer() {
    let gateway = Gateway::ours(&[]);
    let calls: Vec<_> = (0..64)
        .map(|at| gateway.call(Request::json("POST", &format!("/{at}"), &format!("[{at}]"))))
        .collect();
    let host = gateway.host();
    for _ in 0..64 {
        let envelope = host.claim();
        host.answer(
            &envelope.id,
            200,
            &[],
            format!("{}{:?}", envelope.path, envelope.body.into_bytes()).as_bytes(),
        );
    }
    for (at, call) in calls.into_iter().enumerate() {
        let answer = call.join().unwrap();

        assert_eq!((answer.status, answer.text()), (200, format!("/{at}b\"[{at}]\"")));
    }
}

#[test]
fn ten_mebibytes_go_both_ways() {
    let gateway = Gateway::ours(&[]);
    let body: Vec<u8> = (0..MAX_BODY)
        .map(|at| u8::try_from(at * 31 % 251).unwrap())
        .collect();
    let call = gateway.call(Request::new("PUT", "/big").body(&body));
    let envelope = gateway.host().claim();
    let carried = envelope.body.into_bytes();
    gateway.host().answer(&envelope.id, 200, &[], &carried);

    let answer = call.join().unwrap();

    assert!(
        carried == body && answer.body == body,
        "{} {}",
        carried.len(),
        answer.body.len()
    );
}

#[test]
fn told_to_end_it_takes_back_what_nobody_took_and_waits_for_the_rest() {
    let mut gateway = Gateway::ours(&[]);
    let host = gateway.host();
    let taken = gateway.call(Request::new("POST", "/taken"));
    let envelope = host.claim();
    let waiting = gateway.call(Request::new("POST", "/waiting"));
    let left = host.see();

    gateway.terminate();

    assert_eq!(told(&waiting.join().unwrap()), is(503, "unavailable", true));
    assert!(!host.request_path(&left.id).exists());
    host.answer(&envelope.id, 200, &[], b"");
    assert_eq!(taken.join().unwrap().status, 200);
    assert!(gateway.ended().success());
}

#[test]
fn a_host_that_comes_back_finds_what_waits() {
    let gateway = Gateway::ours(&[]);
    let calls: Vec<_> = (0..3)
        .map(|at| gateway.call(Request::new("GET", &format!("/{at}"))))
        .collect();
    wait_for("three requests", || {
        (gateway.host().waiting().len() == 3).then_some(())
    });

    // Nothing of a host lives on but the directory.
    let again = gateway.host();
    for _ in 0..3 {
        let envelope = again.claim();
        again.answer(&envelope.id, 200, &[], b"");
    }

    assert!(calls.into_iter().all(|call| call.join().unwrap().status == 200));
}
