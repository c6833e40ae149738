//! The head: a small signed file that says how far the audit goes.
//!
//! Here: [`Head`], its form and its signature. Not here: when it is written (`sealer.rs`), what it is held against
//! (`verify/`).

use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AuditError;
use super::key::AuditKey;
use super::line::{Hash, hex, parse_hash};
use crate::session::state::options;

/// Its file.
pub(super) const HEAD: &str = "head";
/// A longer file is none.
const MAX_BYTES: u64 = 4096;
const FORMAT: u32 = 1;

/// The newest record that is on the disk, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    format: u32,
    /// The segment that the record stands in; 0 before the first.
    pub segment: u64,
    /// The record's number; 0 before the first.
    pub seq: u64,
    /// The SHA-256 of the record's line, in hexadecimal.
    pub hash: String,
    /// When this was written.
    pub at: String,
    /// HMAC-SHA256 over the rest, in hexadecimal.
    pub mac: String,
}

impl Head {
    pub(super) fn sign(key: &AuditKey, segment: u64, seq: u64, hash: &Hash) -> Self {
        let mut head = Self {
            format: FORMAT,
            segment,
            seq,
            hash: hex(hash),
            at: format!("{:.6}", jiff::Timestamp::now()),
            mac: String::new(),
        };
        head.mac = hex(&key.tag(HEAD, head.message().as_bytes()));
        head
    }

    /// Whether this key has signed it.
    #[must_use]
    pub fn signed_by(&self, key: &AuditKey) -> bool {
        let mac = parse_hash(&self.mac);
        self.format == FORMAT && mac.is_some_and(|mac| key.signed(HEAD, self.message().as_bytes(), &mac))
    }

    pub(super) fn hash(&self) -> Option<Hash> {
        parse_hash(&self.hash)
    }

    /// Members stand on lines of their own, so that no two heads have the same message.
    fn message(&self) -> String {
        let Self {
            format,
            segment,
            seq,
            hash,
            at,
            mac: _,
        } = self;
        format!("{format}\n{segment}\n{seq}\n{hash}\n{at}")
    }

    /// The form in the file.
    pub(super) fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads what `line` wrote; nothing is checked but the form.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The head of a folder; nothing is checked but the form.
    ///
    /// # Errors
    ///
    /// [`AuditError`] where it cannot be read, or is none.
    pub fn of(folder: &Path) -> Result<Option<Self>, AuditError> {
        match Self::read(folder)? {
            Some(text) => match Self::parse(&text) {
                Some(head) => Ok(Some(head)),
                None => Err(AuditError::Tampered {
                    folder: folder.to_owned(),
                    what: "its head is none".into(),
                }),
            },
            None => Ok(None),
        }
    }

    /// The file's bytes; `None` where there is no file.
    pub(super) fn read(folder: &Path) -> Result<Option<Vec<u8>>, AuditError> {
        let path = folder.join(HEAD);
        let mut text = Vec::new();
        match options().read(true).open(&path) {
            Ok(file) => file
                .take(MAX_BYTES)
                .read_to_end(&mut text)
                .map_err(|error| AuditError::io(&path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(AuditError::io(&path, error)),
        };
        Ok(Some(text))
    }
}
