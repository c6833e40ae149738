//! Host keys and logins against a real OpenSSH server.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up its world has failed"
)]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use runners::ssh::known_hosts::{KnownHosts, PinnedKey};
use runners::ssh::{Connection, ConnectionSettings, HostKeys, Identities};
use support::{Sshd, keygen, sshd_is_here};

async fn fault(settings: &ConnectionSettings) -> String {
    Connection::open(settings).await.unwrap_err().to_string()
}

fn listed(text: String) -> HostKeys {
    HostKeys::Known {
        hosts: Arc::new(KnownHosts::parse("known_hosts", text.as_bytes())),
        alias: None,
    }
}

#[tokio::test]
async fn a_listed_key_a_pinned_key_and_a_pinned_fingerprint_are_each_enough() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    Connection::open(&settings).await.unwrap();
    let public = std::fs::read_to_string(sshd.path("host.pub")).unwrap();
    let key = russh::keys::PublicKey::from_openssh(public.trim()).unwrap();

    settings.host_keys = HostKeys::Pinned(PinnedKey::parse(&public).unwrap());
    Connection::open(&settings).await.unwrap();

    let print = key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
    settings.host_keys = HostKeys::Pinned(PinnedKey::parse(&print).unwrap());
    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn an_unknown_or_changed_or_revoked_host_key_ends_the_connection_before_login() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("LogLevel VERBOSE");
    let shown = std::fs::read_to_string(sshd.path("host.pub")).unwrap();
    let print = russh::keys::PublicKey::from_openssh(shown.trim()).unwrap();
    let print = print.fingerprint(russh::keys::HashAlg::Sha256).to_string();
    keygen(&sshd.path("other"), &[]);
    let other = std::fs::read_to_string(sshd.path("other.pub")).unwrap();
    let mut settings = sshd.settings();
    let name = format!("[127.0.0.1]:{}", sshd.port);

    for (lines, word) in [
        (String::new(), "known"),
        (format!("{name} {other}"), "expected"),
        (format!("{name} {shown}@revoked * {shown}"), "revoked"),
    ] {
        settings.host_keys = listed(lines);
        let text = fault(&settings).await;
        assert!(text.contains(word), "{word}: {text}");
        assert!(word == "revoked" || text.contains(&print), "{word}: {text}");
    }
    assert!(!sshd.log().contains("Accepted"), "nobody logged in");
}

#[tokio::test]
async fn the_kind_of_host_key_that_is_known_is_the_one_asked_for() {
    if !sshd_is_here() {
        return;
    }
    let mut sshd = Sshd::start("");
    let done = Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
        .arg(sshd.path("second"))
        .status()
        .unwrap();
    assert!(done.success());
    sshd.restart(&format!("HostKey {}", sshd.path("second").display()));
    let second = std::fs::read_to_string(sshd.path("second.pub")).unwrap();
    let mut settings = sshd.settings();

    // The server has an Ed25519 key too, which comes first by default and is not known here.
    settings.host_keys = listed(format!("[127.0.0.1]:{} {second}", sshd.port));

    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn a_host_certificate_of_a_listed_authority_is_trusted() {
    if !sshd_is_here() {
        return;
    }
    let mut sshd = Sshd::start("");
    keygen(&sshd.path("ca"), &[]);
    sign(&sshd, &["-h", "-n", "127.0.0.1"], "host.pub");
    sshd.restart(&format!(
        "HostCertificate {}",
        sshd.path("host-cert.pub").display()
    ));
    let authority = std::fs::read_to_string(sshd.path("ca.pub")).unwrap();
    let mut settings = sshd.settings();

    settings.host_keys = listed(format!("@cert-authority [127.0.0.1]:{} {authority}", sshd.port));

    Connection::open(&settings).await.unwrap();
}

fn sign(sshd: &Sshd, more: &[&str], public: &str) {
    let done = Command::new("ssh-keygen")
        .arg("-q")
        .arg("-s")
        .arg(sshd.path("ca"))
        .args(["-I", "test"])
        .args(more)
        .arg(sshd.path(public))
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn a_user_certificate_beside_its_key_logs_in_where_the_key_alone_does_not() {
    if !sshd_is_here() {
        return;
    }
    let mut sshd = Sshd::start("");
    keygen(&sshd.path("ca"), &[]);
    keygen(&sshd.path("new"), &[]);
    sshd.restart(&format!("TrustedUserCAKeys {}", sshd.path("ca.pub").display()));
    let mut settings = sshd.settings();
    settings.identities.files = vec![sshd.path("new")];
    assert!(fault(&settings).await.contains("accepts none of the keys"));

    sign(&sshd, &["-n", &support::user()], "new.pub");

    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn a_refused_login_names_what_was_tried() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    keygen(&sshd.path("stranger"), &[]);
    let mut settings = sshd.settings();
    settings.identities.files = vec![sshd.path("stranger")];

    let text = fault(&settings).await;

    assert!(
        text.contains("stranger") && text.contains("SHA256:") && text.contains("authorized_keys"),
        "{text}"
    );
}

#[tokio::test]
async fn rsa_keys_log_in_with_a_hash_that_is_still_accepted() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let done = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM", "-f"])
        .arg(sshd.path("old"))
        .status()
        .unwrap();
    assert!(done.success());
    std::fs::copy(sshd.path("old.pub"), sshd.path("authorized_keys")).unwrap();
    let mut settings = sshd.settings();
    settings.identities.files = vec![sshd.path("old")];

    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn a_key_that_needs_a_passphrase_is_told_as_that_and_an_absent_one_too() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    keygen(&sshd.path("locked"), &["-N", "secret", "-a", "1"]);
    let mut settings = sshd.settings();

    settings.identities.files = vec![sshd.path("locked")];
    let locked = fault(&settings).await;
    settings.identities.files = vec![PathBuf::from("/nowhere/key")];
    let absent = fault(&settings).await;

    assert!(
        locked.contains("passphrase") && locked.contains("ssh-add"),
        "{locked}"
    );
    assert!(absent.contains("/nowhere/key"), "{absent}");
}

struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(sshd: &Sshd, keys: &[&str]) -> Self {
        let socket = sshd.path("agent.sock");
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        support::eventually("the agent listens", || socket.exists());
        for key in keys {
            let added = Command::new("ssh-add")
                .arg("-q")
                .arg(sshd.path(key))
                .env("SSH_AUTH_SOCK", &socket)
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert!(added.success());
        }
        Self { child, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn an_agent_signs_for_keys_that_are_no_files_here() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let agent = Agent::start(&sshd, &["user"]);
    let mut settings = sshd.settings();
    settings.identities = Identities {
        agent: Some(agent.socket.clone()),
        ..Identities::default()
    };

    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn with_identities_only_the_agents_other_keys_are_not_offered() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("LogLevel VERBOSE\nMaxAuthTries 2");
    for name in ["one", "two", "three", "four"] {
        keygen(&sshd.path(name), &[]);
    }
    let agent = Agent::start(&sshd, &["one", "two", "three", "four"]);
    let mut settings = sshd.settings();
    settings.identities.agent = Some(agent.socket.clone());
    settings.identities.only = false;
    let text = fault(&settings).await;
    assert!(text.contains("--identity"), "{text}");

    settings.identities.only = true;

    Connection::open(&settings).await.unwrap();
}

#[tokio::test]
async fn a_host_behind_another_is_reached_and_judged_by_its_own_key() {
    if !sshd_is_here() {
        return;
    }
    let gate = Sshd::start("");
    let inner = Sshd::start("");
    let mut settings = inner.settings();
    settings.via = Some(Box::new(gate.settings()));

    let connection = Connection::open(&settings).await.unwrap();
    let said = connection
        .run_script("echo inside", Duration::from_secs(10))
        .await
        .unwrap();

    assert_eq!(said.stdout, b"inside\n");
    settings.host_keys = gate.settings().host_keys;
    assert!(fault(&settings).await.contains("known"));
}

#[tokio::test]
async fn a_gate_that_forwards_nothing_is_named_with_its_setting() {
    if !sshd_is_here() {
        return;
    }
    let gate = Sshd::start("AllowTcpForwarding no");
    let inner = Sshd::start("");
    let mut settings = inner.settings();
    settings.via = Some(Box::new(gate.settings()));

    let text = fault(&settings).await;

    assert!(
        text.contains("AllowTcpForwarding") && text.contains(&gate.settings().target),
        "{text}"
    );
}

#[tokio::test]
async fn a_stopped_server_is_found_by_its_silence() {
    if !sshd_is_here() {
        return;
    }
    let sshd = Sshd::start("");
    let mut settings = sshd.settings();
    settings.limits.keepalive_interval = Duration::from_millis(200);
    assert!(sshd.settings().limits.silence() <= Duration::from_secs(15));
    let connection = Connection::open(&settings).await.unwrap();

    sshd.signal_sessions("STOP");
    let reason = tokio::time::timeout(Duration::from_secs(10), connection.closed())
        .await
        .expect("found");

    assert!(reason.contains("stopped answering"), "{reason}");
}
