//! A command in a provider's sandbox calls the API; what the provider refuses is told as such.

use std::time::Duration;

use paperclip_bridge_tests::binary::{BridgeCommand, LIMIT};
use paperclip_bridge_tests::leased::Leased;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::{CREDENTIAL, assert_headers};
use paperclip_bridge_tests::{Agent, Upstream, can_run, eventually, processes};
use runners::fake::{Call, LeaseState};

const SOON: Duration = Duration::from_secs(10);
const ME: &str = "/api/agents/me";
const CALL: &str = r#"curl -sS -w ' %{http_code}\n' -H "Authorization: Bearer $PAPERCLIP_API_KEY" \
    "$PAPERCLIP_API_URL/api/agents/me"; echo "$PAPERCLIP_API_BRIDGE_MODE""#;

/// Nothing of the sandbox, its processes or its lease is there any more, and the lease was released once.
async fn nothing_is_left(world: &Leased) {
    assert_eq!(world.present(), []);
    assert_eq!(world.sandboxes(), Vec::<std::path::PathBuf>::new());
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
    let released = world.calls(Call::Release);
    assert_eq!(released.len(), 1, "{released:?}");
    let cloud = world.cloud().folder().display().to_string();
    eventually(SOON, "no process is left of the sandbox", || {
        let left = processes::all()
            .into_iter()
            .any(|one| String::from_utf8_lossy(&processes::environment(one.pid)).contains(&cloud));
        (!left).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_command_reaches_the_api_by_http2_v1_and_nothing_is_left_behind() {
    if !can_run(program("curl").map(drop)) {
        return;
    }
    let world = Leased::new().await;

    let ended = world
        .command("run", "fake:")
        .command(["sh", "-c", CALL])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "{\"ok\":true} 200\nhttp2_v1\n", "{}", ended.stderr);
    assert_headers(&world.upstream.seen());
    assert!(!ended.stderr.contains(CREDENTIAL), "{}", ended.stderr);
    nothing_is_left(&world).await;
}

#[tokio::test]
async fn without_a_duplex_it_reaches_the_api_by_queue_v1_and_the_reason_is_named() {
    let world = Leased::new().await;

    let bridge = world
        .open("fake:", &["--provider", "duplex=false"])
        .await
        .unwrap();

    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
    assert_eq!(bridge.opened.tunnel, "queue_v1");
    let [attempt] = &bridge.opened.ladder[..] else {
        panic!("{:?}", bridge.opened.ladder)
    };
    assert_eq!(
        (&attempt["tunnel"], &attempt["reason"]),
        (&"http2_v1".into(), &"no_duplex".into())
    );
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    nothing_is_left(&world).await;
}

#[tokio::test]
async fn a_tunnel_that_is_demanded_is_that_tunnel_or_an_error() {
    let world = Leased::new().await;
    let queue = world.open("fake:", &["--tunnel", "queue_v1"]).await.unwrap();
    assert_eq!(
        (queue.opened.tunnel.as_str(), queue.opened.ladder.len()),
        ("queue_v1", 0)
    );
    assert_eq!(queue.close().await.code, Some(0));

    for (options, code, told) in [
        (
            &["--tunnel", "http2_v1", "--provider", "duplex=false"][..],
            4,
            "no_duplex",
        ),
        (&["--tunnel", "worker"], 3, "names no relay"),
        (&["--tunnel", "local"], 2, "http2_v1, queue_v1 or worker"),
        (&["--tunnel", "ssh-reverse"], 2, "http2_v1, queue_v1 or worker"),
        (
            &["--unix-socket", "/tmp/x.sock"],
            2,
            "not for targets of providers",
        ),
    ] {
        let refused = world.open("fake:", options).await.unwrap_err();

        assert_eq!(refused.code, Some(code), "{options:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(told), "{options:?}: {}", refused.stderr);
    }
    assert_eq!(world.present(), []);
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_command_in_a_sandbox_is_given_the_sessions_variables_and_nothing_of_the_daemons() {
    let world = Leased::new().await;

    let ended = world
        .command("run", "fake:")
        .env("DAEMONS_OWN", "must not travel")
        .command(["env"])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let names: Vec<&str> = ended
        .stdout
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    let ours: Vec<_> = names
        .iter()
        .filter(|name| name.starts_with("PAPERCLIP_"))
        .collect();
    assert_eq!(ours.len(), 4, "{names:?}");
    for name in &names {
        assert!(
            name.starts_with("PAPERCLIP_")
                || ["PATH", "HOME", "USER", "LANG", "PWD", "SHLVL", "_"].contains(name),
            "{name} travelled"
        );
    }
    assert!(!ended.stdout.contains("must not travel") && !ended.stdout.contains(CREDENTIAL));
    assert!(
        ended
            .stdout
            .contains(&format!("HOME={}", world.cloud().folder().display()))
    );
}

#[tokio::test]
async fn a_time_limit_travels_whole_to_the_provider_and_the_process() {
    let world = Leased::new().await;

    let late = world
        .command("run", "fake:")
        .args(["--timeout", "700ms"])
        .command(["sleep", "1000"])
        .finish()
        .await;
    let own = world
        .command("run", "fake:")
        .args(["--provider", "timeoutMs=86400000"])
        .command(["true"])
        .finish()
        .await;

    assert_eq!(
        (late.code, own.code),
        (Some(124), Some(0)),
        "{}{}",
        late.stderr,
        own.stderr
    );
    let limits: Vec<_> = world
        .calls(Call::Execute)
        .iter()
        .map(|entry| entry.timeout_ms)
        .collect();
    assert!(
        limits.contains(&Some(700)) && limits.contains(&Some(86_400_000)),
        "{limits:?}"
    );
    assert_eq!(world.present(), []);
}

#[tokio::test]
async fn a_configuration_comes_from_a_file_and_single_fields_win_over_it() {
    let upstream = Upstream::start().await;
    let world = Leased::new().await;
    let file = world.state().with_extension("toml");
    std::fs::write(
        &file,
        format!("cloud = {:?}\nduplex = false\n", world.cloud().folder()),
    )
    .unwrap();

    let ended = BridgeCommand::new(["run", "fake:", "--provider", "duplex=true", "--provider-config"])
        .args([file.display().to_string()])
        .args(["--upstream", &upstream.url(), "--credential", "env:KEY"])
        .env("KEY", CREDENTIAL)
        .command(["sh", "-c", "echo $PAPERCLIP_API_BRIDGE_MODE"])
        .finish()
        .await;

    assert_eq!(
        (ended.code, ended.stdout.trim()),
        (Some(0), "http2_v1"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_names_the_field_before_anything_is_made() {
    let world = Leased::new().await;
    for (field, told) in [
        ("cloudy=true", "`cloudy`"),
        ("timeoutMs=-5", "`timeoutMs`"),
        ("duplex=perhaps", "`duplex`"),
        ("cloud=here", "`cloud` must be an absolute path"),
    ] {
        let refused = world
            .command("run", "fake:")
            .args(["--provider", field])
            .command(["true"])
            .finish()
            .await;

        assert_eq!(refused.code, Some(3), "{field}: {}", refused.stderr);
        assert!(refused.stderr.contains(told), "{field}: {}", refused.stderr);
    }
    assert!(world.cloud().calls().unwrap().is_empty());
    assert!(!world.state().exists());

    let unknown = BridgeCommand::new(["run", "nobody:x", "--", "true"])
        .finish()
        .await;
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("`nobody:` is not a kind of target")
            && unknown.stderr.contains("`fake:[ID]`"),
        "{}",
        unknown.stderr
    );
}

#[tokio::test]
async fn config_check_shows_what_would_be_taken_and_makes_nothing() {
    let world = Leased::new().await;
    let cloud = format!("cloud={}", world.cloud().folder().display());
    let check = |field: &str| {
        BridgeCommand::new([
            "config",
            "check",
            "--json",
            "--target",
            "fake:",
            "--provider",
            &cloud,
        ])
        .args(["--provider", field, "--credential", "env:KEY"])
        .env("KEY", CREDENTIAL)
        .finish()
    };

    let good = check("timeoutMs=60000").await;
    let bad = check("timeoutMs=never").await;

    assert_eq!(
        (good.code, bad.code),
        (Some(0), Some(3)),
        "{}{}",
        good.stdout,
        bad.stdout
    );
    assert!(good.stdout.contains("timeoutMs = 60000"), "{}", good.stdout);
    assert!(bad.stdout.contains("`timeoutMs`"), "{}", bad.stdout);
    assert!(!world.cloud().folder().exists());
}

#[tokio::test]
async fn each_call_that_a_provider_fails_is_told_as_what_it_is() {
    for (call, how, code, told) in [
        ("acquire", "unreachable", 4, "cannot be reached"),
        ("acquire", "refused", 4, "provider_refused"),
        ("acquire", "busy", 4, "is busy"),
        ("acquire", "unknown", 4, "outcome is unknown"),
        ("execute", "refused", 4, "no_tunnel_works"),
        ("execute", "lost", 4, "lease_lost"),
        ("keepAlive", "lost", 125, "lease_lost"),
    ] {
        let world = Leased::new().await;
        let fail = format!(r#"fail=[{{"call":"{call}","how":"{how}"}}]"#);

        let ended = world
            .command("run", "fake:")
            .args(["--provider", &fail])
            .command(["sleep", "1000"])
            .finish()
            .await;

        let what = format!("{call} {how}: {}", ended.stderr);
        // A heartbeat may find the loss before the tunnel stands.
        let codes = if call == "keepAlive" {
            vec![code, 4]
        } else {
            vec![code]
        };
        assert!(codes.contains(&ended.code.unwrap()), "{:?} {what}", ended.code);
        assert!(ended.stderr.contains(told), "{what}");
        let held: Vec<_> = world
            .present()
            .into_iter()
            .filter(|(_, state)| *state == LeaseState::Held)
            .collect();
        assert_eq!(held, [], "{what}");
        let owed = usize::from(how == "unknown");
        assert_eq!(world.entries().len(), owed, "{what}");
    }
}

#[tokio::test]
async fn a_duplex_that_breaks_is_brought_back_at_the_same_port() {
    let world = Leased::new().await;
    let bridge = world
        .open(
            "fake:",
            &["--tunnel", "http2_v1", "--provider", "cutDuplexAfterBytes=20000"],
        )
        .await
        .unwrap();
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };

    let mut answered = 0;
    let deadline = std::time::Instant::now() + LIMIT;
    while answered < 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            bridge.running.stderr()
        );
        if agent.get(ME).await.is_ok_and(|answer| answer.status == 200) {
            answered += 1;
        }
    }

    assert!(world.calls(Call::OpenDuplex).len() > 1);
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    nothing_is_left(&world).await;
}
