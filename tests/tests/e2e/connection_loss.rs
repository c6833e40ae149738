//! The SSH connection is lost in the middle of calls: nothing looks whole that is not, nothing is sent twice, and
//! the session comes back on the same URL.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use paperclip_bridge_tests::dropbear::{self, Dropbear};
use paperclip_bridge_tests::world::Place;
use paperclip_bridge_tests::{Agent, Answer, Broken, Script, World, can_run, eventually};

use crate::outcomes::{outcome_once_settled, sightings};
use crate::ssh_can_run;

const ME: &str = "/api/agents/me";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const CALLS: usize = 1_000;
const CALLERS: usize = 16;

/// What the caller of one call saw.
struct Call {
    number: usize,
    result: Result<Answer, Broken>,
}

fn key(number: usize) -> String {
    format!("call-{number}")
}

/// Odd calls are POSTs. A call that nobody takes while the tunnel is away waits for it to come back.
async fn call(agent: &Agent, number: usize) -> Result<Answer, Broken> {
    let started = Instant::now();
    loop {
        let result = if number % 2 == 1 {
            let key = key(number);
            let headers = [
                ("content-type", "application/json"),
                ("idempotency-key", key.as_str()),
            ];
            agent.call("POST", COMMENTS, &headers, br#"{"body":"x"}"#).await
        } else {
            agent.get(ME).await
        };
        // Refused means that no byte of it left, so it is the same call.
        if !matches!(result, Err(Broken::Refused(_))) || started.elapsed() > Duration::from_secs(30) {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs all calls, and loses the connection once a third of them is done; it must be back within the limit.
async fn calls_with_a_loss(world: &World, limit: Duration) -> Vec<Call> {
    let next = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (agent, next, done) = (world.agent(), Arc::clone(&next), Arc::clone(&done));
        callers.spawn(async move {
            let mut calls = vec![];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= CALLS {
                    return calls;
                }
                calls.push(Call {
                    number,
                    result: call(&agent, number).await,
                });
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let a_third = || (done.load(Ordering::Relaxed) >= CALLS / 3).then_some(());
    eventually(Duration::from_secs(120), "a third of the calls is done", a_third).await;
    world.sshd().kill_sessions();
    works_again_within(world, limit, Instant::now()).await;
    let mut calls = vec![];
    while let Some(finished) = callers.join_next().await {
        calls.extend(finished.expect("callers do not panic"));
    }
    calls
}

/// Asserts everything that the table of outcomes promises for these calls.
async fn assert_honest(world: &World, calls: &[Call]) {
    assert_eq!(calls.len(), CALLS);
    let sightings = sightings(&world.upstream);
    assert!(
        sightings.values().all(|count| *count == 1),
        "a call was sent twice: {sightings:?}"
    );
    let mut lost = 0;
    for Call { number, result } in calls {
        let post = number % 2 == 1;
        let seen = sightings.contains_key(&key(*number));
        match result {
            Ok(answer) if answer.status == 201 && post => {
                assert!(seen, "{number} was answered and never sent")
            }
            Ok(answer) if answer.status == 200 && !post => assert_eq!(answer.text(), r#"{"ok":true}"#),
            Ok(answer) => {
                let told = (answer.status, answer.code());
                let allowed = match told.0 {
                    409 => post && told.1 == "outcome_indeterminate",
                    502 => matches!(told.1.as_str(), "upstream_failed" | "upstream_unreachable"),
                    503 => told.1 == "unavailable",
                    504 => !post && told.1 == "upstream_timeout",
                    _ => false,
                };
                assert!(allowed, "{number}: {told:?}");
            }
            // With ssh-reverse nothing of ours stands in the sandbox: the connection just ends.
            Err(Broken::Closed | Broken::Cut(_)) => {
                lost += 1;
                if post && seen {
                    let told = outcome_once_settled(world, &format!("key:{}", key(*number))).await;
                    let outcome = told["outcome"].as_str().unwrap_or_default().to_owned();
                    assert!(
                        ["answered", "indeterminate"].contains(&outcome.as_str()),
                        "{number}: {told}"
                    );
                }
            }
            Err(other) => panic!("{number}: {other:?}"),
        }
    }
    assert!(lost > 0, "the loss hit no call, so this run shows nothing");
    let dispatched: HashSet<&String> = sightings.keys().collect();
    assert!(
        dispatched.len() > CALLS / 4,
        "{} POSTs were sent",
        dispatched.len()
    );
}

async fn works_again_within(world: &World, limit: Duration, since: Instant) {
    loop {
        let answer = world.agent().get(ME).await;
        if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            return;
        }
        assert!(
            since.elapsed() < limit,
            "not back within {limit:?}: {answer:?}\n{}",
            world.bridge.running.stderr()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn world_with_slow_answers() -> World {
    let world = World::ssh().open().await;
    // Slow enough that calls are under way when the connection goes.
    world.upstream.on(
        "POST",
        COMMENTS,
        Script::json(201, r#"{"made":true}"#).after(Duration::from_millis(5)),
    );
    world.upstream.on(
        "GET",
        ME,
        Script::json(200, r#"{"ok":true}"#).after(Duration::from_millis(5)),
    );
    world
}

#[tokio::test]
async fn killing_the_connection_amid_a_thousand_calls_loses_nothing_silently_and_the_url_comes_back() {
    if !ssh_can_run() {
        return;
    }
    let world = world_with_slow_answers().await;

    let calls = calls_with_a_loss(&world, Duration::from_secs(5)).await;

    assert_honest(&world, &calls).await;
    world.assert_upstream_saw_only_what_it_may();
    let stderr = world.bridge.running.stderr();
    assert!(stderr.contains("reconnecting"), "{stderr}");
}

#[tokio::test]
async fn after_a_clean_loss_the_same_url_works_within_5_s() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;

    for _ in 0..3 {
        assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
        world.sshd().kill_sessions();
        works_again_within(&world, Duration::from_secs(5), Instant::now()).await;
    }
}

#[tokio::test]
async fn after_a_cut_link_the_same_url_works_within_20_s() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    // Frozen, the old session still holds the port.
    let frozen = world.sshd().freeze_sessions();
    let started = Instant::now();
    let back = eventually(
        Duration::from_secs(20),
        "another session listens on the same port",
        || {
            let port = world.port();
            let listens = |pid: &u32| {
                !frozen.contains(pid)
                    && paperclip_bridge_tests::processes::listening(*pid)
                        .iter()
                        .any(|address| address.port() == port)
            };
            world.sshd().sessions().iter().any(listens).then_some(())
        },
    );
    back.await;

    works_again_within(&world, Duration::from_secs(20), started).await;
}

#[tokio::test]
async fn a_restarted_server_gets_the_same_url_back() {
    if !ssh_can_run() {
        return;
    }
    let mut world = World::ssh().open().await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    let Place::Ssh(server) = &mut world.place else {
        unreachable!()
    };
    server.stop();
    server.start_again();
    let started = Instant::now();

    works_again_within(&world, Duration::from_secs(20), started).await;
}

#[tokio::test]
async fn after_a_clean_loss_dropbear_gets_the_same_url_back() {
    if !can_run(dropbear::here()) {
        return;
    }
    let server = Dropbear::start();
    let world = World::at(Place::Other(server.access())).open().await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    server.kill_sessions();

    works_again_within(&world, Duration::from_secs(10), Instant::now()).await;
}

#[tokio::test]
async fn a_server_whose_key_changed_meanwhile_is_not_gone_back_to() {
    if !ssh_can_run() {
        return;
    }
    let mut world = World::ssh().open().await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    let Place::Ssh(server) = &mut world.place else {
        unreachable!()
    };
    server.change_host_key();
    eventually(Duration::from_secs(20), "the log tells of the host key", || {
        world.bridge.running.stderr().contains("host key").then_some(())
    })
    .await;

    assert!(matches!(world.agent().get(ME).await, Err(Broken::Refused(_))));
}
