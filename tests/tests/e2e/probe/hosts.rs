//! SSH hosts, good and restricted.

use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::{Place, assert_headers};
use paperclip_bridge_tests::{Upstream, can_run, eventually, processes, user};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::ssh_can_run;

use super::{SOON, probe};

fn ssh(builder: paperclip_bridge_tests::sshd::SshdBuilder) -> Place {
    Place::Ssh(Box::new(builder.start()))
}

fn server(place: &Place) -> &Sshd {
    match place {
        Place::Ssh(server) => server,
        Place::Local | Place::Other(_) => panic!("no server"),
    }
}

#[tokio::test]
async fn a_host_that_others_can_log_in_to_is_fit_and_warned_of() {
    if !ssh_can_run() || !can_run(user::can_be_made()) {
        return;
    }
    let (upstream, place) = (Upstream::start().await, ssh(Sshd::builder()));
    let _other = user::TestUser::make();

    let probed = probe(&place, &upstream, &["--tunnel", "ssh-reverse"]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    let logins = probed.check("logins");
    assert_eq!(
        (&logins["result"], &logins["reason"]),
        (&"warn".into(), &"other_logins".into())
    );
    assert!(
        logins["to_do"].as_str().unwrap().contains("--unix-socket"),
        "{logins}"
    );
}

#[tokio::test]
async fn an_ssh_host_is_probed_to_the_api_and_nothing_is_left_on_it() {
    if !ssh_can_run() || !can_run(user::can_be_made()) {
        return;
    }
    let upstream = Upstream::start().await;
    let place = ssh(Sshd::builder());
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("rules.toml");
    std::fs::write(&policy, "[[allow]]\nmethod = \"GET\"\npath = \"/api/health\"\n").unwrap();

    let probed = probe(&place, &upstream, &["--policy", policy.to_str().unwrap()]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "ssh-reverse");
    probed.assert_is(
        "ok",
        &[
            "architecture",
            "folders",
            "forwarding",
            "callback ssh-reverse",
            "callback queue_v1",
        ],
    );
    let seen = upstream.seen();
    assert_headers(&seen);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(
        seen.iter().all(|request| request.target == "/api/health"),
        "{seen:?}"
    );
    let made = server(&place).made_user().unwrap();
    eventually(SOON, "the user has no process left", || {
        processes::owned_by(made.uid()).is_empty().then_some(())
    })
    .await;
    assert_eq!(server(&place).forwards(), []);
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let left = names(&made.home().join(".cache/paperclip-bridge"));
    assert!(
        left.len() == 1 && left.first().unwrap().starts_with("gateway-"),
        "{left:?}"
    );
    assert!(
        !names(made.home()).iter().any(|name| name.contains("probe")),
        "{:?}",
        names(made.home())
    );
}

#[tokio::test]
async fn where_forwarding_is_off_that_is_said_and_another_tunnel_serves() {
    if !ssh_can_run() {
        return;
    }
    let upstream = Upstream::start().await;
    let place = ssh(Sshd::builder().line("AllowTcpForwarding no"));

    let probed = probe(&place, &upstream, &[]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "http2_v1");
    assert_eq!(probed.check("forwarding")["reason"], "forwarding_refused");
    probed.assert_is("fail", &["tunnel ssh-reverse"]);
    probed.assert_is("ok", &["callback http2_v1", "callback queue_v1"]);
}

#[tokio::test]
async fn a_home_that_cannot_be_written_is_named() {
    if !ssh_can_run() || !can_run(user::can_be_made()) {
        return;
    }
    let upstream = Upstream::start().await;
    let place = ssh(Sshd::builder());
    let home = server(&place).made_user().unwrap().home().to_owned();
    std::os::unix::fs::chown(&home, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o755)).unwrap();

    let probed = probe(&place, &upstream, &["--tunnel", "ssh-reverse"]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    let folders = probed.check("folders");
    assert_eq!(folders["reason"], "working_folder_closed");
    let found = folders["found"].as_str().unwrap();
    assert!(
        found.contains(".cache/paperclip-bridge not writable") && found.contains("temporary folder"),
        "{found}"
    );
}

#[tokio::test]
async fn without_curl_another_client_calls_and_without_any_that_is_said() {
    if !ssh_can_run() || !can_run(program("bash").map(drop)) {
        return;
    }
    let upstream = Upstream::start().await;
    for (client, told) in [(Some("bash"), "ok"), (None, "warn")] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let tools =
            "sh mkdir cat mv rm chmod base64 head wc sleep kill id uname find date setsid sha256sum stty";
        for tool in tools.split(' ').chain(client) {
            if let Ok(there) = program(tool) {
                symlink(there, folder.path().join(tool)).unwrap();
            }
        }
        let place = ssh(Sshd::builder().line(&format!("SetEnv PATH={}", folder.path().display())));

        let probed = probe(&place, &upstream, &["--tunnel", "ssh-reverse"]).await;

        assert_eq!(probed.code, Some(0), "{}", probed.report);
        let tools = probed.check("tools")["found"].as_str().unwrap().to_owned();
        assert!(tools.contains("no curl") && tools.contains("no node"), "{tools}");
        let called = probed.check("callback ssh-reverse");
        assert_eq!(called["result"], told, "{}", probed.report);
        let word = client.unwrap_or("neither curl");
        assert!(called["found"].as_str().unwrap().contains(word), "{called}");
    }
}
