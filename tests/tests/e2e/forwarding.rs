//! Reverse forwards on servers of all kinds: refused, exposed, changed, restricted, Dropbear.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use paperclip_bridge_tests::dropbear::{self, Dropbear};
use paperclip_bridge_tests::sshd::{Access, Sshd};
use paperclip_bridge_tests::world::Place;
use paperclip_bridge_tests::{Wire, World, can_run, eventually, processes};

use crate::ssh_can_run;

const ME: &str = "/api/agents/me";
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_session_ends_with_its_stdin_and_leaves_no_listener() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    let port = world.port();
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
    assert_eq!(world.bridge.opened.tunnel, "ssh-reverse");
    let addresses = world.sshd().forwards();
    assert!(
        !addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()),
        "{addresses:?}"
    );

    let World { bridge, place, .. } = world;
    let ended = bridge.close().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!processes::anyone_listens(port), "the port still listens");
    let Place::Ssh(server) = &place else {
        unreachable!()
    };
    eventually(SOON, "the server has no session left", || {
        server.sessions().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_ends_with_sigterm_and_leaves_no_listener() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    let port = world.port();

    world.bridge.running.signal("TERM");
    let World {
        bridge,
        upstream: _upstream,
        place: _place,
    } = world;
    let ended = bridge.running.finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!processes::anyone_listens(port), "the port still listens");
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_no_listener_either() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    let port = world.port();

    world.bridge.running.signal("KILL");

    eventually(SOON, "the port is free", || {
        (!processes::anyone_listens(port)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_refuses_forwarding_is_named_with_its_setting() {
    if !ssh_can_run() {
        return;
    }
    for (line, setting) in [
        ("AllowTcpForwarding no", "AllowTcpForwarding"),
        ("AllowTcpForwarding local", "AllowTcpForwarding"),
        ("PermitListen none", "PermitListen"),
        ("DisableForwarding yes", "DisableForwarding"),
    ] {
        let refused = World::over(Sshd::builder().line(line).start())
            .args(["--tunnel", "ssh-reverse"])
            .try_open()
            .await;

        let Err((_, ended)) = refused else {
            panic!("{line}: it opened")
        };
        assert_eq!(ended.code, Some(4), "{line}: {}", ended.stderr);
        assert!(ended.stderr.contains(setting), "{line}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("forwarding_refused"),
            "{line}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn a_forward_that_others_could_reach_is_taken_back() {
    if !ssh_can_run() {
        return;
    }
    let refused = World::over(Sshd::builder().line("GatewayPorts yes").start())
        .args(["--tunnel", "ssh-reverse"])
        .try_open()
        .await;

    let Err((place, ended)) = refused else {
        panic!("it opened")
    };
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("forward_not_loopback"), "{}", ended.stderr);
    assert!(ended.stderr.contains("GatewayPorts"), "{}", ended.stderr);
    let Place::Ssh(server) = &place else {
        unreachable!()
    };
    eventually(SOON, "nothing listens", || {
        server.forwards().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_exposed_forward_can_be_allowed_and_is_warned_of() {
    if !ssh_can_run() {
        return;
    }
    let server = Sshd::builder().line("GatewayPorts yes").start();
    let world = World::over(server).args(["--allow-exposed-forward"]).open().await;

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!(answer.status, 200);
    let exposed = world
        .sshd()
        .forwards()
        .iter()
        .any(|address| address.ip().is_unspecified());
    assert!(exposed, "the server of this test does not expose its forwards");
    let stderr = world.bridge.running.stderr();
    assert!(
        stderr.contains("WARN") && stderr.contains("other machines"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_changed_host_key_is_refused_with_what_to_do() {
    if !ssh_can_run() {
        return;
    }
    let mut server = Sshd::start();
    server.change_host_key();

    let Err((_, ended)) = World::over(server).try_open().await else {
        panic!("it opened")
    };

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("host key") && ended.stderr.contains("known_hosts"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_refused_and_not_learned() {
    if !ssh_can_run() {
        return;
    }
    let server = Sshd::start();
    let folder = tempfile::tempdir().unwrap();
    let known_hosts = folder.path().join("known_hosts");
    std::fs::write(&known_hosts, "").unwrap();
    let access = Access {
        known_hosts: known_hosts.clone(),
        ..server.access()
    };

    let Err((_, ended)) = World::at(Place::Other(access)).try_open().await else {
        panic!("it opened")
    };

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert_eq!(std::fs::read_to_string(&known_hosts).unwrap(), "");
}

#[tokio::test]
async fn one_session_a_connection_is_enough() {
    if !ssh_can_run() {
        return;
    }
    let world = World::over(Sshd::builder().line("MaxSessions 1").start())
        .open()
        .await;

    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_account_without_a_shell_carries_calls_and_the_log_says_unverified() {
    if !ssh_can_run() {
        return;
    }
    for line in ["ForceCommand /bin/false", "MaxSessions 0"] {
        let world = World::over(Sshd::builder().line(line).start()).open().await;

        assert_eq!(world.agent().get(ME).await.unwrap().status, 200, "{line}");
        let stderr = world.bridge.running.stderr();
        assert!(stderr.contains("unverified"), "{line}: {stderr}");
    }
}

#[tokio::test]
async fn the_login_of_whoever_runs_the_tests_carries_calls_whatever_its_shell_does_first() {
    if !ssh_can_run() {
        return;
    }
    let world = World::over(Sshd::builder().with_current_user().start())
        .open()
        .await;

    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn dropbear_carries_calls_and_is_left_clean() {
    if !can_run(dropbear::here()) {
        return;
    }
    let server = Dropbear::start();
    let world = World::at(Place::Other(server.access())).open().await;
    let port = world.port();

    let mut statuses = vec![];
    for _ in 0..20 {
        statuses.push(world.agent().get(ME).await.unwrap().status);
    }
    let ended = world.bridge.close().await;

    assert_eq!(statuses, [200; 20]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    eventually(SOON, "the port is free", || {
        (!processes::anyone_listens(port)).then_some(())
    })
    .await;
    let user_id = server.user().uid();
    eventually(SOON, "the user has no process left", || {
        processes::owned_by(user_id).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_unix_socket_carries_calls() {
    if !ssh_can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The user on the server is another one.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("api.sock");
    let world = World::ssh()
        .args(["--unix-socket", socket.to_str().unwrap()])
        .open()
        .await;

    let answer = world.agent().get(ME).await.unwrap();

    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.bridge.opened.url, format!("unix:{}", socket.display()));
    let World { bridge, .. } = world;
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// The 40 ms step of sshd's Nagle and our delayed acknowledgement would make this take 40 s.
#[tokio::test]
async fn a_thousand_connections_of_one_call_each_do_not_wait_for_a_timer() {
    if !ssh_can_run() {
        return;
    }
    let world = World::ssh().open().await;
    let agent = world.agent();
    let mut times = vec![];

    for _ in 0..1_000 {
        let started = std::time::Instant::now();
        let mut wire = Wire::connect(&agent.url).await.unwrap();
        wire.send(&agent.head("GET", ME, &[], None)).await.unwrap();
        assert_eq!(wire.answer("GET").await.unwrap().status, 200);
        times.push(started.elapsed());
    }

    times.sort_unstable();
    // Far above what a call costs in a debug build on a busy machine, and below the step.
    assert!(
        times[500] < Duration::from_millis(36),
        "the median is {:?}",
        times[500]
    );
}
