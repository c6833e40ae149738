//! A Worker that is probed, well and behind the faults of a configuration, and one whose answer to an acquire is lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::binary::Finished;
use paperclip_bridge_tests::eventually;
use paperclip_bridge_tests::workerd::{Settings, TOKEN, key};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::worker_target::World;

const LIMIT: Duration = Duration::from_secs(30);

fn report(ended: &Finished) -> Value {
    for secret in [TOKEN, &STANDARD.encode(key()), "prt1.", "pcb_"] {
        assert!(!ended.stdout.contains(secret), "{}", ended.stdout);
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr))
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("a list");
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check {name}: {report}"))
}

#[tokio::test]
async fn a_worker_is_probed_over_its_relay_and_by_queue_v1() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };

    let ended = world.session("probe").args(["--json"]).finish().await;

    let report = report(&ended);
    assert_eq!(
        (ended.code, &report["tunnel"]),
        (Some(0), &json!("worker")),
        "{report}"
    );
    for name in [
        "target",
        "command",
        "shell",
        "callback worker",
        "callback queue_v1",
        "lease",
    ] {
        assert_eq!(check(&report, name)["result"], "ok", "{report}");
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn people_get_a_table_of_a_worker() {
    let Some(world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };

    let ended = world.session("probe").args(["--tunnel", "worker"]).finish().await;

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for told in ["Check ", "callback worker", "Sessions work there, over worker"] {
        assert!(ended.stdout.contains(told), "{}", ended.stdout);
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_stands_between_us_and_a_worker_is_named() {
    let Some(mut world) = World::new(&Settings::default(), json!({})).await else {
        return;
    };
    let url = world.config["bridgeBaseUrl"].clone();
    // Nobody listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let other_key = STANDARD.encode([7; 32]);
    let rows = [
        (
            json!(format!("http://{closed}")),
            None,
            "provider_unreachable",
            "Connection refused",
        ),
        // A host of the same Worker that serves no bridge API.
        (
            json!(world.worker.relay_url),
            None,
            "provider_refused",
            "without a signature",
        ),
        (
            url.clone(),
            Some(("WORKER_TOKEN", "another")),
            "provider_refused",
            "BRIDGE_AUTH_TOKEN",
        ),
        (
            url.clone(),
            Some(("WORKER_KEY", other_key.as_str())),
            "provider_refused",
            "signingKey is not the key",
        ),
    ];
    for (base, variable, reason, found) in rows {
        world.config.insert("bridgeBaseUrl".to_owned(), base);
        let mut command = world.session("probe").args(["--json"]);
        if let Some((name, value)) = variable {
            command = command.env(name, value);
        }

        let ended = command.finish().await;

        assert_unreached(&ended, reason, found);
        assert_eq!(world.leases(), 0);
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_with_how_far_it_is() {
    let settings = Settings {
        variables: [("TEST_CLOCK_OFF_MS".to_owned(), "-4000000".to_owned())].into(),
        ..Settings::default()
    };
    let Some(world) = World::new(&settings, json!({})).await else {
        return;
    };

    let ended = world.session("probe").args(["--json"]).finish().await;

    assert_unreached(&ended, "provider_refused", "apart: set the clock");
    let report = report(&ended);
    let found = check(&report, "target")["found"].as_str().expect("a text");
    let apart = found
        .split_whitespace()
        .find_map(|word| word.parse::<u64>().ok().filter(|word| *word > 3000));
    assert!((4000..4060).contains(&apart.expect("a number")), "{found}");
}

fn assert_unreached(ended: &Finished, reason: &str, found: &str) {
    let report = report(ended);
    let target = check(&report, "target");
    assert_eq!(
        (ended.code, &target["reason"]),
        (Some(4), &json!(reason)),
        "{report}"
    );
    let text = target["found"].as_str().expect("a text");
    assert!(text.contains(found), "{found}: {report}");
    assert!(target["to_do"].is_string(), "{report}");
}

/// Carries both ways, and keeps the answer to an acquire back.
async fn withholding(mut near: TcpStream, to: String, withheld: Arc<AtomicBool>) -> Option<()> {
    let mut far = TcpStream::connect(to).await.ok()?;
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut acquires = false;
    loop {
        tokio::select! {
            count = near.read(&mut asked) => {
                let asked = &asked[..count.ok().filter(|count| *count > 0)?];
                acquires |= String::from_utf8_lossy(asked).contains("/leases/acquire ");
                far.write_all(asked).await.ok()?;
            }
            count = far.read(&mut answered) => {
                let answered = &answered[..count.ok().filter(|count| *count > 0)?];
                if acquires {
                    withheld.store(true, Ordering::Relaxed);
                } else {
                    near.write_all(answered).await.ok()?;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_lease_whose_answer_was_lost_with_its_daemon_is_had_again_and_given_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let settings = Settings {
        allowed_hosts: vec![host.clone()],
        ..Settings::default()
    };
    let Some(mut world) = World::new(&settings, json!({})).await else {
        return;
    };
    let to = world.worker.url.trim_start_matches("http://").to_owned();
    let withheld = Arc::new(AtomicBool::new(false));
    let lost = Arc::clone(&withheld);
    let _proxy = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            connections.spawn(withholding(near, to.clone(), Arc::clone(&lost)));
        }
    }));
    let straight = world
        .config
        .insert("bridgeBaseUrl".to_owned(), json!(format!("http://{host}")))
        .expect("it was there");
    let folder = world.config["requestedCwd"]
        .as_str()
        .expect("it is set")
        .to_owned();
    let daemon = world.session("open").args(["--json"]).start();
    eventually(LIMIT, "the Worker has answered to nobody", || {
        withheld.load(Ordering::Relaxed).then_some(())
    })
    .await;
    daemon.signal("KILL");
    daemon.finish().await;
    assert!(Path::new(&folder).exists() && world.leases() == 1);

    world.config.insert("bridgeBaseUrl".to_owned(), straight);
    let reaped = world.command(&["leases", "reap", "worker"]).finish().await;

    assert_eq!(reaped.code, Some(0), "{}{}", reaped.stdout, reaped.stderr);
    world.nothing_is_left().await;
}
