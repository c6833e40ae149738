//! Which tunnel is taken where the best one is not to be had, and what is said of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use paperclip_bridge_tests::binary::LIMIT;
use paperclip_bridge_tests::peer::{Release, installed, their_script};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, World, assert_headers, daemon};
use paperclip_bridge_tests::{Upstream, can_run, eventually, processes, user};

use crate::queue::{readable, server_with_node};
use crate::ssh_can_run;

const ME: &str = "/api/agents/me";
const SOON: Duration = Duration::from_secs(10);
/// An ELF program by its first bytes, and no more: it is taken for a gateway and does not run.
const NO_PROGRAM: &[u8] = b"\x7fELF and then nothing of the kind";

fn forwards_nothing() -> Place {
    Place::Ssh(Box::new(Sshd::builder().line("AllowTcpForwarding no").start()))
}

#[tokio::test]
async fn without_forwarding_a_command_reaches_the_api_and_leaves_nothing_behind() {
    if !ssh_can_run() || !can_run(user::can_be_made()) || !can_run(program("curl").map(drop)) {
        return;
    }
    let upstream = Upstream::start().await;
    let place = forwards_nothing();
    let Place::Ssh(server) = &place else {
        unreachable!()
    };
    let made = server.made_user().expect("it was made");
    let script = r#"echo "token $PAPERCLIP_API_KEY $PAPERCLIP_API_URL $PAPERCLIP_API_BRIDGE_MODE"
        curl -sS -w ' %{http_code}\n' -H "Authorization: Bearer $PAPERCLIP_API_KEY" "$PAPERCLIP_API_URL/api/agents/me"
        env; set; echo started; cat"#;

    let mut running = daemon("run", &place, &upstream.url())
        .command(["sh", "-c", script])
        .start();
    eventually(LIMIT, "the command starts", || {
        running.stdout().contains("started").then_some(())
    })
    .await;

    let printed = running.stdout();
    assert!(printed.contains("{\"ok\":true} 200"), "{printed}");
    assert_headers(&upstream.seen());
    assert_eq!(upstream.count(), 1);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let [_, token, url, mode, ..] = words[..] else {
        panic!("{printed}")
    };
    assert_eq!(mode, "http2_v1");
    assert_no_trace(made.uid(), made.home(), &printed, token);
    let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
    let port = port.unwrap_or_else(|| panic!("no port in {url}"));
    assert!(
        processes::anyone_listens(port),
        "the check for listeners does not work"
    );
    let token = token.to_owned();

    running.close_stdin();
    let ended = running.finish().await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("forwarding_refused"), "{}", ended.stderr);
    assert!(
        !ended.stderr.contains(CREDENTIAL) && !ended.stderr.contains(&token),
        "{}",
        ended.stderr
    );
    eventually(SOON, "the user has no process left", || {
        processes::owned_by(made.uid()).is_empty().then_some(())
    })
    .await;
    assert!(!processes::anyone_listens(port), "the port still listens");
    // The program stays for the next session; of this one there is nothing.
    let left = files(&made.home().join(".cache/paperclip-bridge"));
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(name(&left[0]).starts_with("gateway-"), "{left:?}");
    assert!(!holds(&std::fs::read(&left[0]).unwrap(), &token));
}

/// The credential is nowhere on the target, and the token in no arguments and no file.
fn assert_no_trace(user_id: u32, home: &Path, printed: &str, token: &str) {
    assert!(!printed.contains(CREDENTIAL));
    let owned = processes::owned_by(user_id);
    let environments: Vec<_> = owned.iter().map(|pid| processes::environment(*pid)).collect();
    assert!(environments.iter().all(|one| !holds(one, CREDENTIAL)));
    // Without this the search could pass by finding nothing at all.
    assert!(environments.iter().any(|one| holds(one, token)));
    for process in processes::all() {
        let arguments = processes::command_line(process.pid);
        assert!(
            !holds(&arguments, CREDENTIAL) && !holds(&arguments, token),
            "a secret is in the arguments of {process:?}"
        );
    }
    let files = files(home);
    assert!(
        files.iter().any(|file| name(file).starts_with("gateway-")),
        "{files:?}"
    );
    for file in files {
        let bytes = std::fs::read(&file).unwrap_or_default();
        assert!(
            !holds(&bytes, CREDENTIAL) && !holds(&bytes, token),
            "a secret is in {}",
            file.display()
        );
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Everything below a folder that is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

#[tokio::test]
async fn with_a_gateway_that_does_not_run_every_rung_says_what_was_wrong() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = folder.path().join("gateway");
    std::fs::write(&gateway, NO_PROGRAM).unwrap();
    let place = forwards_nothing();

    let ended = daemon("run", &place, &upstream.url())
        .args(["--gateway", gateway.to_str().unwrap()])
        .command(["echo", "never"])
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    for told in [
        "ssh-reverse: forwarding_refused",
        "http2_v1: entrypoint_sync_failed",
        "queue_v1: entrypoint_sync_failed",
        "the program does not run",
        "XDG_CACHE_HOME",
    ] {
        assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains(CREDENTIAL));
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_file_that_is_no_program_is_refused_and_never_run_as_a_script() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, proof) = (folder.path().join("notes"), folder.path().join("it-was-run"));
    std::fs::write(&file, format!("touch '{}'\n", proof.display())).unwrap();

    let ended = daemon("open", &Place::Local, &upstream.url())
        .args(["--tunnel", "http2_v1", "--gateway", file.to_str().unwrap()])
        .finish()
        .await;

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("it is no ELF program"), "{}", ended.stderr);
    assert!(!proof.exists(), "it was run");
}

#[tokio::test]
async fn a_script_that_is_no_gateway_is_said_to_be_none_on_every_rung() {
    if !ssh_can_run() || !can_run(program("node").map(drop)) {
        return;
    }
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("gateway.mjs");
    std::fs::write(&script, "process.exit(7)").unwrap();

    let ended = daemon("run", &forwards_nothing(), &upstream.url())
        .args(["--gateway", &format!("node:{}", script.display())])
        .command(["echo", "never"])
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    for told in ["forwarding_refused", "http2_v1", "ready_invalid", "queue_v1"] {
        assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
    }
}

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
async fn without_forwarding_and_with_a_script_that_knows_no_http2_v1_calls_travel_by_queue_v1() {
    if !(ssh_can_run() && can_run(installed().map(drop)) && can_run(readable(installed().unwrap()))) {
        return;
    }
    let installed = installed().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = their_script(installed, Release::R707, folder.path());
    let place = Place::Ssh(Box::new(server_with_node(installed, "AllowTcpForwarding no")));
    let upstream = Upstream::start().await;
    let command = r#"exec curl -sS -w ' %{http_code} %{url}\n' -H "Authorization: Bearer $PAPERCLIP_API_KEY" "$PAPERCLIP_API_URL/api/agents/me""#;

    let ended = daemon("run", &place, &upstream.url())
        .args(["--gateway", &format!("node:{}", script.display())])
        .command(["sh", "-c", command])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("{\"ok\":true} 200"), "{}", ended.stdout);
    assert_headers(&upstream.seen());
    for told in [
        "ssh-reverse not taken: forwarding_refused (",
        "http2_v1 not taken: ready_invalid (",
    ] {
        assert_eq!(ended.stderr.matches(told).count(), 1, "{}", ended.stderr);
    }
    assert!(ended.stderr.contains("queue_v1 taken"), "{}", ended.stderr);
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
    std::fs::write(&gateway, NO_PROGRAM).unwrap();

    let ended = daemon("open", &Place::Local, &upstream.url())
        .args(["--tunnel", "http2_v1", "--gateway", gateway.to_str().unwrap()])
        .finish()
        .await;

    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(!ended.stderr.contains("queue_v1"), "{}", ended.stderr);
}
