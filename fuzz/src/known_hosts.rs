//! `known_hosts` files.
//!
//! Laws: a line that was not understood changes no verdict; trust needs a line that holds the offered key, in base64,
//! behind its type and without a marker; `@revoked` wins wherever it stands and cannot be taken back; reading file by
//! file is reading them as one; the time grows with the text.

use std::time::{Duration, Instant};

use runners::ssh::known_hosts::{HostKeyVerdict, HostName, KnownHosts};
use russh::keys::{PublicKey, PublicKeyOrCertificate};

/// The key that every host offers.
const KEY_TYPE: &str = "ssh-ed25519";
const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

const NAMES: [HostName<'static>; 3] = [
    HostName {
        host: "host.example",
        port: 22,
        alias: None,
    },
    HostName {
        host: "host.example",
        port: 2222,
        alias: None,
    },
    HostName {
        host: "10.0.0.1",
        port: 2222,
        alias: Some("Gate"),
    },
];
/// Far above what any input needs, far below what a quadratic reader would.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the bytes as the text of a `known_hosts` file.
///
/// # Panics
///
/// On a broken law.
pub fn known_hosts(data: &[u8]) {
    let key = PublicKey::from_openssh(&format!("{KEY_TYPE} {KEY}")).expect("the key is a key");
    let offered = PublicKeyOrCertificate::from(key);
    let known = KnownHosts::parse("known_hosts", data);
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();

    let mut without_bad = lines.clone();
    for warning in known.warnings() {
        assert_eq!(warning.at.file, "known_hosts");
        let line = warning
            .at
            .line
            .checked_sub(1)
            .and_then(|line| without_bad.get_mut(line));
        *line.unwrap_or_else(|| panic!("{warning} in a text of {} lines", lines.len())) = b"";
    }
    let cleaned = KnownHosts::parse("known_hosts", &without_bad.join(&b'\n'));
    assert!(
        cleaned.warnings().is_empty(),
        "a good line turned bad: {:?}",
        cleaned.warnings()
    );
    let (front, back) = lines.split_at(lines.len() / 2);
    let mut in_two = KnownHosts::parse("front", &front.join(&b'\n'));
    in_two.extend(KnownHosts::parse("back", &back.join(&b'\n')));

    for name in &NAMES {
        let verdict = known.check(name, &offered, 0);
        assert!(!verdict.explain(name).is_empty());
        assert_eq!(
            cleaned.check(name, &offered, 0),
            verdict,
            "a line that was not understood has a say"
        );
        assert_eq!(
            in_two.check(name, &offered, 0).is_trusted(),
            verdict.is_trusted(),
            "two files are not one"
        );
        let algorithms = known.known_algorithms(name);
        assert_eq!(cleaned.known_algorithms(name), algorithms);
        if verdict.is_trusted() {
            assert!(
                lines.iter().any(|line| lists_the_key(line)),
                "trusted without a line"
            );
        }
        revocation_wins(data, name, &offered, &verdict);
    }
    grows_with_the_text(data, &offered);
}

fn revocation_wins(
    data: &[u8],
    name: &HostName<'_>,
    offered: &PublicKeyOrCertificate,
    verdict: &HostKeyVerdict,
) {
    let revoked = |text: &[u8]| {
        let verdict = KnownHosts::parse("known_hosts", text).check(name, offered, 0);
        matches!(verdict, HostKeyVerdict::Revoked { .. })
    };
    let line = format!("@revoked * {KEY_TYPE} {KEY}");
    assert!(
        revoked(&[line.as_bytes(), b"\n", data].concat()),
        "what follows a revocation undoes it"
    );
    assert!(
        revoked(&[data, b"\n", line.as_bytes()].concat()),
        "what precedes a revocation undoes it"
    );
    if matches!(verdict, HostKeyVerdict::Revoked { .. }) {
        let trusting = format!("\n* {KEY_TYPE} {KEY}\n");
        assert!(
            revoked(&[data, trusting.as_bytes()].concat()),
            "a later line takes a revocation back"
        );
        assert!(
            revoked(&[trusting.as_bytes(), data].concat()),
            "an earlier line takes a revocation back"
        );
    }
}

/// Whether a line could trust the key, read as directly as sshd(8) describes it.
fn lists_the_key(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let words: Vec<&str> = text
        .split([' ', '\t', '\r'])
        .filter(|word| !word.is_empty())
        .collect();
    matches!(words.as_slice(), [hosts, KEY_TYPE, KEY, ..] if !hosts.starts_with(['@', '#']))
}

fn grows_with_the_text(data: &[u8], offered: &PublicKeyOrCertificate) {
    // Few inputs are worth it; the first byte is as good a die as any.
    if data.first().is_none_or(|byte| byte % 16 != 0) {
        return;
    }
    let long = data.repeat(64);
    let begun = Instant::now();
    let known = KnownHosts::parse("known_hosts", &long);
    for name in &NAMES {
        let _verdict = known.check(name, offered, 0);
    }
    assert!(
        begun.elapsed() < PATIENCE,
        "{} bytes took {:?}",
        long.len(),
        begun.elapsed()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_reader_knows_a_line_that_trusts() {
        assert!(lists_the_key(
            format!("host.example\t{KEY_TYPE} {KEY} me").as_bytes()
        ));
        for line in [
            format!("#h {KEY_TYPE} {KEY}"),
            format!("@revoked h {KEY_TYPE} {KEY}"),
            format!("h {KEY}"),
        ] {
            assert!(!lists_the_key(line.as_bytes()), "{line}");
        }
    }
}
