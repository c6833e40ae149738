//! A daemon with a queue that is killed in the middle of calls, and started again with the same state folder.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::Bridge;
use paperclip_bridge_tests::world::{Place, daemon};
use paperclip_bridge_tests::{Agent, Script, eventually, processes};
use tokio::task::JoinSet;

use crate::outcomes::sightings;
use crate::queue::{COMMENTS, ME, Sandbox, agent, port};
use crate::ssh_can_run;

const ROUNDS: usize = 4;
const CALLERS: usize = 8;
/// The gateway's own limit, with room for its answer.
const DEADLINE: Duration = Duration::from_secs(33);

async fn kill(bridge: Bridge) {
    bridge.running.signal("KILL");
    bridge.running.finish().await;
}

/// Calls until told to end; each answer is one that the state of the matter allows.
async fn caller(agent: Agent, name: String, end: tokio_util::sync::CancellationToken) -> (usize, usize) {
    let (mut whole, mut unknown) = (0, 0);
    let mut number = 0;
    while !end.is_cancelled() {
        number += 1;
        let key = format!("{name}-{number}");
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", key.as_str()),
        ];
        let started = Instant::now();
        let answer = match number % 3 {
            0 => agent.get(ME).await,
            _ => agent.call("POST", COMMENTS, &headers, b"{}").await,
        };
        assert!(started.elapsed() < DEADLINE, "{key} took {:?}", started.elapsed());
        let answer = answer.unwrap_or_else(|broken| panic!("{key}: {broken:?}"));
        match answer.status {
            200 | 201 => whole += 1,
            409 => {
                assert_eq!(answer.header("x-paperclip-bridge-outcome"), Some("indeterminate"));
                assert_ne!(number % 3, 0, "{key}: a read has no unknown outcome");
                unknown += 1;
            }
            status => panic!("{key}: {status} {}", answer.text()),
        }
    }
    (whole, unknown)
}

#[tokio::test]
async fn a_killed_host_takes_up_its_queue_and_sends_no_write_twice() {
    killed_again_and_again(&Sandbox::local().await).await;
}

#[tokio::test]
async fn a_killed_host_takes_up_its_queue_over_ssh_and_sends_no_write_twice() {
    if ssh_can_run() {
        killed_again_and_again(&Sandbox::ssh().await).await;
    }
}

async fn killed_again_and_again(sandbox: &Sandbox) {
    let state = sandbox.folder.path().join("state");
    let arguments = ["--state-dir", state.to_str().unwrap()];
    let slow = Duration::from_millis(30);
    sandbox
        .upstream
        .on("POST", COMMENTS, Script::json(201, "{}").after(slow));
    let mut bridge = sandbox.open(&arguments).await;
    let first = bridge.opened.clone();
    let end = tokio_util::sync::CancellationToken::new();
    let mut callers = JoinSet::new();
    for name in 0..CALLERS {
        callers.spawn(caller(agent(&bridge), format!("c{name}"), end.clone()));
    }

    for round in 0..ROUNDS {
        let mark = sandbox.upstream.count();
        eventually(Duration::from_secs(30), "calls are under way", || {
            (sandbox.upstream.count() > mark + 12).then_some(())
        })
        .await;
        kill(bridge).await;
        bridge = sandbox.open(&arguments).await;
        let again = &bridge.opened;
        assert_eq!(
            (&again.url, &again.session),
            (&first.url, &first.session),
            "round {round}"
        );
        assert_eq!(again.token, "", "only its digest was kept");
    }
    let mark = sandbox.upstream.count();
    eventually(Duration::from_secs(30), "calls go on", || {
        (sandbox.upstream.count() > mark + 12).then_some(())
    })
    .await;
    end.cancel();
    let told = callers.join_all().await;

    let whole: usize = told.iter().map(|(whole, _)| whole).sum();
    let unknown: usize = told.iter().map(|(_, unknown)| unknown).sum();
    eprintln!("{whole} whole answers, {unknown} of unknown outcome");
    assert!(whole > 0);
    let sightings = sightings(&sandbox.upstream);
    assert!(sightings.values().all(|count| *count == 1), "{sightings:?}");
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    sandbox.is_clean_after(&first.session, port(&first.url)).await;
}

#[tokio::test]
async fn a_killed_run_leaves_a_gateway_and_a_queue_that_the_next_one_clears_away() {
    let sandbox = Sandbox::local().await;
    let state = sandbox.folder.path().join("state");
    let run = |script: &str| {
        daemon("run", &Place::Local, &sandbox.upstream.url())
            .args(["--tunnel", "queue_v1", "--state-dir", state.to_str().unwrap()])
            .command(["sh", "-c", script])
            .env("HOME", sandbox.folder.path().to_str().unwrap())
    };
    let queues = || {
        let entries = std::fs::read_dir(sandbox.folder.path().join(".cache/paperclip-bridge"));
        let names = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names
            .filter_map(|name| name.strip_prefix("q-").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let killed = run("echo started; read line").start();
    eventually(Duration::from_secs(60), "its command runs", || {
        killed.stdout().contains("started").then_some(())
    })
    .await;
    killed.signal("KILL");
    killed.finish().await;
    let left = queues();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        !sandbox.processes(&left[0]).is_empty(),
        "no gateway was left to clear away"
    );

    let ended = run("exit 7").finish().await;

    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert_eq!(queues(), Vec::<String>::new());
    eventually(Duration::from_secs(5), "its gateway has ended", || {
        sandbox.processes(&left[0]).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_gateway_comes_back_on_its_port_and_says_so_while_another_has_taken_it() {
    let sandbox = Sandbox::local().await;
    let bridge = sandbox.open(&[]).await;
    let agent = agent(&bridge);
    let opened = bridge.opened.clone();
    let port = port(&opened.url);
    assert_eq!(agent.get(ME).await.unwrap().status, 200);

    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let gateway = processes::all()
        .into_iter()
        .find(|one| processes::listening(one.pid).contains(&address))
        .expect("somebody listens");
    processes::signal(gateway.pid, "KILL");
    let taken = eventually(Duration::from_secs(5), "the port is free", || {
        TcpListener::bind(address).ok()
    })
    .await;
    eventually(
        Duration::from_secs(30),
        "it is told that the port is taken",
        || bridge.running.stderr().contains("port_taken").then_some(()),
    )
    .await;
    drop(taken);

    let back = Instant::now();
    while !agent.get(ME).await.is_ok_and(|answer| answer.status == 200) {
        assert!(
            back.elapsed() < Duration::from_secs(40),
            "not back: {}",
            bridge.running.stderr()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    sandbox.is_clean_after(&opened.session, port).await;
}
