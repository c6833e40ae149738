//! Why a secret could not be had.
//!
//! Here: the error and whether it may pass by itself. Every text names the reference and where it was looked for; none
//! repeats a value, nor what a server said beyond its error code.

/// Why a secret could not be had.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretError {
    /// The reference is in no known form. The text is not repeated: it may be the secret itself.
    #[error("a secret reference is {0}, never the value itself")]
    Form(String),
    /// The reference is understood, and its place does not give the value.
    #[error("{reference}: {fault}")]
    At {
        /// Which.
        reference: String,
        /// What is wrong there; the text above says it.
        fault: Fault,
    },
}

/// What is wrong with a secret at its place.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// It is not there; the text says where it was looked for.
    #[error("not found: {0}")]
    Missing(String),
    /// It is there, or its place answers, and it must not or cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Its place cannot be asked now.
    #[error("cannot be read now: {0}")]
    Unavailable(String),
}

impl SecretError {
    /// Whether the place could not be asked, so that trying again may help and an older value is still the best known.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Form(_) => false,
            Self::At { fault, .. } => fault.may_pass(),
        }
    }
}

impl Fault {
    pub(crate) const fn may_pass(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Unusable(_) => false,
            Self::Unavailable(_) => true,
        }
    }
}
