//! In the drop-in role: the published gateway's order, statuses and texts.

use serde_json::json;
use wire::envelope::EnvelopeBody;

use crate::support::{Answer, Gateway, Request, wait_for};

fn told(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(
        (answer.header("retry-after"), answer.header("www-authenticate")),
        (None, None)
    );
    (answer.status, answer.text())
}

fn error(status: u16, text: &str) -> (u16, String) {
    (status, json!({ "error": text }).to_string())
}

fn indeterminate(text: &str) -> (u16, String) {
    (
        409,
        format!(r#"{{"error":"{text}","outcome":"indeterminate","retryable":false}}"#),
    )
}

#[test]
fn the_readiness_document_has_the_published_keys_in_their_order() {
    let gateway = Gateway::peer(&[]);
    let text = std::fs::read_to_string(gateway.queue().join("ready.json")).unwrap();
    let started = text.split('"').nth_back(1).unwrap();
    assert_eq!((started.len(), started.ends_with('Z')), (24, true), "{started}");

    let (pid, port) = (gateway.child.id(), gateway.port);
    assert_eq!(
        text,
        format!(
            r#"{{"pid":{pid},"host":"127.0.0.1","port":{port},"baseUrl":"http://127.0.0.1:{port}","startedAt":"{started}"}}"#
        )
    );
    assert!(!gateway.queue().join("ready.json.tmp").exists());
}

#[test]
fn a_text_request_is_written_to_the_byte() {
    let gateway = Gateway::peer(&[]);
    let request = Request::json(
        "POST",
        "/api/./issues/x/../i-9\\comments?q='#f",
        r#"{"body":"é"}"#,
    )
    .header("Accept", "a/b")
    .header("accept", "c/d")
    .header("cookie", "a=b")
    .header("x-paperclip-run-id", "r")
    .header("X-Paperclip-Github-Capability", "cap");
    let call = gateway.call(request);

    let envelope = gateway.host().see();
    let text = std::fs::read_to_string(gateway.host().request_path(&envelope.id)).unwrap();
    gateway.host().answer_raw(&envelope.id, br#"{"id":"x","status":404,"headers":{"etag":"\"7\"","content-length":"9","n":1},"body":"no","completedAt":"t"}"#);
    let answer = call.join().unwrap();

    let (id, at) = (&envelope.id, &envelope.created_at);
    assert_eq!(
        text,
        format!(
            r#"{{"id":"{id}","method":"POST","path":"/api/issues/i-9/comments","query":"?q=%27","headers":{{"content-type":"application/json","accept":"a/b, c/d","x-paperclip-github-capability":"cap"}},"body":"{{\"body\":\"é\"}}","createdAt":"{at}"}}"#
        ) + "\n"
    );
    assert_eq!(
        (
            answer.status,
            answer.text(),
            answer.header("etag"),
            answer.header("n")
        ),
        (404, "no".into(), Some("\"7\""), None)
    );
    wait_for("the response to be removed", || {
        gateway.host().is_answer_gone(id).then_some(())
    });
    // As published, the host removes the request.
    assert!(gateway.host().request_path(id).exists());
}

#[test]
fn bytes_that_are_no_text_are_replaced_and_count_again() {
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "4")]);
    let call = gateway.call(
        Request::new("PUT", "/x")
            .header("content-type", "a/JSON")
            .body(b"\xffa"),
    );
    let envelope = gateway.host().see();
    gateway.host().answer(&envelope.id, 200, &[], b"ok");

    assert_eq!(
        (envelope.body, call.join().unwrap().status),
        (EnvelopeBody::Text("\u{fffd}a".into()), 200)
    );
    let answer = Request::new("PUT", "/x")
        .header("content-type", "json")
        .body(b"\xff\xff")
        .send(gateway.port);
    assert_eq!(
        told(&answer),
        error(502, "Bridge body exceeded the configured size limit.")
    );
    let answer = Request::new("PUT", "/x")
        .header("content-type", "json")
        .body(b"12345")
        .send(gateway.port);
    assert_eq!(
        told(&answer),
        error(502, "Bridge request body exceeded the configured size limit.")
    );
}

#[test]
fn only_the_attachment_upload_goes_as_bytes() {
    let gateway = Gateway::peer(&[]);
    let path = "/api/companies/c/issues/i/attachments";
    let upload = |kind: &str, target: &str| {
        Request::new("POST", target)
            .header("content-type", kind)
            .body(b"\xff\0")
    };
    for kind in ["multipart/form-data", "Multipart/Form-Data; boundary=x"] {
        let call = gateway.call(upload(kind, path));
        let envelope = gateway.host().see();
        std::fs::remove_file(gateway.host().request_path(&envelope.id)).unwrap();
        gateway.host().answer(&envelope.id, 201, &[], b"");

        assert_eq!(
            (envelope.body, call.join().unwrap().status),
            (EnvelopeBody::Base64(b"\xff\0".to_vec().into()), 201)
        );
    }
    for (kind, target) in [
        ("application/octet-stream", path),
        ("multipart/form-dataX", path),
        ("multipart/form-data", "/api/companies/c/issues/i/attachments/"),
        ("multipart/form-data", "/api/companies/c/x/issues/i/attachments"),
    ] {
        let answer = upload(kind, target).send(gateway.port);
        assert_eq!(
            told(&answer),
            error(415, "Bridge only accepts JSON request bodies."),
            "{kind} {target}"
        );
    }
}

#[test]
fn checks_come_in_the_published_order() {
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", "1")]);
    let full = gateway.host().request_path("full");
    std::fs::write(&full, "{}").unwrap();

    assert_eq!(
        told(&Request::new("DELETE", "//:0/").without_token().send(gateway.port)),
        error(401, "Invalid bridge token.")
    );
    assert_eq!(
        told(&Request::new("DELETE", "//:0/").send(gateway.port)),
        error(503, "Bridge request queue is full.")
    );
    std::fs::remove_file(&full).unwrap();
    assert_eq!(
        told(&Request::new("DELETE", "//:0/").send(gateway.port)),
        error(502, "Invalid URL")
    );
    assert_eq!(
        told(&Request::new("DELETE", "/x").send(gateway.port)),
        error(415, "Bridge only accepts JSON request bodies.")
    );
}

#[test]
fn a_full_queue_counts_regular_files_only() {
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", "1")]);
    std::fs::create_dir(gateway.host().request_path("folder")).unwrap();
    std::os::unix::fs::symlink("/dev/null", gateway.host().request_path("link")).unwrap();
    std::fs::write(gateway.queue().join("requests/a.json.tmp"), "").unwrap();
    let call = gateway.call(Request::new("GET", "/x"));

    let id = wait_for("the request", || {
        gateway.host().waiting().into_iter().find(|id| id.len() == 36)
    });
    gateway.host().answer(&id, 200, &[], b"");
    assert_eq!(call.join().unwrap().status, 200);
}

#[test]
fn a_timeout_removes_the_request_and_is_told_by_method() {
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_RESPONSE_TIMEOUT_MS", "200")]);
    const TEXT: &str = "Timed out waiting for host bridge response.";
    for (request, expected) in [
        (Request::new("GET", "/x"), error(502, TEXT)),
        (Request::json("OPTIONS", "/x", ""), error(502, TEXT)),
        (Request::json("POST", "/x", "{}"), indeterminate(TEXT)),
    ] {
        let answer = request.send(gateway.port);

        assert_eq!(told(&answer), expected);
        assert_eq!(
            answer.header("x-paperclip-bridge-outcome").is_some(),
            expected.0 == 409
        );
        assert_eq!(gateway.host().waiting(), Vec::<String>::new());
    }
}

#[test]
fn a_bad_response_is_removed_and_told_by_method() {
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "10")]);
    let oversize = vec![b' '; 6 * 10 + 65_537];
    for (bytes, text) in [
        (
            oversize.as_slice(),
            "Bridge response envelope exceeded the configured size limit.",
        ),
        (
            br#"{"status":200,"headers":{},"body":"Q","bodyEncoding":"base64"}"#,
            "Invalid bridge base64 body.",
        ),
        (
            br#"{"status":200,"headers":{},"body":"","bodyEncoding":"hex"}"#,
            "Unsupported bridge body encoding.",
        ),
        (
            br#"{"status":200,"headers":{},"body":"12345678901"}"#,
            "Bridge body exceeded the configured size limit.",
        ),
        (br#"{"status":200,"headers":{}}"#, "Invalid bridge body."),
        (
            b"{\"status\":200,",
            "Unexpected JSON in the bridge response envelope.",
        ),
    ] {
        for (request, expected) in [
            (Request::new("GET", "/x"), error(502, text)),
            (Request::json("PATCH", "/x", "{}"), indeterminate(text)),
        ] {
            let call = gateway.call(request);
            let envelope = gateway.host().see();
            std::fs::remove_file(gateway.host().request_path(&envelope.id)).unwrap();
            gateway.host().answer_raw(&envelope.id, bytes);

            assert_eq!(told(&call.join().unwrap()), expected);
            assert!(gateway.host().is_answer_gone(&envelope.id));
        }
    }
}

#[test]
fn an_indeterminate_answer_becomes_409_and_keeps_its_body() {
    let gateway = Gateway::peer(&[]);
    for (value, status) in [("indeterminate", 409), ("Indeterminate", 504)] {
        let call = gateway.call(Request::json("POST", "/x", "{}"));
        let envelope = gateway.host().see();
        std::fs::remove_file(gateway.host().request_path(&envelope.id)).unwrap();
        gateway
            .host()
            .answer(&envelope.id, 504, &[("x-paperclip-bridge-outcome", value)], b"{}");

        let answer = call.join().unwrap();

        assert_eq!(
            (
                answer.status,
                answer.header("x-paperclip-bridge-outcome"),
                answer.text()
            ),
            (status, Some(value), "{}".into())
        );
    }
}

#[test]
fn bodies_beyond_the_ledger_are_refused_as_retryable() {
    // Four callers' worth of envelopes for bodies of one byte: the fifth at the same time finds no room.
    let gateway = Gateway::peer(&[("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", "1")]);
    let calls: Vec<_> = (0..4)
        .map(|_| gateway.call(Request::json("POST", "/x", "1")))
        .collect();
    wait_for("four requests", || {
        (gateway.host().waiting().len() == 4).then_some(())
    });

    const TEXT: &str = "The bridge gateway process reached its reserved body byte ceiling. Retry later.";
    assert_eq!(
        told(&Request::json("POST", "/x", "1").send(gateway.port)),
        error(503, TEXT)
    );
    for id in gateway.host().waiting() {
        gateway
            .host()
            .answer_raw(&id, br#"{"status":200,"headers":{},"body":""}"#);
    }
    assert!(calls.into_iter().all(|call| call.join().unwrap().status != 503));
}

#[test]
fn a_request_whose_caller_hung_up_stays_as_published() {
    let gateway = Gateway::peer(&[]);
    let stream = Request::json("POST", "/x", "{}").connect(gateway.port);
    let envelope = gateway.host().see();
    socket2::SockRef::from(&stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(stream);

    gateway.host().answer(&envelope.id, 200, &[], b"");
    wait_for("the response to be removed", || {
        gateway.host().is_answer_gone(&envelope.id).then_some(())
    });
    assert!(gateway.host().request_path(&envelope.id).exists());
}
