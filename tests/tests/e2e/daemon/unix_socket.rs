//! Sessions of a daemon on unix sockets of its own machine: made, called, refused and gone again.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use futures_util::{StreamExt as _, stream};
use paperclip_bridge_tests::binary::bridge_binary;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::world::CREDENTIAL_VARIABLE;
use paperclip_bridge_tests::{Agent, Upstream, eventually};
use serde_json::json;

use super::SOON;

/// Sessions that are asked for at once.
const AT_ONCE: usize = 16;

fn text(path: &Path) -> &str {
    path.to_str().expect("temp paths are UTF-8")
}

#[tokio::test]
async fn a_session_on_a_unix_socket_is_its_owners_alone_and_leaves_nothing() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let sockets = tempfile::tempdir().unwrap();
    let path = sockets.path().join("agent.sock");

    let opened = serving.session(&upstream, &["--unix-socket", text(&path)]).await;
    let answer = agent(&opened).get("/api/agents/me").await.unwrap();

    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(opened.env["PAPERCLIP_API_URL"], format!("unix:{}", text(&path)));
    let found = std::fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    serving.ask(&["sessions", "revoke", &opened.session]).await;
    serving.until(&opened.session, "ended").await;
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_lies_at_the_path_of_a_socket_is_replaced_only_if_nobody_serves_it() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let sockets = tempfile::tempdir().unwrap();
    let [stale, living, file] = ["stale", "living", "file"].map(|name| sockets.path().join(name));
    drop(UnixListener::bind(&stale).unwrap());
    let served = UnixListener::bind(&living).unwrap();
    std::fs::write(&file, "precious").unwrap();

    let opened = serving.session(&upstream, &["--unix-socket", text(&stale)]).await;

    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    let (url, credential) = (upstream.url(), format!("env:{CREDENTIAL_VARIABLE}"));
    for (path, why) in [
        (&living, "another process serves this socket"),
        (&file, "something that is no socket lies there"),
        // One session's socket is not another's either.
        (&stale, "another process serves this socket"),
    ] {
        let mut words = vec!["sessions", "new", "local", "--wait", "ready"];
        words.extend(["--upstream", &url, "--credential", &credential]);
        words.extend(["--unix-socket", text(path)]);
        let ended = serving.run(&words).await;
        assert_ne!(ended.code, Some(0), "{}", ended.stdout);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
        assert!(ended.stderr.contains(text(path)), "{}", ended.stderr);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    served.set_nonblocking(true).unwrap();
    assert!(served.local_addr().unwrap().as_pathname() == Some(living.as_path()));
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_thousand_sessions_of_one_daemon_have_each_its_socket_and_none_is_left() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let sockets = tempfile::tempdir().unwrap();
    let made = stream::iter(0..1000).map(|number| {
        let asked = json!({
            "target": "local",
            "unix_socket": sockets.path().join(format!("{number}")),
            "upstream": upstream.url(),
            "credential": format!("env:{CREDENTIAL_VARIABLE}"),
            "run_id": format!("run-{number}"),
            "no_upstream_check": true,
            "heartbeat": "off",
        });
        let serving = &serving;
        async move {
            let made = serving
                .call("POST", "/v1/sessions?wait=ready", &asked.to_string())
                .await;
            assert_eq!(made.status, 201, "{}", made.text());
            let made = made.json();
            Agent {
                url: made["url"].as_str().unwrap().to_owned(),
                token: made["token"].as_str().unwrap().to_owned(),
            }
        }
    });

    let agents: Vec<Agent> = made.buffered(AT_ONCE).collect().await;

    let status = serving.ask(&["status"]).await;
    assert_eq!(status["sessions"]["ready"], 1000);
    let called = stream::iter(&agents).map(|agent| async move {
        let answer = agent.get("/api/agents/me").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    });
    called.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let mut runs: Vec<String> = upstream
        .seen()
        .iter()
        .filter_map(|seen| seen.header("x-paperclip-run-id").map(str::to_owned))
        .collect();
    runs.sort_unstable();
    runs.dedup();
    assert_eq!((runs.len(), upstream.count()), (1000, 1000));
    // One session's token opens no other's socket.
    let stranger = Agent {
        url: agents[0].url.clone(),
        token: agents[1].token.clone(),
    };
    assert_eq!(stranger.get("/api/agents/me").await.unwrap().status, 401);
    serving.running.signal("TERM");
    let ended = serving.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_daemon_takes_as_many_open_files_as_it_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let (state, socket) = (folder.path().join("state"), folder.path().join("c.sock"));
    let script = format!(
        "ulimit -Sn 256; exec {} serve --ops 127.0.0.1:0 --state-dir {} --control unix:{}",
        bridge_binary().display(),
        state.display(),
        socket.display()
    );
    let mut daemon = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let limits = format!("/proc/{}/limits", daemon.id());

    eventually(SOON, "it listens", || socket.exists().then_some(())).await;

    let limits = std::fs::read_to_string(limits).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
