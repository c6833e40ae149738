//! When the gateway ends, and what it leaves.

use std::time::SystemTime;

use crate::support::{Gateway, Request, wait_for};

const LINGER: (&str, &str) = ("PCBRIDGE_GATEWAY_LINGER_SECONDS", "1");

#[test]
fn without_a_sign_of_life_it_ends_and_removes_its_directory() {
    let mut gateway = Gateway::ours(&[LINGER]);
    let kept = gateway.folder.path().join("kept");
    std::fs::write(&kept, "").unwrap();
    std::fs::create_dir(gateway.queue().join("claimed")).unwrap();
    std::os::unix::fs::symlink(gateway.folder.path(), gateway.queue().join("claimed/link")).unwrap();

    assert!(gateway.ended().success());
    assert!(!gateway.queue().exists() && kept.exists());
}

#[test]
fn a_host_that_gives_signs_of_life_keeps_it() {
    let mut gateway = Gateway::ours(&[LINGER]);
    let alive = gateway.queue().join("host.alive");
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_millis(2_500) {
        std::fs::File::create(&alive)
            .unwrap()
            .set_modified(SystemTime::now())
            .unwrap();
        assert!(
            gateway.child.try_wait().unwrap().is_none(),
            "it ended after {:?}",
            started.elapsed()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    assert!(gateway.ended().success());
    assert!(!gateway.queue().exists());
}

#[test]
fn as_peer_it_stays() {
    let mut gateway = Gateway::peer(&[LINGER]);
    let ours = Gateway::ours(&[LINGER]);
    wait_for("the other gateway's end", || {
        (!ours.queue().exists()).then_some(())
    });

    assert!(gateway.child.try_wait().unwrap().is_none());
    gateway.terminate();
    assert!(gateway.ended().success());
    assert!(gateway.queue().join("ready.json").exists());
}

#[test]
fn it_ends_when_its_directory_is_gone_or_another_gateways() {
    let mut gone = Gateway::ours(&[]);
    std::fs::remove_dir_all(gone.queue()).unwrap();
    let mut taken = Gateway::ours(&[]);
    let ready = taken.queue().join("ready.json");
    std::fs::write(ready.with_extension("new"), "{}").unwrap();
    std::fs::rename(ready.with_extension("new"), &ready).unwrap();

    assert!(gone.ended().success() && taken.ended().success());
    assert!(ready.exists());
}

#[test]
fn a_request_on_its_way_is_answered_after_sigterm() {
    let mut gateway = Gateway::peer(&[]);
    let call = gateway.call(Request::new("GET", "/x"));
    let envelope = gateway.host().see();
    gateway.terminate();
    wait_for("the port to be closed", || {
        std::net::TcpStream::connect(("127.0.0.1", gateway.port)).err()
    });

    gateway.host().answer(&envelope.id, 200, &[], b"last");

    assert_eq!(call.join().unwrap().text(), "last");
    assert!(gateway.ended().success());
}

#[test]
fn a_link_in_place_of_the_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", folder.path().join("q")).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_paperclip-bridge-gateway"))
        .env_clear()
        .env("PAPERCLIP_BRIDGE_QUEUE_DIR", folder.path().join("q"))
        .env("PCBRIDGE_GATEWAY_TOKEN_SHA256", "0".repeat(64))
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("cannot use the queue directory"),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(folder.path().join("real")).unwrap().count(), 0);
}

#[test]
fn a_port_in_use_is_told_in_the_published_words() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_paperclip-bridge-gateway"))
        .env_clear()
        .env("PAPERCLIP_BRIDGE_QUEUE_DIR", folder.path())
        .env("PAPERCLIP_BRIDGE_TOKEN", "t")
        .env(
            "PAPERCLIP_BRIDGE_PORT",
            taken.local_addr().unwrap().port().to_string(),
        )
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.starts_with("[paperclip-bridge] server error") && text.contains("EADDRINUSE"),
        "{text}"
    );
}
