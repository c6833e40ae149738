//! Tables of good and bad envelopes, and the exact bytes of the good ones.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::*;

const ID: &str = "8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11";
const TEXT_REQUEST: &str = concat!(
    r#"{"id":"8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11","method":"POST","path":"/api/issues/i-9/comments","query":"","#,
    r#""headers":{"content-type":"application/json"},"body":"{\"body\":\"done\"}","createdAt":"2026-03-04T05:06:07.089Z"}"#,
    "\n"
);
const BINARY_REQUEST: &str = concat!(
    r#"{"id":"8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11","method":"POST","path":"/api/companies/c1/issues/i-9/attachments","query":"","#,
    r#""headers":{"content-type":"multipart/form-data; boundary=xyz"},"body":"LS14eXoNCg==","bodyEncoding":"base64","#,
    r#""createdAt":"2026-03-04T05:06:07.089Z"}"#,
    "\n"
);
const RESPONSE: &str = concat!(
    r#"{"id":"8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11","status":201,"headers":{"content-type":"application/json","etag":"\"7\""},"#,
    r#""body":"eyJpZCI6ImMtMSJ9","bodyEncoding":"base64","completedAt":"2026-03-04T05:06:07.311Z"}"#,
    "\n"
);

fn request(json: &str) -> Result<RequestEnvelope, EnvelopeFault> {
    RequestEnvelope::parse(json.as_bytes(), ID, 1024)
}

fn response(json: &str, reading: Reading) -> Result<ResponseEnvelope, EnvelopeFault> {
    ResponseEnvelope::parse(json.as_bytes(), ID, 1024, reading)
}

/// A sound envelope in which one piece of text was replaced.
fn with(json: &str, from: &str, to: &str) -> String {
    assert!(json.contains(from), "{from:?} is not in {json}");
    json.replacen(from, to, 1)
}

#[test]
fn both_generations_of_requests_are_written_to_the_byte() {
    for json in [TEXT_REQUEST, BINARY_REQUEST] {
        let envelope = request(json).unwrap();

        assert_eq!(String::from_utf8(envelope.to_bytes()).unwrap(), json);
    }
}

#[test]
fn a_text_request_is_read() {
    let envelope = request(TEXT_REQUEST).unwrap();

    assert_eq!(
        (envelope.id.as_str(), envelope.method.clone()),
        (ID, Method::POST)
    );
    assert_eq!(
        (envelope.target().as_str(), envelope.host.as_deref()),
        ("/api/issues/i-9/comments", None)
    );
    assert_eq!(envelope.headers.get("content-type").unwrap(), "application/json");
    assert_eq!(envelope.body, EnvelopeBody::Text(r#"{"body":"done"}"#.to_owned()));
    assert_eq!(envelope.created_at, "2026-03-04T05:06:07.089Z");
}

#[test]
fn a_binary_request_is_read() {
    assert_eq!(
        request(BINARY_REQUEST).unwrap().body,
        EnvelopeBody::Base64(Bytes::from_static(b"--xyz\r\n"))
    );
}

#[test]
fn the_callers_host_stands_behind_the_query_and_comes_back() {
    let json = with(
        TEXT_REQUEST,
        r#""query":"","#,
        r#""query":"?a=%20b","host":"127.0.0.1:4711","#,
    );

    let envelope = request(&json).unwrap();

    assert_eq!(envelope.host.as_deref(), Some("127.0.0.1:4711"));
    assert_eq!(envelope.target(), "/api/issues/i-9/comments?a=%20b");
    assert_eq!(String::from_utf8(envelope.to_bytes()).unwrap(), json);
}

#[test]
fn an_unknown_key_is_passed_over_whatever_it_holds() {
    let deep = format!(r#"{{"later":{}{},"#, "[".repeat(5000), "]".repeat(5000));
    for to in [r#"{"later":{"a":[1,null,"x"]},"later":2,"#, deep.as_str()] {
        assert!(request(&with(TEXT_REQUEST, "{", to)).is_ok(), "{to:.20}");
    }
}

#[test]
fn every_bad_request_is_refused_with_the_key_at_fault() {
    use EnvelopeFault::{Missing, NotAnObject, NotValid, OtherId, TooLong, Twice, WrongType};
    let long_path = format!(r#""path":"/{}""#, "a".repeat(MAX_TARGET_BYTES));
    let many: Vec<String> = (0..=MAX_HEADERS).map(|at| format!(r#""h{at}":"1""#)).collect();
    let many = format!(r#""headers":{{{}}}"#, many.join(","));
    let wide = format!(r#""headers":{{"a":"{}"}}"#, "b".repeat(MAX_HEADER_BYTES));
    let headers = r#""headers":{"content-type":"application/json"}"#;
    let table = [
        (r#""id":"8a0c"#, r#""id":"8A0C"#, OtherId),
        (
            r#""id":"8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11","#,
            "",
            Missing(Field::Id),
        ),
        (
            r#""id":"8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11""#,
            r#""id":8"#,
            WrongType(Field::Id),
        ),
        (r#""method":"POST","#, "", Missing(Field::Method)),
        (
            r#""method":"POST""#,
            r#""method":"PO ST""#,
            NotValid(Field::Method),
        ),
        (r#""method":"POST""#, r#""method":"""#, NotValid(Field::Method)),
        (
            r#""method":"POST""#,
            r#""method":"POST","method":"GET""#,
            Twice(Field::Method),
        ),
        (
            r#""method":"POST""#,
            r#""method":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA""#,
            TooLong(Field::Method),
        ),
        (r#""path":"/api"#, r#""path":"/api?x="#, NotValid(Field::Path)),
        (
            r#""path":"/api/issues/i-9/comments""#,
            r#""path":"""#,
            NotValid(Field::Path),
        ),
        (
            r#""path":"/api/issues/i-9/comments""#,
            r#""path":null"#,
            WrongType(Field::Path),
        ),
        (
            r#""path":"/api/issues/i-9/comments""#,
            &long_path,
            TooLong(Field::Path),
        ),
        (r#""query":"""#, r#""query":"a=b""#, NotValid(Field::Query)),
        (r#""query":"""#, r#""query":"","host":7"#, WrongType(Field::Host)),
        (headers, r#""headers":[]"#, WrongType(Field::Headers)),
        (headers, r#""headers":{"a":1}"#, WrongType(Field::Headers)),
        (headers, r#""headers":{"a":{"b":"c"}}"#, WrongType(Field::Headers)),
        (headers, r#""headers":{"a b":"1"}"#, NotValid(Field::Headers)),
        (
            headers,
            r#""headers":{"a":"1\r\nb: 2"}"#,
            NotValid(Field::Headers),
        ),
        (headers, r#""headers":{"a":"\u0100"}"#, NotValid(Field::Headers)),
        (headers, r#""headers":{"a":"1","A":"2"}"#, Twice(Field::Headers)),
        (headers, &many, TooLong(Field::Headers)),
        (headers, &wide, TooLong(Field::Headers)),
        (r#""body":"{\"body\":\"done\"}","#, "", Missing(Field::Body)),
        (
            r#""body":"{\"body\":\"done\"}""#,
            r#""body":{"a":1}"#,
            WrongType(Field::Body),
        ),
        (
            r#""body":"{\"body\":\"done\"}""#,
            r#""body":"\ud800""#,
            NotAnObject,
        ),
        (
            r#","createdAt":"2026-03-04T05:06:07.089Z""#,
            "",
            Missing(Field::CreatedAt),
        ),
        (
            r#""createdAt""#,
            r#""bodyEncoding":"hex","createdAt""#,
            EnvelopeFault::Body(BodyFault::UnknownEncoding),
        ),
        (
            r#""createdAt""#,
            r#""bodyEncoding":"base64","createdAt""#,
            EnvelopeFault::Body(BodyFault::NotBase64),
        ),
        (
            r#""createdAt""#,
            r#""bodyEncoding":1,"createdAt""#,
            WrongType(Field::BodyEncoding),
        ),
        ("}\n", "}{}\n", NotAnObject),
        ("}\n", "", NotAnObject),
    ];
    for (from, to, fault) in table {
        assert_eq!(
            request(&with(TEXT_REQUEST, from, to)).unwrap_err(),
            fault,
            "{from} -> {to:.60}"
        );
    }
    for json in ["", "\n", "null", "[]", "7", "\u{feff}{}"] {
        assert_eq!(request(json).unwrap_err(), NotAnObject, "{json:?}");
    }
}

#[test]
fn the_body_limit_holds_to_the_byte_and_bounds_the_envelope() {
    let at = |limit| RequestEnvelope::parse(TEXT_REQUEST.as_bytes(), ID, limit).err();
    assert_eq!(
        (at(15), at(14)),
        (None, Some(EnvelopeFault::Body(BodyFault::TooLarge { limit: 14 })))
    );

    let padded = format!(
        "{TEXT_REQUEST}{}",
        " ".repeat(envelope_limit(20) - TEXT_REQUEST.len())
    );
    assert!(RequestEnvelope::parse(padded.as_bytes(), ID, 20).is_ok());
    let limit = envelope_limit(19);
    assert_eq!(
        RequestEnvelope::parse(padded.as_bytes(), ID, 19),
        Err(EnvelopeFault::TooLarge { limit })
    );
    assert_eq!(
        (envelope_limit(10_551_296), envelope_limit(usize::MAX)),
        (63_373_312, usize::MAX)
    );
}

#[test]
fn what_a_gateway_puts_in_comes_out_whole_at_the_host() {
    let mut headers = HeaderMap::new();
    headers.append("accept", HeaderValue::from_static("a/b"));
    headers.append("accept", HeaderValue::from_static("c/d"));
    headers.append("cookie", HeaderValue::from_static("a=1"));
    headers.append("cookie", HeaderValue::from_static("b=2"));
    headers.append("x-name", HeaderValue::from_bytes(b"caf\xe9 \"q\"\t\\").unwrap());
    let envelope = RequestEnvelope {
        id: ID.to_owned(),
        method: Method::from_bytes(b"PROPFIND").unwrap(),
        path: "/\u{0}\u{1f}\u{7f}\u{2028}é\u{10ffff}".to_owned(),
        query: "?".to_owned(),
        host: Some("h\u{8}\u{c}".to_owned()),
        headers,
        body: EnvelopeBody::Base64(Bytes::from_static(&[0, 255, 10])),
        created_at: "t".to_owned(),
    };

    let bytes = envelope.to_bytes();
    let read = RequestEnvelope::parse(&bytes, ID, 3).unwrap();

    // A second writer of the same JSON agrees on every escape.
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(&serde_json::to_string(&envelope.path).unwrap()));
    assert_eq!(read.headers.get("accept").unwrap(), "a/b, c/d");
    assert_eq!(read.headers.get("cookie").unwrap(), "a=1; b=2");
    assert_eq!(
        read.headers.get("x-name").unwrap().as_bytes(),
        b"caf\xe9 \"q\"\t\\"
    );
    assert_eq!(
        (read.target(), read.host, read.body),
        (envelope.target(), envelope.host, envelope.body)
    );
}

#[test]
fn a_response_is_read_and_written_to_the_byte() {
    for reading in [Reading::Strict, Reading::AsPublished] {
        let envelope = response(RESPONSE, reading).unwrap();

        assert_eq!(envelope.status, StatusCode::CREATED);
        assert_eq!(envelope.headers.get("etag").unwrap(), "\"7\"");
        assert_eq!(envelope.body.clone().into_bytes().as_ref(), br#"{"id":"c-1"}"#);
    }
    let strict = response(RESPONSE, Reading::Strict).unwrap();
    assert_eq!(String::from_utf8(strict.to_bytes()).unwrap(), RESPONSE);
}

#[test]
fn an_empty_body_of_bytes_keeps_its_encoding() {
    let mut envelope = response(RESPONSE, Reading::Strict).unwrap();
    envelope.body = EnvelopeBody::Base64(Bytes::new());

    let json = String::from_utf8(envelope.to_bytes()).unwrap();

    assert!(
        json.contains(r#""body":"","bodyEncoding":"base64","completedAt""#),
        "{json}"
    );
}

#[test]
fn what_a_strict_reading_refuses_and_a_published_one_takes() {
    use EnvelopeFault::{Missing, NotValid, OtherId, WrongType};
    let table = [
        (
            r#""status":201"#,
            r#""status":"201""#,
            WrongType(Field::Status),
            StatusCode::OK,
        ),
        (r#""status":201,"#, "", Missing(Field::Status), StatusCode::OK),
        (
            r#""status":201"#,
            r#""status":201.5"#,
            NotValid(Field::Status),
            StatusCode::CREATED,
        ),
        (r#""id":"8a0c"#, r#""id":"0000"#, OtherId, StatusCode::CREATED),
        (
            r#""etag":"\"7\"""#,
            r#""etag":7"#,
            WrongType(Field::Headers),
            StatusCode::CREATED,
        ),
        (
            r#"{"content-type":"application/json","etag":"\"7\""}"#,
            "null",
            WrongType(Field::Headers),
            StatusCode::CREATED,
        ),
        (
            r#","completedAt":"2026-03-04T05:06:07.311Z""#,
            "",
            Missing(Field::CompletedAt),
            StatusCode::CREATED,
        ),
    ];
    for (from, to, fault, status) in table {
        let json = with(RESPONSE, from, to);

        assert_eq!(response(&json, Reading::Strict), Err(fault), "{to}");
        assert_eq!(
            response(&json, Reading::AsPublished).unwrap().status,
            status,
            "{to}"
        );
    }
}

#[test]
fn a_response_that_no_reading_takes() {
    use EnvelopeFault::{Body, Missing, NotValid, Twice};
    let table = [
        (r#""status":201"#, r#""status":199"#, NotValid(Field::Status)),
        (r#""status":201"#, r#""status":1000"#, NotValid(Field::Status)),
        (r#""status":201"#, r#""status":-201"#, NotValid(Field::Status)),
        (r#""status":201"#, r#""status":1e300"#, NotValid(Field::Status)),
        (
            r#""status":201"#,
            r#""status":201,"status":201"#,
            Twice(Field::Status),
        ),
        (r#""etag":"\"7\"""#, r#""etag":"a\nb""#, NotValid(Field::Headers)),
        (r#""body":"eyJpZCI6ImMtMSJ9","#, "", Missing(Field::Body)),
        ("eyJpZCI6ImMtMSJ9", "eyJpZCI6ImMtMSJ", Body(BodyFault::NotBase64)),
    ];
    for (from, to, fault) in table {
        for reading in [Reading::Strict, Reading::AsPublished] {
            assert_eq!(response(&with(RESPONSE, from, to), reading), Err(fault), "{to}");
        }
    }
}

#[test]
fn only_the_exact_word_makes_an_outcome_indeterminate() {
    for (value, expected) in [
        ("indeterminate", true),
        ("Indeterminate", false),
        ("answered", false),
    ] {
        let json = with(
            RESPONSE,
            r#""etag":"\"7\"""#,
            &format!(r#""x-paperclip-bridge-outcome":"{value}""#),
        );

        assert_eq!(
            response(&json, Reading::Strict).unwrap().is_indeterminate(),
            expected,
            "{value}"
        );
    }
}

#[test]
fn names_that_could_lead_elsewhere_are_no_entries() {
    for good in [
        "a.json",
        "8a0c1d5e-7b53-4d0c-9f21-1f6f0a3b9c11.json",
        "A_b-c.1.json",
        "a..json",
    ] {
        assert!(entry_id(good).is_some(), "{good}");
    }
    let long = format!("{}.json", "a".repeat(MAX_ID_BYTES + 1));
    for bad in [
        "",
        ".json",
        "..json",
        ".a.json",
        "-a.json",
        "a.json.tmp",
        "a.JSON",
        "a",
        "a/b.json",
        "../x.json",
        "a\n.json",
        "a b.json",
        "é.json",
        "a'.json",
        &long,
    ] {
        assert_eq!(entry_id(bad), None, "{bad:?}");
    }
}
