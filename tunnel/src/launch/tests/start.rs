//! How it is started, recorded and ended.

use std::time::Duration;

use runners::SecretText;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn a_gateway_gets_its_variables_and_nothing_secret_in_its_arguments() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let installed = launcher.install().await.unwrap();
    let token = GatewayToken::from_text(SecretText::new("it's \"$secret\" `x` \\ é"));
    let mut environment = GatewayEnvironment::http2(GatewayKind::Script, &token, 20_123, "ab", 77).unwrap();
    environment.set("EXTRA", "a  b ").unwrap();
    let name = SessionName::new("one").unwrap();

    let mut duplex = launcher.open(&installed, &name, &environment).await.unwrap();
    duplex.stream.write_all(b"1\n2\nrest").await.unwrap();
    duplex.stream.shutdown().await.unwrap();
    let mut said = String::new();
    duplex.stream.read_to_string(&mut said).await.unwrap();

    let (variables, rest) = said.split_once("end\n").unwrap();
    assert_eq!(rest, "1\n2\nrest");
    for line in [
        "port 20123",
        "PAPERCLIP_BRIDGE_TOKEN=it's \"$secret\" `x` \\ é",
        "PAPERCLIP_BRIDGE_MAX_BODY_BYTES=77",
        "PAPERCLIP_API_BRIDGE_MODE=http2_v1",
        "EXTRA=a  b ",
    ] {
        assert!(
            variables.lines().any(|found| found == line),
            "{line} in {variables}"
        );
    }
    assert!(
        machine
            .scripts
            .lock()
            .unwrap()
            .iter()
            .all(|script| !script.contains("secret"))
    );
}

#[tokio::test]
async fn our_own_gateway_is_given_the_digest_only() {
    let token = GatewayToken::from_text(SecretText::new("abc"));
    let environment = GatewayEnvironment::http2(GatewayKind::Binary, &token, 1, "ab", 7).unwrap();

    let block = String::from_utf8(environment.block().to_vec()).unwrap();

    assert_eq!(
        block,
        "6\nPAPERCLIP_API_BRIDGE_MODE=http2_v1\n\
         PCBRIDGE_GATEWAY_TOKEN_SHA256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n\
         PAPERCLIP_BRIDGE_HOST=127.0.0.1\nPAPERCLIP_BRIDGE_PORT=1\nPAPERCLIP_BRIDGE_NONCE=ab\n\
         PAPERCLIP_BRIDGE_MAX_BODY_BYTES=7\n"
    );
    assert!(!format!("{environment:?}").contains("ba78"));
}

#[test]
fn a_script_without_the_tokens_text_and_a_value_with_a_line_end_are_refused() {
    let digest = GatewayToken::from_digest([0; 32]);
    let broken = GatewayToken::from_text(SecretText::new("a\nB=c"));

    for (token, reason) in [(digest, "token_not_kept"), (broken, "invalid_request")] {
        let fault = GatewayEnvironment::http2(GatewayKind::Script, &token, 1, "", 1).unwrap_err();
        assert_eq!(fault.reason(), reason);
        assert!(!fault.to_string().contains("B=c"));
    }
}

#[test]
fn a_session_name_holds_nothing_that_a_path_or_a_shell_reads() {
    for bad in ["", "a/b", "..", "a b", "$x", &"x".repeat(65)] {
        assert!(SessionName::new(bad).is_err(), "{bad}");
    }
    assert!(SessionName::new("0190-A_b").is_ok());
}

fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(") ").next().unwrap_or_default();
        !state.starts_with('Z')
    })
}

fn recorded(machine: &Machine, name: &str) -> u32 {
    let text = std::fs::read_to_string(machine.folder().join(format!("run-{name}"))).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Starts a gateway on its own and waits until it has said all it says at first.
async fn detached(launcher: &Launcher, installed: &Installed, name: &str) -> DetachedGateway {
    let token = GatewayToken::from_text(SecretText::new("t"));
    let mut environment = GatewayEnvironment::http2(launcher.kind(), &token, 1, "ab", 7).unwrap();
    environment.set("STAY", "1").unwrap();
    let name = SessionName::new(name).unwrap();
    let log = format!("{}/log", installed.folder());
    launcher
        .start_detached(installed, &name, &environment, &log)
        .await
        .unwrap()
}

fn staying(machine: &Arc<Machine>) -> Launcher {
    let gateway = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\ntrap '' HUP\necho \"port $PAPERCLIP_BRIDGE_PORT\"\n\
                   exec sleep 60\n";
    Launcher::new(
        machine.clone(),
        Shell::Sh,
        GatewayProgram::binary(gateway.as_bytes()),
    )
}

#[tokio::test]
async fn a_detached_gateway_outlives_its_command_and_is_ended_with_its_record() {
    let machine = Machine::new();
    let launcher = staying(&machine);
    let installed = launcher.install().await.unwrap();

    let gateway = detached(&launcher, &installed, "d").await;
    assert!(is_running(gateway.pid));
    assert!(gateway.start.is_some());
    assert_eq!(recorded(&machine, "d"), gateway.pid);
    let name = SessionName::new("d").unwrap();
    std::fs::write(machine.folder().join("token-d"), "x").unwrap();
    let ended = launcher
        .end(&installed, &name, Duration::from_secs(1))
        .await
        .unwrap();

    assert_eq!(ended, Ended::Now);
    assert!(!is_running(gateway.pid));
    for left in ["run-d", "token-d"] {
        assert!(!machine.folder().join(left).exists(), "{left}");
    }
    let again = launcher
        .end(&installed, &name, Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(again, Ended::WasGone);
}

#[tokio::test]
async fn a_predecessor_is_ended_before_its_successor_starts() {
    let machine = Machine::new();
    let launcher = staying(&machine);
    let installed = launcher.install().await.unwrap();
    let first = detached(&launcher, &installed, "p").await;
    let other = detached(&launcher, &installed, "q").await;

    let second = detached(&launcher, &installed, "p").await;

    assert!(!is_running(first.pid));
    assert!(is_running(second.pid) && is_running(other.pid));
    for name in ["p", "q"] {
        let name = SessionName::new(name).unwrap();
        launcher.end(&installed, &name, Duration::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn a_process_that_merely_has_the_recorded_pid_is_left_alone() {
    let machine = Machine::new();
    let launcher = staying(&machine);
    let installed = launcher.install().await.unwrap();
    let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let record = machine.folder().join("run-x");
    let name = SessionName::new("x").unwrap();

    for text in [
        format!("{} 1\n", bystander.id()),
        format!("{}\n", bystander.id()),
        "1 1\n".to_owned(),
        "-1 5\n".to_owned(),
        "$(touch /tmp/no) 5\n".to_owned(),
        String::new(),
    ] {
        std::fs::write(&record, &text).unwrap();
        let ended = launcher.end(&installed, &name, Duration::ZERO).await.unwrap();
        assert_eq!(ended, Ended::WasGone, "{text}");
        assert!(bystander.try_wait().unwrap().is_none());
    }

    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_runner_without_byte_streams_is_said_to_have_none() {
    let machine = Machine::new();
    let installed = launcher(&machine, Shell::Sh).install().await.unwrap();
    let bare = Launcher::new(
        Arc::new(Bare(machine)),
        Shell::Sh,
        GatewayProgram::binary(GATEWAY.as_bytes()),
    );
    let token = GatewayToken::from_digest([0; 32]);
    let environment = GatewayEnvironment::http2(GatewayKind::Binary, &token, 1, "ab", 7).unwrap();
    let name = SessionName::new("n").unwrap();

    let fault = bare.open(&installed, &name, &environment).await.unwrap_err();

    assert_eq!(fault.reason(), "capability_absent");
}
