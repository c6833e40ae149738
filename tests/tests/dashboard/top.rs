//! `top`: the figures in a terminal, and without one.

use std::process::Stdio;

use paperclip_bridge_tests::binary::bridge_binary;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::{Upstream, can_run, within};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::browser::SOON;

#[tokio::test]
async fn without_a_terminal_it_prints_one_object() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &["--run-id", "run-top"]).await;
    agent(&opened).get("/api/agents/me").await.unwrap();

    let plain = serving.run(&["top"]).await;
    let asked = serving.ask(&["top"]).await;

    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    let plain: Value = serde_json::from_str(&plain.stdout).expect("without a terminal it is JSON, too");
    for told in [plain, asked] {
        assert_eq!(told["status"]["callbacks"], 1, "{told}");
        assert_eq!(told["sessions"][0]["run_id"], "run-top");
        assert_eq!(told["sessions"][0]["traffic"]["callbacks"], 1);
    }
}

#[tokio::test]
async fn in_a_terminal_it_is_drawn_until_q_is_typed_and_the_terminal_is_as_it_was() {
    if !can_run(program("script").map(drop)) {
        return;
    }
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &["--run-id", "run-top"]).await;
    let shell = format!(
        "stty cols 80 rows 24; before=$(stty -g); {} top --control unix:{}; echo code $?; \
         [ \"$before\" = \"$(stty -g)\" ] && echo restored",
        bridge_binary().display(),
        serving.socket().display()
    );
    let mut terminal = Command::new(program("script").unwrap())
        .args(["--quiet", "--flush", "--return", "--command", &shell, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut keys, mut shown) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let mut screen = String::new();
    let mut see = async |text: &str| {
        let mut buffer = [0; 4096];
        while !screen.contains(text) {
            let read = shown.read(&mut buffer).await.unwrap();
            assert!(read > 0, "no {text:?} in {screen:?}");
            screen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        std::mem::take(&mut screen)
    };

    let first = within(SOON, "it is drawn", see("run-top")).await;
    agent(&opened).get("/api/agents/me").await.unwrap();
    within(SOON, "it is drawn anew", see("since start: 1 callbacks")).await;
    keys.write_all(b"q").await.unwrap();
    let rest = within(SOON, "it ends", see("restored")).await;

    assert!(
        first.contains("\u{1b}[?1049h") && first.contains("1 ready"),
        "{first:?}"
    );
    let left = rest.find("\u{1b}[?1049l").expect("the other screen is left");
    assert!(rest[left..].contains("code 0"), "{rest:?}");
}
