//! Files as people have them, and as `ssh-keygen` writes them.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const OTHER_ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

fn key(line: &str) -> PublicKeyOrCertificate {
    PublicKey::from_openssh(line).expect("a key").into()
}

fn name(host: &str) -> HostName<'_> {
    HostName {
        host,
        port: 22,
        alias: None,
    }
}

fn at_port(host: &str, port: u16) -> HostName<'_> {
    HostName {
        host,
        port,
        alias: None,
    }
}

fn known(text: &str) -> KnownHosts {
    KnownHosts::parse("known_hosts", text.as_bytes())
}

fn trusts(text: &str, host: &HostName<'_>) -> bool {
    known(text).check(host, &key(ED25519), 0).is_trusted()
}

#[test]
fn a_listed_key_is_trusted_and_no_other() {
    let text = format!("# comment\n\n \thost.example,10.0.0.1 \t{ED25519} me@here with words\r\n");

    assert!(trusts(&text, &name("host.example")));
    assert!(trusts(&text, &name("HOST.Example")));
    assert!(trusts(&text, &name("10.0.0.1")));
    assert!(!trusts(&text, &name("other.example")));
    let verdict = known(&text).check(&name("host.example"), &key(OTHER_ED25519), 0);
    let HostKeyVerdict::Mismatch {
        at,
        expected,
        offered,
    } = &verdict
    else {
        panic!("{verdict:?}")
    };
    assert_eq!((at.line, at.file.as_str()), (3, "known_hosts"));
    assert!(expected.starts_with("SHA256:") && offered.starts_with("SHA256:") && expected != offered);
    let words = verdict.explain(&name("host.example"));
    assert!(
        words.contains("ssh-keygen -R 'host.example'") && words.contains("known_hosts:3"),
        "{words}"
    );
}

#[test]
fn wildcards_and_negations_are_followed() {
    let text = format!("*.example.com,!secret.example.com,web? {ED25519}");

    assert!(trusts(&text, &name("a.b.example.com")));
    assert!(!trusts(&text, &name("secret.example.com")));
    assert!(trusts(&text, &name("web1")));
    assert!(!trusts(&text, &name("web12")));
    assert!(!trusts(&text, &name("example.com")));
}

#[test]
fn another_port_has_its_own_name_and_falls_back_to_the_plain_one() {
    let with_port = format!("[h]:2222 {ED25519}");
    assert!(trusts(&with_port, &at_port("h", 2222)));
    assert!(!trusts(&with_port, &at_port("h", 22)));
    assert!(!trusts(&with_port, &at_port("h", 2223)));

    // As OpenSSH: "found matching key w/out port".
    assert!(trusts(&format!("h {ED25519}"), &at_port("h", 2222)));
    // But a key listed for that port decides.
    let both = format!("[h]:2222 {OTHER_ED25519}\nh {ED25519}");
    assert!(matches!(
        known(&both).check(&at_port("h", 2222), &key(ED25519), 0),
        HostKeyVerdict::Mismatch { .. }
    ));
    // And the plain name's other key is no mismatch of this service.
    let plain = format!("h {OTHER_ED25519}");
    assert!(matches!(
        known(&plain).check(&at_port("h", 2222), &key(ED25519), 0),
        HostKeyVerdict::Unknown { .. }
    ));
}

#[test]
fn an_alias_stands_for_host_and_port() {
    let host = HostName {
        host: "10.0.0.1",
        port: 2222,
        alias: Some("Gate"),
    };

    assert!(trusts(&format!("gate {ED25519}"), &host));
    assert!(!trusts(&format!("[10.0.0.1]:2222 {ED25519}"), &host));
    assert!(!trusts(&format!("[gate]:2222 {ED25519}"), &host));
}

#[test]
fn a_revoked_key_is_refused_wherever_else_it_is_listed() {
    let text = format!("h {ED25519}\n@revoked * {ED25519}\n");

    assert_eq!(
        known(&text).check(&name("h"), &key(ED25519), 0),
        HostKeyVerdict::Revoked {
            at: Place {
                file: "known_hosts".to_owned(),
                line: 2
            }
        }
    );
    // Also one that is revoked for the plain name, on another port.
    let text = format!("@revoked h {ED25519}\n[h]:2222 {ED25519}\n");
    assert!(matches!(
        known(&text).check(&at_port("h", 2222), &key(ED25519), 0),
        HostKeyVerdict::Revoked { .. }
    ));
}

#[test]
fn an_authority_is_no_host_key() {
    assert!(!trusts(&format!("@cert-authority * {ED25519}"), &name("h")));
}

#[test]
fn a_host_known_by_another_kind_of_key_is_refused_with_help() {
    let text = format!("h {ECDSA}");

    let verdict = known(&text).check(&name("h"), &key(ED25519), 0);

    let HostKeyVerdict::Unknown { known_algorithms, .. } = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(known_algorithms, &["ecdsa-sha2-nistp256"]);
    assert!(
        verdict
            .explain(&name("h"))
            .contains("known by ecdsa-sha2-nistp256 only")
    );
    let verdict = known("").check(&at_port("h", 2222), &key(ED25519), 0);
    assert!(
        verdict
            .explain(&at_port("h", 2222))
            .contains("ssh-keyscan -p 2222 h")
    );
}

#[test]
fn known_algorithms_come_in_file_order() {
    let text = format!(
        "h {ECDSA}\nh {ED25519}\nh {OTHER_ED25519}\n@revoked h {ED25519}\n@cert-authority *.x {ECDSA}"
    );

    let algorithms = known(&text).known_algorithms(&at_port("h", 2222));
    assert_eq!(
        algorithms.keys.iter().map(Algorithm::as_str).collect::<Vec<_>>(),
        ["ecdsa-sha2-nistp256", "ssh-ed25519"]
    );
    assert!(!algorithms.authority);
    assert!(known(&text).known_algorithms(&name("a.x")).authority);
}

#[test]
fn malformed_lines_are_warned_of_and_trust_nothing() {
    let blob = ED25519.split(' ').nth(1).expect("blob");
    let lines = [
        "h".to_owned(),
        "h ssh-ed25519".to_owned(),
        format!("h ssh-ed25519 {blob}!"),
        format!("h ssh-ed25519 {}", blob.get(..64).expect("longer")),
        format!("h ssh-ed25519 {blob}AAAA"),
        format!("h ssh-rsa {blob}"),
        format!("h ssh-ed25519x {blob}"),
        format!("h ssh-ed25519-cert-v01@openssh.com {blob}"),
        format!("@trusted h {ED25519}"),
        format!("@cert-authority @revoked h {ED25519}"),
        "@revoked".to_owned(),
        format!("|1|AAAA {ED25519}"),
        format!("|2|AAAA|AAAA {ED25519}"),
        format!("|1|AAAA|AAAA {ED25519}"),
        format!("|1|@@@@|AAAA {ED25519}"),
        "h 1024 35 12345678901234567890".to_owned(),
        "h option ssh-ed25519 ".to_owned() + blob,
    ];
    for line in &lines {
        let known = known(line);
        assert_eq!(known.warnings().len(), 1, "{line}");
        assert_eq!(known.warnings()[0].at.line, 1);
        assert!(!known.check(&name("h"), &key(ED25519), 0).is_trusted(), "{line}");
    }
    let certificate = known(&format!("h ssh-ed25519-cert-v01@openssh.com {blob}"));
    assert_eq!(
        certificate.warnings()[0].reason,
        "a certificate where a key is expected"
    );
    let mut bytes = format!("h {ED25519}").into_bytes();
    bytes.insert(1, 0xff);
    let known = KnownHosts::parse("f", &bytes);
    assert_eq!(known.warnings()[0].to_string(), "f:1: line ignored: not UTF-8");
    let long = format!("{},h {ED25519}", "x".repeat(LINE_LIMIT_BYTES));
    assert!(!trusts(&long, &name("h")));
}

#[test]
fn a_pin_is_a_fingerprint_or_a_key() {
    let KeyData::Ed25519(_) = PublicKey::from_openssh(ED25519).expect("key").key_data().clone() else {
        panic!("an ed25519 key")
    };
    let print = fingerprint(PublicKey::from_openssh(ED25519).expect("key").key_data());
    for text in [
        print.as_str(),
        &format!("{print}=\n"),
        ED25519,
        &format!("{ED25519} me@here"),
    ] {
        let pin = PinnedKey::parse(text).expect("a pin");
        assert!(pin.check(&key(ED25519)).is_trusted(), "{text}");
        let other = pin.check(&key(OTHER_ED25519));
        assert!(matches!(other, HostKeyVerdict::Mismatch { .. }), "{other:?}");
    }
    for text in [
        "",
        "SHA256:",
        "SHA256:AAAA",
        "MD5:00:11",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "SHA256:***",
    ] {
        assert!(PinnedKey::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_missing_file_is_empty_and_an_unreadable_one_an_error() {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = directory.path().join("known_hosts");
    std::fs::write(&file, format!("h {ED25519}\n")).expect("write");

    let loaded = KnownHosts::load(&[directory.path().join("none"), file]).expect("loads");
    assert!(loaded.check(&name("h"), &key(ED25519), 0).is_trusted());

    let (path, _) = KnownHosts::load(&[directory.path().to_path_buf()]).expect_err("a directory");
    assert_eq!(path, directory.path());
}

proptest! {
    #[test]
    fn no_text_panics_or_trusts_a_key_it_does_not_hold(text in "(\\PC|[\n\t @|,*!]|h |ssh-ed25519 |@revoked |@cert-authority )*") {
        prop_assert!(!trusts(&text, &name("h")));
    }

    #[test]
    fn a_line_with_one_byte_changed_never_trusts_another_key(at in 2_usize..80, byte in any::<u8>()) {
        let mut line = format!("h {ED25519}").into_bytes();
        if let Some(slot) = line.get_mut(at) { *slot = byte; }
        let known = KnownHosts::parse("f", &line);

        prop_assert!(!known.check(&name("h"), &key(OTHER_ED25519), 0).is_trusted());
    }
}

/// Runs `ssh-keygen` in `directory`; `false` where there is none.
fn keygen(directory: &Path, args: &[&str]) -> bool {
    match Command::new("ssh-keygen")
        .args(args)
        .current_dir(directory)
        .output()
    {
        Ok(output) => {
            assert!(
                output.status.success(),
                "ssh-keygen {args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            true
        }
        Err(_) => {
            println!("skipped: no ssh-keygen on this machine");
            false
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path)
        .expect("written by ssh-keygen")
        .trim_end()
        .to_owned()
}

#[test]
fn names_hashed_by_ssh_keygen_are_found() {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = directory.path().join("known_hosts");
    let text = format!(
        "host.example,10.1.2.3 {ED25519}\n[host.example]:2222 {OTHER_ED25519}\n@revoked bad {ED25519}\n"
    );
    std::fs::write(&file, text).expect("write");
    if !keygen(directory.path(), &["-q", "-H", "-f", "known_hosts"]) {
        return;
    }
    let text = read(&file);
    assert!(text.contains("|1|") && !text.contains("host.example"), "{text}");

    let hashed = known(&text);

    assert_eq!(hashed.warnings(), []);
    assert!(hashed.check(&name("Host.example"), &key(ED25519), 0).is_trusted());
    assert!(hashed.check(&name("10.1.2.3"), &key(ED25519), 0).is_trusted());
    assert!(
        hashed
            .check(&at_port("host.example", 2222), &key(OTHER_ED25519), 0)
            .is_trusted()
    );
    assert!(matches!(
        hashed.check(&name("elsewhere"), &key(ED25519), 0),
        HostKeyVerdict::Unknown { .. }
    ));
}

#[test]
fn every_kind_of_key_that_ssh_keygen_makes_is_read() {
    let directory = tempfile::tempdir().expect("tempdir");
    for (kind, bits) in [
        ("ed25519", "256"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
        ("rsa", "2048"),
    ] {
        let file = format!("{kind}{bits}");
        if !keygen(
            directory.path(),
            &["-q", "-N", "", "-t", kind, "-b", bits, "-f", &file],
        ) {
            return;
        }
        let line = read(&directory.path().join(format!("{file}.pub")));
        let verdict = known(&format!("h {line}")).check(&name("h"), &key(&line), 0);
        assert!(verdict.is_trusted(), "{kind} {bits}: {verdict:?}");
    }
}

/// A certificate authority and a host key of its own.
struct Authority {
    directory: tempfile::TempDir,
    line: String,
    host_key: String,
}

impl Authority {
    fn new(kind: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("tempdir");
        let made = keygen(directory.path(), &["-q", "-N", "", "-t", kind, "-f", "ca"])
            && keygen(directory.path(), &["-q", "-N", "", "-t", "ed25519", "-f", "host"]);
        made.then(|| Self {
            line: read(&directory.path().join("ca.pub")),
            host_key: read(&directory.path().join("host.pub")),
            directory,
        })
    }

    fn sign(&self, args: &[&str]) -> PublicKeyOrCertificate {
        let all = [&["-q", "-s", "ca", "-I", "id"], args, &["host.pub"]].concat();
        assert!(keygen(self.directory.path(), &all));
        let text = read(&self.directory.path().join("host-cert.pub"));
        PublicKeyOrCertificate::Certificate(Certificate::from_openssh(&text).expect("a certificate"))
    }

    fn known(&self, more: &str) -> KnownHosts {
        known(&format!("@cert-authority *.example {}\n{more}", self.line))
    }
}

/// 2023-11-14, inside the windows below.
const NOW: u64 = 1_700_000_000;
const WINDOW: [&str; 2] = ["-V", "20200101000000Z:20300101000000Z"];

fn refused(verdict: &HostKeyVerdict) -> &str {
    let HostKeyVerdict::CertificateRefused { reason, .. } = verdict else {
        panic!("not refused as a certificate: {verdict:?}")
    };
    reason
}

#[test]
fn a_certificate_of_a_listed_authority_is_trusted_for_its_host_and_time_only() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let Some(authority) = Authority::new(kind) else {
            return;
        };
        let good = authority.sign(&["-h", "-n", "a.example,b.example", WINDOW[0], WINDOW[1]]);
        let known = authority.known("");

        assert_eq!(
            known.check(&name("A.example"), &good, NOW),
            HostKeyVerdict::Trusted,
            "{kind}"
        );
        assert_eq!(
            known.check(&at_port("b.example", 2222), &good, NOW),
            HostKeyVerdict::Trusted
        );
        assert!(refused(&known.check(&name("c.example"), &good, NOW)).contains("not for c.example"));
        assert!(refused(&known.check(&name("a.example"), &good, 1_500_000_000)).contains("not valid yet"));
        assert!(refused(&known.check(&name("a.example"), &good, 1_900_000_000)).contains("expired"));
        // No authority for that name: the plain key decides, and is unknown.
        assert!(matches!(
            known.check(&name("a.other"), &good, NOW),
            HostKeyVerdict::Unknown { .. }
        ));
    }
}

#[test]
fn user_certificates_and_ones_for_every_host_are_refused() {
    let Some(authority) = Authority::new("ed25519") else {
        return;
    };
    let known = authority.known("");

    let user = authority.sign(&["-n", "a.example"]);
    assert!(
        refused(&known.check(&name("a.example"), &user, NOW + 1_000_000_000)).contains("user certificate")
    );
    let all = authority.sign(&["-h"]);
    assert!(refused(&known.check(&name("a.example"), &all, NOW)).contains("names no host"));
    let critical = authority.sign(&["-h", "-n", "a.example", "-O", "critical:odd@example=1"]);
    assert!(refused(&known.check(&name("a.example"), &critical, NOW)).contains("odd@example"));
}

#[test]
fn a_certificate_signed_with_sha1_is_refused() {
    let Some(authority) = Authority::new("rsa") else {
        return;
    };
    let old = authority.sign(&["-h", "-n", "a.example", "-t", "ssh-rsa", WINDOW[0], WINDOW[1]]);

    let verdict = authority.known("").check(&name("a.example"), &old, NOW);

    assert!(refused(&verdict).contains("SHA-1"));
}

#[test]
fn a_revoked_authority_or_key_beats_a_good_certificate() {
    let Some(authority) = Authority::new("ed25519") else {
        return;
    };
    let good = authority.sign(&["-h", "-n", "a.example", WINDOW[0], WINDOW[1]]);

    for revoked in [&authority.line, &authority.host_key] {
        let known = authority.known(&format!("@revoked * {revoked}"));
        assert!(matches!(
            known.check(&name("a.example"), &good, NOW),
            HostKeyVerdict::Revoked { .. }
        ));
    }
}

#[test]
fn a_certificate_of_a_stranger_counts_as_its_plain_key() {
    let (Some(listed), Some(stranger)) = (Authority::new("ed25519"), Authority::new("ed25519")) else {
        return;
    };
    let foreign = stranger.sign(&["-h", "-n", "a.example", WINDOW[0], WINDOW[1]]);

    let verdict = listed.known("").check(&name("a.example"), &foreign, NOW);
    assert!(matches!(verdict, HostKeyVerdict::Unknown { .. }), "{verdict:?}");

    let with_key = listed.known(&format!("a.example {}", stranger.host_key));
    assert!(with_key.check(&name("a.example"), &foreign, NOW).is_trusted());
}

#[test]
fn a_certificate_that_was_tampered_with_is_refused() {
    let Some(authority) = Authority::new("ed25519") else {
        return;
    };
    let PublicKeyOrCertificate::Certificate(good) =
        authority.sign(&["-h", "-n", "a.example", WINDOW[0], WINDOW[1]])
    else {
        panic!("a certificate")
    };
    let mut bytes = good.to_bytes().expect("encodes");
    let at = bytes
        .windows(9)
        .position(|window| window == b"a.example")
        .expect("the principal");
    bytes[at] = b'b';
    let forged = PublicKeyOrCertificate::Certificate(Certificate::from_bytes(&bytes).expect("decodes"));

    let verdict = authority.known("").check(&name("b.example"), &forged, NOW);

    assert!(refused(&verdict).contains("signature"));
}
