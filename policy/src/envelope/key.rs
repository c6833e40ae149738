//! Keys of signed requests, and the ring of those that are live.
//!
//! Here: [`KeyId`], [`SigningKey`], which cannot be printed, and [`KeyRing`], in which two or more keys live at once
//! while one is replaced. Not here: where a key comes from; the caller resolves a reference to it.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Name of a key: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (matches!(text.len(), 1..=64) && text.bytes().all(plain)).then(|| Self(text.to_owned()))
    }

    /// As it stands in a header field.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key that signs; wiped when dropped.
#[derive(Clone)]
pub struct SigningKey {
    bytes: Zeroizing<Vec<u8>>,
}

/// What is wrong with a key. Says nothing of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyFault {
    /// Not base64.
    #[error("is not base64 with padding; make one with `openssl rand -base64 32`")]
    NotBase64,
    /// Fewer bytes than the signature has.
    #[error("has {0} bytes, but must have {min} or more; make one with `openssl rand -base64 32`", min = SigningKey::MIN_BYTES)]
    TooShort(usize),
    /// There is a key of that name already.
    #[error("is there twice")]
    Twice,
}

impl SigningKey {
    /// Random bytes that a key has at least.
    pub const MIN_BYTES: usize = 32;

    /// Takes the bytes themselves.
    ///
    /// # Errors
    ///
    /// [`KeyFault::TooShort`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, KeyFault> {
        let bytes = Zeroizing::new(bytes);
        if bytes.len() < Self::MIN_BYTES {
            return Err(KeyFault::TooShort(bytes.len()));
        }
        Ok(Self { bytes })
    }

    /// Takes the bytes in base64, with padding (RFC 4648 section 4), which is how configurations hold them.
    ///
    /// # Errors
    ///
    /// [`KeyFault::NotBase64`], [`KeyFault::TooShort`].
    pub fn from_base64(text: &str) -> Result<Self, KeyFault> {
        Self::from_bytes(STANDARD.decode(text).map_err(|_| KeyFault::NotBase64)?)
    }

    /// HMAC-SHA256 (RFC 2104) of `message`.
    pub(super) fn tag(&self, message: &[u8]) -> [u8; 32] {
        tag(&self.bytes, message)
    }

    /// Whether `presented` is the tag of `message`. The time taken tells nothing of where they differ.
    pub(super) fn matches(&self, message: &[u8], presented: &[u8; 32]) -> bool {
        self.tag(message).ct_eq(presented).into()
    }

    /// A key for one purpose only, from which this one cannot be found.
    pub(super) fn derive(&self, purpose: &[u8]) -> Self {
        Self {
            bytes: Zeroizing::new(self.tag(purpose).to_vec()),
        }
    }

    /// A key that signs nothing: what an unknown key is checked with, so that it takes as long as a known one.
    pub(super) fn dummy() -> Self {
        Self {
            bytes: Zeroizing::new(Vec::from([0; Self::MIN_BYTES])),
        }
    }
}

fn tag(key: &[u8], message: &[u8]) -> [u8; 32] {
    // RFC 2104 section 2: a key longer than a block is hashed, then zeros fill the block. Done here because the crate's
    // constructor for keys of any length returns an error that cannot come and could not be handled.
    let mut block = Zeroizing::new([0; 64]);
    if key.len() > block.len() {
        fill(&mut *block, &Sha256::digest(key));
    } else {
        fill(&mut *block, key);
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn fill(block: &mut [u8], from: &[u8]) {
    for (to, byte) in block.iter_mut().zip(from) {
        *to = *byte;
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// When a key is good, in Unix seconds, both ends included; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub not_before: Option<u64>,
    /// Not after.
    pub not_after: Option<u64>,
}

impl Validity {
    fn holds(self, now_unix: u64) -> bool {
        self.not_before.is_none_or(|start| start <= now_unix)
            && self.not_after.is_none_or(|end| now_unix <= end)
    }
}

/// The keys that a verifier knows. An empty one refuses everything.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, (SigningKey, Validity)>,
}

impl KeyRing {
    /// Adds a key.
    ///
    /// # Errors
    ///
    /// [`KeyFault::Twice`]; the first one stays.
    pub fn add(&mut self, id: KeyId, key: SigningKey, validity: Validity) -> Result<(), KeyFault> {
        if self.keys.contains_key(&id) {
            return Err(KeyFault::Twice);
        }
        self.keys.insert(id, (key, validity));
        Ok(())
    }

    /// The key of that name, if it is good at `now_unix`.
    #[must_use]
    pub fn live(&self, id: &KeyId, now_unix: u64) -> Option<&SigningKey> {
        let (key, validity) = self.keys.get(id)?;
        validity.holds(now_unix).then_some(key)
    }

    /// All keys that are good at `now_unix`.
    pub fn all_live(&self, now_unix: u64) -> impl Iterator<Item = &SigningKey> {
        self.keys
            .values()
            .filter(move |(_, validity)| validity.holds(now_unix))
            .map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_bytes(alloc::vec![byte; 32]).expect("long enough")
    }

    fn id(text: &str) -> KeyId {
        KeyId::parse(text).expect("a key id")
    }

    #[test]
    fn the_tag_is_that_of_rfc_4231() {
        let key = SigningKey::from_bytes(alloc::vec![0xaa; 131]).expect("long enough");

        let tag = key.tag(b"Test Using Larger Than Block-Size Key - Hash Key First");

        let wanted = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(crate::envelope::hex(&tag), wanted);
        assert!(key.matches(b"Test Using Larger Than Block-Size Key - Hash Key First", &tag));
    }

    #[test]
    fn a_key_of_31_bytes_is_too_short_and_no_bytes_are_none() {
        assert_eq!(
            SigningKey::from_bytes(alloc::vec![1; 31]).err(),
            Some(KeyFault::TooShort(31))
        );
        assert_eq!(SigningKey::from_base64("").err(), Some(KeyFault::TooShort(0)));
        for text in ["AAECAw", "AAEC!w==", " AAECAw==", "AAECAx=="] {
            assert_eq!(
                SigningKey::from_base64(text).err(),
                Some(KeyFault::NotBase64),
                "{text}"
            );
        }
    }

    #[test]
    fn a_key_cannot_be_printed() {
        let mut ring = KeyRing::default();
        ring.add(id("k1"), key(0x41), Validity::default()).expect("new");

        let shown = std::format!("{:?} {ring:?}", key(0x41));

        assert!(!shown.contains("65") && !shown.contains("AAAA"), "{shown}");
    }

    #[test]
    fn a_key_is_live_from_its_first_second_to_its_last() {
        let mut ring = KeyRing::default();
        let validity = Validity {
            not_before: Some(100),
            not_after: Some(200),
        };
        ring.add(id("k1"), key(1), validity).expect("new");
        ring.add(id("k2"), key(2), Validity::default()).expect("new");

        let live = |now| (ring.live(&id("k1"), now).is_some(), ring.all_live(now).count());

        assert_eq!(
            [live(99), live(100), live(200), live(201)],
            [(false, 1), (true, 2), (true, 2), (false, 1)]
        );
        assert!(ring.live(&id("k3"), 150).is_none());
    }

    #[test]
    fn a_second_key_of_the_same_name_does_not_replace_the_first() {
        let mut ring = KeyRing::default();
        ring.add(id("k1"), key(1), Validity::default()).expect("new");

        let again = ring.add(id("k1"), key(2), Validity::default());

        assert_eq!(again, Err(KeyFault::Twice));
        let kept = ring.live(&id("k1"), 0).expect("live");
        assert_eq!(kept.tag(b"x"), key(1).tag(b"x"));
    }

    #[test]
    fn a_key_id_is_1_to_64_plain_characters() {
        for good in ["k", "K-1_b.c", &"a".repeat(64)] {
            assert!(KeyId::parse(good).is_some(), "{good}");
        }
        for bad in ["", "a b", "a,b", "é", "a\n", &"a".repeat(65)] {
            assert!(KeyId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
