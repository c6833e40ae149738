//! A command in a sandbox of E2B or Daytona calls the API: by the better tunnel, by the other, and with nothing left.
//!
//! Every sentence is tested at each provider that [`at_each_cloud`] names.

use std::time::Duration;

use futures_util::future::join_all;
use paperclip_bridge_tests::binary::Bridge;
use paperclip_bridge_tests::clouds::{Cloud, Clouded};
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::{CREDENTIAL, assert_headers};
use paperclip_bridge_tests::{Agent, Script, can_run, eventually, processes, within};

use crate::queue::COMMENTS;

const SOON: Duration = Duration::from_secs(30);
const BODY_BYTES: usize = 1024 * 1024;
const ME: &str = "/api/agents/me";
/// Calls the API, then tells the tunnel and the sandbox's id.
const CALL: &str = r#"curl -sS -w ' %{http_code}\n' -H "Authorization: Bearer $PAPERCLIP_API_KEY" \
    "$PAPERCLIP_API_URL/api/agents/me"; echo "$PAPERCLIP_API_BRIDGE_MODE"; echo "$E2B_SANDBOX_ID$DAYTONA_SANDBOX_ID""#;

/// Makes a test of each function, for each provider.
macro_rules! at_each_cloud {
    ($($sentence:ident),* $(,)?) => {
        mod e2b {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::e2b().await).await; })*
        }
        mod daytona {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::daytona().await).await; })*
        }
        mod daytona_with_its_old_daemon {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::old_daytona().await).await; })*
        }
    };
}

at_each_cloud!(
    a_command_reaches_the_api_by_http2_v1_and_nothing_is_left_behind,
    without_a_duplex_it_reaches_the_api_by_queue_v1_and_the_reason_is_named,
    a_duplex_that_breaks_is_brought_back_at_the_same_url,
    bodies_of_any_bytes_and_many_calls_at_once_travel_through_the_duplex,
    neither_key_nor_credential_stands_where_it_does_not_belong,
    a_sandbox_that_is_lost_midway_is_told_as_a_lost_lease,
    a_lease_that_is_named_is_resumed_and_not_ended,
    a_sandbox_that_an_operator_names_still_runs_afterwards,
    a_sandbox_that_nobody_heard_of_is_found_and_ended,
);

fn agent(bridge: &Bridge) -> Agent {
    Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    }
}

/// Nothing of the sandbox, its processes or its lease is there any more.
async fn nothing_is_left(world: &Clouded, id: &str) {
    assert_eq!(world.cloud.states(), []);
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
    eventually(SOON, "no process is left of the sandbox", || {
        world.cloud.processes(id).is_empty().then_some(())
    })
    .await;
}

async fn a_command_reaches_the_api_by_http2_v1_and_nothing_is_left_behind(cloud: Cloud) {
    if !can_run(program("curl").map(drop)) {
        return;
    }
    let world = Clouded::at(cloud).await;

    let ended = world
        .command("run", "")
        .command(["sh", "-c", CALL])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["{\"ok\":true} 200", "http2_v1"], "{}", ended.stderr);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_headers(&world.upstream.seen());
    nothing_is_left(&world, lines[2]).await;
}

async fn without_a_duplex_it_reaches_the_api_by_queue_v1_and_the_reason_is_named(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    world.cloud.take_duplex_away();

    let bridge = world.open("", &[]).await.unwrap();

    let id = world.cloud.sandboxes().remove(0);
    assert_eq!(agent(&bridge).get(ME).await.unwrap().status, 200);
    assert_eq!(bridge.opened.tunnel, "queue_v1");
    let [attempt] = &bridge.opened.ladder[..] else {
        panic!("{:?}", bridge.opened.ladder)
    };
    assert_eq!(
        (&attempt["tunnel"], &attempt["reason"]),
        (&"http2_v1".into(), &"channel_open_failed".into()),
        "{attempt}"
    );
    assert_headers(&world.upstream.seen());
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    nothing_is_left(&world, &id).await;
}

async fn a_duplex_that_breaks_is_brought_back_at_the_same_url(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let bridge = world.open("", &["--tunnel", "http2_v1"]).await.unwrap();
    let agent = agent(&bridge);
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
    let before = world.cloud.duplexes();

    world.cloud.cut_duplexes();

    eventually(SOON, "another byte stream is asked for", || {
        (world.cloud.duplexes() > before).then_some(())
    })
    .await;
    let answered = async { while !agent.get(ME).await.is_ok_and(|answer| answer.status == 200) {} };
    within(SOON, "the same URL answers again", answered).await;
    let id = world.cloud.sandboxes().remove(0);
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    nothing_is_left(&world, &id).await;
}

async fn bodies_of_any_bytes_and_many_calls_at_once_travel_through_the_duplex(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let bridge = world.open("", &["--tunnel", "http2_v1"]).await.unwrap();
    let agent = agent(&bridge);
    let json = ("content-type", "application/json");
    // Every pair of bytes stands in it, those that a terminal would take for itself too.
    let body: Vec<u8> = (0..=u8::MAX)
        .flat_map(|first| (0..=u8::MAX).flat_map(move |second| [first, second]))
        .cycle()
        .take(BODY_BYTES)
        .collect();
    let echo = Script::answer(200, &[json], &body);
    world.upstream.on("POST", COMMENTS, echo);

    let answer = agent.call("POST", COMMENTS, &[json], &body).await.unwrap();
    let at_once = join_all((0..64).map(|_| agent.get(ME))).await;

    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "another body came back");
    assert!(world.upstream.seen()[0].body == body, "another body arrived");
    for answer in at_once {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(world.cloud.duplexes(), 1, "{}", bridge.running.stderr());
    assert_eq!(bridge.close().await.code, Some(0));
}

async fn neither_key_nor_credential_stands_where_it_does_not_belong(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let key = world.cloud.key();
    let bridge = world.open("", &["--log-level", "debug"]).await.unwrap();
    assert_eq!(agent(&bridge).get(ME).await.unwrap().status, 200);
    let id = world.cloud.sandboxes().remove(0);

    let inside = world.cloud.processes(&id);
    assert!(!inside.is_empty(), "the gateway runs");
    let mut shown = vec![processes::command_line(bridge.running.pid())];
    for pid in inside {
        shown.extend([processes::command_line(pid), processes::environment(pid)]);
    }
    let mut shown: Vec<String> = shown
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect();
    shown.push(world.written());
    shown.push(format!("{:?}", bridge.opened));
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let refused = world.command("run", "none-such").command(["true"]).finish().await;
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    shown.extend([ended.stdout, ended.stderr, refused.stderr]);
    shown.extend(world.cloud.told());
    for text in shown {
        assert!(!text.contains(key) && !text.contains(CREDENTIAL), "{text}");
    }
    let fields = world.cloud.headers_with_the_key();
    assert_eq!(fields.len(), 1, "{fields:?}");
    for request in world.upstream.seen() {
        assert!(!format!("{request:?}").contains(key));
    }
}

async fn a_sandbox_that_is_lost_midway_is_told_as_a_lost_lease(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let mut running = world
        .command("run", "")
        .command(["sh", "-c", "echo up; exec sleep 1000"])
        .start();
    // Daytona takes all of a command's input before it starts it.
    running.close_stdin();
    eventually(SOON, "the command runs", || {
        running.stdout().contains("up").then_some(())
    })
    .await;

    let id = world.cloud.sandboxes().remove(0);
    world.cloud.lose(&id);

    let ended = running.finish().await;
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    assert!(ended.stderr.contains("lease_lost"), "{}", ended.stderr);
    nothing_is_left(&world, &id).await;
}

async fn a_lease_that_is_named_is_resumed_and_not_ended(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let run = async |id: &str, script: &str| {
        let command = world.command("run", id).args(["--provider", "reuseLease=true"]);
        command.command(["sh", "-c", script]).finish().await
    };
    let first = run("", "echo kept > file").await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let id = world.cloud.sandboxes().remove(0);

    let second = run(&id, "cat file; echo \"$PAPERCLIP_API_BRIDGE_MODE\"").await;
    let gone = run("none-such", "true").await;

    assert_eq!(
        (second.code, second.stdout.as_str()),
        (Some(0), "kept\nhttp2_v1\n"),
        "{}",
        second.stderr
    );
    assert_eq!(gone.code, Some(4), "{}", gone.stderr);
    assert!(gone.stderr.contains("lease_lost"), "{}", gone.stderr);
    let [(kept, state)] = &world.cloud.states()[..] else {
        panic!("{:?}", world.cloud.states())
    };
    assert_eq!(kept, &id);
    assert!(["paused", "stopped"].contains(&state.as_str()), "{state}");
    assert!(!world.cloud.ended_any());
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}

async fn a_sandbox_that_an_operator_names_still_runs_afterwards(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let made = world
        .command("run", "")
        .args(["--provider", "reuseLease=true"])
        .command(["sh", "-c", "echo kept > file"])
        .finish()
        .await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let id = world.cloud.sandboxes().remove(0);

    let ran = world.command("run", &id).command(["cat", "file"]).finish().await;
    let killed = world.open(&id, &[]).await.unwrap();
    assert_eq!(agent(&killed).get(ME).await.unwrap().status, 200);
    killed.running.signal("KILL");
    killed.running.finish().await;
    let reaped = world.leases("reap").await;

    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "kept\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(reaped.code, Some(0), "{}{}", reaped.stdout, reaped.stderr);
    assert!(reaped.stdout.contains("left_alone"), "{}", reaped.stdout);
    let [(there, state)] = &world.cloud.states()[..] else {
        panic!("{:?}", world.cloud.states())
    };
    assert_eq!(there, &id);
    assert!(["running", "started"].contains(&state.as_str()), "{state}");
    assert!(!world.cloud.ended_any());
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}

async fn a_sandbox_that_nobody_heard_of_is_found_and_ended(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    // Of the same run, had and kept: that is not the one.
    let kept = world
        .command("run", "")
        .args(["--provider", "reuseLease=true"])
        .command(["true"])
        .finish()
        .await;
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    let kept = world.cloud.sandboxes();
    world.cloud.lose_the_next_sandbox();

    let starting = world.command("run", "").command(["true"]).start();
    eventually(SOON, "the sandbox is made", || {
        (world.cloud.sandboxes().len() == 2).then_some(())
    })
    .await;
    starting.signal("KILL");
    starting.finish().await;
    world.cloud.lose_no_more();
    let left = world.cloud.sandboxes();
    let reaped = world.leases("reap").await;

    assert_eq!(left.len(), 2);
    assert_eq!(reaped.code, Some(0), "{}{}", reaped.stdout, reaped.stderr);
    assert_eq!(world.cloud.sandboxes(), kept);
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}
