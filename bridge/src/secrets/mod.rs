//! Secrets: a type that cannot be printed, and the references by which they enter.
//!
//! Here: [`Secret`] and [`SecretRef`] (`env:NAME`, `file:PATH`). Not here: where they are used; a search for
//! `.expose(` is that list. Read next: `upstream.rs`, the one place that sends one.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

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
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a secret is found; the reference may be printed, the value never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// A variable of the daemon's own environment.
    Env(String),
    /// A file, its one trailing line end removed.
    File(PathBuf),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The reference is in no known form. The text is not repeated: it may be the secret itself.
    #[error("a secret reference is `env:NAME` or `file:PATH`, never the value itself")]
    Form,
    /// The variable is not set, or empty.
    #[error("{0} is not set or empty")]
    Missing(SecretRef),
    /// The file cannot be read.
    #[error("cannot read {reference}")]
    Unreadable {
        /// Which.
        reference: SecretRef,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The value cannot stand in a header.
    #[error(
        "{0} holds a line break, a control character or a byte outside ASCII; it must be one line of visible ASCII"
    )]
    NotAHeaderValue(SecretRef),
}

impl std::str::FromStr for SecretRef {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() && !name.contains('=') => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(SecretError::Form),
        }
    }
}

impl SecretRef {
    /// Resolves the reference now; `env` looks a variable up (see `config::environment`).
    ///
    /// # Errors
    ///
    /// [`SecretError`], none of which repeats the value.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Secret, SecretError> {
        let value =
            match self {
                Self::Env(name) => env(name)
                    .map(Zeroizing::new)
                    .ok_or_else(|| SecretError::Missing(self.clone()))?,
                Self::File(path) => Zeroizing::new(std::fs::read_to_string(path).map_err(|source| {
                    SecretError::Unreadable {
                        reference: self.clone(),
                        source,
                    }
                })?),
            };
        let value = value.strip_suffix('\n').unwrap_or(&value);
        let value = value
            .strip_suffix('\r')
            .unwrap_or(value)
            .trim_matches([' ', '\t']);
        if value.is_empty() {
            return Err(SecretError::Missing(self.clone()));
        }
        if !value.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
            return Err(SecretError::NotAHeaderValue(self.clone()));
        }
        Ok(Secret::new(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("pk_live_1");

        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn a_value_given_in_place_of_a_reference_is_refused_and_not_repeated() {
        let error = "pk_live_1".parse::<SecretRef>().unwrap_err();

        assert!(!error.to_string().contains("pk_live_1"));
    }

    #[test]
    fn a_file_loses_its_line_end_and_nothing_inside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "a b\r\n").unwrap();

        let secret = SecretRef::File(path.clone()).resolve(&|_| None).unwrap();

        assert_eq!(secret.expose(), "a b");
        std::fs::write(&path, "a\nb\n").unwrap();
        assert!(matches!(
            SecretRef::File(path).resolve(&|_| None),
            Err(SecretError::NotAHeaderValue(_))
        ));
    }

    #[test]
    fn an_unset_or_blank_variable_is_missing() {
        let reference: SecretRef = "env:KEY".parse().unwrap();

        assert!(matches!(
            reference.resolve(&|_| None),
            Err(SecretError::Missing(_))
        ));
        assert!(matches!(
            reference.resolve(&|_| Some(" ".into())),
            Err(SecretError::Missing(_))
        ));
    }
}
