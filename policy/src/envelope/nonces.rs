//! Nonces, and which of them were used.
//!
//! Here: [`Nonce`]; the seam [`Nonces`] to a store that is told of each; [`SeenNonces`], what such a store knows, without
//! IO. Not here: a store on disk (the command line has one).

use alloc::collections::BTreeSet;
use core::cell::RefCell;
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use super::NONCE_KEPT_SECONDS;
use super::key::KeyId;

/// 16 random bytes; written as 22 characters of base64url, which have one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// Takes bytes, which must come from the system's generator.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads its one spelling: no padding, no other alphabet, and the bits behind the last byte zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 22 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 22];
        let written = URL_SAFE_NO_PAD
            .encode_slice(self.0, &mut text)
            .map_err(|_| fmt::Error)?;
        let text = text.get(..written).unwrap_or_default();
        f.write_str(core::str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

/// Whether a nonce had been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Use {
    /// Not before; now it is.
    First,
    /// It was used already.
    Again,
}

/// The store of used nonces does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the store of used nonces cannot be used")]
pub struct NonceStoreDown;

/// Remembers which nonces were used with which key.
pub trait Nonces {
    /// Notes that the nonce is used at `now_unix`, unless that was noted within [`NONCE_KEPT_SECONDS`] of it. Looking and
    /// noting are one step: of callers that bring one nonce at once, exactly one is told [`Use::First`].
    ///
    /// # Errors
    ///
    /// [`NonceStoreDown`]; the request is then refused, never let through.
    fn note(&self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> Result<Use, NonceStoreDown>;
}

/// Used nonces in order. One store may hold times far apart, in any order, as an auditor's clock sets them.
#[derive(Clone, Debug, Default)]
pub struct SeenNonces {
    seen: BTreeSet<(KeyId, Nonce, u64)>,
}

/// For callers on one thread.
impl Nonces for RefCell<SeenNonces> {
    fn note(&self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> Result<Use, NonceStoreDown> {
        let mut seen = self.try_borrow_mut().map_err(|_| NonceStoreDown)?;
        Ok(seen.note(key_id, nonce, now_unix))
    }
}

impl SeenNonces {
    /// As [`Nonces::note`].
    pub fn note(&mut self, key_id: &KeyId, nonce: Nonce, now_unix: u64) -> Use {
        let entry = |time| (key_id.clone(), nonce, time);
        let from = entry(now_unix.saturating_sub(NONCE_KEPT_SECONDS));
        let to = entry(now_unix.saturating_add(NONCE_KEPT_SECONDS));
        if self.seen.range(from..=to).next().is_some() {
            return Use::Again;
        }
        self.seen.insert(entry(now_unix));
        Use::First
    }

    /// Adds what was noted before, elsewhere.
    pub fn restore(&mut self, key_id: KeyId, nonce: Nonce, noted_unix: u64) {
        self.seen.insert((key_id, nonce, noted_unix));
    }

    /// Forgets what does not count any more at `now_unix`.
    pub fn forget_old(&mut self, now_unix: u64) {
        self.seen
            .retain(|(_, _, noted)| now_unix.abs_diff(*noted) <= NONCE_KEPT_SECONDS);
    }

    /// What is remembered: key, nonce and when.
    pub fn iter(&self) -> impl Iterator<Item = (&KeyId, Nonce, u64)> {
        self.seen
            .iter()
            .map(|(key_id, nonce, noted)| (key_id, *nonce, *noted))
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_nonce_has_one_spelling() {
        let nonce = Nonce::parse("AAECAwQFBgcICQoLDA0ODw").expect("a nonce");

        assert_eq!(nonce.to_string(), "AAECAwQFBgcICQoLDA0ODw");
        for other in [
            "",
            "AAECAwQFBgcICQoLDA0OD",
            "AAECAwQFBgcICQoLDA0ODx",
            "AAECAwQFBgcICQoLDA0ODw==",
            "AAECAwQFBgcICQoLDA0ODwA",
            "AAECAwQFBgcICQoLDA0O/w",
            "AAECAwQFBgcICQoLDA0O+w",
            " AECAwQFBgcICQoLDA0ODw",
            "AAECAwQFBgcICQoLDA0Oéw",
        ] {
            assert_eq!(Nonce::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_nonce_counts_for_660_seconds_either_way_and_for_its_key_alone() {
        let (k1, k2) = (KeyId::parse("k1").unwrap(), KeyId::parse("k2").unwrap());
        let nonce = Nonce::from_bytes([7; 16]);
        let mut seen = SeenNonces::default();

        assert_eq!(seen.note(&k1, nonce, 10_000), Use::First);
        assert_eq!(seen.note(&k2, nonce, 10_000), Use::First);
        assert_eq!(seen.note(&k1, nonce, 10_660), Use::Again);
        assert_eq!(seen.note(&k1, nonce, 9_340), Use::Again);
        assert_eq!(seen.note(&k1, nonce, 10_661), Use::First);
        assert_eq!(seen.note(&k1, nonce, 10_000), Use::Again);
    }

    #[test]
    fn what_counts_is_not_forgotten() {
        let k1 = KeyId::parse("k1").unwrap();
        let mut seen = SeenNonces::default();
        for (byte, noted) in [(1, 1_000), (2, 1_001), (3, 5_000)] {
            assert_eq!(seen.note(&k1, Nonce::from_bytes([byte; 16]), noted), Use::First);
        }

        seen.forget_old(1_661);

        assert_eq!(
            seen.iter()
                .map(|(_, _, noted)| noted)
                .collect::<std::vec::Vec<_>>(),
            [1_001]
        );
    }
}
