//! The main job: a command on an SSH host calls the API, and the credential never leaves this machine.

use std::path::Path;
use std::time::Duration;

use paperclip_bridge_tests::binary::LIMIT;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, RUN_ID, assert_headers, daemon};
use paperclip_bridge_tests::{Upstream, can_run, eventually, processes, user};

use crate::ssh_can_run;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_command_over_ssh_reaches_the_api_with_the_real_credential_and_nothing_else_of_ours() {
    if !ssh_can_run() || !can_run(paperclip_bridge_tests::waiting::program("curl").map(drop)) {
        return;
    }
    let upstream = Upstream::start().await;
    let place = Place::Ssh(Box::new(Sshd::start()));
    let script = r#"curl -sS -w ' %{http_code}' -H "Authorization: Bearer $PAPERCLIP_API_KEY" \
        -H 'X-Secretive: x' -H 'Cookie: a=b' "$PAPERCLIP_API_URL/api/agents/me?x=1"; echo " $PAPERCLIP_API_KEY""#;

    let ended = daemon("run", &place, &upstream.url())
        .command(["sh", "-c", script])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let words: Vec<&str> = ended.stdout.split_whitespace().collect();
    let [body, status, token] = words[..] else {
        panic!("{}", ended.stdout)
    };
    assert_eq!((body, status), (r#"{"ok":true}"#, "200"));
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (seen[0].method.as_str(), seen[0].target.as_str()),
        ("GET", "/api/agents/me?x=1")
    );
    assert_headers(&seen);
    assert!(
        !ended.stderr.contains(CREDENTIAL) && !ended.stderr.contains(token),
        "{}",
        ended.stderr
    );
    let Place::Ssh(server) = &place else {
        unreachable!()
    };
    eventually(SOON, "nothing listens any more", || {
        server.forwards().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_remote_side_holds_no_trace_of_the_credential_and_nothing_is_left_on_it() {
    if !ssh_can_run() || !can_run(user::can_be_made()) {
        return;
    }
    let upstream = Upstream::start().await;
    let server = Sshd::start();
    let user_id = server.made_user().expect("it was made").uid();
    let place = Place::Ssh(Box::new(server));
    let script = "echo token $PAPERCLIP_API_KEY; env; set; echo started; cat";

    let mut running = daemon("run", &place, &upstream.url())
        .command(["sh", "-c", script])
        .start();
    eventually(LIMIT, "the command starts", || {
        running.stdout().contains("started").then_some(())
    })
    .await;

    let printed = running.stdout();
    let token = printed
        .split_whitespace()
        .nth(1)
        .expect("the token was printed")
        .to_owned();
    let Place::Ssh(server) = &place else {
        unreachable!()
    };
    let mut environments_with_token = 0;
    for pid in processes::owned_by(user_id) {
        let environment = processes::environment(pid);
        assert!(
            !holds(&environment, CREDENTIAL),
            "the credential is in the environment of {pid}"
        );
        environments_with_token += usize::from(holds(&environment, &token));
    }
    // Without this the search above could pass by finding nothing at all.
    assert!(
        environments_with_token > 0,
        "the token is in no environment: the search does not work"
    );
    for process in processes::all() {
        let arguments = processes::command_line(process.pid);
        assert!(
            !holds(&arguments, CREDENTIAL),
            "the credential is in the arguments of {process:?}"
        );
        assert!(
            !holds(&arguments, &token),
            "the token is in the arguments of {process:?}"
        );
    }
    let home = server.made_user().expect("it was made").home().to_owned();
    assert_no_file_holds(&home, CREDENTIAL);
    assert!(!printed.contains(CREDENTIAL));
    assert!(
        printed.contains(&format!("PAPERCLIP_RUN_ID={RUN_ID}")),
        "{printed}"
    );
    assert!(
        printed.contains("PAPERCLIP_API_BRIDGE_MODE=ssh-reverse"),
        "{printed}"
    );

    running.close_stdin();
    let ended = running.finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        !ended.stderr.contains(CREDENTIAL) && !ended.stderr.contains(&token),
        "{}",
        ended.stderr
    );
    eventually(SOON, "the user has no process left", || {
        processes::owned_by(user_id).is_empty().then_some(())
    })
    .await;
    assert!(server.forwards().is_empty());
    assert_no_file_holds(&home, &token);
}

#[tokio::test]
async fn ctrl_c_ends_the_command_and_all_that_it_started() {
    if !ssh_can_run() || !can_run(user::can_be_made()) {
        return;
    }
    let upstream = Upstream::start().await;
    let server = Sshd::start();
    let user_id = server.made_user().expect("it was made").uid();
    let place = Place::Ssh(Box::new(server));
    let script = "sleep 600 & echo started; wait";

    let running = daemon("run", &place, &upstream.url())
        .command(["sh", "-c", script])
        .start();
    eventually(LIMIT, "the command starts", || {
        running.stdout().contains("started").then_some(())
    })
    .await;
    running.signal("INT");
    let ended = running.finish().await;

    // The command's group is ended by TERM.
    assert!(
        matches!(ended.code, Some(130 | 143)),
        "{:?}: {}",
        ended.code,
        ended.stderr
    );
    eventually(SOON, "the user has no process left", || {
        processes::owned_by(user_id).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn stdin_reaches_the_command_and_its_output_comes_back_byte_for_byte() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let place = Place::Ssh(Box::new(Sshd::start()));

    let mut running = daemon("run", &place, &upstream.url()).command(["cat"]).start();
    let text = "line with ' \" $x `y` \\ and é\n".repeat(10_000);
    running.write(text.as_bytes()).await;
    running.close_stdin();
    let ended = running.finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout == text,
        "{} bytes came back of {}",
        ended.stdout.len(),
        text.len()
    );
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn assert_no_file_holds(folder: &Path, text: &str) {
    for entry in std::fs::read_dir(folder).expect("the home can be read") {
        let path = entry.expect("the home can be read").path();
        if path.is_dir() {
            assert_no_file_holds(&path, text);
        } else if let Ok(bytes) = std::fs::read(&path) {
            assert!(!holds(&bytes, text), "{} holds it", path.display());
        }
    }
}
