//! A short form of `soak-kill`: what is killed in the middle of callbacks, a few times each.
//!
//! Here: which scenarios, and that the program finds nothing to complain about. Not here: what must hold; the
//! program `src/bin/soak_kill` says that, and with its defaults it kills fifty times.

use std::process::Stdio;
use std::time::Duration;

use paperclip_bridge_tests::binary::bridge_binary;
use paperclip_bridge_tests::peer::our_gateway;
use paperclip_bridge_tests::waiting::within;
use tokio::process::Command;

use super::ssh_can_run;

/// For a busy machine; it takes a few seconds.
const LIMIT: Duration = Duration::from_secs(180);

async fn holds(scenario: &str) {
    holds_with(scenario, &["--kills", "2"]).await;
}

async fn holds_with(scenario: &str, options: &[&str]) {
    if !ssh_can_run() {
        return;
    }
    let run = Command::new(env!("CARGO_BIN_EXE_soak-kill"))
        .args(["--only", scenario])
        .args(options)
        .env("PAPERCLIP_BRIDGE_BIN", bridge_binary())
        .env("PAPERCLIP_BRIDGE_GATEWAY_BIN", our_gateway())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within(LIMIT, "the scenario is over", run)
        .await
        .expect("soak-kill starts");

    let table = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}{errors}");
    assert!(table.contains(scenario), "{table}");
}

#[tokio::test]
async fn a_killed_gateway_of_http2_doubles_no_write_and_comes_back() {
    holds("open http2_v1: gateway").await;
}

#[tokio::test]
async fn a_killed_channel_of_http2_doubles_no_write_and_leaves_nothing() {
    holds("open http2_v1: channel").await;
}

#[tokio::test]
async fn a_killed_channel_of_the_queue_doubles_no_write_and_leaves_nothing() {
    holds("open queue_v1: channel").await;
}

#[tokio::test]
async fn a_killed_host_of_the_queue_goes_on_in_its_session_and_doubles_no_write() {
    holds("open queue_v1: host").await;
}

#[tokio::test]
async fn a_killed_host_of_somebody_elses_queue_doubles_no_write() {
    holds("host queue_v1: host").await;
}

#[tokio::test]
async fn a_killed_serve_brings_a_session_of_each_kind_back_and_doubles_no_write() {
    holds_with("serve mixed: host", &["--kills", "5", "--callers", "50"]).await;
}
