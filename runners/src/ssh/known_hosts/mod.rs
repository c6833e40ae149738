//! Which host keys are trusted: `known_hosts` files and pinned keys.
//!
//! Here: a strict parser and matcher, pure but for [`KnownHosts::load`], and the words that tell an operator what to
//! do. Not here: when it is asked (the connection's handler). It fails closed: a line that cannot be read whole is a
//! warning and never trust, and every answer but [`HostKeyVerdict::Trusted`] means "do not connect".
//!
//! The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; the order of checks is that of OpenSSH's client.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};
use sha1::Sha1;

use super::config::pattern;

mod certificate;
mod pin;

#[cfg(test)]
mod tests;

pub use pin::{PinError, PinnedKey};

use certificate::check_certificate;

/// Longest line that is read; the longest honest one is a 16384-bit RSA key behind a few hundred names.
const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// The name a host is looked up by.
#[derive(Clone, Copy, Debug)]
pub struct HostName<'a> {
    /// Host name or address as it is connected to, without brackets.
    pub host: &'a str,
    /// Port connected to.
    pub port: u16,
    /// `HostKeyAlias`: stands for host and port both.
    pub alias: Option<&'a str>,
}

impl HostName<'_> {
    /// The name alone, lower case: what a certificate's principals are compared with.
    fn plain(&self) -> String {
        self.alias.unwrap_or(self.host).to_ascii_lowercase()
    }

    /// The spelling in a file: `[host]:port` unless the port is 22.
    fn listed(&self) -> String {
        match self.alias {
            None if self.port != 22 => format!("[{}]:{}", self.plain(), self.port),
            _ => self.plain(),
        }
    }
}

/// What is known of a host key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKeyVerdict {
    /// Listed, or certified by a listed authority.
    Trusted,
    /// Listed as revoked, it or its authority; nothing overrides that.
    Revoked {
        /// Where it is revoked.
        at: Place,
    },
    /// Another key of the same kind is listed for this host.
    Mismatch {
        /// Where the other key is listed.
        at: Place,
        /// Fingerprint of the listed key.
        expected: String,
        /// Fingerprint of the offered key.
        offered: String,
    },
    /// A listed authority signed the certificate, but it is not good for this host now.
    CertificateRefused {
        /// Where the authority is listed.
        at: Place,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// No key of this kind is listed for this host.
    Unknown {
        /// Algorithm of the offered key.
        algorithm: String,
        /// Fingerprint of the offered key.
        offered: String,
        /// Algorithms of the keys that are listed for this host; none means that the host is unknown.
        known_algorithms: Vec<String>,
    },
}

impl HostKeyVerdict {
    /// Whether to go on with the connection.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::Trusted)
    }

    /// What is wrong and what to do about it; for an operator, over one line or several.
    #[must_use]
    pub fn explain(&self, name: &HostName<'_>) -> String {
        let listed = name.listed();
        let scan = match name.port {
            22 => format!("ssh-keyscan {}", name.host),
            port => format!("ssh-keyscan -p {port} {}", name.host),
        };
        match self {
            Self::Trusted => format!("the host key of {listed} is trusted"),
            Self::Revoked { at } => format!(
                "the host key of {listed} is marked @revoked at {at}: do not connect; ask who runs the host for its new key"
            ),
            Self::Mismatch {
                at,
                expected,
                offered,
            } => format!(
                "the host key of {listed} is not the one listed at {at}: it offers {offered}, expected {expected}. \
                 Somebody may be in between. If the host was set up anew, compare the offered fingerprint with \
                 `ssh-keygen -lf /etc/ssh/ssh_host_<type>_key.pub` on the host itself, then replace the line: \
                 `ssh-keygen -R '{listed}'`, and add the output of `{scan}`"
            ),
            Self::CertificateRefused { at, reason } => format!(
                "the host certificate of {listed} is signed by the authority listed at {at} but is refused: {reason}"
            ),
            Self::Unknown {
                algorithm,
                offered,
                known_algorithms,
            } if known_algorithms.is_empty() => format!(
                "no host key is known for {listed}: it offers {algorithm} {offered}. Compare that fingerprint with \
                 `ssh-keygen -lf /etc/ssh/ssh_host_<type>_key.pub` on the host itself, then add the output of `{scan}` \
                 to ~/.ssh/known_hosts, or pin the key"
            ),
            Self::Unknown {
                algorithm,
                offered,
                known_algorithms,
            } => format!(
                "{listed} is known by {} only, but it offers {algorithm} {offered}. Compare that fingerprint with \
                 `ssh-keygen -lf /etc/ssh/ssh_host_<type>_key.pub` on the host itself, then add the output of `{scan}` \
                 to ~/.ssh/known_hosts",
                known_algorithms.join(", ")
            ),
        }
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as the loader named it.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A line that was not understood and therefore trusts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineWarning {
    /// Where it stands.
    pub at: Place,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for LineWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line ignored: {}", self.at, self.reason)
    }
}

/// The keys that are known for a host, for the client's order of host key algorithms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownAlgorithms {
    /// Algorithms of the listed keys, in file order, each once. RSA stands as `ssh-rsa`: any of its signatures do.
    pub keys: Vec<Algorithm>,
    /// An authority is listed: ask for certificates first.
    pub authority: bool,
}

/// The content of one or several `known_hosts` files.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
    warnings: Vec<LineWarning>,
}

#[derive(Clone, Debug)]
struct Entry {
    marker: Marker,
    hosts: Hosts,
    key: KeyData,
    at: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    None,
    CertAuthority,
    Revoked,
}

#[derive(Clone, Debug)]
enum Hosts {
    Patterns(String),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Hosts {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(list) => pattern::list_matches(&list.to_ascii_lowercase(), name),
            Self::Hashed { salt, hash } => {
                let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(salt) else {
                    return false;
                };
                mac.update(name.as_bytes());
                mac.verify_slice(hash).is_ok()
            }
        }
    }
}

impl KnownHosts {
    /// Reads one file's content.
    ///
    /// - `file`: its name, for messages.
    ///
    /// Linear in `text`; lines over 64 KiB are not read.
    #[must_use]
    pub fn parse(file: &str, text: &[u8]) -> Self {
        let mut known = Self::default();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let at = || Place {
                file: file.to_owned(),
                line: index + 1,
            };
            match parse_line(line) {
                Ok(Some((marker, hosts, key))) => known.entries.push(Entry {
                    marker,
                    hosts,
                    key,
                    at: at(),
                }),
                Ok(None) => {}
                Err(reason) => known.warnings.push(LineWarning { at: at(), reason }),
            }
        }
        known
    }

    /// Reads files in order. A missing file is empty.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    ///
    /// The path and cause of the first file that exists and cannot be read: what it revokes would go unseen.
    pub fn load(files: &[PathBuf]) -> Result<Self, (PathBuf, std::io::Error)> {
        let mut known = Self::default();
        for path in files {
            match read_existing(path) {
                Ok(Some(text)) => known.extend(Self::parse(&path.display().to_string(), &text)),
                Ok(None) => {}
                Err(error) => return Err((path.clone(), error)),
            }
        }
        Ok(known)
    }

    /// Adds the lines of another file behind ours.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.warnings.extend(other.warnings);
    }

    /// The lines that were not understood.
    #[must_use]
    pub fn warnings(&self) -> &[LineWarning] {
        &self.warnings
    }

    /// Judges the key or certificate that a host offered.
    ///
    /// - `now_unix`: seconds since 1970, for a certificate's validity.
    ///
    /// A host on another port than 22 is looked up as `[host]:port`, and only if nothing is listed for that, as
    /// `host` alone, as OpenSSH does; what is revoked for `host` is so on every port. A certificate of no listed authority counts as its plain key.
    #[must_use]
    pub fn check(
        &self,
        name: &HostName<'_>,
        offered: &PublicKeyOrCertificate,
        now_unix: u64,
    ) -> HostKeyVerdict {
        let verdict = self.check_listed(&name.listed(), name, offered, now_unix);
        if name.listed() == name.plain() {
            return verdict;
        }
        let plain = self.check_listed(&name.plain(), name, offered, now_unix);
        match (&verdict, &plain) {
            (_, HostKeyVerdict::Revoked { .. }) => plain,
            // Only a clear yes counts: a key of another service on the same host is no mismatch of this one.
            (HostKeyVerdict::Unknown { .. }, HostKeyVerdict::Trusted) => plain,
            _ => verdict,
        }
    }

    /// Which algorithms the listed keys of this host have.
    #[must_use]
    pub fn known_algorithms(&self, name: &HostName<'_>) -> KnownAlgorithms {
        let listed = self.algorithms_of(&name.listed());
        if listed == KnownAlgorithms::default() {
            self.algorithms_of(&name.plain())
        } else {
            listed
        }
    }

    fn algorithms_of(&self, listed: &str) -> KnownAlgorithms {
        let mut known = KnownAlgorithms::default();
        for entry in self.entries.iter().filter(|entry| entry.hosts.matches(listed)) {
            match entry.marker {
                Marker::CertAuthority => known.authority = true,
                Marker::None if !known.keys.contains(&entry.key.algorithm()) => {
                    known.keys.push(entry.key.algorithm())
                }
                Marker::None | Marker::Revoked => {}
            }
        }
        known
    }

    fn check_listed(
        &self,
        listed: &str,
        name: &HostName<'_>,
        offered: &PublicKeyOrCertificate,
        now_unix: u64,
    ) -> HostKeyVerdict {
        let (key, certificate) = match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => (key.key_data(), None),
            PublicKeyOrCertificate::Certificate(certificate) => (certificate.public_key(), Some(certificate)),
        };
        let matching: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.hosts.matches(listed))
            .collect();
        let of = |marker: Marker| matching.iter().filter(move |entry| entry.marker == marker);

        let authority = certificate.map(Certificate::signature_key);
        if let Some(entry) =
            of(Marker::Revoked).find(|entry| entry.key == *key || Some(&entry.key) == authority)
        {
            return HostKeyVerdict::Revoked { at: entry.at.clone() };
        }
        if let Some(certificate) = certificate
            && let Some(entry) = of(Marker::CertAuthority).find(|entry| Some(&entry.key) == authority)
        {
            return match check_certificate(certificate, &name.plain(), now_unix) {
                Ok(()) => HostKeyVerdict::Trusted,
                Err(reason) => HostKeyVerdict::CertificateRefused {
                    at: entry.at.clone(),
                    reason,
                },
            };
        }
        if of(Marker::None).any(|entry| entry.key == *key) {
            return HostKeyVerdict::Trusted;
        }
        let algorithm = key.algorithm();
        if let Some(entry) = of(Marker::None).find(|entry| entry.key.algorithm() == algorithm) {
            return HostKeyVerdict::Mismatch {
                at: entry.at.clone(),
                expected: fingerprint(&entry.key),
                offered: fingerprint(key),
            };
        }
        let mut known_algorithms: Vec<String> = Vec::new();
        for entry in of(Marker::None) {
            let name = entry.key.algorithm().as_str().to_owned();
            if !known_algorithms.contains(&name) {
                known_algorithms.push(name);
            }
        }
        HostKeyVerdict::Unknown {
            algorithm: algorithm.as_str().to_owned(),
            offered: fingerprint(key),
            known_algorithms,
        }
    }
}

/// Reads a file, or tells that there is none.
fn read_existing(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

type ParsedLine = (Marker, Hosts, KeyData);

fn parse_line(line: &[u8]) -> Result<Option<ParsedLine>, &'static str> {
    if line.len() > LINE_LIMIT_BYTES {
        return Err("longer than 64 KiB");
    }
    let line = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
    let mut words = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
    let Some(mut first) = words.next() else {
        return Ok(None);
    };
    if first.starts_with('#') {
        return Ok(None);
    }
    let marker = match first {
        "@cert-authority" => Marker::CertAuthority,
        "@revoked" => Marker::Revoked,
        other if other.starts_with('@') => return Err("unknown marker"),
        _ => Marker::None,
    };
    if marker != Marker::None {
        first = words.next().ok_or("no host names after the marker")?;
        if first.starts_with('@') {
            return Err("more than one marker");
        }
    }
    let hosts = parse_hosts(first)?;
    let (algorithm, data) = words
        .next()
        .zip(words.next())
        .ok_or("no key type and key after the host names")?;
    Ok(Some((marker, hosts, parse_key(algorithm, data)?)))
}

fn parse_hosts(field: &str) -> Result<Hosts, &'static str> {
    let Some(hashed) = field.strip_prefix('|') else {
        return Ok(Hosts::Patterns(field.to_owned()));
    };
    let hashed = hashed
        .strip_prefix("1|")
        .ok_or("hashed host name of an unknown kind")?;
    let (salt, hash) = hashed.split_once('|').ok_or("hashed host name without a hash")?;
    let salt = STANDARD
        .decode(salt)
        .map_err(|_| "hashed host name with a malformed salt")?;
    let hash = STANDARD
        .decode(hash)
        .map_err(|_| "hashed host name with a malformed hash")?;
    // HMAC-SHA1, and OpenSSH wants the salt as long as the hash.
    if salt.len() != 20 || hash.len() != 20 {
        return Err("hashed host name of the wrong length");
    }
    Ok(Hosts::Hashed { salt, hash })
}

/// A plain key. Certificates are refused by name before anything is decoded: they nest.
fn parse_key(algorithm: &str, data: &str) -> Result<KeyData, &'static str> {
    if algorithm.contains("-cert-v01@") {
        return Err("a certificate where a key is expected");
    }
    let known = Algorithm::new(algorithm).map_err(|_| "unknown key type")?;
    if matches!(known, Algorithm::Other(_)) {
        return Err("unknown key type");
    }
    let blob = STANDARD.decode(data).map_err(|_| "key is not base64")?;
    // The type inside must be the type in front, before the decoder sees it.
    let name = blob.get(4..4 + algorithm.len());
    if name != Some(algorithm.as_bytes()) {
        return Err("key type and key do not agree");
    }
    let key = PublicKey::from_bytes(&blob).map_err(|_| "malformed key")?;
    if key.algorithm().as_str() != algorithm {
        return Err("key type and key do not agree");
    }
    Ok(key.key_data().clone())
}
