//! The key that signs heads.
//!
//! Here: [`AuditKey`], taken from an operator's secret or made in the audit's folder. Not here: what is signed
//! (`head.rs`, `writer.rs`).

use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::AuditError;
use super::line::{Hash, hex, parse_hash};
use crate::secrets::Secret;
use crate::session::state::{options, write_whole};

/// The default key's file in the folder.
pub(super) const KEY: &str = "key";
/// A shorter text from elsewhere is no key.
const LEAST_TEXT_BYTES: usize = 32;

/// Signs with HMAC-SHA256 (RFC 2104). Wiped when dropped; cannot be printed.
#[derive(Clone)]
pub struct AuditKey(Zeroizing<Hash>);

impl AuditKey {
    /// Takes a key by an operator's reference: text of 32 characters or more.
    ///
    /// # Errors
    ///
    /// [`AuditError::Key`] where it is shorter.
    pub fn of_secret(secret: &Secret) -> Result<Self, AuditError> {
        let text = secret.expose().as_bytes();
        if text.len() < LEAST_TEXT_BYTES {
            return Err(AuditError::Key(format!(
                "the audit's key has {} characters, but must have {LEAST_TEXT_BYTES} or more; make one with `openssl rand -hex 32`",
                text.len()
            )));
        }
        Ok(Self(Zeroizing::new(Sha256::digest(text).into())))
    }

    /// Reads the key that lies in an audit's folder.
    ///
    /// # Errors
    ///
    /// [`AuditError::Key`] where there is none, or no key in it.
    pub fn in_folder(folder: &Path) -> Result<Self, AuditError> {
        match Self::found(folder)? {
            Some(key) => Ok(key),
            None => Err(AuditError::Key(format!(
                "there is no file {}: name the audit's key by a reference",
                folder.join(KEY).display()
            ))),
        }
    }

    /// The same, made where there is none yet.
    pub(super) fn in_folder_or_new(folder: &Path) -> Result<Self, AuditError> {
        if let Some(key) = Self::found(folder)? {
            return Ok(key);
        }
        let mut key = Zeroizing::new(Hash::default());
        getrandom::fill(&mut *key)
            .map_err(|error| AuditError::Key(format!("the system gives no random bytes: {error}")))?;
        let text = Zeroizing::new(hex(&*key) + "\n");
        write_whole(folder, KEY, text.as_bytes()).map_err(|error| AuditError::Folder(error.to_string()))?;
        Ok(Self(key))
    }

    fn found(folder: &Path) -> Result<Option<Self>, AuditError> {
        let path = folder.join(KEY);
        let mut text = Zeroizing::new(String::with_capacity(128));
        match options().read(true).open(&path) {
            Ok(file) => file
                .take(100)
                .read_to_string(&mut text)
                .map_err(|error| AuditError::Key(format!("cannot read {}: {error}", path.display())))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(AuditError::Key(format!(
                    "cannot read {}: {error}",
                    path.display()
                )));
            }
        };
        match parse_hash(text.trim_end_matches('\n')) {
            Some(key) => Ok(Some(Self(Zeroizing::new(key)))),
            None => Err(AuditError::Key(format!(
                "{} does not hold 64 hexadecimal digits",
                path.display()
            ))),
        }
    }

    /// The tag of `message`; `purpose` keeps a tag for one thing from being one for another.
    pub(super) fn tag(&self, purpose: &str, message: &[u8]) -> Hash {
        self.mac(purpose, message).finalize().into_bytes().into()
    }

    /// Whether `presented` is that tag. Constant time.
    pub(super) fn signed(&self, purpose: &str, message: &[u8], presented: &Hash) -> bool {
        self.mac(purpose, message).verify(presented.into()).is_ok()
    }

    fn mac(&self, purpose: &str, message: &[u8]) -> Hmac<Sha256> {
        // A block of the hash: the crate's constructor for keys of any length returns an error that cannot come.
        let mut block = Zeroizing::new([0; 64]);
        for (place, byte) in block.iter_mut().zip(self.0.iter()) {
            *place = *byte;
        }
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        mac.update(b"paperclip-bridge audit 1\n");
        mac.update(purpose.as_bytes());
        mac.update(b"\n");
        mac.update(message);
        mac
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey(..)")
    }
}
