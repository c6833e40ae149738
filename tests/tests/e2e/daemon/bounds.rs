//! Bounds of the configuration, each followed: what is not within one meets it.

use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Upstream, Wire, eventually, within};
use serde_json::Value;

use super::SOON;
use super::configured::{configured, session, with_upstream, write};
use super::ending::in_flight;

const ADHOC: &str = "[control]\nadhoc = true\n";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");
/// Two of them are more than a mebibyte.
const LARGE: usize = 700 * 1024;

fn text(upstream: &Upstream, more: &str) -> String {
    with_upstream(upstream, &format!("{ADHOC}{more}"))
}

/// The head of a large upload whose sender waits for leave to go on, and what it is told: `HTTP/1.1 100`, or its answer.
async fn upload(opened: &Opened) -> (Wire, String) {
    let mut wire = Wire::connect(&opened.url).await.unwrap();
    let expects = [JSON, ("expect", "100-continue")];
    let head = agent(opened).head("POST", COMMENTS, &expects, Some(LARGE));
    wire.send(&head).await.unwrap();
    let told = within(SOON, "an answer", wire.peek("HTTP/1.1 100".len()))
        .await
        .unwrap();
    (wire, String::from_utf8_lossy(&told).into_owned())
}

#[tokio::test]
async fn bodies_have_room_up_to_that_of_their_session_and_that_of_the_process() {
    let upstream = Upstream::start().await;
    let bounds = |process| {
        let more = format!(
            "[limits]\nmax_body = \"1MiB\"\nbytes = {{ session = \"1MiB\", process = \"{process}\" }}\n"
        );
        text(&upstream, &more)
    };
    let serving = configured(&bounds("16MiB")).await;
    let (one, other) = (session(&serving, &[]).await, session(&serving, &[]).await);
    let (_first, admitted) = upload(&one).await;
    assert!(admitted.starts_with("HTTP/1.1 100"), "{admitted}");

    let (_second, of_the_same) = upload(&one).await;
    let (elsewhere, of_another) = upload(&other).await;

    assert!(of_the_same.starts_with("HTTP/1.1 503"), "{of_the_same}");
    assert!(of_another.starts_with("HTTP/1.1 100"), "{of_another}");
    drop(elsewhere);
    write(serving.folder.path(), &bounds("1MiB"));
    assert_eq!(
        serving.ask(&["reload"]).await["changed"][0],
        "limits.bytes.process"
    );
    let (_third, beyond_all) = upload(&other).await;
    assert!(beyond_all.starts_with("HTTP/1.1 503"), "{beyond_all}");
}

#[tokio::test]
async fn a_session_may_miss_as_many_heartbeats_as_was_said() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "[sessions]\nmisses = 100\n")).await;
    let silent = session(&serving, &["--heartbeat", "500ms"]).await;
    // Its end is later than that of one that may miss three.
    let short = session(&serving, &["--ttl", "5s"]).await;

    let ended = serving.until(&short.session, "ended").await;

    assert_eq!(ended["reason"], "expired");
    assert_eq!(
        serving.until(&silent.session, "ready").await["reason"],
        Value::Null
    );
    // What lives is held to it, too.
    write(
        serving.folder.path(),
        &text(&upstream, "[sessions]\nmisses = 1\n"),
    );
    assert_eq!(serving.ask(&["reload"]).await["changed"][0], "sessions.misses");
    let next = session(&serving, &["--heartbeat", "500ms"]).await;
    let ended = serving.until(&next.session, "ended").await;
    assert_eq!(ended["reason"], "heartbeat_missed");
}

#[tokio::test]
async fn callbacks_under_way_at_the_daemon_s_end_get_as_long_as_was_said() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "[drain]\ntimeout = \"1s\"\n")).await;
    let opened = session(&serving, &[]).await;
    let (mut caller, _permits) = in_flight(&upstream, &opened, "k-1").await;

    let begun = Instant::now();
    serving.running.signal("TERM");
    let ended = serving.running.finish().await;

    // By default it would be half a minute.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(caller.is_closed_within(SOON).await || caller.answer("POST").await.is_err());
}

#[tokio::test]
async fn a_session_that_has_ended_is_forgotten_when_it_was_said() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "[sessions]\nkeep_ended = \"0s\"\n")).await;
    let opened = session(&serving, &[]).await;
    assert_eq!(count(&serving).await, 1);

    serving.ask(&["sessions", "revoke", &opened.session]).await;

    let gone = async {
        while count(&serving).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(SOON, "it is forgotten", gone).await;
    let shown = serving.run(&["sessions", "show", &opened.session]).await;
    assert_ne!(shown.code, Some(0));
    assert!(shown.stderr.contains("session_unknown"), "{}", shown.stderr);
}

async fn count(serving: &Serving) -> usize {
    serving.ask(&["sessions", "ls"]).await["sessions"]
        .as_array()
        .unwrap()
        .len()
}

#[tokio::test]
async fn only_bodies_up_to_the_size_that_was_said_are_digested_for_the_audit() {
    let upstream = Upstream::start().await;
    let serving = configured(&text(&upstream, "[audit]\nbody_digest_max = \"100B\"\n")).await;
    let opened = session(&serving, &[]).await;

    for length in [100, 101] {
        let body = format!("\"{}\"", "x".repeat(length - 2));
        let answer = agent(&opened)
            .call("POST", COMMENTS, &[JSON], body.as_bytes())
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    let folder = serving.folder.path().join("state/audit");
    let outcomes = eventually(SOON, "both outcomes are written down", || {
        let segments = std::fs::read_dir(&folder).ok()?.filter_map(Result::ok);
        let segments = segments.filter(|file| file.path().extension().is_some_and(|end| end == "jsonl"));
        let text: String = segments
            .map(|file| std::fs::read_to_string(file.path()).unwrap())
            .collect();
        let records = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let outcomes: Vec<_> = records
            .filter(|record| record["request_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
            .collect();
        (outcomes.len() == 2).then_some(outcomes)
    })
    .await;
    let digested = |bytes: u64| {
        let of = outcomes.iter().find(|record| record["request_bytes"] == bytes);
        of.unwrap()["request_sha256"].is_string()
    };
    assert_eq!((digested(100), digested(101)), (true, false));
}
