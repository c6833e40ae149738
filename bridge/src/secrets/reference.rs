//! References: what an operator writes where a secret is wanted.
//!
//! Here: [`SecretRef`] and the one list of kinds. A new kind is a file with a `Kind` and a `Place`, and one entry in
//! `KINDS`. Not here: the kinds themselves.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::error::{Fault, SecretError};
use super::place::{Mark, Place, Surroundings};
use super::value::Secret;
use super::{aws, env, file, systemd};

/// A longer reference is none: the longest that can be meant holds an ARN of 2048 bytes.
const MAX_REFERENCE_BYTES: usize = 4096;

/// Every kind of reference, in the order in which messages list them.
static KINDS: &[&Kind] = &[&env::KIND, &file::KIND, &systemd::KIND, &aws::KIND];

/// A kind of reference: the word in front of the colon, and what it makes of the rest.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// As it stands in messages and `--help`, such as `env:NAME`.
    pub(crate) form: &'static str,
    /// Makes a place of what stands behind the colon, or says what is wrong with it without repeating it.
    pub(crate) parse: fn(&str) -> Result<Arc<dyn Place>, &'static str>,
}

/// Where a secret is found; the reference may be printed, the value never.
#[derive(Clone)]
pub struct SecretRef {
    text: Arc<str>,
    place: Arc<dyn Place>,
}

impl SecretRef {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What to write, for messages.
    pub(crate) fn forms() -> String {
        forms()
    }

    /// Whether reading it means to ask another machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.place.is_remote()
    }

    /// A value that is at hand, for sessions that no operator wrote a reference for.
    pub(crate) fn given(secret: Secret) -> Self {
        Self::to("a value given by the program", Arc::new(Given(secret)))
    }

    pub(crate) fn to(text: &str, place: Arc<dyn Place>) -> Self {
        Self {
            text: text.into(),
            place,
        }
    }

    pub(crate) fn mark(&self, around: &Surroundings) -> Option<Mark> {
        self.place.mark(around)
    }

    pub(crate) async fn read(&self, around: &Surroundings) -> Result<(Secret, Option<Mark>), SecretError> {
        let read = self.place.read(around).await;
        read.and_then(|(text, mark)| Ok((Secret::of_text(&text)?, mark)))
            .map_err(|fault| self.error(fault))
    }

    /// What stands there with its lines, such as a key in PEM.
    pub(crate) async fn document(&self, around: &Surroundings) -> Result<Zeroizing<String>, SecretError> {
        let read = self.place.read(around).await;
        let (text, _) = read.map_err(|fault| self.error(fault))?;
        Ok(text)
    }

    pub(crate) fn error(&self, fault: Fault) -> SecretError {
        SecretError::At {
            reference: self.text.to_string(),
            fault,
        }
    }
}

impl FromStr for SecretRef {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (name, rest) = text.split_once(':').unwrap_or_default();
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == name && text.len() <= MAX_REFERENCE_BYTES)
            .ok_or_else(|| SecretError::Form(forms()))?;
        let place = (kind.parse)(rest).map_err(|why| SecretError::Form(format!("{} ({why})", kind.form)))?;
        Ok(Self::to(text, place))
    }
}

/// Every form, as a list for messages.
fn forms() -> String {
    let forms: Vec<_> = KINDS.iter().map(|kind| kind.form).collect();
    forms.join(" or ")
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretRef({})", self.text)
    }
}

impl PartialEq for SecretRef {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SecretRef {}

/// A value that needs no look-up.
#[derive(Debug)]
struct Given(Secret);

impl Place for Given {
    fn mark(&self, _: &Surroundings) -> Option<Mark> {
        Some(Mark::Unchanging)
    }

    fn read<'a>(&'a self, _: &'a Surroundings) -> super::place::Reading<'a> {
        let text = zeroize::Zeroizing::new(self.0.expose().to_owned());
        Box::pin(std::future::ready(Ok((text, Some(Mark::Unchanging)))))
    }
}
