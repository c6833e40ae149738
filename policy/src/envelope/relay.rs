//! The bearer by which a sandbox reaches the daemon through a Worker's push relay.
//!
//! Agents send only a URL and a bearer, so all that the Worker must know stands in the bearer:
//! `prt1.{bridge id}.{expiry}.{mac}.{session token}`. The Worker checks the first four parts without asking anybody, so that a stranger
//! can neither wake nor fill the relay; the last part is the daemon's to check, and the Worker passes it on unread. The
//! mac is made with a key derived for this purpose, so that neither kind of signature can stand for the other.

use alloc::format;
use alloc::string::{String, ToString as _};
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

use super::key::{KeyRing, SigningKey};
use super::seconds;

const PURPOSE: &[u8] = b"paperclip-bridge relay v1";

/// What a relay bearer says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RelayBearer<'a> {
    /// Which relay: 1 to 64 of `A-Z a-z 0-9 _ -`.
    pub bridge_id: &'a str,
    /// The first Unix second at which it is good no more.
    pub expires_unix: u64,
    /// What the daemon knows the session by.
    pub session_token: &'a str,
}

/// Why there is no relay bearer, or why one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RelayFault {
    /// Not the five parts.
    #[error("the bearer is not one of a relay (prt1.…)")]
    Form,
    /// Not made with a live key.
    #[error("the bearer was not made with a live key")]
    Mac,
    /// Too old.
    #[error("the bearer has expired")]
    Expired,
}

impl<'a> RelayBearer<'a> {
    /// Makes the bearer.
    ///
    /// # Errors
    ///
    /// [`RelayFault::Form`] where the bridge id or the token cannot stand in one.
    pub fn mint(&self, key: &SigningKey) -> Result<Zeroizing<String>, RelayFault> {
        if !is_bridge_id(self.bridge_id) || !is_token(self.session_token) {
            return Err(RelayFault::Form);
        }
        let head = self.head();
        let mac = mac(key, &head);
        Ok(Zeroizing::new(format!("{head}.{mac}.{}", self.session_token)))
    }

    /// Checks a bearer with every live key: it does not say which one made it.
    ///
    /// # Errors
    ///
    /// [`RelayFault`]; the form first, then the mac, then the time.
    pub fn check(bearer: &'a str, keys: &KeyRing, now_unix: u64) -> Result<Self, RelayFault> {
        let mut parts = bearer.splitn(5, '.');
        let mut part = || parts.next().ok_or(RelayFault::Form);
        let (version, bridge_id, expiry, presented, session_token) =
            (part()?, part()?, part()?, part()?, part()?);
        let expires_unix = seconds(expiry).ok_or(RelayFault::Form)?;
        if version != "prt1" || !is_bridge_id(bridge_id) || !is_token(session_token) {
            return Err(RelayFault::Form);
        }
        let claim = Self {
            bridge_id,
            expires_unix,
            session_token,
        };
        let head = claim.head();
        let mut good = false;
        for key in keys.all_live(now_unix) {
            good |= bool::from(mac(key, &head).as_bytes().ct_eq(presented.as_bytes()));
        }
        if !good {
            return Err(RelayFault::Mac);
        }
        if now_unix >= expires_unix {
            return Err(RelayFault::Expired);
        }
        Ok(claim)
    }

    /// What the mac covers.
    fn head(&self) -> String {
        ["prt1", self.bridge_id, &self.expires_unix.to_string()].join(".")
    }
}

impl fmt::Debug for RelayBearer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayBearer")
            .field("bridge_id", &self.bridge_id)
            .field("expires_unix", &self.expires_unix)
            .finish_non_exhaustive()
    }
}

fn mac(key: &SigningKey, head: &str) -> String {
    URL_SAFE_NO_PAD.encode(key.derive(PURPOSE).tag(head.as_bytes()))
}

fn is_bridge_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    matches!(text.len(), 1..=64) && text.bytes().all(plain)
}

/// What RFC 6750 section 2.1 allows in a bearer.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    matches!(text.len(), 1..=512) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned as _;

    use super::*;
    use crate::envelope::{KeyId, Validity};

    const BEARER: RelayBearer<'_> = RelayBearer {
        bridge_id: "bridge_1",
        expires_unix: 2_000,
        session_token: "pcb_a.b",
    };

    fn key(first: u8) -> SigningKey {
        SigningKey::from_bytes((first..first + 32).collect()).unwrap()
    }

    fn ring(keys: &[u8]) -> KeyRing {
        let mut ring = KeyRing::default();
        for first in keys {
            let id = KeyId::parse(&format!("k{first}")).unwrap();
            ring.add(id, key(*first), Validity::default()).unwrap();
        }
        ring
    }

    #[test]
    fn what_was_minted_is_read_with_either_live_key() {
        let bearer = BEARER.mint(&key(0)).unwrap();

        assert!(bearer.starts_with("prt1.bridge_1.2000."), "{}", *bearer);
        assert!(bearer.ends_with(".pcb_a.b"), "{}", *bearer);
        for keys in [&[0][..], &[9, 0], &[0, 9]] {
            assert_eq!(RelayBearer::check(&bearer, &ring(keys), 1_999), Ok(BEARER));
        }
    }

    #[test]
    fn a_bearer_of_another_key_bridge_or_time_is_refused() {
        let bearer = BEARER.mint(&key(0)).unwrap();
        let check = |bearer: &str, now| RelayBearer::check(bearer, &ring(&[0]), now).err();

        assert_eq!(check(&bearer, 2_000), Some(RelayFault::Expired));
        assert_eq!(RelayBearer::check(&bearer, &ring(&[9]), 0), Err(RelayFault::Mac));
        assert_eq!(RelayBearer::check(&bearer, &ring(&[]), 0), Err(RelayFault::Mac));
        for (from, to) in [(".2000.", ".2001."), ("bridge_1", "bridge_2"), (".pcb", "A.pcb")] {
            assert_eq!(
                check(&bearer.replacen(from, to, 1), 0),
                Some(RelayFault::Mac),
                "{to}"
            );
        }
        // The session's token is the daemon's to check.
        assert_eq!(check(&bearer.replace("pcb_a.b", "other"), 0), None);
    }

    #[test]
    fn what_is_no_relay_bearer_is_refused_before_any_key_is_used() {
        let good = BEARER.mint(&key(0)).unwrap();
        for (from, to) in [
            ("prt1", "prt2"),
            ("prt1", "PRT1"),
            (".2000.", ".02000."),
            (".2000.", ".+2000."),
            (".2000.", ".."),
            (".2000.", ".18446744073709551616."),
            ("bridge_1", ""),
            ("bridge_1", "a/b"),
            (".pcb_a.b", ""),
            ("pcb_a.b", ""),
            ("pcb_a.b", "a b"),
        ] {
            let bearer = good.replacen(from, to, 1);
            let checked = RelayBearer::check(&bearer, &ring(&[0]), 0);
            assert_eq!(checked, Err(RelayFault::Form), "{bearer}");
        }
        let longest = "a".repeat(65);
        for bridge_id in ["", "a.b", "é", &longest] {
            let bearer = RelayBearer { bridge_id, ..BEARER };
            assert_eq!(bearer.mint(&key(0)).err(), Some(RelayFault::Form), "{bridge_id}");
        }
    }

    #[test]
    fn the_session_token_is_never_shown() {
        let shown = format!("{:?} {:?}", BEARER, Some(BEARER).to_owned());

        assert!(!shown.contains("pcb_"), "{shown}");
    }
}
