//! `probe`: what it finds on good, restricted and unreachable targets, and that it looks nowhere else.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use paperclip_bridge_tests::binary::Finished;
use paperclip_bridge_tests::leased::Leased;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, assert_headers, daemon};
use paperclip_bridge_tests::{Upstream, can_run, eventually, processes, user};
use runners::fake::{Call, LeaseState};
use serde_json::Value;

use crate::ssh_can_run;

const SOON: Duration = Duration::from_secs(10);

/// What a probe said, which holds no secret.
struct Probed {
    code: Option<i32>,
    report: Value,
}

impl Probed {
    fn of(ended: Finished) -> Self {
        for output in [&ended.stdout, &ended.stderr] {
            assert!(
                !output.contains(CREDENTIAL) && !output.contains("pcb_"),
                "{output}"
            );
        }
        let report = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
        let probed = Self {
            code: ended.code,
            report,
        };
        probed.assert_shape();
        probed
    }

    fn assert_shape(&self) {
        let report = &self.report;
        assert!(
            report["ok"].is_boolean() && report["target"].is_string(),
            "{report}"
        );
        assert!(report["seconds"].as_f64().unwrap() < 120.0, "{report}");
        assert_eq!(report["ok"], self.code == Some(0), "{report}");
        for check in report["checks"].as_array().unwrap() {
            let result = check["result"].as_str().unwrap();
            assert!(["ok", "warn", "fail", "skipped"].contains(&result), "{check}");
            assert!(
                check["name"].is_string() && check["ms"].is_u64() && check["found"].is_string(),
                "{check}"
            );
            let wrong = ["warn", "fail"].contains(&result);
            assert_eq!(check["to_do"].is_string(), wrong, "{check}");
            assert_eq!(check["reason"].is_string(), wrong, "{check}");
        }
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("no check {name}: {}", self.report))
    }

    fn assert_is(&self, result: &str, names: &[&str]) {
        for name in names {
            assert_eq!(self.check(name)["result"], result, "{}", self.report);
        }
    }

    /// It ended at the target, for this reason.
    fn assert_unreached(&self, reason: &str) {
        assert_eq!(self.code, Some(4), "{}", self.report);
        assert_eq!(self.check("target")["reason"], reason, "{}", self.report);
        assert_eq!(
            self.report["checks"].as_array().unwrap().len(),
            1,
            "{}",
            self.report
        );
        assert_eq!(self.report["tunnel"], Value::Null);
    }
}

async fn probe(place: &Place, upstream: &Upstream, options: &[&str]) -> Probed {
    let command = daemon("probe", place, &upstream.url())
        .args(["--json"])
        .args(options.iter().copied());
    Probed::of(command.finish().await)
}

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
async fn this_machine_is_probed_and_each_of_its_tunnels_carries_a_callback() {
    let upstream = Upstream::start().await;

    let probed = probe(&Place::Local, &upstream, &[]).await;

    assert_eq!(probed.code, Some(0), "{}", probed.report);
    assert_eq!(probed.report["tunnel"], "local");
    probed.assert_is(
        "ok",
        &[
            "target",
            "command",
            "shell",
            "clock",
            "upstream",
            "callback local",
            "callback http2_v1",
            "callback queue_v1",
        ],
    );
    // No pack opens the API's health to agents.
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn people_get_a_table() {
    let upstream = Upstream::start().await;

    let ended = daemon("probe", &Place::Local, &upstream.url())
        .args(["--tunnel", "local"])
        .finish()
        .await;

    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{}",
        ended.stdout
    );
    for told in ["Check ", "callback local", "Sessions work there, over local"] {
        assert!(ended.stdout.contains(told), "{}", ended.stdout);
    }
    assert!(
        !ended.stdout.contains("queue_v1"),
        "only what was demanded: {}",
        ended.stdout
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

#[tokio::test]
async fn a_sandbox_is_acquired_probed_and_given_back() {
    for (field, tunnel) in [("duplex=true", "http2_v1"), ("duplex=false", "queue_v1")] {
        let world = Leased::new().await;

        let probed = Probed::of(
            world
                .command("probe", "fake:")
                .args(["--json", "--provider", field])
                .finish()
                .await,
        );

        assert_eq!(probed.code, Some(0), "{}", probed.report);
        assert_eq!(probed.report["tunnel"], tunnel);
        probed.assert_is("ok", &["lease", "callback queue_v1"]);
        if tunnel == "queue_v1" {
            assert_eq!(probed.check("tunnel http2_v1")["reason"], "no_duplex");
        }
        assert_eq!(world.calls(Call::Acquire).len(), 1);
        assert_eq!(world.calls(Call::Release).len(), 1);
        nothing_is_held(&world);
    }
}

fn nothing_is_held(world: &Leased) {
    assert_eq!(world.present(), []);
    assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_sandbox_that_was_there_before_is_probed_and_never_ended() {
    let world = Leased::new().await;
    let kept = world
        .open("fake:", &["--provider", "reuseLease=true"])
        .await
        .unwrap();
    assert_eq!(kept.close().await.code, Some(0));
    let [(id, _)] = &world.present()[..] else {
        panic!("{:?}", world.present())
    };
    let target = format!("fake:{id}");
    let (released, destroyed) = (world.calls(Call::Release).len(), world.calls(Call::Destroy).len());

    for fail in [None, Some(r#"fail=[{"call":"execute","how":"lost"}]"#)] {
        let command = world.command("probe", &target).args(["--json"]);
        let command = match fail {
            Some(fail) => command.args(["--provider", fail]),
            None => command,
        };
        let probed = Probed::of(command.finish().await);

        assert_eq!(
            probed.code,
            Some(if fail.is_some() { 4 } else { 0 }),
            "{}",
            probed.report
        );
        assert_eq!(world.calls(Call::Release).len(), released);
        assert_eq!(world.calls(Call::Destroy).len(), destroyed);
        assert_eq!(world.entries(), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test]
async fn what_a_provider_does_not_do_is_told_as_what_it_is() {
    for (call, how, check, reason) in [
        ("acquire", "unreachable", "target", "provider_unreachable"),
        ("acquire", "refused", "target", "provider_refused"),
        ("acquire", "busy", "target", "provider_busy"),
        ("acquire", "unknown", "target", "provider_unknown"),
        ("execute", "lost", "command", "lease_lost"),
    ] {
        let world = Leased::new().await;
        let fail = format!(r#"fail=[{{"call":"{call}","how":"{how}"}}]"#);

        let probed = Probed::of(
            world
                .command("probe", "fake:")
                .args(["--json", "--provider", &fail])
                .finish()
                .await,
        );

        assert_eq!(probed.code, Some(4), "{}", probed.report);
        assert_eq!(probed.check(check)["reason"], reason, "{}", probed.report);
        let held = world
            .present()
            .into_iter()
            .filter(|(_, state)| *state == LeaseState::Held);
        assert_eq!(held.count(), 0, "{call} {how}");
    }
}

/// A folder of programs that leave a mark and do nothing else.
struct Traps {
    folder: tempfile::TempDir,
}

impl Traps {
    fn lay() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        // A shell of its own: every other one is hidden behind a trap.
        std::fs::copy(program("sh").unwrap(), folder.path().join("shell")).unwrap();
        let text = format!(
            "#!{0}/shell\necho \"$0 $*\" >>{0}/sprung\nexit 1\n",
            folder.path().display()
        );
        for name in [
            "sh", "bash", "dash", "ssh", "uname", "curl", "node", "env", "id", "date", "cat", "mkdir",
            "setsid", "nc", "python3", "true", "hostname", "getent",
        ] {
            let path = folder.path().join("bin").join(name);
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder }
    }

    fn sprung(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("sprung")).unwrap_or_default()
    }

    /// Runs the daemon where these programs are all there is, also under the names that every system has.
    fn probe(&self, arguments: &[String]) -> Finished {
        let bin = self.folder.path().join("bin").display().to_string();
        // The folder of the commands used here goes last; `exec` is the shell's own.
        let script = "t=$1; shift; for d in /usr/local/sbin /usr/local/bin /usr/sbin /sbin /bin /usr/bin; do \
                      if [ -d $d ] && [ ! -L $d ]; then mount --bind \"$t\" $d || exit 99; fi; done; exec \"$@\"";
        let output = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh", &bin])
            .arg(paperclip_bridge_tests::binary::bridge_binary())
            .arg("probe")
            .args(arguments)
            .args(["--json", "--no-upstream-check"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.folder.path())
            .env("SHELL", "/bin/sh")
            .env("USER", "nobody")
            .output()
            .unwrap();
        Finished {
            code: output.status.code(),
            signal: None,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn traps_can_be_laid() -> Result<(), String> {
    if !user::is_root() {
        return Err("only root can hide the system's programs".to_owned());
    }
    program("unshare")?;
    let tried = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .status();
    match tried {
        Ok(status) if status.success() => Ok(()),
        _ => Err("no mount namespace can be made here".to_owned()),
    }
}

#[tokio::test]
async fn a_target_that_is_not_reached_is_never_looked_for_on_this_machine() {
    if !ssh_can_run() || !can_run(traps_can_be_laid()) {
        return;
    }
    let mut changed = Sshd::start();
    let (good, stranger) = (Sshd::start(), Sshd::start());
    let option = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
    let access = good.access();
    let at = |target: &str, identity: &Path, known_hosts: &Path| {
        let mut arguments = vec![target.to_owned()];
        arguments.extend(option("--identity", identity));
        arguments.extend(option("--known-hosts", known_hosts));
        arguments
    };
    let nobody = tempfile::NamedTempFile::new().unwrap();
    changed.change_host_key();
    let mut stopped = Sshd::start();
    let closed = stopped.access();
    stopped.stop();
    let cloud = tempfile::tempdir().unwrap();
    let fake = |target: &str| {
        let folder = cloud.path().display();
        [
            target.to_owned(),
            "--provider".into(),
            format!("cloud={folder}/cloud"),
            "--state-dir".into(),
            format!("{folder}/state"),
        ]
        .to_vec()
    };
    // Longer than any name may be, so that no server is asked for it.
    let no_name = format!("ssh://me@{}", "a".repeat(64));
    let other = changed.access();

    for (reason, arguments) in [
        (
            "connection_refused",
            at(&closed.target, &closed.identity, &closed.known_hosts),
        ),
        (
            "name_not_found",
            at(&no_name, &access.identity, &access.known_hosts),
        ),
        ("host_key", at(&access.target, &access.identity, nobody.path())),
        ("host_key", at(&other.target, &other.identity, &other.known_hosts)),
        (
            "key_rejected",
            at(&access.target, &stranger.access().identity, &access.known_hosts),
        ),
        ("lease_lost", fake("fake:fake-999")),
    ] {
        let traps = Traps::lay();

        let probed = Probed::of(traps.probe(&arguments));

        probed.assert_unreached(reason);
        assert_eq!(traps.sprung(), "", "{reason}");
    }
    // The traps work: where this machine is what was asked for, they spring.
    let traps = Traps::lay();
    let probed = Probed::of(traps.probe(&["local".to_owned()]));
    assert_eq!(probed.code, Some(4), "{}", probed.report);
    assert!(traps.sprung().contains("sh"), "{}", probed.report);
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_before_anything_is_reached() {
    let upstream = Upstream::start().await;

    let socket = daemon("probe", &Place::Local, &upstream.url())
        .args(["--unix-socket", "/tmp/x.sock"])
        .finish()
        .await;
    let tunnel = daemon("probe", &Place::Local, &upstream.url())
        .args(["--tunnel", "ssh-reverse"])
        .finish()
        .await;

    assert_eq!(
        (socket.code, tunnel.code),
        (Some(2), Some(2)),
        "{}",
        socket.stderr
    );
    assert_eq!((socket.stdout, tunnel.stdout), (String::new(), String::new()));
}
