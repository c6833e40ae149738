//! A target that is not reached is looked for nowhere else, and least of all on this machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use paperclip_bridge_tests::binary::Finished;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::waiting::program;
use paperclip_bridge_tests::{can_run, user};

use crate::ssh_can_run;

use super::Probed;

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
