//! The exit codes that operators script against.

use paperclip_bridge_tests::binary::{BridgeCommand, Finished, LIMIT};
use paperclip_bridge_tests::sshd::{Access, Sshd};
use paperclip_bridge_tests::world::{CREDENTIAL, CREDENTIAL_VARIABLE, Place, daemon};
use paperclip_bridge_tests::{Upstream, eventually};

use crate::ssh_can_run;

async fn bridge(arguments: &[&str]) -> Finished {
    BridgeCommand::new(arguments.iter().copied()).finish().await
}

async fn run_local(script: &str) -> Finished {
    let upstream = Upstream::start().await;
    daemon("run", &Place::Local, &upstream.url())
        .command(["sh", "-c", script])
        .finish()
        .await
}

#[tokio::test]
async fn what_works_ends_with_0() {
    let version = bridge(&["version", "--json"]).await;
    let explained = bridge(&["policy", "explain", "GET", "/api/agents/me"]).await;

    assert_eq!(
        (version.code, explained.code),
        (Some(0), Some(0)),
        "{}{}",
        version.stderr,
        explained.stderr
    );
    assert!(
        serde_json::from_str::<serde_json::Value>(&version.stdout).is_ok(),
        "{}",
        version.stdout
    );
}

#[tokio::test]
async fn the_demo_needs_nothing_and_ends_with_0() {
    let ended = bridge(&["demo"]).await;

    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for word in ["200", "403", "401", "413", "409"] {
        assert!(
            ended.stdout.contains(word),
            "{word} is not shown:\n{}",
            ended.stdout
        );
    }
}

#[tokio::test]
async fn a_policy_table_with_a_wrong_expectation_ends_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases.toml");
    let row = r#"{ verdict = "allow", method = "GET", target = "/api/companies/c/secrets" }"#;
    std::fs::write(&cases, format!("case = [{row}]\n")).unwrap();

    let ended = bridge(&["policy", "test", cases.to_str().unwrap()]).await;

    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn a_command_line_that_is_not_understood_ends_with_2() {
    for arguments in [
        &["open"][..],
        &["open", "local", "--nonsense"],
        &["nonsense"],
        &["run", "local"],
    ] {
        let ended = bridge(arguments).await;

        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty(), "{arguments:?} says nothing");
    }
}

#[tokio::test]
async fn a_missing_credential_ends_with_3_and_says_where_it_was_looked_for() {
    let ended = bridge(&["open", "local", "--credential", "env:NOT_SET_ANYWHERE"]).await;

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("NOT_SET_ANYWHERE"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_policy_file_with_mistakes_ends_with_3_and_names_each_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    std::fs::write(
        &file,
        "nonsense = 1\n\n[[allow]]\nmethod = \"GET\"\npath = \"no-slash\"\n",
    )
    .unwrap();

    let ended = bridge(&["policy", "check", "--policy", file.to_str().unwrap()]).await;
    let opened = BridgeCommand::new(["open", "local", "--policy", file.to_str().unwrap()])
        .args(["--credential", &format!("env:{CREDENTIAL_VARIABLE}")])
        .env(CREDENTIAL_VARIABLE, CREDENTIAL)
        .finish()
        .await;

    let told = format!("{}{}", ended.stdout, ended.stderr);
    assert!(
        told.contains("rules.toml:1") && told.contains("rules.toml:5"),
        "{told}"
    );
    assert_eq!(
        (ended.code, opened.code),
        (Some(3), Some(3)),
        "{told}{}",
        opened.stderr
    );
}

#[tokio::test]
async fn a_target_where_nobody_listens_ends_with_4() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let mut server = Sshd::start();
    server.stop();

    let ended = daemon("open", &Place::Other(server.access()), &upstream.url())
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(&server.port().to_string()),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn an_upstream_where_nobody_listens_ends_with_4() {
    let mut upstream = Upstream::start().await;
    upstream.stop().await;

    let ended = daemon("open", &Place::Local, &upstream.url()).finish().await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(&upstream.address().to_string()),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn what_policy_denies_ends_with_5() {
    let ended = bridge(&["policy", "explain", "GET", "/api/companies/c/secrets"]).await;

    assert_eq!(ended.code, Some(5), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn the_commands_own_code_and_its_signal_are_ours() {
    assert_eq!(run_local("exit 7").await.code, Some(7));
    assert_eq!(run_local("exit 0").await.code, Some(0));
    assert_eq!(run_local("kill -TERM $$").await.code, Some(143));
}

#[tokio::test]
async fn the_same_holds_over_ssh() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let place = Place::Ssh(Box::new(Sshd::start()));

    for (script, code) in [("exit 7", 7), ("kill -TERM $$", 143), ("exec /nonexistent", 127)] {
        let ended = daemon("run", &place, &upstream.url())
            .command(["sh", "-c", script])
            .finish()
            .await;

        assert_eq!(ended.code, Some(code), "{script}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn losing_the_connection_while_the_command_runs_ends_with_125_and_the_reason() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let server = Sshd::start();
    let place = Place::Other(server.access());

    let running = daemon("run", &place, &upstream.url())
        .command(["sh", "-c", "echo started; cat"])
        .start();
    eventually(LIMIT, "the command starts", || {
        running.stdout().contains("started").then_some(())
    })
    .await;
    server.kill_sessions();
    let ended = running.finish().await;

    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    assert!(ended.stderr.contains("connection"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_unreachable_target_never_makes_a_command_run_here() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let mut server = Sshd::start();
    server.stop();
    let access = Access { ..server.access() };

    let ended = daemon("run", &Place::Other(access), &upstream.url())
        .command(["touch", mark.to_str().unwrap()])
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(!mark.exists(), "the command ran on this machine");
}
