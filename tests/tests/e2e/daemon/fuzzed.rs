//! The control API under schemathesis: every operation of its document, with a fixed seed, at least 50 requests each.
//!
//! `drain` is sent to a daemon of its own, which a callback under way keeps from ending, and without `wait`, which would
//! wait for that; the events, whose answer does not end, are asked for here, and read as far as the head. What is counted
//! is what schemathesis reports, so that an operation that nobody sent anything to fails the test. That whatever fits
//! the document be accepted is not checked: targets, durations and sizes are texts with a grammar of their own. Nor is
//! authentication, which the document leaves to the listener (`tcp.rs` tests it).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::moto::install::environment;
use paperclip_bridge_tests::remote::{Asks, CONTROL_TOKEN, Remote};
use paperclip_bridge_tests::world::CREDENTIAL_VARIABLE;
use paperclip_bridge_tests::{Upstream, World, can_run, within};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::SOON;
use super::ending::in_flight;

/// All of it; a run takes a fifth of that.
const LIMIT: Duration = Duration::from_secs(300);
/// Requests for each operation.
const LEAST: usize = 50;
/// An operation without parameters is the same request each time: further rounds repeat it for so long.
const ROUND_SECONDS: &str = "8";
const DRAIN: &str = "POST /v1/drain";
const EVENTS: &str = "GET /v1/events";
const TLS: [&str; 4] = ["--control-ca", "@ca.pem", "--control-token", "file:@token"];

fn python() -> Result<PathBuf, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(|| environment("schemathesis")).clone()
}

/// Requests by operation.
type Sent = BTreeMap<String, usize>;

fn lacking(sent: &Sent) -> Vec<&str> {
    let lack = sent.iter().filter(|(_, count)| **count < LEAST);
    lack.map(|(operation, _)| operation.as_str()).collect()
}

fn document() -> Value {
    let text = std::fs::read_to_string(World::workspace().join("docs/openapi.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every operation of the document, to which nothing was sent yet.
fn operations(document: &Value) -> Sent {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().keys();
        methods
            .map(|method| (format!("{} {path}", method.to_uppercase()), 0))
            .collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// One run over these operations; what was sent is added.
async fn run(remote: &Remote, document: &Path, operations: &[&str], more: &[&str], sent: &mut Sent) {
    let reports = tempfile::tempdir().unwrap();
    let mut command = Command::new(python().unwrap());
    command
        .args(["-I", "-B", "-m", "schemathesis.cli", "run"])
        .arg(document)
        .args(["--url", &format!("https://localhost:{}", remote.address.port())])
        .arg("--tls-verify")
        .arg(remote.file("ca.pem"))
        .args(["--header", &format!("Authorization: Bearer {CONTROL_TOKEN}")])
        .args(operations.iter().flat_map(|name| ["--include-name", name]))
        // One worker: the same requests in the same order, and the parser of some Pythons is not for several threads.
        .args(["--seed", "1", "--max-examples", "50", "--workers", "1"])
        .args(["--exclude-checks", "ignored_auth,positive_data_acceptance"])
        // The daemon closes what rests for ten seconds, which on a busy machine the next request may just run into.
        .args([
            "--generation-database",
            "none",
            "--request-timeout",
            "20",
            "--request-retries",
            "3",
        ])
        .args(["--report", "ndjson", "--report-dir"])
        .arg(reports.path())
        .args(["--no-color", "--warnings", "off"])
        .args(more)
        .current_dir(remote.folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env_clear();
    let ran = within(LIMIT, "schemathesis ends", command.output())
        .await
        .unwrap();
    assert!(
        ran.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
        remote.running.stderr()
    );
    for report in std::fs::read_dir(reports.path()).unwrap() {
        let report = std::fs::read_to_string(report.unwrap().path()).unwrap();
        for line in report.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let recorder = &event["ScenarioFinished"]["recorder"];
            if let (Some(name), Some(cases)) = (recorder["label"].as_str(), recorder["cases"].as_object()) {
                *sent.get_mut(name).unwrap_or_else(|| panic!("{name} is none")) += cases.len();
            }
        }
    }
}

/// Runs over these operations until each had its share.
async fn fuzz(remote: &Remote, document: &Path, operations: &[&str], sent: &mut Sent) {
    let begun = Instant::now();
    let phases = ["--phases", "examples,coverage,fuzzing"];
    run(remote, document, operations, &phases, sent).await;
    loop {
        let lacking = lacking(sent).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let again: Vec<_> = operations
            .iter()
            .copied()
            .filter(|operation| lacking.iter().any(|lacks| lacks == operation))
            .collect();
        if again.is_empty() {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "too few requests: {sent:?}");
        let rounds = ["--phases", "fuzzing", "--max-time", ROUND_SECONDS];
        run(remote, document, &again, &rounds, sent).await;
    }
}

async fn is_well(remote: &Remote) {
    let status = remote.run(&[&["status"], &TLS[..]].concat()).await;
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    assert!(
        !remote.running.stderr().contains("\"level\":\"ERROR\""),
        "{}",
        remote.running.stderr()
    );
}

#[test]
fn schemathesis_is_installed_as_pinned() {
    can_run(python().map(drop));
}

#[tokio::test]
async fn the_control_api_answers_whatever_it_is_sent_as_its_document_says() {
    if !can_run(python().map(drop)) {
        return;
    }
    let document = document();
    let mut sent = operations(&document);
    let all: Vec<_> = sent.keys().cloned().collect();
    let most: Vec<_> = all
        .iter()
        .map(String::as_str)
        .filter(|operation| ![DRAIN, EVENTS].contains(operation))
        .collect();

    let remote = Remote::start(Asks::Token, "").await;
    let file = World::workspace().join("docs/openapi.json");
    fuzz(&remote, &file, &most, &mut sent).await;
    for query in queries(&["session", "run", "denied"]) {
        let (status, kind) = head(&remote, &format!("GET /v1/events?{query}")).await;
        let told = documented(&document, "/v1/events", "get", status);
        assert_eq!(told.as_deref(), Some(kind.as_str()), "{query}: {status}");
        *sent.get_mut(EVENTS).unwrap() += 1;
    }
    is_well(&remote).await;
    fuzz_drain(document, &mut sent).await;

    assert!(lacking(&sent).is_empty(), "too few requests: {sent:?}");
}

async fn fuzz_drain(mut document: Value, sent: &mut Sent) {
    let upstream = Upstream::start().await;
    let more = format!(
        "[drain]\ntimeout = \"10m\"\n[targets.here]\ntarget = \"local\"\n[upstreams.main]\nurl = \"{}\"\ncredential = \"env:{CREDENTIAL_VARIABLE}\"\n",
        upstream.url()
    );
    let remote = Remote::start(Asks::Token, &more).await;
    let made = remote
        .run(&[&["sessions", "new", "here", "--json"], &TLS[..]].concat())
        .await;
    let opened: Opened = serde_json::from_str(&made.stdout).unwrap_or_else(|_| panic!("{}", made.stderr));
    // It cannot end before this one is answered.
    let (_caller, permits) = in_flight(&upstream, &opened, "k-1").await;
    for query in queries(&["wait", "wiat"]).filter(|query| query.as_str() != "wait=true") {
        let (status, kind) = head(&remote, &format!("POST /v1/drain?{query}")).await;
        let told = documented(&document, "/v1/drain", "post", status);
        assert_eq!(told.as_deref(), Some(kind.as_str()), "{query}: {status}");
    }

    let drain = document["paths"]["/v1/drain"]["post"].as_object_mut();
    drain.unwrap().remove("parameters").unwrap();
    let file = remote.file("without-wait.json");
    std::fs::write(&file, document.to_string()).unwrap();
    fuzz(&remote, &file, &[DRAIN], sent).await;

    is_well(&remote).await;
    permits.add_permits(1);
    let ended = remote.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Queries that fit, that nearly do and that do not: the same ones each time.
fn queries(names: &'static [&str]) -> impl Iterator<Item = String> {
    const VALUES: [&str; 16] = [
        "",
        "true",
        "false",
        "True",
        "1",
        "null",
        "0198c0de-0000-7000-8000-000000000000",
        "0198c0de-0000-7000-8000-00000000000",
        "{0198c0de-0000-7000-8000-000000000000}",
        "r-1",
        "%00",
        "%ff",
        "%",
        "%E2%80%AE%F0%9F%92%A5",
        "..%2f..%2fetc%2fpasswd",
        "'%20OR%201=1%20--",
    ];
    let long = "a".repeat(2000);
    let mut state = 1_u64;
    // Numbers of a linear congruential generator, as Knuth's MMIX has it.
    let mut next = move |most: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 40).unwrap() % most
    };
    (0..LEAST).map(move |_| {
        let pairs: Vec<_> = (0..next(4))
            .map(|_| {
                let value = match next(VALUES.len() + 1) {
                    0 => long.as_str(),
                    index => VALUES[index - 1],
                };
                format!("{}={value}", names[next(names.len())])
            })
            .collect();
        pairs.join("&")
    })
}

/// The status of an answer and what it says it is; its body is not read.
async fn head(remote: &Remote, line: &str) -> (u16, String) {
    let mut stream = remote.connect().await.unwrap();
    let request =
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CONTROL_TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    let read = async {
        while !told.windows(4).any(|four| four == b"\r\n\r\n") {
            assert_ne!(
                stream.read_buf(&mut told).await.unwrap(),
                0,
                "{line}: no whole head"
            );
        }
    };
    within(SOON, line, read).await;
    let told = String::from_utf8_lossy(&told).to_ascii_lowercase();
    let (_, kind) = told.split_once("content-type: ").unwrap();
    let kind = kind.split(['\r', ';']).next().unwrap();
    (told[9..12].parse().unwrap(), kind.to_owned())
}

/// What the document says that an answer of this status is.
fn documented(document: &Value, path: &str, method: &str, status: u16) -> Option<String> {
    let content = &document["paths"][path][method]["responses"][status.to_string()]["content"];
    content.as_object()?.keys().next().cloned()
}
