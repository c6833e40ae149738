//! What must be known to connect to one SSH server.
//!
//! Here: plain values, and the judgement of a host key. Not here: where the values come from (`ssh_config`, command
//! line) and what is done with them ([`super::connection`]).

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Preferred, cipher, compression};

use super::known_hosts::{HostName, KnownHosts, PinnedKey};

/// One SSH server, how to know it and how to log in.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// The target in the operator's words, such as `ssh://agent@host:22`; in every error text.
    pub target: String,
    /// Name or address to connect to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Login name.
    pub user: String,
    /// Which host keys are good.
    pub host_keys: HostKeys,
    /// What to log in with.
    pub identities: Identities,
    /// The server to go through (`ProxyJump`); with its own host keys and identities.
    pub via: Option<Box<ConnectionSettings>>,
    /// Deadlines and sizes.
    pub limits: ConnectionLimits,
}

impl ConnectionSettings {
    /// One text for everything that makes two connections interchangeable.
    #[must_use]
    pub fn identity(&self) -> String {
        let via = self.via.as_ref().map(|via| via.identity()).unwrap_or_default();
        let host_keys = match &self.host_keys {
            // The files are the same for every target of one daemon; the name looked up may differ.
            HostKeys::Known { alias, .. } => format!("known {alias:?}"),
            HostKeys::Pinned(pinned) => format!("{pinned:?}"),
        };
        format!(
            "{}@{}:{} {:?} {host_keys} via {via}",
            self.user, self.host, self.port, self.identities
        )
    }
}

/// Deadlines and sizes of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// For the TCP connection.
    pub connect: Duration,
    /// For version, key exchange and login together.
    pub handshake: Duration,
    /// For the answer to a channel or forward request.
    pub request: Duration,
    /// Silence after which the server is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Questions without an answer before the server counts as gone.
    pub keepalive_unanswered: usize,
    /// Receive window of each channel in bytes; about half of it is in use at any time.
    pub window_bytes: u32,
    /// Bytes in either direction after which keys are exchanged anew; at most 1 GiB (AES-GCM nonces).
    pub rekey_bytes: usize,
    /// Bytes of a command's output held for a slow reader.
    pub output_cap: usize,
    /// A write to an accepted channel that gets no window for so long fails.
    pub write_stall: Duration,
    /// How long the server has to close a channel that we have ended, before we close it.
    pub linger: Duration,
    /// After so many channels that we had to close first, another connection takes over: russh keeps about 3.5 KB of
    /// each for as long as a connection lives.
    pub worn_out_after: u64,
    /// How often further connections of a host are looked at; one that is idle twice in a row is closed.
    pub further_look: Duration,
}

impl Default for ConnectionLimits {
    /// A dead server is found after 12 s of silence.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(20),
            request: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(4),
            keepalive_unanswered: 2,
            window_bytes: 16 * 1024 * 1024,
            rekey_bytes: 1 << 30,
            output_cap: 32 * 1024 * 1024,
            write_stall: Duration::from_secs(60),
            linger: Duration::from_secs(5),
            worn_out_after: 4_000,
            further_look: Duration::from_secs(15),
        }
    }
}

impl ConnectionLimits {
    /// How long a server that is gone can go unnoticed.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let questions = u32::try_from(self.keepalive_unanswered).unwrap_or(u32::MAX);
        self.keepalive_interval
            .saturating_mul(questions.saturating_add(1))
    }
}

/// What to log in with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Private key files in the order to try. A certificate beside one (`-cert.pub`) is used with it.
    pub files: Vec<PathBuf>,
    /// The files were named by someone: one that cannot be used is an error, not passed over.
    pub files_required: bool,
    /// Further user certificates (`CertificateFile`).
    pub certificates: Vec<PathBuf>,
    /// Socket of an ssh-agent.
    pub agent: Option<PathBuf>,
    /// Offer only what stands in `files` (`IdentitiesOnly`); the agent may still hold the private halves.
    pub only: bool,
}

/// Which host keys are good. Nothing is ever learned by connecting.
#[derive(Clone, Debug)]
pub enum HostKeys {
    /// The key must be listed, under `alias` if there is one (`HostKeyAlias`).
    Known {
        /// The parsed files.
        hosts: Arc<KnownHosts>,
        /// Name to look up in place of host and port.
        alias: Option<String>,
    },
    /// Exactly this key.
    Pinned(PinnedKey),
}

pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl HostKeys {
    /// Judges what the server showed.
    ///
    /// # Errors
    ///
    /// Why the key is not good, with its fingerprint and what to do.
    pub(super) fn check(&self, host: &str, port: u16, shown: &PublicKeyOrCertificate) -> Result<(), String> {
        let (name, verdict) = match self {
            Self::Known { hosts, alias } => {
                let name = HostName {
                    host,
                    port,
                    alias: alias.as_deref(),
                };
                (name, hosts.check(&name, shown, unix_seconds()))
            }
            Self::Pinned(pinned) => (
                HostName {
                    host,
                    port,
                    alias: None,
                },
                pinned.check(shown),
            ),
        };
        if verdict.is_trusted() {
            Ok(())
        } else {
            Err(verdict.explain(&name))
        }
    }

    /// Host key kinds to ask the server for, the known ones first, and kinds to ask for as certificates.
    fn algorithms(&self, host: &str, port: u16) -> (Vec<Algorithm>, Vec<Algorithm>) {
        let all = all_algorithms();
        match self {
            Self::Known { hosts, alias } => {
                let known = hosts.known_algorithms(&HostName {
                    host,
                    port,
                    alias: alias.as_deref(),
                });
                let certificates = if known.authority { all.clone() } else { Vec::new() };
                (known_first(&known.keys, all), certificates)
            }
            Self::Pinned(pinned) => (known_first(pinned.algorithm().as_slice(), all), Vec::new()),
        }
    }
}

/// For the validity of host certificates. A clock before 1970 makes every certificate not yet valid.
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A server has several keys; asking for a kind that is not known would look like a changed key.
fn known_first(known: &[Algorithm], all: Vec<Algorithm>) -> Vec<Algorithm> {
    let is_known = |algorithm: &Algorithm| known.iter().any(|known| same_kind(known, algorithm));
    let (mut first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(is_known);
    first.extend(rest);
    first
}

fn same_kind(one: &Algorithm, other: &Algorithm) -> bool {
    matches!((one, other), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. })) || one == other
}

/// No `ssh-rsa` with SHA-1.
fn all_algorithms() -> Vec<Algorithm> {
    vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP256,
        },
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP384,
        },
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP521,
        },
        Algorithm::Rsa {
            hash: Some(HashAlg::Sha512),
        },
        Algorithm::Rsa {
            hash: Some(HashAlg::Sha256),
        },
    ]
}

/// AES first: with hardware support it costs 0.6 of what ChaCha20 costs per byte.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// russh's own settings for a connection.
pub(super) fn client_config(settings: &ConnectionSettings) -> russh::client::Config {
    let limits = settings.limits;
    let rekey = limits.rekey_bytes.clamp(1024 * 1024, 1 << 30);
    let (key, host_key_certificates) = settings.host_keys.algorithms(&settings.host, settings.port);
    russh::client::Config {
        client_id: russh::SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-paperclip_bridge_",
            env!("CARGO_PKG_VERSION")
        ))),
        limits: russh::Limits::new(rekey, rekey, Duration::from_secs(3600)),
        window_size: limits.window_bytes,
        maximum_packet_size: 32 * 1024,
        preferred: Preferred {
            key: Cow::Owned(key),
            host_key_certificates: Cow::Owned(host_key_certificates),
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(limits.keepalive_interval),
        keepalive_max: limits.keepalive_unanswered,
        nodelay: true,
        ..russh::client::Config::default()
    }
}
