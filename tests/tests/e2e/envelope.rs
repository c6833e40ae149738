//! `envelope sign | verify` as an auditor uses it: lines in, lines out.
//!
//! Which request is refused with which code is in `policy/cases/envelope.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use paperclip_bridge_tests::binary::{BridgeCommand, Finished, LIMIT};
use paperclip_bridge_tests::eventually;
use serde_json::{Value, json};

const NOW: u64 = 1_767_225_600;
/// Bytes 0 to 31.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NONCE: &str = "AAECAwQFBgcICQoLDA0ODw";
const HOST: &str = "bridge.example.dev";

async fn told(arguments: &[&str], text: &str) -> Finished {
    let mut running = BridgeCommand::new(arguments.iter().copied()).start();
    running.write(text.as_bytes()).await;
    running.close_stdin();
    running.finish().await
}

/// What `envelope` answers to these lines.
async fn ask(arguments: &[&str], lines: &[Value]) -> Vec<Value> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let ended = told(&[&["envelope"], arguments].concat(), &text).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    answers(&ended.stdout)
}

fn answers(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// A request without its signature.
fn unsigned(target: &str) -> Value {
    json!({
        "method": "POST",
        "target": target,
        "headers": [["Host", HOST], ["Authorization", "Bearer b"], ["Content-Type", "application/json"]],
        "body_b64": "e30=",
    })
}

/// Requests signed with k1, each with the nonce given or one of its own.
async fn signed(requests: &[Value], nonce: Option<&str>) -> Vec<Value> {
    let line =
        json!({ "id": 1, "key": KEY, "key_id": "k1", "now": NOW, "nonce": nonce, "requests": requests });
    let answer = ask(&["sign"], &[line]).await.remove(0);
    let signatures = answer["requests"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    let add = |(request, signature): (&Value, &Value)| {
        let mut request = request.clone();
        let more = signature["headers"].as_array().unwrap().iter().cloned();
        request["headers"].as_array_mut().unwrap().extend(more);
        request
    };
    requests.iter().zip(signatures).map(add).collect()
}

fn config() -> Value {
    json!({
        "keys": { "k1": { "key": KEY, "notBefore": null, "notAfter": null } },
        "allowed_hosts": [HOST],
        "max_body": 1024,
        "bearer": "b",
    })
}

fn verify(id: u64, requests: &[Value]) -> Value {
    json!({ "id": id, "now": NOW, "concurrent": false, "config": config(), "requests": requests })
}

fn codes(answer: &Value) -> Vec<&str> {
    let verdicts = answer["verdicts"].as_array();
    let verdicts = verdicts.unwrap_or_else(|| panic!("no verdicts: {answer}"));
    verdicts
        .iter()
        .map(|verdict| {
            let code = verdict["code"].as_str().unwrap();
            assert_eq!(verdict["allow"], code == "ok", "{answer}");
            assert_eq!(verdict.as_object().unwrap().len(), 3, "{answer}");
            code
        })
        .collect()
}

fn state_dir(folder: &Path) -> [&str; 3] {
    ["verify", "--state-dir", folder.to_str().unwrap()]
}

#[tokio::test]
async fn sign_gives_the_published_vectors() {
    let exec = "eyJwcm92aWRlckxlYXNlSWQiOiJwYy1yMS1hYjEyY2QzNCIsImNvbW1hbmQiOiJzaCIsImFyZ3MiOlsiLWMiLCJlY2hvIMOpIl19";
    let lines = [
        json!({ "id": "a", "key": KEY, "key_id": "k1", "now": NOW, "nonce": NONCE, "requests": [
            { "method": "GET", "target": "/api/paperclip-sandbox/v1/health",
              "headers": [["Host", "Bridge.Example.workers.dev"]] },
        ]}),
        json!({ "id": "b", "key": KEY, "key_id": "k1", "now": "2026-01-01T00:00:00Z", "requests": [
            { "method": "POST", "target": "/api/paperclip-sandbox/v1/exec", "nonce": "EBESExQVFhcYGRobHB0eHw",
              "headers": [["host", "bridge.example.workers.dev"], ["content-type", "application/json"],
                  ["X-Paperclip-Run-Id", "r1"], ["X-Paperclip-Environment-Id", "env 1"]],
              "body_b64": exec },
        ]}),
        json!({ "id": "c", "key": KEY, "key_id": "k2", "now": 0, "requests": [
            { "method": "DELETE", "at": NOW + 1, "nonce": "ICEiIyQlJicoKSorLC0uLw",
              "target": "/api/paperclip-sandbox/v1/leases/pc%2fenv%20x?b=2&a=%7e&a=&c",
              "headers": [["Host", "127.0.0.1:8787"]] },
        ]}),
    ];

    let answers = ask(&["sign"], &lines).await;

    for (answer, (id, signature)) in answers.iter().zip([
        (
            "a",
            "v1=7f4fb1a764b44227de238840151c859c4be82f06144add72daff1953567ce775",
        ),
        (
            "b",
            "v1=3bd693ff3615ae236aed086d601fa700d4dfddd4c1225d294fcb414286be60c3",
        ),
        (
            "c",
            "v1=68c9f0ccd85897b5c88aee4c916f7442f3c6ef4d95fb278b88648233866c814c",
        ),
    ]) {
        let wanted = json!(["X-Paperclip-Signature", signature]);
        assert_eq!(
            (&answer["id"], &answer["requests"][0]["headers"][4]),
            (&json!(id), &wanted)
        );
    }
    assert_eq!(answers.len(), 3);
}

#[tokio::test]
async fn what_is_signed_is_taken_once_and_by_its_own_clock() {
    let requests = signed(&[unsigned("/a"), unsigned("/b")], None).await;
    let late = |seconds: u64| {
        let mut request = requests[1].clone();
        request["at"] = json!(NOW + seconds);
        request
    };
    let lines = [
        verify(1, &[requests[0].clone(), late(301), late(300)]),
        verify(2, &[requests[0].clone(), late(299)]),
    ];

    let answers = ask(&["verify"], &lines).await;

    assert_eq!(codes(&answers[0]), ["ok", "timestamp_out_of_window", "ok"]);
    assert_eq!(codes(&answers[1]), ["nonce_replayed", "nonce_replayed"]);
    let statuses = [&answers[0]["verdicts"][0], &answers[1]["verdicts"][0]].map(|verdict| &verdict["status"]);
    assert_eq!(statuses, [200, 401]);
}

#[tokio::test]
async fn used_nonces_outlive_the_command_in_a_state_folder_and_only_there() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let requests = signed(&[unsigned("/a")], None).await;
    let line = [verify(1, &requests)];

    let mut found = vec![];
    for arguments in [
        &state_dir(&state)[..],
        &state_dir(&state),
        &["verify"],
        &["verify"],
    ] {
        found.extend(ask(arguments, &line).await);
    }

    let found: Vec<&str> = found.iter().flat_map(codes).collect();
    assert_eq!(found, ["ok", "nonce_replayed", "ok", "ok"]);
}

#[tokio::test]
async fn of_equal_nonces_at_once_exactly_one_passes() {
    let folder = tempfile::tempdir().unwrap();
    let same = signed(&[unsigned("/a")], Some(NONCE)).await.remove(0);
    let other = signed(&[unsigned("/a")], None).await.remove(0);
    let mut requests = vec![same; 40];
    requests.insert(20, other);
    let mut line = verify(1, &requests);
    line["concurrent"] = json!(true);

    for arguments in [&["verify"][..], &state_dir(folder.path())] {
        let answers = ask(arguments, std::slice::from_ref(&line)).await;

        let mut codes = codes(&answers[0]);
        assert_eq!(codes.remove(20), "ok");
        codes.sort_unstable();
        assert_eq!(codes[38..], ["nonce_replayed", "ok"]);
        assert_eq!(codes.iter().filter(|code| **code == "ok").count(), 1);
    }
}

#[tokio::test]
async fn of_two_processes_at_once_never_both_take_a_nonce() {
    let folder = tempfile::tempdir().unwrap();
    let requests = signed(&vec![unsigned("/a"); 60], None).await;
    let text: String = requests
        .iter()
        .map(|request| format!("{}\n", verify(1, std::slice::from_ref(request))))
        .collect();
    let arguments = [&["envelope"][..], &state_dir(folder.path())].concat();

    let (one, other) = tokio::join!(told(&arguments, &text), told(&arguments, &text));

    let (one, other) = (answers(&one.stdout), answers(&other.stdout));
    assert_eq!((one.len(), other.len()), (60, 60));
    for (one, other) in one.iter().zip(&other) {
        let mut both = [codes(one)[0], codes(other)[0]];
        both.sort_unstable();
        assert_eq!(both, ["nonce_replayed", "ok"]);
    }
}

#[tokio::test]
async fn a_line_is_answered_before_the_next_one_is_there() {
    let requests = signed(&[unsigned("/a")], None).await;
    let mut running = BridgeCommand::new(["envelope", "verify"]).start();

    for (count, line) in [(1, verify(1, &requests)), (2, verify(2, &requests))] {
        running.write(format!("{line}\n").as_bytes()).await;
        eventually(LIMIT, "the line is answered", || {
            (running.stdout().lines().count() == count).then_some(())
        })
        .await;
    }

    running.close_stdin();
    assert_eq!(running.finish().await.code, Some(0));
}

#[tokio::test]
async fn a_line_that_cannot_be_read_says_where_and_the_next_goes_on() {
    let requests = signed(&[unsigned("/a")], None).await;
    let with = |key: &str, value: Value| {
        let mut line = verify(7, &requests);
        line[key] = value;
        line.to_string()
    };
    let request_with = |key: &str, value: Value| {
        let mut request = requests[0].clone();
        request[key] = value;
        with("requests", json!([request]))
    };
    for (bad, id, wanted) in [
        ("{\"id\":7,".to_owned(), json!(null), "not JSON"),
        ("[1]".to_owned(), json!(null), "an object"),
        ("{\"id\":7}".to_owned(), json!(7), "`now`"),
        (with("now", json!("soon")), json!(7), "RFC 3339"),
        (with("now", json!(-1)), json!(7), "Unix seconds"),
        (with("requests", json!({})), json!(7), "`requests`"),
        (with("requests", json!([1])), json!(7), "requests[0]"),
        (with("concurrent", json!("yes")), json!(7), "`concurrent`"),
        (
            request_with("method", json!(null)),
            json!(7),
            "`method` of requests[0]",
        ),
        (request_with("headers", json!([["Host"]])), json!(7), "`headers`"),
        (
            request_with("headers", json!([["Host", 1]])),
            json!(7),
            "`headers`",
        ),
        (request_with("body_b64", json!("e30")), json!(7), "`body_b64`"),
        (request_with("at", json!([])), json!(7), "`at`"),
    ] {
        let text = format!("\n{bad}\n{}", verify(8, &requests));
        let ended = told(&["envelope", "verify"], &text).await;

        let answers = answers(&ended.stdout);
        let error = answers[0]["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{bad}: {answers:?}"));
        assert!(error.contains(wanted), "{bad}: {error}");
        assert_eq!(answers[0]["id"], id, "{bad}");
        assert_eq!(codes(&answers[1]), ["ok"], "{bad}");
        assert_eq!((answers.len(), ended.code), (2, Some(0)), "{bad}");
    }
}

#[tokio::test]
async fn a_config_that_cannot_be_used_refuses_each_request_and_shows_no_key() {
    let requests = signed(&[unsigned("/a"), unsigned("/b")], None).await;
    let misplaced = "c2VjcmV0LWtleS1pbi10aGUtd3JvbmctcGxhY2U=";
    let configs: BTreeMap<&str, Value> = [
        (
            "`key` of `k1`",
            json!({ "keys": { "k1": { "key": "c2hvcnQ=" } } }),
        ),
        ("32 or more", json!({ "keys": { "k1": { "key": "" } } })),
        (
            "not base64",
            json!({ "keys": { "k1": { "key": format!("{misplaced}!") } } }),
        ),
        ("must be an object", json!({ "keys": { "k1": misplaced } })),
        (
            "unknown key",
            json!({ "keys": { "k1": { "key": KEY, "notafter": 0 } } }),
        ),
        (
            "`notAfter` of",
            json!({ "keys": { "k1": { "key": KEY, "notAfter": misplaced } } }),
        ),
        (
            "name 0 of `keys`",
            json!({ "keys": { misplaced: { "key": KEY } } }),
        ),
        ("`allowed_hosts`", json!({ "allowed_hosts": HOST })),
        ("`max_body`", json!({ "max_body": -1 })),
        ("`bearer`", json!({ "bearer": [misplaced] })),
        ("known are", json!({ misplaced: 1 })),
    ]
    .into();
    for (wanted, changes) in configs {
        let mut line = verify(1, &requests);
        for (key, value) in changes.as_object().unwrap() {
            line["config"][key] = value.clone();
        }

        let ended = told(&["envelope", "verify"], &format!("{line}\n")).await;

        let answer = answers(&ended.stdout).remove(0);
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{wanted}: {answer}"));
        assert!(error.contains(wanted), "{wanted}: {error}");
        assert_eq!(codes(&answer), ["misconfigured"; 2]);
        assert_eq!(answer["verdicts"][0]["status"], 503);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!all.contains(misplaced), "{wanted}: {all}");
    }
}

#[tokio::test]
async fn two_keys_live_at_once_while_one_is_replaced() {
    let requests = signed(&vec![unsigned("/a"); 4], None).await;
    let line = |id: usize, validity: Value| {
        let mut line = verify(1, &requests[id..=id]);
        line["config"]["keys"]["k1"]["notBefore"] = validity[0].clone();
        line["config"]["keys"]["k1"]["notAfter"] = validity[1].clone();
        line["config"]["keys"]["k2"] = json!({ "key": KEY });
        line
    };
    let lines = [
        line(0, json!([null, "2026-01-01T00:00:00Z"])),
        line(1, json!([NOW + 1, null])),
        line(2, json!(["2026-01-01T01:00:00+01:00", NOW])),
        line(3, json!([null, NOW - 1])),
    ];

    let answers = ask(&["verify"], &lines).await;

    let found: Vec<&str> = answers.iter().flat_map(codes).collect();
    assert_eq!(found, ["ok", "unknown_key", "ok", "unknown_key"]);
}

#[tokio::test]
async fn chunks_are_taken_and_trailers_refused() {
    let requests = signed(&vec![unsigned("/a"); 5], None).await;
    let with = |number: usize, changes: Value| {
        let mut request = requests[number].clone();
        for (key, value) in changes.as_object().unwrap() {
            request[key] = value.clone();
        }
        request
    };
    let mut with_length = with(4, json!({ "chunked": true }));
    let headers = with_length["headers"].as_array_mut().unwrap();
    headers.push(json!(["Content-Length", "2"]));
    let requests = [
        with(0, json!({ "chunked": true, "trailers": [] })),
        with(
            1,
            json!({ "chunked": true, "trailers": [["X-Paperclip-Nonce", NONCE]] }),
        ),
        with(2, json!({ "trailers": { "a": "b" } })),
        with(3, json!({ "trailers": null, "chunked": false })),
        with_length,
    ];

    let answers = ask(&["verify"], &[verify(1, &requests)]).await;

    let bad = "invalid_request";
    assert_eq!(codes(&answers[0]), ["ok", bad, bad, "ok", bad]);
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_used_refuses_with_503() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let requests = signed(&[unsigned("/a")], None).await;
    let mut forged = requests[0].clone();
    forged["target"] = json!("/b");

    let line = format!("{}\n", verify(1, &[requests[0].clone(), forged]));
    let arguments = [&["envelope"][..], &state_dir(&file)].concat();
    let ended = told(&arguments, &line).await;

    let answer = answers(&ended.stdout).remove(0);
    assert_eq!(codes(&answer), ["nonce_store_unavailable", "signature_invalid"]);
    assert_eq!(answer["verdicts"][0]["status"], 503);
    assert!(
        ended.stderr.contains("used nonces cannot be kept"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn the_help_says_what_goes_in_and_comes_out() {
    for command in ["sign", "verify"] {
        let help = told(&["envelope", command, "--help"], "").await.stdout;

        for word in ["RFC 3339", "Unix seconds", "headers", "\"error\""] {
            assert!(help.contains(word), "{command}: {word} is not in\n{help}");
        }
    }
}
