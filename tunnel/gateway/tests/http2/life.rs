//! How the gateway begins and how it ends.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use super::caller::{call, request};
use super::gateway::{self, Gateway, NONCE, command, free_port, ours, start};
use super::host::{self, echo};
use super::within;

#[tokio::test]
async fn the_preface_follows_the_ready_line_at_once() {
    let (_gateway, mut channel) = ours().await;

    let mut preface = [0; 24];
    within(channel.read_exact(&mut preface)).await.expect("bytes");

    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[tokio::test]
async fn end_of_input_is_the_end() {
    let (mut gateway, channel) = ours().await;
    let host = host::hyper(channel, echo);
    assert_eq!(
        call(gateway.port, request("POST", "/", "x"))
            .await
            .expect("whole")
            .body(),
        "x"
    );

    drop(host);

    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", gateway.port)).await.is_err());
}

#[tokio::test]
async fn a_host_that_falls_silent_is_the_end() {
    let (mut gateway, channel) = start(true, &[("PCBRIDGE_GATEWAY_SILENCE_MS", "300")]).await;

    let began = Instant::now();
    let status = gateway.ended().await;

    assert_eq!(status.code(), Some(0));
    assert!(
        began.elapsed() >= Duration::from_millis(250),
        "{:?}",
        began.elapsed()
    );
    assert!(
        gateway
            .said()
            .await
            .contains("[paperclip-bridge] the host has fallen silent")
    );
    drop(channel);
}

#[tokio::test]
async fn pings_of_an_idle_host_keep_it_alive() {
    let (mut gateway, channel) = start(true, &[("PCBRIDGE_GATEWAY_SILENCE_MS", "1000")]).await;
    // The host sends one each 200 ms.
    let _host = host::hyper(channel, echo);

    let ended = tokio::time::timeout(Duration::from_millis(2500), gateway.child.wait()).await;

    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(
        call(gateway.port, request("POST", "/", "x"))
            .await
            .expect("whole")
            .body(),
        "x"
    );
}

#[tokio::test]
async fn a_host_that_sends_nothing_but_answers_to_pings_keeps_it_alive() {
    let (mut gateway, channel) = start(true, &[("PCBRIDGE_GATEWAY_SILENCE_MS", "1000")]).await;
    let _host = host::drive(host::h2(channel).await);

    let ended = tokio::time::timeout(Duration::from_millis(2500), gateway.child.wait()).await;

    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn asked_to_end_it_ends_at_once_with_status_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut gateway, channel) = ours().await;
        let mut host = host::h2(channel).await;
        let under_way = tokio::spawn(call(gateway.port, request("POST", "/", "")));
        let _taken = host::next(&mut host).await;

        let pid = i32::try_from(gateway.child.id().expect("running")).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("sent");

        assert_eq!(gateway.ended().await.code(), Some(0), "{signal:?}");
        assert!(within(under_way).await.expect("no panic").is_err());
    }
}

#[tokio::test]
async fn a_socket_serves_as_standard_input_and_output() {
    let port = free_port();
    let (near, far) = StdUnixStream::pair().expect("a pair");
    let mut child = command(port, true)
        .stdin(std::os::fd::OwnedFd::from(far.try_clone().expect("a second one")))
        .stdout(std::os::fd::OwnedFd::from(far))
        .spawn()
        .expect("the program starts");
    near.set_nonblocking(true).expect("set");
    let mut near = UnixStream::from_std(near).expect("a stream");

    assert!(within(gateway::line(&mut near)).await.contains(NONCE));
    let mut host = within(h2::server::handshake::<_>(near))
        .await
        .expect("an HTTP/2 client");
    let caller = tokio::spawn(call(port, request("GET", "/", "")));
    let (_, mut respond): (_, h2::server::SendResponse<Bytes>) =
        within(host.accept()).await.expect("a stream").expect("in order");
    respond
        .send_response(http::Response::new(()), true)
        .expect("open");
    let mut driving = tokio::task::JoinSet::new();
    driving.spawn(async move { while host.accept().await.is_some() {} });
    assert_eq!(
        within(caller).await.expect("no panic").expect("whole").status(),
        200
    );

    driving.shutdown().await;
    assert_eq!(within(child.wait()).await.expect("a status").code(), Some(0));
}

#[tokio::test]
async fn what_can_only_be_read_blocking_is_no_hindrance() {
    let output = command(free_port(), true).stdin(Stdio::null()).output();

    let output = within(output).await.expect("it ends by itself");

    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.starts_with(b"{\"version\":2,\"type\":\"ready\""));
}

#[tokio::test]
async fn a_taken_port_and_a_bad_environment_are_said_with_status_1() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let table = [
        (command(port, true), " 127.0.0.1:"),
        (
            command(0, true),
            "requires a positive assigned PAPERCLIP_BRIDGE_PORT; got 0",
        ),
        (
            {
                let mut command = command(1, true);
                command.env("PAPERCLIP_API_BRIDGE_MODE", "smoke");
                command
            },
            "Unsupported PAPERCLIP_API_BRIDGE_MODE: smoke",
        ),
    ];

    for (mut command, text) in table {
        let output = within(command.output()).await.expect("it ends by itself");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.starts_with("[paperclip-bridge] ") && said.contains(text),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn bytes_that_are_no_http2_end_it_with_a_word_on_why() {
    use tokio::io::AsyncWriteExt;
    let (gateway, mut channel) = ours().await;
    let mut gateway: Gateway = gateway;

    within(channel.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n and more of it, so that a frame is whole"))
        .await
        .expect("room");

    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(gateway.said().await.contains("the channel broke"));
    drop(channel);
}
