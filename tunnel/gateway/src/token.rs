//! Whether a caller holds the bridge token.
//!
//! Here: the comparison, over SHA-256 of both sides, so that it takes the same time whatever differs and so that the
//! token itself need not be known. Not here: how a refusal is worded, how another token comes (`token_file.rs`).

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::settings::Role;
use crate::token_file::TokenFile;

/// Knows the token by its digest only.
#[derive(Clone)]
pub struct TokenCheck {
    /// Of the token that holds from the start.
    digest: [u8; 32],
    /// Says which one holds now.
    file: Option<Arc<TokenFile>>,
}

impl fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenCheck(…)")
    }
}

impl TokenCheck {
    /// Of the token's text.
    #[must_use]
    pub fn of_text(token: &str) -> Self {
        Self {
            digest: Sha256::digest(token.as_bytes()).into(),
            file: None,
        }
    }

    /// Of 64 hexadecimal digits; `None` if they are not.
    #[must_use]
    pub fn of_digest(hex: &str) -> Option<Self> {
        digest_of(hex).map(|digest| Self { digest, file: None })
    }

    /// The same, taking from now on what the file at `path` says; the file is made.
    ///
    /// - `start`: marks what there is meant for this gateway.
    ///
    /// # Errors
    ///
    /// That of making it.
    pub fn following(&self, path: PathBuf, start: &str) -> io::Result<Self> {
        let file = TokenFile::make(path, start, self.digest)?;
        Ok(Self {
            file: Some(Arc::new(file)),
            ..self.clone()
        })
    }

    fn is(&self, token: &[u8]) -> bool {
        let holds = self.file.as_ref().map_or(self.digest, |file| file.digest());
        let digest: [u8; 32] = Sha256::digest(token).into();
        digest.ct_eq(&holds).into()
    }

    /// Whether these headers carry the token.
    ///
    /// As peer: the first `authorization` counts and must begin with `Bearer ` in exactly this case. As our own: there
    /// must be one, with the scheme in any case (RFC 9110 section 11.1).
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap, role: Role) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), second) = (values.next(), values.next()) else {
            return false;
        };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(b"Bearer ".len()) else {
            return false;
        };
        match role {
            Role::Peer => scheme == b"Bearer " && self.is(token),
            Role::Ours => second.is_none() && scheme.eq_ignore_ascii_case(b"Bearer ") && self.is(token),
        }
    }
}

/// Reads 64 hexadecimal digits; `None` if they are not.
pub(crate) fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        let value = char::from(*high).to_digit(16)? << 4 | char::from(*low).to_digit(16)?;
        *byte = u8::try_from(value).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (header::AUTHORIZATION, http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn text_and_digest_of_one_token_admit_the_same_headers() {
        let text = TokenCheck::of_text("abc");
        let digest =
            TokenCheck::of_digest("BA7816BF8F01CFEA414140DE5DAE2223b00361a396177a9cb410ff61f20015ad")
                .expect("digits");

        for check in [text, digest] {
            for role in [Role::Ours, Role::Peer] {
                assert!(check.admits(&headers(&["Bearer abc"]), role));
                assert!(!check.admits(&headers(&["Bearer abd"]), role));
                assert!(!check.admits(&headers(&["Bearer  abc"]), role));
                assert!(!check.admits(&headers(&["Basic abc"]), role));
                assert!(!check.admits(&headers(&[""]), role));
                assert!(!check.admits(&headers(&[]), role));
            }
        }
    }

    #[test]
    fn the_roles_differ_in_the_case_of_the_scheme_and_in_repeats() {
        let check = TokenCheck::of_text("abc");

        assert!(check.admits(&headers(&["bearer abc"]), Role::Ours));
        assert!(!check.admits(&headers(&["bearer abc"]), Role::Peer));
        assert!(!check.admits(&headers(&["Bearer abc", "Bearer x"]), Role::Ours));
        assert!(check.admits(&headers(&["Bearer abc", "Bearer x"]), Role::Peer));
        assert!(!check.admits(&headers(&["Bearer x", "Bearer abc"]), Role::Peer));
    }

    #[test]
    fn a_digest_that_is_not_64_digits_is_refused() {
        for hex in ["", "ab", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65)] {
            assert!(TokenCheck::of_digest(hex).is_none(), "{hex}");
        }
    }
}
