//! Where sessions of this machine listen: a port, the configured folder of sockets, or what a service manager passed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use paperclip_bridge_tests::binary::Opened;
use paperclip_bridge_tests::manager::{can_launch, launcher};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Upstream, can_run};
use serde_json::json;

use super::configured::{session, with_upstream, write};

fn text(upstream: &Upstream, folder: &Path) -> String {
    let more = format!(
        "[control]\nadhoc = true\n[listeners.agents]\naddress = \"unix:{}\"\n",
        folder.display()
    );
    with_upstream(upstream, &more)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn is_served(opened: &Opened) {
    assert_eq!(agent(opened).get("/api/agents/me").await.unwrap().status, 200);
}

#[tokio::test]
async fn sessions_listen_in_the_configured_folder_each_on_a_socket_of_its_own() {
    let upstream = Upstream::start().await;
    let (folder, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = sockets.path().join("agents");
    let file = write(folder.path(), &text(&upstream, &place));
    let serving = Serving::in_folder(folder)
        .args(["--config".to_owned(), file])
        .start()
        .await;

    let (one, other) = (session(&serving, &[]).await, session(&serving, &[]).await);

    for opened in [&one, &other] {
        let socket = place.join(format!("{}.sock", opened.session));
        assert_eq!(opened.url, format!("unix:{}", socket.display()));
        assert_eq!(opened.env["PAPERCLIP_API_URL"], opened.url);
        assert_eq!((mode(&place), mode(&socket)), (0o700, 0o600));
        is_served(opened).await;
    }
    // A word of the session's own goes before it.
    let own = sockets.path().join("own.sock");
    let named = session(&serving, &["--unix-socket", own.to_str().unwrap()]).await;
    assert_eq!(named.url, format!("unix:{}", own.display()));
    serving.ask(&["sessions", "revoke", &one.session]).await;
    serving.until(&one.session, "ended").await;
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
    // Those that live stay where they are, and the next one listens elsewhere.
    write(
        serving.folder.path(),
        &with_upstream(&upstream, "[control]\nadhoc = true\n"),
    );
    assert_eq!(
        serving.ask(&["reload"]).await,
        json!({ "changed": ["listeners.agents.address"], "needs_restart": [] })
    );
    assert!(session(&serving, &[]).await.url.starts_with("http://127.0.0.1:"));
    is_served(&other).await;
}

#[tokio::test]
async fn a_folder_of_sockets_that_others_can_write_is_refused() {
    let upstream = Upstream::start().await;
    let (folder, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(sockets.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let file = write(folder.path(), &text(&upstream, sockets.path()));

    let ended = Serving::in_folder(folder)
        .args(["--config".to_owned(), file])
        .command()
        .finish()
        .await;

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("listeners.agents.address") && ended.stderr.contains("nobody else can write"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn sockets_that_are_passed_for_agents_serve_a_session_each_and_outlive_it_and_the_daemon() {
    if !can_run(can_launch()) {
        return;
    }
    let upstream = Upstream::start().await;
    let places = tempfile::tempdir().unwrap();
    let path = places.path().join("agent.sock");
    let socket = format!("agents=unix:{}", path.display());
    let at_socket = format!("unix:{}", path.display());
    let serving = Serving::builder()
        .by(launcher(&[socket.clone(), "agents=tcp".to_owned()]))
        .start()
        .await;

    let first = serving.session(&upstream, &[]).await;
    let second = serving.session(&upstream, &[]).await;
    let third = serving.session(&upstream, &[]).await;

    assert_eq!(first.url, at_socket);
    assert!(second.url.starts_with("http://127.0.0.1:"), "{}", second.url);
    assert!(third.url.starts_with("http://127.0.0.1:") && third.url != second.url);
    for opened in [&first, &second, &third] {
        is_served(opened).await;
    }
    serving.ask(&["sessions", "revoke", &first.session]).await;
    serving.until(&first.session, "ended").await;
    // It is there for the next one, also by its name; the token of the one before is nobody's.
    let named = path.to_str().unwrap();
    let again = serving.session(&upstream, &["--unix-socket", named]).await;
    assert_eq!(again.url, at_socket);
    is_served(&again).await;
    assert_eq!(agent(&first).get("/api/agents/me").await.unwrap().status, 401);

    serving.running.signal("TERM");
    let (running, folder) = (serving.running, serving.folder);
    assert_eq!(running.finish().await.code, Some(0));
    assert!(path.exists(), "the service manager's file was removed");
    // The launcher is a service manager of one daemon only.
    std::fs::remove_file(&path).unwrap();
    let serving = Serving::in_folder(folder).by(launcher(&[socket])).start().await;
    let new = serving.session(&upstream, &[]).await;
    serving.until(&again.session, "ready").await;
    is_served(&again).await;
    assert!(new.url.starts_with("http://"), "{}", new.url);
}
