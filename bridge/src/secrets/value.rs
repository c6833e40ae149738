//! The value itself, and what every place's value must look like.
//!
//! Here: [`Secret`] and [`Secret::of_text`]. Not here: where the text comes from.

use std::fmt;

use zeroize::Zeroizing;

use super::error::Fault;

/// Bytes that must not be printed, logged or serialised; wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a value as it is.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The only way to the value.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes what a place holds: one line of visible ASCII, its one line end and blanks around it removed.
    ///
    /// # Errors
    ///
    /// [`Fault`], which does not repeat it: [`Fault::Missing`] where nothing is left.
    pub(crate) fn of_text(text: &str) -> Result<Self, Fault> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text).trim_matches([' ', '\t']);
        if text.is_empty() {
            return Err(Fault::Missing("it is empty".into()));
        }
        if !text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
            return Err(Fault::Unusable(
                "it holds a line break, a control character or a byte outside ASCII; it must be one line of visible ASCII"
                    .into(),
            ));
        }
        Ok(Self::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
