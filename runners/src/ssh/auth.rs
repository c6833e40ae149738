//! Logging in.
//!
//! Here: which keys and certificates are offered and in what order (OpenSSH's: keys that are both listed and in the
//! agent, other agent keys, listed keys that are only files), and an error that says what was tried. Passwords and
//! `none` are never tried. Not here: reading the environment for the agent's socket; the caller names it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::UnixStream;

use super::dispatch::Dispatcher;
use super::settings::{Identities, fingerprint};

/// Key files are small; anything larger is not one.
const KEY_FILE_LIMIT: u64 = 256 * 1024;
/// OpenSSH's server cuts the connection after six failures.
const OFFER_LIMIT: usize = 16;

/// Logs in as `user`.
///
/// # Errors
///
/// What was tried, what could not be, and what to do.
pub(super) async fn log_in(
    handle: &mut Handle<Dispatcher>,
    user: &str,
    identities: &Identities,
) -> Result<(), String> {
    let mut notes = Vec::new();
    let mut agent = match &identities.agent {
        Some(path) => match AgentClient::connect_uds(path).await {
            Ok(agent) => Some(agent),
            Err(error) => {
                notes.push(format!(
                    "the ssh-agent at {} does not answer ({error})",
                    path.display()
                ));
                None
            }
        },
        None => None,
    };
    let held = match &mut agent {
        Some(agent) => agent.request_identities().await.unwrap_or_else(|error| {
            notes.push(format!("the ssh-agent does not list its keys ({error})"));
            Vec::new()
        }),
        None => Vec::new(),
    };
    let offers = collect(identities, &held, &mut notes)?;
    let rsa_hash = if offers.iter().any(Offer::is_rsa) {
        rsa_hash(handle).await
    } else {
        None
    };
    let mut tried = Vec::new();
    for offer in offers.into_iter().take(OFFER_LIMIT) {
        let described = offer.to_string();
        let result = offer.make(handle, user, rsa_hash, agent.as_mut()).await;
        match result {
            Ok(AuthResult::Success) => return Ok(()),
            Ok(AuthResult::Failure {
                partial_success: true,
                ..
            }) => {
                return Err(format!(
                    "{described} was accepted, but the server wants a second factor as well, which is not supported"
                ));
            }
            Ok(AuthResult::Failure { .. }) if handle.is_closed() => {
                tried.push(described);
                return Err(format!(
                    "the server closed the connection during login after {}; with many keys in an agent, name the right one with --identity",
                    list(&tried)
                ));
            }
            Ok(AuthResult::Failure { .. }) => tried.push(described),
            Err(reason) => tried.push(format!("{described} ({reason})")),
        }
    }
    Err(refusal(user, &tried, &notes))
}

fn refusal(user: &str, tried: &[String], notes: &[String]) -> String {
    let mut text = if tried.is_empty() {
        "there is no key to log in with; name one with --identity or start an ssh-agent".to_owned()
    } else {
        format!(
            "the server accepts none of the keys for user {user}: {}; add the public key to authorized_keys there or \
             name another with --identity",
            list(tried)
        )
    };
    if !notes.is_empty() {
        text.push_str("; ");
        text.push_str(&notes.join("; "));
    }
    text
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "nothing".to_owned()
    } else {
        items.join(", ")
    }
}

/// `None` where the server does not say: SHA-512 is then the best guess.
async fn rsa_hash(handle: &Handle<Dispatcher>) -> Option<HashAlg> {
    match handle.best_supported_rsa_hash().await {
        Ok(Some(Some(hash))) => Some(hash),
        // Only SHA-1, or nothing said. SHA-1 is not offered.
        Ok(Some(None) | None) | Err(_) => Some(HashAlg::Sha512),
    }
}

/// One thing to log in with.
enum Offer {
    File {
        path: PathBuf,
        key: Arc<PrivateKey>,
    },
    FileCertificate {
        path: PathBuf,
        key: Arc<PrivateKey>,
        certificate: Certificate,
    },
    Agent {
        key: PublicKey,
    },
    AgentCertificate {
        certificate: Certificate,
    },
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, key } => write!(f, "{} ({})", path.display(), fingerprint(key.public_key())),
            Self::FileCertificate {
                path, certificate, ..
            } => {
                write!(
                    f,
                    "certificate {:?} with {}",
                    certificate.key_id(),
                    path.display()
                )
            }
            Self::Agent { key } => write!(f, "agent key {}", fingerprint(key)),
            Self::AgentCertificate { certificate } => {
                write!(f, "agent certificate {:?}", certificate.key_id())
            }
        }
    }
}

impl Offer {
    fn is_rsa(&self) -> bool {
        match self {
            Self::File { key, .. } | Self::FileCertificate { key, .. } => key.algorithm().is_rsa(),
            Self::Agent { key } => key.algorithm().is_rsa(),
            Self::AgentCertificate { certificate } => certificate.algorithm().is_rsa(),
        }
    }

    async fn make(
        self,
        handle: &mut Handle<Dispatcher>,
        user: &str,
        rsa_hash: Option<HashAlg>,
        agent: Option<&mut AgentClient<UnixStream>>,
    ) -> Result<AuthResult, String> {
        let rsa_hash = rsa_hash.filter(|_| self.is_rsa());
        let gone = || "the ssh-agent is gone".to_owned();
        match self {
            Self::File { key, .. } => handle
                .authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, rsa_hash))
                .await
                .map_err(|error| error.to_string()),
            Self::FileCertificate { key, certificate, .. } => handle
                .authenticate_openssh_cert(user, key, certificate)
                .await
                .map_err(|error| error.to_string()),
            Self::Agent { key } => handle
                .authenticate_publickey_with(user, key, rsa_hash, agent.ok_or_else(gone)?)
                .await
                .map_err(|error| error.to_string()),
            Self::AgentCertificate { certificate } => handle
                .authenticate_certificate_with(user, certificate, rsa_hash, agent.ok_or_else(gone)?)
                .await
                .map_err(|error| error.to_string()),
        }
    }
}

/// A listed file: its public half is known, its private half perhaps not (encrypted, or only in the agent).
struct Listed {
    path: PathBuf,
    public: PublicKey,
    private: Result<Arc<PrivateKey>, String>,
    certificates: Vec<Certificate>,
}

fn collect(
    identities: &Identities,
    held: &[AgentIdentity],
    notes: &mut Vec<String>,
) -> Result<Vec<Offer>, String> {
    let mut listed = Vec::new();
    for path in &identities.files {
        match read_identity(path) {
            Ok(found) => listed.push(found),
            Err(reason) if identities.files_required => return Err(reason),
            // Default files are mostly absent; only what is there and cannot be used is worth a word.
            Err(reason) if path.exists() => notes.push(reason),
            Err(_) => {}
        }
    }
    for path in &identities.certificates {
        let certificate = read_certificate(path)?;
        match listed
            .iter_mut()
            .find(|file| file.public.key_data() == certificate.public_key())
        {
            Some(file) => file.certificates.push(certificate),
            None => notes.push(format!(
                "the certificate {} is for none of the listed keys",
                path.display()
            )),
        }
    }
    let mut offers = Vec::new();
    let in_agent = |key: &PublicKey| {
        held.iter().any(|identity| match identity {
            AgentIdentity::PublicKey { key: held, .. } => held.key_data() == key.key_data(),
            AgentIdentity::Certificate { .. } => false,
        })
    };
    let (by_agent, by_file): (Vec<_>, Vec<_>) = listed.into_iter().partition(|file| in_agent(&file.public));
    let listed_keys: Vec<PublicKey> = by_agent.iter().map(|file| file.public.clone()).collect();
    for file in by_agent {
        offers.extend(
            file.certificates
                .into_iter()
                .map(|certificate| Offer::AgentCertificate { certificate }),
        );
        offers.push(Offer::Agent { key: file.public });
    }
    if !identities.only {
        for identity in held {
            match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    if !listed_keys
                        .iter()
                        .any(|listed| listed.key_data() == key.key_data())
                    {
                        offers.push(Offer::Agent { key: key.clone() });
                    }
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    offers.push(Offer::AgentCertificate {
                        certificate: certificate.clone(),
                    });
                }
            }
        }
    }
    for file in by_file {
        match file.private {
            Ok(key) => {
                for certificate in file.certificates {
                    offers.push(Offer::FileCertificate {
                        path: file.path.clone(),
                        key: Arc::clone(&key),
                        certificate,
                    });
                }
                offers.push(Offer::File { path: file.path, key });
            }
            Err(reason) if identities.files_required => return Err(reason),
            Err(reason) => notes.push(reason),
        }
    }
    Ok(offers)
}

fn read_identity(path: &Path) -> Result<Listed, String> {
    let text = read_small(path)?;
    let private = decode(path, &text);
    let public = match &private {
        Ok(key) => key.public_key().clone(),
        Err(reason) => public_half(path, &text).ok_or_else(|| reason.clone())?,
    };
    let mut certificates = Vec::new();
    let beside = with_suffix(path, "-cert.pub");
    if beside.exists() {
        certificates.push(read_certificate(&beside)?);
    }
    Ok(Listed {
        path: path.to_owned(),
        public,
        private: private.map(Arc::new),
        certificates,
    })
}

fn decode(path: &Path, text: &str) -> Result<PrivateKey, String> {
    let encrypted = || {
        format!(
            "the key {} is encrypted and its passphrase is not known here; load it into an ssh-agent (ssh-add) or \
             name a key without one",
            path.display()
        )
    };
    match russh::keys::decode_secret_key(text, None) {
        Ok(key) if key.is_encrypted() => Err(encrypted()),
        Ok(key) => Ok(key),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(encrypted()),
        Err(error) => Err(format!("the key {} cannot be read: {error}", path.display())),
    }
}

/// An encrypted OpenSSH key shows its public half; others may have a `.pub` beside them, or be one.
fn public_half(path: &Path, text: &str) -> Option<PublicKey> {
    if let Ok(key) = PrivateKey::from_openssh(text) {
        return Some(key.public_key().clone());
    }
    if let Ok(key) = PublicKey::from_openssh(text.trim()) {
        return Some(key);
    }
    PublicKey::from_openssh(read_small(&with_suffix(path, ".pub")).ok()?.trim()).ok()
}

fn read_certificate(path: &Path) -> Result<Certificate, String> {
    Certificate::from_openssh(read_small(path)?.trim())
        .map_err(|error| format!("the certificate {} cannot be read: {error}", path.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read_small(path: &Path) -> Result<String, String> {
    let fault =
        |error: &dyn std::fmt::Display| format!("the file {} cannot be read: {error}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| fault(&error))?;
    if !metadata.is_file() || metadata.len() > KEY_FILE_LIMIT {
        return Err(fault(&"it is not a key file"));
    }
    std::fs::read_to_string(path).map_err(|error| fault(&error))
}
