//! Sandboxes of E2B and Daytona are probed, and those that were there before are left as they are.
//!
//! Every sentence is tested at each provider that [`at_each_cloud`] names.

use std::path::PathBuf;
use std::time::Duration;

use paperclip_bridge_tests::clouds::{Cloud, Clouded, KEY_VARIABLE};
use paperclip_bridge_tests::eventually;

use super::Probed;

const SOON: Duration = Duration::from_secs(30);

/// Makes a test of each function, for each provider.
macro_rules! at_each_cloud {
    ($($sentence:ident),* $(,)?) => {
        mod e2b {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::e2b().await).await; })*
        }
        mod daytona {
            $(#[tokio::test] async fn $sentence() { super::$sentence(super::Cloud::daytona().await).await; })*
        }
    };
}

at_each_cloud!(
    a_sandbox_is_made_probed_and_ended,
    without_a_duplex_the_queue_is_found_to_work,
    a_wrong_key_is_told_as_a_refusal,
    an_address_where_nobody_listens_is_told_as_unreachable,
    a_sandbox_that_was_there_before_is_left_as_it_is,
    a_sandbox_that_was_there_before_outlives_a_probe_that_is_killed,
    a_sandbox_that_is_not_there_is_a_lost_lease,
);

async fn probe(world: &Clouded, id: &str) -> Probed {
    Probed::of(world.command("probe", id).args(["--json"]).finish().await)
}

fn nothing_is_written_down(world: &Clouded) {
    assert_eq!(world.entries(), Vec::<PathBuf>::new());
}

async fn a_sandbox_is_made_probed_and_ended(cloud: Cloud) {
    let world = Clouded::at(cloud).await;

    let probed = probe(&world, "").await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "http2_v1");
    probed.assert_is(
        "ok",
        &[
            "target",
            "command",
            "shell",
            "lease",
            "callback http2_v1",
            "callback queue_v1",
        ],
    );
    assert_eq!(world.cloud.states(), []);
    nothing_is_written_down(&world);
}

async fn without_a_duplex_the_queue_is_found_to_work(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    world.cloud.take_duplex_away();

    let probed = probe(&world, "").await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "queue_v1");
    probed.assert_is("fail", &["tunnel http2_v1"]);
    probed.assert_is("ok", &["callback queue_v1", "lease"]);
    assert_eq!(world.cloud.states(), []);
}

async fn a_wrong_key_is_told_as_a_refusal(cloud: Cloud) {
    let world = Clouded::at(cloud).await;

    let command = world.command("probe", "").args(["--json"]);
    let probed = Probed::of(command.env(KEY_VARIABLE, "another_account").finish().await);

    probed.assert_unreached("provider_refused");
    let told = probed.check("target")["found"].as_str().unwrap();
    assert!(
        told.contains("401") && told.contains("API key") && !told.contains("another_account"),
        "{told}"
    );
    nothing_is_written_down(&world);
}

async fn an_address_where_nobody_listens_is_told_as_unreachable(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };

    let command = world.command("probe", "").args(["--json", "--provider"]);
    let probed = Probed::of(command.args([format!("apiUrl=http://{closed}")]).finish().await);

    probed.assert_unreached("provider_unreachable");
    assert_eq!(world.cloud.states(), []);
    nothing_is_written_down(&world);
}

/// A sandbox that somebody has and keeps, at rest.
async fn kept(world: &Clouded) -> String {
    let command = world.command("run", "").args(["--provider", "reuseLease=true"]);
    let made = command.command(["true"]).finish().await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    world.cloud.sandboxes().remove(0)
}

/// It runs, and nobody has asked for its end or for its rest.
fn assert_untouched(world: &Clouded, id: &str) {
    let [(there, state)] = &world.cloud.states()[..] else {
        panic!("{:?}", world.cloud.states())
    };
    assert_eq!(there, id);
    assert!(["running", "started"].contains(&state.as_str()), "{state}");
    assert!(!world.cloud.ended_any());
    nothing_is_written_down(world);
}

async fn a_sandbox_that_was_there_before_is_left_as_it_is(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let id = kept(&world).await;

    // Also where a session would put it to rest.
    for options in [&["--json"][..], &["--json", "--provider", "reuseLease=true"]] {
        let command = world.command("probe", &id).args(options.iter().copied());
        let probed = Probed::of(command.finish().await);

        assert_eq!(probed.code, Some(0), "{}", probed.report);
        let left = probed.check("lease")["found"].as_str().unwrap();
        assert!(left.contains("left as it is"), "{left}");
        assert_untouched(&world, &id);
    }
}

async fn a_sandbox_that_was_there_before_outlives_a_probe_that_is_killed(cloud: Cloud) {
    let world = Clouded::at(cloud).await;
    let id = kept(&world).await;
    let before = world.cloud.duplexes();

    let probing = world.command("probe", &id).args(["--json"]).start();
    eventually(SOON, "the tunnels are tried", || {
        (world.cloud.duplexes() > before).then_some(())
    })
    .await;
    probing.signal("KILL");
    probing.finish().await;
    let written = world.entries().len();
    let reaped = world.leases("reap").await;

    assert_eq!(written, 1);
    assert_eq!(reaped.code, Some(0), "{}{}", reaped.stdout, reaped.stderr);
    assert!(reaped.stdout.contains("left_alone"), "{}", reaped.stdout);
    assert_untouched(&world, &id);
}

async fn a_sandbox_that_is_not_there_is_a_lost_lease(cloud: Cloud) {
    let world = Clouded::at(cloud).await;

    let probed = probe(&world, "none-such").await;

    probed.assert_unreached("lease_lost");
    nothing_is_written_down(&world);
}
