//! Session tokens.
//!
//! Here: [`Token`], which cannot be printed, and [`TokenDigest`], all that is kept of it.
//! Not here: where the random bytes come from; the caller brings them.

use alloc::string::String;
use core::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// What every token starts with, so that a leaked one is recognised.
const PREFIX: &str = "pcb_";
/// RFC 4648 section 5.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The throw-away token of one session: `pcb_` and 32 characters of base64url.
pub struct Token {
    text: Zeroizing<String>,
}

/// The SHA-256 of a token. Enough to recognise it, of no use for making it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest {
    bytes: [u8; 32],
}

impl Token {
    /// Makes a token of 24 random bytes, which must come from the system's generator.
    #[must_use]
    pub fn from_random(mut random: [u8; 24]) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 32));
        text.push_str(PREFIX);
        for group in random.chunks_exact(3) {
            let bits = group
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            for shift in [18, 12, 6, 0] {
                let letter = usize::try_from(bits >> shift & 63)
                    .ok()
                    .and_then(|index| ALPHABET.get(index));
                text.push(char::from(letter.copied().unwrap_or_default()));
            }
        }
        random.zeroize();
        Self { text }
    }

    /// The token itself, for the environment of the agent and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What to keep of it.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.text.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl TokenDigest {
    /// The digest of a token or bearer that came from elsewhere.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self {
            bytes: Sha256::digest(token).into(),
        }
    }

    /// A digest that was kept, from [`TokenDigest::to_bytes`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self { bytes }
    }

    /// The digest, for keeping.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; 32] {
        self.bytes
    }

    /// Whether `presented` is the token. The time taken tells nothing of where they differ.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        Self::of(presented).bytes.ct_eq(&self.bytes).into()
    }
}

/// Shows the first four bytes, enough to tell two sessions apart in a log.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenDigest(")?;
        for byte in self.bytes.iter().take(4) {
            write!(formatter, "{byte:02x}")?;
        }
        formatter.write_str("…)")
    }
}

/// The credential in an `Authorization` header of the `Bearer` scheme.
///
/// The scheme in any case (RFC 9110 section 11.1), exactly one space, and the rest as it is: what
/// follows is compared whole, so a second space or a space at the end is part of a wrong token.
#[must_use]
pub fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> Token {
        Token::from_random(core::array::from_fn(|index| {
            u8::try_from(index * 11).expect("below 256")
        }))
    }

    #[test]
    fn a_token_is_the_prefix_and_base64url_of_its_bytes() {
        assert_eq!(
            Token::from_random([0xFF; 24]).expose(),
            "pcb_________________________________"
        );
        assert_eq!(
            Token::from_random([0; 24]).expose(),
            "pcb_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        );
        assert_eq!(counting().expose(), "pcb_AAsWISw3Qk1YY255hI-apbC7xtHc5_L9");
    }

    #[test]
    fn a_digest_knows_its_token_and_no_other() {
        let digest = counting().digest();

        assert!(digest.matches(counting().expose().as_bytes()));
        for wrong in [
            "",
            "pcb_",
            "pcb_AAsWISw3Qk1YY255hI-apbC7xtHc5_L8",
            "pcb_AAsWISw3Qk1YY255hI-apbC7xtHc5_L9 ",
        ] {
            assert!(!digest.matches(wrong.as_bytes()), "{wrong:?}");
        }
        assert_eq!(TokenDigest::from_bytes(digest.to_bytes()), digest);
    }

    #[test]
    fn neither_the_token_nor_the_whole_digest_can_be_printed() {
        let shown = std::format!("{:?} {:?}", counting(), counting().digest());

        assert!(!shown.contains("AAsW"), "{shown}");
        assert_eq!(
            shown.chars().filter(char::is_ascii_hexdigit).count(),
            "e".len() * 5 + 8 - 1,
            "{shown}"
        );
    }

    #[test]
    fn bearer_takes_one_space_and_does_not_trim() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER abc "), Some(&b"abc "[..]));
        assert_eq!(bearer(b"Bearer  abc"), Some(&b" abc"[..]));
        for header in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer\tabc",
            b"Basic abc",
            b" Bearer abc",
        ] {
            assert_eq!(bearer(header), None);
        }
    }
}
