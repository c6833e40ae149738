//! A host key given by the operator instead of `known_hosts`; pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use russh::keys::{Algorithm, PublicKey, PublicKeyOrCertificate};

use super::{HostKeyVerdict, Place, fingerprint, parse_key};

/// One host key given by the operator instead of `known_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinnedKey {
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    Fingerprint(String),
    /// The whole key.
    Key(Box<PublicKey>),
}

/// Why a pin cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pinned host key is not usable: {reason}; give `SHA256:…` from `ssh-keygen -lf KEY.pub`, or the line of a .pub file"
)]
pub struct PinError {
    reason: &'static str,
}

impl PinnedKey {
    /// Reads `SHA256:…`, or `TYPE BASE64 [COMMENT]`.
    ///
    /// # Errors
    ///
    /// [`PinError`] with what is wrong; nothing is guessed.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let text = text.trim();
        let bad = |reason| PinError { reason };
        if let Some(digest) = text.strip_prefix("SHA256:") {
            let digest = digest.trim_end_matches('=');
            let decoded = STANDARD_NO_PAD.decode(digest);
            return match decoded {
                Ok(bytes) if bytes.len() == 32 => Ok(Self::Fingerprint(format!("SHA256:{digest}"))),
                Ok(_) => Err(bad("the fingerprint does not have 32 bytes")),
                Err(_) => Err(bad("the fingerprint is not base64")),
            };
        }
        let mut words = text.split_ascii_whitespace();
        let (algorithm, data) = words
            .next()
            .zip(words.next())
            .ok_or(bad("neither a SHA256 fingerprint nor a key"))?;
        let key = parse_key(algorithm, data).map_err(bad)?;
        Ok(Self::Key(Box::new(key.into())))
    }

    /// Judges an offered key; of a certificate its plain key.
    #[must_use]
    pub fn check(&self, offered: &PublicKeyOrCertificate) -> HostKeyVerdict {
        let key = match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data(),
            PublicKeyOrCertificate::Certificate(certificate) => certificate.public_key(),
        };
        let (same, expected) = match self {
            Self::Fingerprint(pinned) => (fingerprint(key) == *pinned, pinned.clone()),
            Self::Key(pinned) => (pinned.key_data() == key, fingerprint(pinned.key_data())),
        };
        if same {
            return HostKeyVerdict::Trusted;
        }
        let at = Place {
            file: "pinned host key".to_owned(),
            line: 1,
        };
        HostKeyVerdict::Mismatch {
            at,
            expected,
            offered: fingerprint(key),
        }
    }

    /// The pinned key's algorithm, where the whole key is given.
    #[must_use]
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Fingerprint(_) => None,
            Self::Key(key) => Some(key.algorithm()),
        }
    }
}
