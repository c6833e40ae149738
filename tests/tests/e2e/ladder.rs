//! Which tunnel is taken where the best one is not to be had, and what is said of it.

use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::{Place, World, daemon};
use paperclip_bridge_tests::{Upstream, processes};

use crate::ssh_can_run;

const ME: &str = "/api/agents/me";

#[tokio::test]
async fn without_forwarding_calls_travel_by_http2_v1_and_the_reason_is_told() {
    if !ssh_can_run() {
        return;
    }
    let world = World::over(Sshd::builder().line("AllowTcpForwarding no").start())
        .open()
        .await;

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!(answer.status, 200);
    let opened = &world.bridge.opened;
    assert_eq!(opened.tunnel, "http2_v1");
    assert_eq!(opened.env["PAPERCLIP_API_BRIDGE_MODE"], "http2_v1");
    assert_eq!(opened.ladder.len(), 1, "{:?}", opened.ladder);
    assert_eq!(opened.ladder[0]["tunnel"], "ssh-reverse");
    assert_eq!(opened.ladder[0]["reason"], "forwarding_refused");
    assert!(opened.ladder[0]["ms"].is_u64() && opened.ladder[0]["detail"].is_string());
    world.assert_upstream_saw_only_what_it_may();
    let port = world.port();
    let ended = world.bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for told in [
        "ssh-reverse not taken: forwarding_refused (",
        " ms; http2_v1 taken",
    ] {
        assert_eq!(ended.stderr.matches(told).count(), 1, "{}", ended.stderr);
    }
    assert!(!processes::anyone_listens(port), "the port still listens");
}

#[tokio::test]
async fn each_tunnel_with_a_gateway_serves_an_ssh_target_and_this_machine() {
    if !ssh_can_run() {
        return;
    }
    for tunnel in ["http2_v1", "queue_v1"] {
        for place in [Place::Local, Place::Ssh(Box::new(Sshd::start()))] {
            let world = World::at(place).args(["--tunnel", tunnel]).open().await;

            let answer = world.agent().get(ME).await.unwrap();

            assert_eq!(answer.status, 200, "{tunnel}");
            assert_eq!(world.bridge.opened.tunnel, tunnel);
            let port = world.port();
            let ended = world.bridge.close().await;
            assert_eq!(ended.code, Some(0), "{tunnel}: {}", ended.stderr);
            assert!(
                !processes::anyone_listens(port),
                "{tunnel}: the port still listens"
            );
        }
    }
}

#[tokio::test]
async fn a_tunnel_that_is_demanded_is_the_only_one_that_is_tried() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = folder.path().join("gateway");
    std::fs::write(&gateway, "no program").unwrap();

    let ended = daemon("open", &Place::Local, &upstream.url())
        .args(["--tunnel", "http2_v1", "--gateway", gateway.to_str().unwrap()])
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(!ended.stderr.contains("queue_v1"), "{}", ended.stderr);
}
