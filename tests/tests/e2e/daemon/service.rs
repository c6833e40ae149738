//! What the daemon says to a service manager, and the sockets that it takes over from one.

use std::os::unix::fs::PermissionsExt as _;

use paperclip_bridge_tests::manager::{Manager, can_launch, launcher};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::sshd::{self, Access, Sshd};
use paperclip_bridge_tests::user::{self, TestUser};
use paperclip_bridge_tests::world::CREDENTIAL_VARIABLE;
use paperclip_bridge_tests::{Agent, Upstream, can_run, eventually};

use super::SOON;
use super::configured::{with_upstream, write};
use super::ending::in_flight;

const OTHER_LOGINS: &str = "the target has other logins";

#[tokio::test]
async fn a_service_manager_hears_that_it_is_ready_that_it_lives_and_that_it_ends() {
    let manager = Manager::listen();
    let serving = Serving::builder()
        .env("NOTIFY_SOCKET", &manager.address())
        .env("WATCHDOG_USEC", "100000")
        .start()
        .await;

    let ready = manager.hears("READY=1", SOON).await;
    assert!(ready.iter().any(|line| line.starts_with("STATUS=")), "{ready:?}");
    // Ready means that it answers.
    assert_eq!(serving.ask(&["status"]).await["draining"], false);

    for _ in 0..3 {
        let alive = manager.hears("WATCHDOG=1", SOON).await;
        assert!(alive.contains(&"STATUS=0 sessions".to_owned()), "{alive:?}");
    }

    serving.running.signal("TERM");
    let stopping = manager.hears("STOPPING=1", SOON).await;
    let extended = |line: &String| {
        let time = line.strip_prefix("EXTEND_TIMEOUT_USEC=")?;
        time.parse::<u64>().ok()
    };
    // Longer than callbacks under way get.
    assert!(
        stopping
            .iter()
            .find_map(extended)
            .is_some_and(|time| time > 30_000_000),
        "{stopping:?}"
    );
    assert_eq!(serving.running.finish().await.code, Some(0));
}

#[tokio::test]
async fn a_service_manager_hears_of_each_reload_when_it_begins_and_when_it_is_over() {
    let (upstream, manager) = (Upstream::start().await, Manager::listen());
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &with_upstream(&upstream, ""));
    let serving = Serving::in_folder(folder)
        .args(["--config".to_owned(), file])
        .env("NOTIFY_SOCKET", &manager.address())
        .start()
        .await;
    manager.hears("READY=1", SOON).await;
    let mut last = 0;

    // Also one that is refused is over.
    for more in ["[limits]\nmax_body = \"1MiB\"\n", "[limits]\nmax_bdy = 1\n"] {
        write(serving.folder.path(), &with_upstream(&upstream, more));
        serving.running.signal("HUP");

        let reloading = manager.hears("RELOADING=1", SOON).await;
        let ready = manager.hears("READY=1", SOON).await;

        let at = |line: &String| line.strip_prefix("MONOTONIC_USEC=")?.parse::<u64>().ok();
        let at = reloading.iter().find_map(at);
        assert!(at.is_some_and(|at| at > last), "{reloading:?} after {last}");
        last = at.unwrap();
        assert!(ready.contains(&"STATUS=serving".to_owned()), "{ready:?}");
    }
    // systemd compares it with its own clock of that kind.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let now = std::time::Duration::from_secs_f64(seconds + 1.0).as_micros();
    assert!(u128::from(last) <= now, "{last} is after {now}");
    assert_eq!(serving.ask(&["status"]).await["draining"], false);
}

#[tokio::test]
async fn a_daemon_without_a_service_manager_is_none_the_worse() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody");

    let serving = Serving::builder()
        .env("NOTIFY_SOCKET", &nobody.display().to_string())
        .env("WATCHDOG_USEC", "not a number")
        .start()
        .await;

    assert_eq!(serving.ask(&["status"]).await["draining"], false);
    serving.running.signal("TERM");
    let ended = serving.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("could not be told"), "{}", ended.stderr);
}

#[tokio::test]
async fn sockets_of_a_service_manager_are_served_and_outlive_the_daemon() {
    if !can_run(can_launch()) {
        return;
    }
    let builder = Serving::builder();
    let socket = builder.socket();
    // The names decide, not the order.
    let sockets = ["ops=tcp".to_owned(), format!("control=unix:{}", socket.display())];
    let serving = builder.by(launcher(&sockets)).start().await;

    let upstream = Upstream::start().await;
    let opened = serving.session(&upstream, &[]).await;

    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
    let health = Agent {
        url: serving.ops.clone(),
        token: "none".to_owned(),
    };
    assert_eq!(health.get("/readyz").await.unwrap().status, 200);
    serving.running.signal("TERM");
    let folder = serving.folder;
    assert_eq!(serving.running.finish().await.code, Some(0));
    assert!(socket.exists(), "the service manager's file was removed");
    drop(folder);
}

#[tokio::test]
async fn what_is_no_socket_of_ours_is_refused_by_its_name() {
    if !can_run(can_launch()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let cases = [
        (
            vec!["control=tcp".to_owned()],
            "\"control\" that is no listening unix",
        ),
        (
            vec![format!("control=unix-silent:{}", at("a"))],
            "\"control\" that is no listening unix",
        ),
        (
            vec![format!("control=datagram:{}", at("b"))],
            "\"control\" that is no listening unix",
        ),
        (
            vec![format!("control=file:{}", at("c"))],
            "\"control\" that is no listening unix",
        ),
        (
            vec![format!("ops=unix:{}", at("d"))],
            "\"ops\" that is no listening TCP",
        ),
        (
            vec!["ops=tcp-silent".to_owned()],
            "\"ops\" that is no listening TCP",
        ),
        (vec!["ops=tcp".to_owned(), "ops=tcp".to_owned()], "twice"),
        (
            vec![format!("agents=datagram:{}", at("e"))],
            "\"agents\" that is no listening unix stream or TCP",
        ),
        (
            vec!["agents=tcp-silent".to_owned()],
            "\"agents\" that is no listening unix stream or TCP",
        ),
        (vec!["metrics=tcp".to_owned()], "FileDescriptorName=control"),
    ];

    for (sockets, said) in cases {
        let ended = Serving::builder().by(launcher(&sockets)).command().finish().await;

        assert_eq!(ended.code, Some(3), "{sockets:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{sockets:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_daemon_that_lets_other_users_in_opens_its_socket_to_its_group_only() {
    let serving = Serving::builder().args(["--allow-uid", "65534"]).start().await;

    let mode = std::fs::metadata(serving.socket()).unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn a_health_check_without_an_http_client_tells_a_daemon_that_is_not_ready() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;
    let ready = serving.run(&["status", "--ready"]).await;
    assert_eq!(ready.code, Some(0), "{}", ready.stderr);
    // It cannot end before this one is answered.
    let (_caller, permits) = in_flight(&upstream, &opened, "k-1").await;

    assert_eq!(serving.run(&["drain"]).await.code, Some(0));
    let ended = serving.run(&["status", "--ready"]).await;

    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("not ready: draining"), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("draining: the daemon is ending"),
        "{}",
        ended.stdout
    );
    assert_eq!(serving.run(&["status"]).await.code, Some(0));
    permits.add_permits(1);
    assert_eq!(serving.running.finish().await.code, Some(0));
}

#[tokio::test]
async fn a_host_where_others_can_log_in_is_warned_of_once_where_sessions_listen_on_ports() {
    if !can_run(sshd::here().and_then(|()| user::can_be_made())) {
        return;
    }
    let (upstream, serving, server) = (Upstream::start().await, Serving::start().await, Sshd::start());
    let _other = TestUser::make();
    let Access { target, .. } = server.access();
    let (url, credential) = (upstream.url(), format!("env:{CREDENTIAL_VARIABLE}"));
    let options = server.access().options();
    let open = async |more: &[&str]| {
        let mut words = vec!["sessions", "new", &target, "--wait", "ready", "--upstream", &url];
        words.extend(["--credential", &credential]);
        words.extend(options.iter().map(String::as_str));
        words.extend(more);
        serving.ask(&words).await
    };
    let warned = || serving.running.stderr().matches(OTHER_LOGINS).count();

    let socket = serving.folder.path().join("agent.sock");
    std::fs::set_permissions(serving.folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let by_socket = open(&["--unix-socket", socket.to_str().unwrap()]).await;
    assert!(
        by_socket["url"].as_str().unwrap().starts_with("unix:"),
        "{by_socket}"
    );
    assert_eq!(warned(), 0);

    let by_port = open(&[]).await;
    assert!(
        by_port["url"].as_str().unwrap().starts_with("http://"),
        "{by_port}"
    );
    eventually(SOON, "the log says so", || (warned() > 0).then_some(())).await;
    let again = open(&[]).await;
    let shown = async |opened: &serde_json::Value| {
        let id = opened["session"].as_str().unwrap().to_owned();
        serving.ask(&["sessions", "show", &id]).await["warnings"].clone()
    };
    // Whoever looks at a session is told, too, also of one whose host was asked before.
    for opened in [&by_port, &again] {
        let warnings = shown(opened).await;
        assert_eq!(warnings[0]["code"], "other_logins", "{warnings}");
        assert!(warnings[0]["detail"].as_str().unwrap().contains("--unix-socket"));
    }
    assert_eq!(shown(&by_socket).await, serde_json::json!([]));
    let page = serving
        .run(&["sessions", "show", by_port["session"].as_str().unwrap()])
        .await;
    assert!(
        page.stdout.contains("can log in on the target"),
        "{}",
        page.stdout
    );
    serving.running.signal("TERM");
    let ended = serving.running.finish().await;
    assert_eq!(ended.stderr.matches(OTHER_LOGINS).count(), 1, "{}", ended.stderr);
}
